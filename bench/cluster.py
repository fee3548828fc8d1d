"""cluster.py - what the parts of the bench ask of a cluster in the lab: its pauses, bare pauses, commits; and the words of the guests' programs.

The lab is VIRTCFT_LAB's, or "bench". Every case has a lab of its own, and ends with it: nothing of one case is left for the next.
"""

import json
import os
import re
import subprocess

import vcft

LAB = os.environ.get("VIRTCFT_LAB", "bench")
DISK_MIB = 64
NEVER = "600s"
CONTROL_SOCKET = "/run/virtcft/control.sock"


def empty_disk(out):
    """A disk for guests that boot without one; QEMU's device state is that of a VM with a disk then."""
    path = os.path.join(out, "empty.qcow2")
    if not os.path.exists(path):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{DISK_MIB}M"], check=True)
    return path


def need_memory(memory):
    """A VM's RAM, its shadow and its image must have room (they are on tmpfs), and something must be left."""
    needed = 3.3 * int(memory[:-1]) * {"M": 1 << 20, "G": 1 << 30}[memory[-1]]
    with open("/proc/meminfo", encoding="utf-8") as file:
        free = 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if free < needed:
        raise RuntimeError(f"a VM of {memory} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def bring_up(lab, vms, interval, networks=(vcft.LAN,), hot_pages=True):
    """A cluster whose guests have booted and, if it is checkpointed, all have their backup."""
    cluster = vcft.Cluster(lab, vms, networks=networks, interval=interval, verify=False, name="bench")
    if not hot_pages:
        cluster.config["checkpoint"]["hot_pages"] = False
    cluster.up(timeout=120)
    cluster.wait_ready(180)
    if interval != NEVER:
        cluster.wait_protected(timeout=120)
    return cluster


def bare_pauses(cluster, vm, count):
    """Freezes of the bare three commands, µs, in the VM's own QEMU, between its checkpoints."""
    host = cluster.host_of(vm)
    return json.loads(cluster.lab.exec(host, "virtcft", "checkpoint", "--json", "--bare", vm, str(count), timeout=120))["pause_us"]


def commits(events, since, until=None):
    """Committed checkpoints in a stretch of time, of this host's events."""
    return events.all("checkpoint-committed", lambda e: until is None or e["time"] <= until, since)


def committed(events, vm, since, until=None):
    """The VM's rows of them: pause_us, dirty_pages, raw_bytes, sent_bytes. Only its own host says them."""
    return [e["vms"][vm] for e in commits(events, since, until) if vm in e["vms"]]


def wait_commits(events, count, timeout, since=None):
    """So many more checkpoints."""
    since = vcft.now() if since is None else since
    vcft.wait_until(f"{count} checkpoints", lambda: len(commits(events, since)) >= count, timeout, step=0.1)


class Pace:
    """bench/pace on the host that leads, for a cluster of interval NEVER."""

    def __init__(self, lab, host):
        program = os.path.join(os.path.dirname(os.path.realpath(__file__)), "pace")
        self.process = lab.popen("exec", host, "--", program, CONTROL_SOCKET)

    def every(self, interval_ms):
        print(interval_ms, file=self.process.stdin)
        if self.process.stdout.readline().strip() != "paced":
            raise RuntimeError("bench/pace has ended")


class Client:
    """bench/client beyond the uplink; it asks until answers() is called, or the lab ends."""

    def __init__(self, lab, out, address, interval_ms):
        self.out = os.path.join(out, "client.json")
        program = os.path.join(os.path.dirname(os.path.realpath(__file__)), "client")
        self.process = lab.outside_popen(program, address, str(interval_ms), self.out)
        if self.process.stdout.readline().strip() != "answered":
            raise RuntimeError("the client outside got no answer")

    def answers(self):
        """[asked ns, answered ns] of each question that was answered."""
        self.process.stdin.close()
        self.process.wait(30)
        with open(self.out, encoding="utf-8") as file:
            return json.load(file)


def pinger_windows(text):
    """Of each hundred answers: median_us, p99_us, max_us."""
    return [{key: float(value) for key, value in re.findall(r"(\w+_us)=([\d.]+)", line)} for line in text.splitlines() if "median_us=" in line]
