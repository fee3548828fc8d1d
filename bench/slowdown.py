"""slowdown.py - bar 2: what a guest gets done while it is checkpointed, against what it gets done between.

One VM of 256 MiB works without a pause: some thousand instructions, then a write to the next page of its set (guests/src/beat.c), and what it has
done is read from its RAM against this machine's clock, so that pauses count. Each cluster is measured with and without checkpoints in turns of a second or two
(bench/pace): two clusters, and one cluster a few seconds later, differ by more than what is looked for.

    none │ 50 ms │ none │ 200 ms │ none │ 1 s │ none │ 50 ms │ …        share: work a second of a stretch / mean of the stretches without beside it

 B2 500 pages, every 50 ms: >= 0.90 of the unprotected work; 5,000 pages, every 200 ms: >= 0.85

The same with the hot-page rule off (src/vm/track-hot.h). Redis and MPI: apps.py.
"""

import os
import time

import vcft
from cluster import LAB, NEVER, Pace, bring_up, committed
from report import Part, median
from watch import Watch, work_rate

BARS = {(500, 50): 0.90, (5000, 200): 0.85}
CASES = ((500, True, (50, 200, 1000)), (500, False, (50,)), (5000, True, (200, 1000)), (5000, False, (200,)))     # pages, hot pages, intervals ms
TURNS, SECONDS, SETTLE_S = 12, 1.0, 0.15     # SETTLE_S: what the stretch before has left: a commit that is under way, protected pages


def stretch(pace, interval_ms, seconds):
    """Its start and end, of this machine's clock."""
    pace.every(interval_ms)
    time.sleep(SETTLE_S)    # nothing says that the commit before is over and its pages have been written again
    start = vcft.now()
    time.sleep(seconds)     # the length of the measurement
    return start, vcft.now()


def observe(lab, out, pages, hot_pages, intervals):
    """[(interval ms, start, end)], the watcher's rows, the events of the VM's host."""
    cluster = bring_up(lab, [vcft.tiny_vm("worker", 1, "host1", [f"beat work {pages}"], memory="256M")], NEVER, hot_pages=hot_pages)
    pace = Pace(lab, "host1")
    with Watch("/dev/shm/virtcft/worker/ram.*", os.path.join(out, "beats.json"), [vcft.LAB_PROGRAM, "exec", "host1", "--"], lab.environment) as watch:
        pace.every(intervals[0])
        cluster.wait_protected(timeout=60)
        found = [(0, *stretch(pace, 0, SECONDS))]
        for interval in intervals * TURNS:
            seconds = max(SECONDS, 2 * interval / 1e3)
            found += [(interval, *stretch(pace, interval, seconds)), (0, *stretch(pace, 0, seconds))]
        return found, watch.rows(), cluster.events("host1")


def judge(part, pages, hot_pages, found, rows, events):
    rates = [work_rate(rows, start, end) for _, start, end in found]
    shares = {}
    for i, (interval, start, end) in enumerate(found):
        if interval:
            share = 2 * rates[i] / (rates[i - 1] + rates[i + 1])
            shares.setdefault(interval, []).append(share)
            checkpoints = committed(events, "worker", start, end)
            part.keep("work", pages=pages, hot_pages=hot_pages, interval=interval, share=share, per_second=rates[i], without=rates[i - 1],
                      pause_us=[row["pause_us"] for row in checkpoints], dirty_pages=[row["dirty_pages"] for row in checkpoints])
    for interval, of_turns in shares.items():
        name = f"work of a guest that writes {pages} pages, every {interval} ms" + ("" if hot_pages else " without hot pages")
        part.keep("slowdown", pages=pages, interval=interval, hot_pages=hot_pages, share=median(of_turns))
        if hot_pages and (pages, interval) in BARS:
            part.bar("2", name, median(of_turns), BARS[pages, interval], "x", at_least=True)
        else:
            part.note(f"2 {name}: {median(of_turns):.2f} x, {min(of_turns):.2f} to {max(of_turns):.2f} (no bar)")


def measure(out):
    part = Part("slowdown")
    for pages, hot_pages, intervals in CASES:
        with part.attempt(f"2 work, {pages} pages{'' if hot_pages else ' without hot pages'}"):
            with vcft.Lab(3, name=LAB) as lab:
                judge(part, pages, hot_pages, *observe(lab, out, pages, hot_pages, intervals))
    return part
