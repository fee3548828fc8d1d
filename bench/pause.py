"""pause.py - bar 1: how long a VM stands still for a checkpoint, against F, the bare three commands on the same QEMU.

One VM at a time (a disk, a NIC) on one of three hosts. Checkpoints and bare commands take turns:   20 checkpoints | 10 bare | 20 checkpoints | …

 B1 idle or 500 dirty pages an epoch   median <= 1.0 F, everything captured; p99 <= 2 x the p99 of F
    5,000, 50,000 pages                median <= 1.0 F + the pages at 5 GB/s
    4 GiB / 1 GiB                      the same load: medians within 1.3 x
"""

import vcft
from cluster import LAB, bare_pauses, bring_up, committed, empty_disk, need_memory, wait_commits
from report import Part, median, quantile

COPY_BYTES_PER_US = 5000.0
ROUNDS, CHECKPOINTS, BARE = 5, 20, 10
#         memory  dirty pages  memwriter       interval  checkpoints a round
CASES = (("256M", 0, None, "100ms", CHECKPOINTS), ("1G", 0, None, "100ms", CHECKPOINTS), ("4G", 0, None, "100ms", CHECKPOINTS),
         ("256M", 500, "memwriter 5000 500", "100ms", CHECKPOINTS), ("1G", 500, "memwriter 5000 500", "100ms", CHECKPOINTS),
         ("4G", 500, "memwriter 5000 500", "100ms", CHECKPOINTS),
         ("256M", 5000, "memwriter 20000 5000", "500ms", 6), ("512M", 50000, "memwriter 0 50000", "5s", 2))


def load_name(pages):
    return f"{pages} pages" if pages else "idle"


def measure_case(out, memory, run, interval, checkpoints):
    """(rows of checkpoints, bare pauses in µs)."""
    with vcft.Lab(3, name=LAB) as lab:
        return take_turns(bring_up(lab, [vm_of(out, memory, run)], interval), checkpoints)


def vm_of(out, memory, run):
    return vcft.tiny_vm("vm", 1, "host1", [run] if run else [], memory=memory, disks=[empty_disk(out)])


def take_turns(cluster, checkpoints):
    events = cluster.events("host1")
    wait_commits(events, 2, 120)      # the load's first touch of its pages is past
    rows, bare = [], []
    for _ in range(ROUNDS):
        start = vcft.now()
        wait_commits(events, checkpoints, 120, start)
        rows += committed(events, "vm", start)[:checkpoints]
        bare += bare_pauses(cluster, "vm", BARE)
    return rows, bare


def judge(part, memory, pages, rows, bare):
    pauses, f = [row["pause_us"] for row in rows], median(bare)
    dirty = median([row["dirty_pages"] for row in rows])
    name = f"pause, {memory}, {load_name(pages)}: {median(pauses):.0f} µs, {dirty:.0f} dirty / bare {f:.0f} µs"
    if pages <= 500:
        part.bar("1", name, median(pauses) / f, 1.0, "x")
        part.bar("1", f"pause p99, {memory}, {load_name(pages)}: {quantile(pauses, 0.99):.0f} µs / bare {quantile(bare, 0.99):.0f} µs",
                 quantile(pauses, 0.99) / quantile(bare, 0.99), 2.0, "x")
    else:
        part.bar("1", name, median(pauses) / f, (f + dirty * 4096 / COPY_BYTES_PER_US) / f, "x")
    part.keep("pause", memory=memory, load=load_name(pages), pause_us=pauses, bare_us=bare, dirty_pages=[row["dirty_pages"] for row in rows])
    return median(pauses)


def measure(out):
    part, medians = Part("pause"), {}
    for memory, pages, run, interval, checkpoints in CASES:
        with part.attempt(f"1 pause, {memory}, {load_name(pages)}"):
            need_memory(memory)
            medians[memory, pages] = judge(part, memory, pages, *measure_case(out, memory, run, interval, checkpoints))
    for pages in (0, 500):
        if {("4G", pages), ("1G", pages)} - set(medians):
            continue
        large, small = medians["4G", pages], medians["1G", pages]
        part.bar("1", f"pause, 4 GiB / 1 GiB, {load_name(pages)}: {large:.0f} µs / {small:.0f} µs", large / small, 1.3, "x")
    return part
