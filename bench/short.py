"""short.py - three bars on real guests in some 40 s: `bench/run --short`, at the end of `make check`.

    three hosts; ping (host1) ──lan──► echo (host2); writer (host2) rewrites 500 pages; idle (host3); all 256 MiB, checkpoints every 100 ms

 B1 pause        median freeze of a checkpoint / median freeze of the bare three commands (stop, save, cont) on the same QEMU: <= 2.5
 B2 recovery     host2, with two VMs, is killed: detection to all VMs running: <= 1500 ms
 B3 round trip   ping's median while checkpointed / unprotected (the same cluster with an interval of ten minutes): <= 1.2

The unprotected cluster and the checkpointed one run one after the other; the bare pauses are measured between the checkpoints of the same QEMU.
"""

import vcft
from cluster import LAB, bare_pauses, committed, pinger_windows
from report import Part, median

UNPROTECTED, CHECKPOINTED = "600s", "100ms"
PINGS, PING_MS = 1500, 4
BARE = 40


def machines():
    return [
        vcft.tiny_vm("ping", 1, "host1", neighbours=[2], memory="256M"),
        vcft.tiny_vm("echo", 2, "host2", ["pinger serve 7"], neighbours=[1], memory="256M"),
        vcft.tiny_vm("writer", 3, "host2", ["memwriter 5000 500"], memory="256M"),
        vcft.tiny_vm("idle", 4, "host3", memory="256M"),
    ]


def round_trips(cluster):
    """Medians of each hundred answers, µs."""
    medians = [w["median_us"] for w in pinger_windows(cluster.console("ping").run("host1", f"pinger {vcft.lan_address(2)}:7 {PING_MS} {PINGS}", timeout=120))]
    return medians[1:-1] or medians      # the first window finds the caches cold, the last may be short


def run_cluster(part, lab, interval):
    """One cluster from up to down; its round trips and, if it is checkpointed, the rest too (its host2 is gone then)."""
    cluster = vcft.Cluster(lab, machines(), networks=(vcft.LAN,), interval=interval, verify=False, name="bench").up()
    cluster.wait_ready()
    found = {}
    if interval == CHECKPOINTED:
        cluster.wait_protected(timeout=60)
        events = {host: cluster.events(host) for host in lab.names}
        start = vcft.now()
        found["bare"] = {vm: bare_pauses(cluster, vm, BARE) for vm in ("writer", "idle")}
    found["rtt"] = round_trips(cluster)
    part.keep("round_trip_us", interval=interval, medians=found["rtt"])
    if interval == CHECKPOINTED:
        for vm, host in (("writer", "host2"), ("idle", "host3")):
            rows = committed(events[host], vm, start)
            found[vm] = [row["pause_us"] for row in rows]
            part.keep("pause_us", vm=vm, values=found[vm], dirty_pages=[row["dirty_pages"] for row in rows], bare=found["bare"][vm])
        found["recovery"] = recovery(lab, events)
        part.keep("recovery", **found["recovery"])
    cluster.down()
    return found


def recovery(lab, events):
    killed = lab.kill("host2")
    survivors = ("host1", "host3")
    back = [events[host].wait_for("recovery-finished", since=killed) for host in survivors]
    lost = min(events[host].wait_for("host-lost", since=killed)["time"] for host in survivors)
    return {"detect_ms": (lost - killed) / 1e6, "recover_ms": (max(e["time"] for e in back) - lost) / 1e6}


def measure(_out):
    part = Part("short")
    with vcft.Lab(3, name=LAB) as lab:
        plain, protected = run_cluster(part, lab, UNPROTECTED), run_cluster(part, lab, CHECKPOINTED)
    for vm, text in (("idle", "idle"), ("writer", "500 pages per epoch")):
        pause, bare = median(protected[vm]), median(protected["bare"][vm])
        part.bar("B1", f"pause, {text}: {pause:.0f} µs / bare {bare:.0f} µs", pause / bare, 2.5, "x")
    found = protected["recovery"]
    part.bar("B2", f"recovery of four VMs (noticed after {found['detect_ms']:.0f} ms)", found["recover_ms"], 1500, "ms")
    on, off = median(protected["rtt"]), median(plain["rtt"])
    part.bar("B3", f"round trip: {on:.0f} µs checkpointed / {off:.0f} µs unprotected", on / off, 1.2, "x")
    return part
