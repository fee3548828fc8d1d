"""slowdown.py - bar 2: what a guest gets done while it is checkpointed, against the same guest unprotected.

One VM of 256 MiB works without a pause: some thousand instructions, then a write to the next page of its set (guests/src/beat.c), and what it has
done is read from its RAM against this machine's clock, so that pauses count. Clusters take turns: unprotected, 50 ms, 50 ms without the hot-page
rule (src/vm/track-hot.h), 200 ms, 1 s, unprotected, …

 B2 500 pages, every 50 ms: >= 0.90 of the unprotected work; 5,000 pages, every 200 ms: >= 0.85

Redis and MPI: apps.py.
"""

import os
import time

import vcft
from cluster import LAB, bring_up, committed
from report import Part, median
from watch import Watch, work_rate

UNPROTECTED = "600s"
COLD = " without hot pages"                 # of a turn's name, behind its interval
CASES = ((500, ("50ms", "50ms" + COLD, "200ms", "1s"), ("50ms", 0.90)), (5000, ("200ms", "200ms" + COLD, "1s"), ("200ms", 0.85)))
TURNS, SECONDS = 2, 8


def one_turn(out, pages, turn):
    """(work a second, rows of the checkpoints meanwhile)."""
    with vcft.Lab(3, name=LAB) as lab:
        return observe(lab, out, pages, turn.removesuffix(COLD), not turn.endswith(COLD))


def observe(lab, out, pages, interval, hot_pages):
    cluster = bring_up(lab, [vcft.tiny_vm("worker", 1, "host1", [f"beat work {pages}"], memory="256M")], interval, hot_pages=hot_pages)
    events = cluster.events("host1")
    with Watch("/dev/shm/virtcft/worker/ram.*", os.path.join(out, "beats.json"), [vcft.LAB_PROGRAM, "exec", "host1", "--"], lab.environment) as watch:
        start = vcft.now()
        time.sleep(SECONDS)     # the length of the measurement
        rows = watch.rows()
    checkpoints = committed(events, "worker", start, rows[-1][0])
    return work_rate(rows, start, rows[-1][0]), checkpoints


def judge(part, pages, work, barred, limit):
    plain = median(work[UNPROTECTED])
    for interval in list(work)[1:]:
        share = median(work[interval]) / plain
        part.keep("slowdown", pages=pages, interval=interval.removesuffix(COLD), hot_pages=not interval.endswith(COLD), share=share)
        if interval == barred:
            part.bar("2", f"work of a guest that writes {pages} pages, every {interval}", share, limit, "x", at_least=True)
        else:
            part.note(f"2 work of a guest that writes {pages} pages, every {interval}: {share:.2f} x (no bar)")


def measure(out):
    part = Part("slowdown")
    for pages, intervals, (barred, limit) in CASES:
        with part.attempt(f"2 work, {pages} pages"):
            work = {interval: [] for interval in (UNPROTECTED, *intervals)}
            for _ in range(TURNS):
                for interval, rates in work.items():
                    rate, rows = one_turn(out, pages, interval)
                    rates.append(rate)
                    part.keep("work", pages=pages, interval=interval, per_second=rate, pause_us=[row["pause_us"] for row in rows],
                              dirty_pages=[row["dirty_pages"] for row in rows])
            judge(part, pages, work, barred, limit)
    return part
