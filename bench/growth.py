"""growth.py - bar 8: 2, 4, 8 and 16 small VMs on four hosts of this one machine: pause, commit, and what the agents use.

VMs of 96 MiB that do nothing, every 200 ms. CPU is that of all agents' processes over the time, in per cent of one core; memory is what is
anonymous in the largest agent (images are files). Every VM's QEMU shares the machine's cores, so that with many VMs the figures are those of a
machine that is full, not of the protocol.

The costs that come out of it (CPU time of a VM's epoch and of a message by a straight line through the points, pause and commit of two VMs) go into
scale.c: the same core in virtual time. It is asked for the points that were measured, to see what it is worth, and then for up to 32 hosts, a machine
with 16 cores each, and 1,000 VMs.

 B8 memory of an agent beside images: <= 32 MiB + two epochs (of the VMs of its host)
"""

import json
import os
import subprocess
import time

import vcft
from cluster import LAB, bring_up, commits, committed
from report import Part, median

COUNTS = (2, 4, 8, 16)
HOSTS, SECONDS, INTERVAL_MS = 4, 10, 200
SCALED = ((2, 64), (4, 125), (8, 250), (16, 500), (32, 1000))      # hosts, VMs
SCALED_CORES, LINKS_MBIT = 16, (1000, 10000)
SEND_SHARE = 0.6                                                   # of a VM's CPU time in an epoch; the rest is its backup's
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
        cluster = bring_up(lab, [vcft.tiny_vm(name, i + 1, host) for i, (name, host) in enumerate(places.items())], f"{INTERVAL_MS}ms")
        events = {host: cluster.events(host) for host in lab.names}
        before, start = {host: usage(lab, host) for host in lab.names}, vcft.now()
        time.sleep(SECONDS)         # the length of the measurement
        after, end = {host: usage(lab, host) for host in lab.names}, vcft.now()
    rows = {vm: committed(events[host], vm, start, end) for vm, host in places.items()}
    pauses = [row["pause_us"] for vm in rows.values() for row in vm]
    epochs = max(sum(2 * median([row["raw_bytes"] for row in rows[vm]]) for vm, on in places.items() if on == host) for host in lab.names)
    found = {"vms": count, "pause_us": median(pauses), "commit_ms": median([row["commit_ms"] for row in commits(events["host1"], start, end)]),
             "cpu_percent": sum(after[h][0] - before[h][0] for h in lab.names) / ((end - start) / 1e9) * 100,
             "sent_bytes": median([row["sent_bytes"] for vm in rows.values() for row in vm]),
             "memory_mib": max(a for _, a in after.values()) / (1 << 20), "two_epochs_mib": epochs / (1 << 20)}
    part.keep("growth", **found)
    return found


def line(points):
    """Slope and value at 0 of the straight line that is nearest."""
    xs, ys = zip(*points)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a in xs)
    return slope, y - slope * x


def scale(**options):
    """One run of scale.c."""
    program = os.path.join(vcft.BUILD, "bench", "scale")
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout)


def costs(rows):
    """What scale.c is given; the token's hop is what makes it right for two VMs."""
    vm_us, base_us = line([(row["vms"], row["cpu_percent"] / 100 * INTERVAL_MS * 1e3) for row in rows])
    few = rows[0]
    received = HOSTS * (1 + min(few["vms"], HOSTS) + HOSTS)        # BEGIN, STORED of those with VMs, KNOWN of all: at each host
    given = {"pause": few["pause_us"], "send": max(1, vm_us * SEND_SHARE), "receive": max(1, vm_us * (1 - SEND_SHARE)), "deliver": max(1, base_us / received),
             "bytes": int(median([row["sent_bytes"] for row in rows])), "interval": INTERVAL_MS}
    low, high = 0, 20000
    while high - low > 5:
        given["hop"] = (low + high) / 2
        low, high = (given["hop"], high) if here(few["vms"], given)["commit_ms"] < few["commit_ms"] else (low, given["hop"])
    return given


def here(vms, given):
    """As measured: all hosts on this one machine."""
    return scale(hosts=HOSTS, machines=1, cores=os.cpu_count(), vms=vms, **given)


def carry_on(part, rows):
    subprocess.run(["ninja", "-C", vcft.BUILD, "--quiet", "bench/scale"], check=True)
    given = costs(rows)
    part.keep("scale-costs", **given)
    for row in rows:
        told = here(row["vms"], given)
        part.keep("scale-here", **told)
        part.note(f"8 {row['vms']} VMs, by the costs: pause {told['pause_us'] / 1e3:.1f} ms, commit {told['commit_ms']:.1f} ms")
    for link in LINKS_MBIT:
        for hosts, vms in SCALED:
            told = scale(hosts=hosts, vms=vms, cores=SCALED_CORES, link=link, **given)
            part.keep("scale", link_mbit=link, **told)
            part.note(f"8 {vms} VMs on {hosts} hosts with links of {link} Mbit/s, by the costs: pause {told['pause_us'] / 1e3:.1f} ms, commit "
                      f"{told['commit_ms']:.1f} ms")


def measure(_out):
    part, rows = Part("growth"), []
    for count in COUNTS:
        with part.attempt(f"8 growth, {count} VMs"):
            found = measure_count(part, count)
            rows.append(found)
            part.note(f"8 {count} VMs: pause {found['pause_us'] / 1e3:.1f} ms, commit {found['commit_ms']:.1f} ms, agents "
                      f"{found['cpu_percent']:.0f} % of a core (no bar)")
            part.bar("8", f"memory of an agent beside images, {count} VMs", found["memory_mib"], MEMORY_LIMIT_MIB + found["two_epochs_mib"], "MiB")
    if len(rows) > 1:
        with part.attempt("8 more hosts and VMs, by the costs"):
            carry_on(part, rows)
    return part
