"""recovery.py - bar 7: a host is killed; when does everything run again, and when does the outside hear of it?

    client ──outside──► echo (host2, lan and wan)      left (host1)      mate (host2: 256 MiB, or 4 GiB)      third (host3)      every 100 ms

host2 dies: its links go down and every process on it stands still for ever, a new cluster for each time. (To kill them would be the same to all others, but
for this: host2 shares its cores with those that recover, and the kernel would give its memory back on them, 4 GiB in 200 ms.) mate's memory is full to 60 %. A datagram every 5 ms from beyond the uplink to echo.

 B7 detection to all VMs running: <= 500 ms; with a mate of 4 GiB <= 1.2 x that with one of 256 MiB
    rollback of the survivor, left: from the order to go back until it has been put back, as its host says: <= 250 ms. (Its silence, from the start of the
    recovery to its first beat (guests/src/beat.c), is as long as that of all others: they go on together.)
    death to the first answer that ends the outage as the client sees it: <= 1.6 s
"""

import os
import time

import vcft
from cluster import LAB, Client, bring_up, need_memory, wait_commits
from report import Part, median
from watch import Watch

MEMORIES, KILLS = ("256M", "4G"), 3
FULL = 0.6                                   # of mate's memory
VICTIM, SURVIVORS = "host2", ("host1", "host3")
ASK_MS, BEFORE_S, AFTER_S = 5, 1.0, 2.0


def machines(mate_memory):
    pages = int(FULL * mebibytes(mate_memory) * (1 << 20)) // 4096
    return [
        vcft.tiny_vm("left", 1, "host1", ["beat"], memory="256M"),
        vcft.tiny_vm("echo", 2, VICTIM, ["pinger serve 7"], ("lan", "wan"), memory="256M"),
        vcft.tiny_vm("mate", 3, VICTIM, [f"memwriter 1000 {pages}"], memory=mate_memory),
        vcft.tiny_vm("third", 4, "host3", memory="256M"),
    ]


def mebibytes(memory):
    return int(memory[:-1]) * {"M": 1, "G": 1024}[memory[-1]]


def outage(answers, killed):
    """From the kill to the end of the longest time without an answer around it, ms."""
    times = sorted(answered for _, answered in answers)
    start, end = max(((a, b) for a, b in zip(times, times[1:]) if b > killed), key=lambda pair: pair[1] - pair[0])
    return (end - killed) / 1e6, (end - start) / 1e6


def first_beat(beats, killed):
    """Of the survivor after its longest silence since the kill, ms after it."""
    pairs = [(a[0], b[0]) for a, b in zip(beats, beats[1:]) if b[0] > killed]
    return (max(pairs, key=lambda pair: pair[1] - pair[0])[1] - killed) / 1e6


def strike(lab, events):
    """The moments of the recovery, ms after host2's death."""
    killed = lab.cut(VICTIM)
    lab.exec(VICTIM, "sh", "-c", "kill -STOP -1")
    moments = {}
    for name, event, choose in (("lost", "host-lost", min), ("started", "recovery-started", min), ("running", "recovery-finished", max)):
        times = [events[host].wait_for(event, since=killed, timeout=60)["time"] for host in SURVIVORS]
        moments[name] = (choose(times) - killed) / 1e6
    return killed, moments


def one_kill(part, lab, out, memory):
    cluster = bring_up(lab, machines(memory), "100ms", (vcft.LAN, vcft.WAN))
    cluster.console("mate").wait_for("^memwriter ok", 180)
    events = {host: cluster.events(host) for host in SURVIVORS}
    wait_commits(events["host1"], 20, 120)      # the epochs that had mate's memory are over, and in the images
    cluster.wait_protected(timeout=180)
    client = Client(lab, out, f"{vcft.wan_address(2)}:7", ASK_MS)
    with Watch("/dev/shm/virtcft/left/ram.*", os.path.join(out, "beats.json"), [vcft.LAB_PROGRAM, "exec", "host1", "--"], lab.environment) as watch:
        time.sleep(BEFORE_S)        # the timeline's first second, with nothing wrong
        killed, moments = strike(lab, events)
        wait_commits(events["host1"], 3, 60)
        time.sleep(AFTER_S)         # and its last two
        beats = watch.rows()
    answers = client.answers()
    outside, gap = outage(answers, killed)
    silence = first_beat(beats, killed) - moments["started"]
    rollback = events["host1"].all("recovery-finished", since=killed)[0]["vms"]["left"]["placed_ms"]
    near = [((a - killed) / 1e6, (b - a) / 1e6) for a, b in answers if -1e9 < a - killed < 4e9]
    part.keep("recovery", memory=memory, **{f"{name}_ms": value for name, value in moments.items()}, outside_ms=outside, outside_gap_ms=gap,
              rollback_ms=rollback, silence_ms=silence, timeline=near)
    return {"recover": moments["running"] - moments["lost"], "detect": moments["lost"], "outside": outside,
            "rollback": rollback, "silence": silence}


def kills(part, out):
    """Of each memory the medians of what came of the kills that could be measured, None: of none. In turns."""
    found = {memory: [] for memory in MEMORIES}
    for memory in MEMORIES * KILLS:
        with part.attempt(f"7 recovery, mate of {memory}"):
            need_memory(memory)
            with vcft.Lab(3, name=LAB) as lab:
                found[memory].append(one_kill(part, lab, out, memory))
    return [{key: median([one[key] for one in rows]) for key in rows[0]} if rows else None for rows in found.values()]


def measure(out):
    part = Part("recovery")
    small, large = kills(part, out)
    if small:
        part.bar("7", f"recovery of four VMs: detection (after {small['detect']:.0f} ms) to all running", small["recover"], 500, "ms")
        part.bar("7", "kill to the first answer for the client outside", small["outside"], 1600, "ms")
        part.bar("7", "rollback of a survivor", small["rollback"], 250, "ms")
        part.note(f"7 silence of the survivor, from the start of the recovery to its first beat: {small['silence']:.0f} ms (no bar)")
    if small and large:
        part.bar("7", f"recovery with a VM of 4 GiB / of 256 MiB: {large['recover']:.0f} ms / {small['recover']:.0f} ms",
                 large["recover"] / small["recover"], 1.2, "x")
    return part
