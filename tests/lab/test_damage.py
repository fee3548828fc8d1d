"""test_damage.py - bits that flip in what is kept (D25, I5, A6): on the VM's own host it comes from its backup, on the backup another image is filled. No
guest ever sees a flipped bit: memwriter and diskwriter check all that they read. Images are not verified, for that would find the damage by itself, and
end the agent (S5).

    writer on one of three hosts, one backup        flipped: one bit of each page that its shadow, its disk's overlay or its image has
"""


import pytest

import vcft

pytestmark = pytest.mark.limit(240)

WAIT_S = 90
FLIP = """
import os, sys
for path in sys.argv[1:]:
    with open(path, "r+b", buffering=0) as file:
        at, end = 0, os.fstat(file.fileno()).st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            for page in range(at, stop, 4096):
                byte = os.pread(file.fileno(), 1, page + 123)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), page + 123)
            at = stop
"""
SHADOW, OVERLAY = "/dev/shm/virtcft/writer/image", "/var/lib/virtcft/vms/writer/disk0/overlay"


class World(vcft.World):
    """The cluster of the picture."""

    def bring_up(self):
        self.cluster = vcft.Cluster(self.lab, interval="200ms", verify=False, vms=[
            vcft.tiny_vm("writer", 1, "host1", ["memwriter 500 500", "diskwriter 50 100"], disks=[self.lab.zeros("writer.raw", 16 << 20)])])
        self.cluster.up(WAIT_S)
        self.check_writers(None)

    def check_writers(self, since):
        console = self.cluster.console("writer")
        for program in ("memwriter", "diskwriter"):
            console.wait_for(f"^{program} ok .* passes=[1-9]", WAIT_S, since=since)
        assert console.find(vcft.GUEST_FAIL) is None

    def row(self):
        return self.cluster.status()["vms"][0]


def make_shared():
    return World(3)


@pytest.mark.parametrize("path", [SHADOW, OVERLAY], ids=["shadow", "overlay"])
def test_damage_at_home(shared, path):
    world = shared.get()
    world.cluster.wait_protected(WAIT_S)
    before = world.row()
    events = world.cluster.events(before["host"])
    struck = vcft.now()
    world.lab.exec(before["host"], "python3", "-c", FLIP, path)
    assert events.wait_for("vm-exited", since=struck, timeout=30)["process"] == "stored state"
    events.wait_for("recovery-finished", since=struck, timeout=30)
    assert world.row()["host"] == before["backups"][0] != before["host"]
    world.check_writers(world.cluster.console("writer").mark())


def test_damage_on_the_backup(shared):
    world = shared.get()
    world.cluster.wait_protected(WAIT_S)
    before = world.row()
    events = world.cluster.events(before["backups"][0])
    struck = vcft.now()
    world.lab.exec(before["backups"][0], "python3", "-c", FLIP, SHADOW)
    events.wait_for("image-damaged", since=struck, timeout=30)
    world.cluster.wait_protected(WAIT_S)
    assert world.row()["host"] == before["host"]
    assert not events.all("recovery-started", since=struck)
    world.check_writers(world.cluster.console("writer").mark())
