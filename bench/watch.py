#!/usr/bin/python3
"""watch.py - when a guest really ran, seen in its RAM: the beats of guests/src/beat.c against this machine's clock.

    as a program:  watch.py RAM-FILE OUT     (a pattern: the newest of them) prints "watching" when it has found the page, runs until its standard input
                                             ends, then writes OUT: [[ns, beats, guest's clock ns, work], ...], a row for each beat that it saw
    as a module:   Watch(ram, out)           the same as a child; what it saw is judged by longest_silence() and work_rate()

 X1 The page is the one that goes on beating: what a guest leaves behind of an earlier one does not.
 X2 Nothing is changed in the file, no hole of it filled: it is read by pread until the page is found.
"""

import glob
import json
import mmap
import os
import select
import struct
import subprocess
import sys
import time

MARK = struct.pack("<QQ", *(0x7662656174000000 + (i + 1) * 0x9E3779B9 for i in range(2)))
PAGE, PIECE = 4096, 4 << 20
POLL_S = 0.0002        # a fifth of a beat


def marked_pages(fd):
    """Offsets of the pages that start with the mark."""
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // PAGE * PAGE
        except OSError:      # only a hole is left
            return
        piece = os.pread(fd, PIECE, at)
        found = piece.find(MARK)
        while found >= 0:
            if found % PAGE == 0:
                yield at + found
            found = piece.find(MARK, found + 1)
        at += PIECE


def find_page(fd, limit_s=60):
    end, before = time.monotonic() + limit_s, {}
    while time.monotonic() < end:
        for offset in marked_pages(fd):
            beats = os.pread(fd, 8, offset + 16)
            if before.setdefault(offset, beats) != beats:
                return offset
        time.sleep(0.05)
    sys.exit(f"watch.py: nothing beats here ({len(before)} marked pages)")


def watch(path, out):
    fd = os.open(max(glob.glob(path), key=os.path.getmtime), os.O_RDONLY)
    page = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=find_page(fd))
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))     # the machine is shared; a beat seen late is a freeze that was none
    print("watching", flush=True)
    rows, last = [], None
    while not select.select([0], [], [], POLL_S)[0]:
        beats, clock, work = struct.unpack_from("<QQQ", page, 16)
        if beats != last:
            rows.append((time.monotonic_ns(), beats, clock, work))
            last = beats
    with open(out, "w", encoding="utf-8") as file:
        json.dump(rows, file)


class Watch:
    """A watcher; `prefix` is a command that runs it elsewhere (in a host of the lab)."""

    def __init__(self, ram, out, prefix=(), environment=None):
        self.out = out
        self.process = subprocess.Popen([*prefix, "/usr/bin/python3", os.path.realpath(__file__), ram, out], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment)
        if self.process.stdout.readline().strip() != "watching":
            self.process.wait()
            raise RuntimeError(f"no beats in {ram}")

    def rows(self):
        """Ends it; what it saw."""
        self.process.stdin.close()
        self.process.wait(30)
        with open(self.out, encoding="utf-8") as file:
            return json.load(file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def within(rows, start, end):
    return [row for row in rows if start <= row[0] <= end]


def longest_silence(rows, start, end):
    """(by this machine's clock, by the guest's own), µs, of the beats from the last before `start` to the first after `end`; None without beats."""
    first = max((i for i, row in enumerate(rows) if row[0] <= start), default=0)
    last = min((i for i, row in enumerate(rows) if row[0] >= end), default=len(rows) - 1)
    pairs = list(zip(rows[first:last + 1], rows[first + 1:last + 1]))
    if not pairs:
        return None
    return max(b[0] - a[0] for a, b in pairs) / 1e3, max(b[2] - a[2] for a, b in pairs) / 1e3


def work_rate(rows, start, end):
    """Units of work a second within [start, end]."""
    inside = within(rows, start, end)
    return (inside[-1][3] - inside[0][3]) / (inside[-1][0] - inside[0][0]) * 1e9


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2])
