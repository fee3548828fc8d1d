"""apps.py - bars 2 and 3 on real programs: Redis and an MPI job, unprotected, every 200 ms and every second.

    node1 (host1), node2 (host2): ScaLAPACK's LU test over MPI (guests/demo/vcft-mpi-job)      redis (host3) ◄── redis-benchmark on node1

All boot Debian from disks, 256 MiB each. One after the other: redis-benchmark (SET and GET, a fixed number of requests), then the job (a fixed number of
systems, its own check must pass). Time is this machine's, from the command on the console to its end. Clusters take turns: unprotected, 200 ms, 1 s,
unprotected.

 B2 time unprotected / checkpointed: >= 0.92 at 200 ms, >= 0.97 at 1 s
 B3 bytes sent / raw bytes of dirty pages and blocks, over the run, every 200 ms: <= 0.25. The encoder (tests/unit/store/bench-store): >= 1 GB/s
    of pages a core
"""

import os
import re
import subprocess
import time

import vcft
from cluster import LAB, bring_up, committed
from report import Part, median

TURNS = ("600s", "200ms", "1s", "600s")
LIMITS = {"200ms": 0.92, "1s": 0.97}
PLACES = {"node1": "host1", "node2": "host2", "redis": "host3"}
REDIS = f"redis-benchmark -h {vcft.lan_address(3)} -t set,get -n 4000 -c 4 -q"
MPI = "vcft-mpi-job 2 400 5"
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


def one_turn(interval):
    with vcft.Lab(3, name=LAB) as lab:
        cluster = bring_up(lab, list(machines()), interval)
        events = {host: cluster.events(host) for host in lab.names}
        return {"redis": run_program(cluster, events, REDIS, r"GET: [\d.]+ requests"),
                "MPI": run_program(cluster, events, MPI, r"VCFT-JOB PASSED")}


def judge(part, program, runs):
    plain = median([run["seconds"] for run in runs["600s"]])
    for interval, limit in LIMITS.items():
        if interval in runs:
            took = median([run["seconds"] for run in runs[interval]])
            part.bar("2", f"{program}, every {interval}: {plain:.1f} s unprotected / {took:.1f} s", plain / took, limit, "x", at_least=True)
    for run in runs.get("200ms", []):
        part.bar("3", f"bytes sent of {run['raw_bytes'] / 1e6:.0f} MB dirty, {program}", run["sent_bytes"] / run["raw_bytes"], 0.25, "x")


def encoder(part):
    program = "tests/unit/store/bench-store"
    subprocess.run(["ninja", "-C", vcft.BUILD, "--quiet", program], check=True)
    text = subprocess.run([os.path.join(vcft.BUILD, program)], check=True, stdout=subprocess.PIPE, text=True, timeout=180).stdout
    for kind, rate, share in re.findall(r"^code (.+?) +encode +([\d.]+) GB/s.*?([\d.]+)% on the wire", text, re.MULTILINE):
        part.keep("encoder", pages=kind, gb_per_s=float(rate), percent_on_the_wire=float(share))
        part.bar("3", f"encoder, pages {kind}", float(rate), 1.0, "GB/s", at_least=True)


def measure(_out):
    part, runs = Part("apps"), {"redis": {}, "MPI": {}}
    for interval in TURNS:
        with part.attempt(f"2, 3 Redis and MPI, every {interval}"):
            for program, run in one_turn(interval).items():
                runs[program].setdefault(interval, []).append(run)
                part.keep("program", program=program, interval=interval, **run)
                part.say(f"{program}, every {interval}: {run['seconds']:.1f} s")
    for program, found in runs.items():
        if "600s" in found:
            judge(part, program, found)
    with part.attempt("3 encoder"):
        encoder(part)
    return part
