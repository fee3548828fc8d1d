"""growth.py - bar 8: 2, 4, 8 and 16 small VMs on four hosts of this one machine: pause, commit, and what the agents use.

VMs of 96 MiB that do nothing, every 200 ms. CPU is that of all agents' processes over the time, in per cent of one core; memory is what is
anonymous in the largest agent (images are files). Every VM's QEMU shares the machine's cores, so that with many VMs the figures are those of a
machine that is full, not of the protocol.

 B8 memory of an agent beside images: <= 32 MiB + two epochs (of the VMs of its host)
"""

import time

import vcft
from cluster import LAB, bring_up, commits, committed
from report import Part, median

COUNTS = (2, 4, 8, 16)
HOSTS, SECONDS = 4, 10
MEMORY_LIMIT_MIB = 32
USAGE = "p=$(pidof virtcftd | tr ' ' '\\n' | sort -n | head -n 1); cut -d' ' -f14,15 /proc/$p/stat; grep ^Anonymous: /proc/$p/smaps_rollup"
TICKS_PER_S = 100


def usage(lab, host):
    """(CPU seconds so far, anonymous bytes) of the agent of a host."""
    words = lab.exec(host, "sh", "-c", USAGE).split()
    return (int(words[0]) + int(words[1])) / TICKS_PER_S, int(words[3]) * 1024


def measure_count(part, count):
    with vcft.Lab(HOSTS, name=LAB) as lab:
        places = {f"vm{i}": lab.names[i % HOSTS] for i in range(count)}
        cluster = bring_up(lab, [vcft.tiny_vm(name, i + 1, host) for i, (name, host) in enumerate(places.items())], "200ms")
        events = {host: cluster.events(host) for host in lab.names}
        before, start = {host: usage(lab, host) for host in lab.names}, vcft.now()
        time.sleep(SECONDS)
        after, end = {host: usage(lab, host) for host in lab.names}, vcft.now()
    rows = {vm: committed(events[host], vm, start, end) for vm, host in places.items()}
    pauses = [row["pause_us"] for vm in rows.values() for row in vm]
    epochs = max(sum(2 * median([row["raw_bytes"] for row in rows[vm]]) for vm, on in places.items() if on == host) for host in lab.names)
    found = {"vms": count, "pause_us": median(pauses), "commit_ms": median([row["commit_ms"] for row in commits(events["host1"], start, end)]),
             "cpu_percent": sum(after[h][0] - before[h][0] for h in lab.names) / ((end - start) / 1e9) * 100,
             "memory_mib": max(a for _, a in after.values()) / (1 << 20), "two_epochs_mib": epochs / (1 << 20)}
    part.keep("growth", **found)
    return found


def measure(_out):
    part = Part("growth")
    for count in COUNTS:
        with part.attempt(f"8 growth, {count} VMs"):
            found = measure_count(part, count)
            part.note(f"8 {count} VMs: pause {found['pause_us'] / 1e3:.1f} ms, commit {found['commit_ms']:.1f} ms, agents "
                      f"{found['cpu_percent']:.0f} % of a core (no bar)")
            part.bar("8", f"memory of an agent beside images, {count} VMs", found["memory_mib"], MEMORY_LIMIT_MIB + found["two_epochs_mib"], "MiB")
    return part
