"""heavy.py - bars 3 and 4: a VM that writes more than the others.

    writer (host1: memwriter, 50 MB/s of pages that are all new)      idle2, idle2b (host2)      idle3 (host3)      256 MiB each

 B3 what comes to host2 and host3 by replication comes at 1 Gb/s; every 200 ms: the next epoch is never held up, as many are committed as intervals have
    passed, less 2 %
 B4 the writer has 20,000 pages to write and no rate, every second: its pause is long. Nobody waits for it: median pause of the others <= 1/4 of its
"""

import contextlib
import time

import vcft
from cluster import LAB, bring_up, commits, committed
from report import Part, median

PLACES = {"writer": "host1", "idle2": "host2", "idle2b": "host2", "idle3": "host3"}
RATE_MB = 50
LINK = "1gbit"
INTERVAL_MS, SECONDS, SLOW_SECONDS = 200, 15, 20


def machines(command):
    return [vcft.tiny_vm(name, number, host, [command] if name == "writer" else [], memory="256M") for number, (name, host) in enumerate(PLACES.items(), 1)]


def observe(lab, seconds):
    """The leader's commits, and each VM's rows of them."""
    events = {host: vcft.Events(lab, host) for host in lab.names}
    start = vcft.now()
    time.sleep(seconds)         # the length of the measurement
    end = vcft.now()
    return commits(events["host1"], start, end), {vm: committed(events[host], vm, start, end) for vm, host in PLACES.items()}


def narrow_link(part):
    pages = RATE_MB * 1000000 // 4096
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(vcft.Lab(3, name=LAB))
        bring_up(lab, machines(f"memwriter {pages} {pages}"), f"{INTERVAL_MS}ms")
        for host in ("host2", "host3"):
            stack.enter_context(lab.shaped(host, [f"dport {vcft.REPLICATION_PORT}"], LINK))
        all_commits, rows = observe(lab, SECONDS)
    raw, sent = (sum(row[key] for row in rows["writer"]) / 1e6 / SECONDS for key in ("raw_bytes", "sent_bytes"))
    share = len(all_commits) * INTERVAL_MS / 1e3 / SECONDS
    took = median([row["commit_ms"] for row in all_commits])
    part.keep("narrow-link", raw_mb_per_s=raw, sent_mb_per_s=sent, share=share, commit_ms=[row["commit_ms"] for row in all_commits])
    part.bar("3", f"epochs held with a link of 1 Gb/s, {raw:.0f} MB/s dirty, {sent:.0f} MB/s sent (commit {took:.0f} ms)", share, 0.98, "x", at_least=True)


def slow_vm(part):
    with vcft.Lab(3, name=LAB) as lab:
        bring_up(lab, machines("memwriter 0 20000"), "1s")
        _, rows = observe(lab, SLOW_SECONDS)
    pauses = {vm: [row["pause_us"] for row in rows[vm]] for vm in PLACES}
    slow, others = median(pauses["writer"]), median([p for vm in PLACES if vm != "writer" for p in pauses[vm]])
    part.keep("slow-vm", pause_us=pauses)
    part.bar("4", f"pause of the other three beside a slow VM: {others / 1e3:.1f} ms / {slow / 1e3:.1f} ms of its own", others / slow, 0.25, "x")


def measure(_out):
    part = Part("heavy")
    for what, case in (("3 a link of 1 Gb/s", narrow_link), ("4 a slow VM", slow_vm)):
        with part.attempt(what):
            case(part)
    return part
