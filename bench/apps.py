"""apps.py - bars 2 and 3 on real programs: Redis and an MPI job, without checkpoints, every 200 ms and every second.

    node1 (host1), node2 (host2): ScaLAPACK's LU test over MPI (guests/demo/vcft-mpi-job)      redis (host3) ◄── redis-benchmark on node1

All boot Debian from disks, 256 MiB each. One after the other: redis-benchmark (SET and GET, a fixed number of requests), then the job (a fixed number of
systems, its own check must pass). Time is this machine's, from the command on the console to its end. One cluster, checkpointed or not in turns (bench/pace):
two clusters, and one cluster half a minute later, differ by more than what is looked for.

    none │ 200 ms │ none │ 1 s │ none │ 200 ms │ …        share: mean of the two runs without checkpoints beside it / its time

 B2 median share: >= 0.92 at 200 ms, >= 0.97 at 1 s
 B3 bytes sent / raw bytes of dirty pages and blocks, over the run, every 200 ms: <= 0.25. The encoder (tests/unit/store/bench-store): >= 1 GB/s
    of pages a core
"""

import os
import re
import subprocess
import time

import vcft
from cluster import LAB, NEVER, Pace, bring_up, committed
from report import Part, median

INTERVALS = {200: 0.92, 1000: 0.97}      # ms: bar 2
PLACES = {"node1": "host1", "node2": "host2", "redis": "host3"}
REDIS = f"redis-benchmark -h {vcft.lan_address(3)} -t set,get -n 2000 -c 4 -q"
PROGRAMS = (("redis", REDIS, r"GET: [\d.]+ requests", 5), ("MPI", "vcft-mpi-job 2 400 5", r"VCFT-JOB PASSED", 4))     # and turns
LIMIT_S = 240


def machines():
    for number, (name, host) in enumerate(PLACES.items(), 1):
        vm = vcft.tiny_vm(name, number, host, memory="256M", disks=[f"{vcft.GUESTS}/demo.qcow2"])
        role = "redis" if name == "redis" else "mpi"
        yield {**vm, "initrd": f"{vcft.GUESTS}/demo-initrd.img", "append": f"{vm['append']} net.ifnames=0 vcft.role={role}"}


def run_program(cluster, events, command, passed):
    """Seconds, and the bytes of all VMs' checkpoints meanwhile."""
    start = time.monotonic_ns()
    text = cluster.console("node1").run("host1", command, timeout=LIMIT_S)
    end = time.monotonic_ns()
    if not re.search(passed, text):
        raise RuntimeError(f"{command}: {text[-300:]}")
    rows = [row for vm, host in PLACES.items() for row in committed(events[host], vm, start, end)]
    return {"seconds": (end - start) / 1e9, "raw_bytes": sum(row["raw_bytes"] for row in rows), "sent_bytes": sum(row["sent_bytes"] for row in rows),
            "checkpoints": len(rows) // len(PLACES)}


def judge(part, program, runs):
    """runs: (interval ms or 0, what run_program() said), with one without checkpoints on both sides of each other one."""
    shares = {}
    for i, (interval, run) in enumerate(runs):
        part.keep("program", program=program, interval=interval, **run)
        if interval:
            shares.setdefault(interval, []).append((runs[i - 1][1]["seconds"] + runs[i + 1][1]["seconds"]) / 2 / run["seconds"])
    for interval, limit in INTERVALS.items():
        without, took = (median([run["seconds"] for every, run in runs if every == wanted]) for wanted in (0, interval))
        part.bar("2", f"{program}, every {interval} ms: {without:.1f} s without / {took:.1f} s", median(shares[interval]), limit, "x", at_least=True)
    raw, sent = (sum(run[key] for every, run in runs if every == 200) for key in ("raw_bytes", "sent_bytes"))
    part.bar("3", f"bytes sent of {raw / 1e6:.0f} MB dirty, {program}", sent / raw, 0.25, "x")


def measure_program(part, cluster, pace, events, program, command, passed, turns):
    runs = []
    for interval in (0, *(every for _ in range(turns) for pair in INTERVALS for every in (pair, 0))):
        pace.every(interval)
        runs.append((interval, run_program(cluster, events, command, passed)))
        part.say(f"{program}, every {interval} ms: {runs[-1][1]['seconds']:.1f} s")
    judge(part, program, runs)


def encoder(part):
    program = "tests/unit/store/bench-store"
    subprocess.run(["ninja", "-C", vcft.BUILD, "--quiet", program], check=True)
    text = subprocess.run([os.path.join(vcft.BUILD, program)], check=True, stdout=subprocess.PIPE, text=True, timeout=180).stdout
    for kind, rate, share in re.findall(r"^code (.+?) +encode +([\d.]+) GB/s.*?([\d.]+)% on the wire", text, re.MULTILINE):
        part.keep("encoder", pages=kind, gb_per_s=float(rate), percent_on_the_wire=float(share))
        part.bar("3", f"encoder, pages {kind}", float(rate), 1.0, "GB/s", at_least=True)


def measure(_out):
    part = Part("apps")
    with part.attempt("2, 3 Redis and MPI"), vcft.Lab(3, name=LAB) as lab:
        cluster = bring_up(lab, list(machines()), NEVER)
        events, pace = {host: cluster.events(host) for host in lab.names}, Pace(lab, "host1")
        pace.every(min(INTERVALS))
        cluster.wait_protected(timeout=60)
        for program, *how in PROGRAMS:
            with part.attempt(f"2, 3 {program}"):
                measure_program(part, cluster, pace, events, program, *how)
    with part.attempt("3 encoder"):
        encoder(part)
    return part
