"""commit.py - bars 4 and 6: time to commit, and what a client beyond the uplink sees, at intervals of 25, 50 and 100 ms.

    client ──outside──► uplink ──wan──► echo (host2)        idle1 (host1), writer (host2: 500 pages/s), idle3 (host3)        256 MiB each

 B4 BEGIN to commit, as the leader sees it: median <= 15 ms + the bytes of all VMs at 1 Gb/s
 B6 round trip of datagrams that are sent whether answers come or not (a client that waits would ask just after each release):
    median <= interval / 2 + median commit + 5 ms; at 25 ms no epoch is skipped: as many are committed as intervals have passed, less 2 %

The links of the lab are veth pairs and have no 1 Gb/s limit: the limit of B4 takes the bytes at that rate all the same, so it is generous there.
The release is known to all one message of the group (0.4 ms) after the commit.
"""

import time

import vcft
from cluster import LAB, Client, bring_up, commits, committed
from report import Part, median, quantile

INTERVALS = (100, 50, 25)
SECONDS, ASK_MS = 15, 7
LINK_BYTES_PER_MS = 125000
PLACES = {"idle1": "host1", "echo": "host2", "writer": "host2", "idle3": "host3"}


def machines():
    return [
        vcft.tiny_vm("idle1", 1, "host1", memory="256M"),
        vcft.tiny_vm("echo", 2, "host2", ["pinger serve 7"], ("lan", "wan"), memory="256M"),
        vcft.tiny_vm("writer", 3, "host2", ["memwriter 500 500"], memory="256M"),
        vcft.tiny_vm("idle3", 4, "host3", memory="256M"),
    ]


def measure_interval(part, out, lab, interval):
    cluster = bring_up(lab, machines(), f"{interval}ms", (vcft.LAN, vcft.WAN))
    events = {host: cluster.events(host) for host in lab.names}
    client = Client(lab, out, f"{vcft.wan_address(2)}:7", ASK_MS)
    start = vcft.now()
    time.sleep(SECONDS)
    end = vcft.now()
    trips = [(answered - asked) / 1e6 for asked, answered in client.answers() if asked >= start]
    rows = commits(events["host1"], start, end)
    took = [row["commit_ms"] for row in rows]
    sent = sum(median([row["sent_bytes"] for row in committed(events[host], vm, start, end)]) for vm, host in PLACES.items())
    steps = {step: median([row["steps_ms"][step] for row in rows]) for step in rows[0]["steps_ms"]}
    aborted = len(events["host1"].all("checkpoint-aborted", since=start))
    share = len(rows) * interval / ((end - start) / 1e6)
    part.keep("commit", interval_ms=interval, commit_ms=took, steps_ms=steps, sent_bytes=sent, committed_share=share, aborted=aborted, outside_ms=trips)
    return median(took), quantile(took, 0.99), sent, share, median(trips)


def measure(out):
    part = Part("commit")
    for interval in INTERVALS:
        with part.attempt(f"4, 6 interval {interval} ms"), vcft.Lab(3, name=LAB) as lab:
            judge(part, interval, *measure_interval(part, out, lab, interval))
    return part


def judge(part, interval, took, p99, sent, share, rtt):
    if interval == INTERVALS[0]:
        part.bar("4", f"commit of four VMs on three hosts (p99 {p99:.1f} ms, {sent / 1e3:.0f} kB)", took, 15 + sent / LINK_BYTES_PER_MS, "ms")
    part.bar("6", f"round trip of a client outside, interval {interval} ms (commit {took:.1f} ms)", rtt, interval / 2 + took + 5, "ms")
    if interval == INTERVALS[-1]:
        part.bar("6", f"epochs held at intervals of {interval} ms", share, 0.98, "x", at_least=True)
    else:
        part.note(f"6 epochs held at intervals of {interval} ms: {share:.3f} x (no bar)")
