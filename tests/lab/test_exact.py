"""test_exact.py - P6: what a backup holds equals the paused VM bit for bit, RAM and disk, under a guest that writes both hard.

`verify: true` compares all RAM with each backup's image at every epoch; an agent that finds a difference ends (rule P6), and all agents must
live. The guest's programs check every page and every block that they have written, across the death of their host. In the end the disk as the
guest reads it is the disk as it lies on its host and on its backup: base + overlay.
"""

import hashlib
import os

import pytest

import vcft

pytestmark = pytest.mark.limit(150)

BLOCK = 4096
DISK_BYTES = 16 << 20


def disk_hash(base, folder):
    """Of a disk as the files of an image have it (docs/format.md)."""
    with open(base, "rb") as file:
        content = bytearray(file.read())
    with open(os.path.join(folder, "map"), "rb") as file:
        mapped = file.read()
    with open(os.path.join(folder, "overlay"), "rb") as file:
        for block in range(len(content) // BLOCK):
            if mapped[block // 8] >> (block % 8) & 1:
                file.seek(block * BLOCK)
                content[block * BLOCK:(block + 1) * BLOCK] = file.read(BLOCK)
    return hashlib.md5(content).hexdigest()


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.md5(file.read()).hexdigest()


def agents(lab):
    return [host["name"] for host in lab.status()["hosts"] if host["agent"]]


def test_exact(lab, tiny_guest):
    base = lab.write("busy.raw", os.urandom(DISK_BYTES))
    before = file_hash(base)
    cluster = vcft.Cluster(lab, interval="100ms", vms=[
        vcft.tiny_vm("busy", 1, "host2", ["memwriter 3000 2500", "diskwriter 200 600"], disks=[base])])
    events, captures = cluster.events("host1"), cluster.events("host2")
    cluster.up()
    console = cluster.console("busy")
    for program in ("memwriter", "diskwriter"):
        console.wait_for(f"^{program} ok .* passes=[1-9]", 60)
    cluster.wait_protected(30)
    first = events.wait_for("checkpoint-committed", since=vcft.now())["epoch"]
    captures.wait_for("checkpoint-committed", lambda e: e["epoch"] >= first + 100, 60)
    dirty = [e["vms"]["busy"]["dirty_pages"] for e in captures.all("checkpoint-committed", lambda e: e["epoch"] > first)]
    assert len(dirty) >= 80 and sorted(dirty)[len(dirty) // 2] > 200
    assert agents(lab) == lab.names

    killed = lab.kill("host2")
    events.wait_for("recovery-finished", since=killed)
    mark = console.mark()
    for program in ("memwriter", "diskwriter"):
        console.wait_for(f"^{program} ok", 20, since=mark)
    lab.start("host2")
    status = cluster.wait_protected(40)["vms"][0]

    for program in ("memwriter", "diskwriter"):
        mark = console.mark()
        console.wait_for(f"^{program} ok", 20, since=mark)
    assert console.find(vcft.GUEST_FAIL) is None
    console.run(status["host"], "killall memwriter diskwriter; echo 3 > /proc/sys/vm/drop_caches")
    guest = console.run(status["host"], "md5sum /dev/vda", 60).split()[0]
    settled = cluster.status()["committed"] + 2
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= settled)
    for host in [status["host"], *status["backups"]]:
        folder = os.path.join(lab.folder(host), "lib", "virtcft", "vms", "busy", "disk0")
        vcft.wait_until(f"{host} to have the disk that the guest has", lambda: disk_hash(base, folder) == guest, 5)
    assert guest != before and file_hash(base) == before
    assert agents(lab) == lab.names
