"""test_faults.py - P7: a checkpoint that fails leaves the VMs running and the one before intact; the next one commits.

Every named fault (src/base/faults.def) that a checkpoint can meet is ordered once, on all hosts, before anything starts. So the first
checkpoints fail one after the other, each at another place. Those of a recovery as well: at the start, and when the VMs' host is lost then.
Images are verified at every epoch.

    host1   busy: memwriter, diskwriter on a disk;  for a recovery idle: does nothing, so that somebody goes on before busy does (it would meet a fault
            in the same checkpoint as busy, and only the first is said)
"""

import re

import pytest

import vcft

pytestmark = pytest.mark.limit(240)

# fault: what the agent says when it has given up a checkpoint for it. None: nothing fails (soft), or it is not this checkpoint that shows it.
CAPTURE = {
    "capture-hook": "fault: capture-hook",
    "capture-pages": "no memory for",
    "capture-devices": "the device state is not whole",
    "disk-seal": "seal: a fault was ordered",
    "track-scan": None,
    "track-swap": None,
}
STORE = {
    "send-torn": "a backup failed or refused",
    "send-checksum": "a backup failed or refused",
    "stage-refused": "a backup failed or refused",
    "stage-slow": None,
    "group-busy": None,
}
RECOVERY = {"track-open": None, "run-slow": None, "restore-start": None, "restore-room:3": None}
EPOCHS = 15


def given_up(lab):
    """What the agents have said of checkpoints that were given up."""
    return re.findall(r"checkpoint \d+ of \w+ is given up: (.*)", lab.log_tails(1000))


def run_with(faults):
    """A cluster that meets these faults, until checkpoints commit again and again; its guest has checked its memory and its disk."""
    with vcft.Lab(3, environment={"VIRTCFT_FAULTS": ",".join(faults)}) as lab:
        idle = {"name": "idle", "memory": "32M", "host": "host1", "disks": [{"image": lab.write("boot.raw", vcft.boot_disk())}],
                "nics": [{"network": "lan", "mac": vcft.mac(0, 2)}]}
        busy = vcft.tiny_vm("busy", 1, "host1", ["memwriter 1000 1000", "diskwriter 50 200"], disks=[lab.zeros("disk.raw", 16 << 20)])
        cluster = vcft.Cluster(lab, [idle, busy] if "run-slow" in faults else [busy])
        events = cluster.events("host1")
        cluster.up()
        events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= EPOCHS, 40)
        for program in ("memwriter", "diskwriter"):
            cluster.console("busy").wait_for(f"^{program} ok .* passes=[1-9]", 60)
        cluster.wait_protected(60)
        assert cluster.console("busy").find(vcft.GUEST_FAIL) is None
        assert len(events.all("recovery-finished")) == 1, "only the start"
        assert [host["agent"] for host in lab.status()["hosts"]] == [True] * 3
        result = given_up(lab), events.all("checkpoint-aborted")
        if "restore-start" in faults:
            lose_host(lab, cluster)
        return result


def test_a_fold_that_fails(tiny_guest):
    """The disk does not take what is committed (EIO): all go back to that checkpoint, where they are; the fold is tried again, and passes."""
    with vcft.Lab(3, environment={"VIRTCFT_FAULTS": "disk-fold"}) as lab:
        cluster = vcft.Cluster(lab, [vcft.tiny_vm("busy", 1, "host1", ["diskwriter 50 200"], disks=[lab.zeros("disk.raw", 16 << 20)])])
        events = cluster.events("host1")
        cluster.up()
        died = events.wait_for("vm-exited", lambda e: e["process"] == "nbdkit", 60)
        finished = events.wait_for("recovery-finished", timeout=40, since=died["time"])
        events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= finished["epoch"] + EPOCHS, 60, since=finished["time"])
        console = cluster.console("busy")
        console.wait_for("^diskwriter ok .* passes=[1-9]", 60)
        assert console.find(vcft.GUEST_FAIL) is None
        assert finished["epoch"] > 0 and cluster.host_of("busy") == "host1" and "started anew" not in lab.log_tails(1000)


def test_a_vm_runs_before_its_memory_is_there(tiny_guest):
    """No page of it: each comes when the guest asks for it, or a little later (fill.h). Not with `verify`, which looks at all of it. And the first time it
    is rolled back before the rest has come."""
    with vcft.Lab(3, environment={"VIRTCFT_FAULTS": "fill-late:*,restore-room"}) as lab:
        cluster = vcft.Cluster(lab, [vcft.tiny_vm("busy", 1, "host1", ["memwriter 1000 8000", "diskwriter 50 200"], memory="128M",
                                                  disks=[lab.zeros("disk.raw", 16 << 20)])], interval="100ms", verify=False)
        cluster.up()
        console = cluster.console("busy")
        for program in ("memwriter", "diskwriter"):
            console.wait_for(f"^{program} ok .* passes=[1-9]", 60)
        cluster.wait_protected(60)
        cluster.first = "host2"
        events, struck = cluster.events(), lab.kill("host1")
        trouble = events.wait_for("trouble", lambda e: e["why"] == "no room for its memory or disk", 40, since=struck)
        events.wait_for("recovery-finished", timeout=40, since=trouble["time"])
        host = cluster.host_of("busy")
        finished = cluster.events(host).wait_for("recovery-finished", since=trouble["time"])
        assert finished["vms"]["busy"]["placed_ms"] > 0
        mark = console.mark()
        cluster.wait_protected(60)      # another backup has all of it, from the image and from what was captured meanwhile
        for program in ("memwriter", "diskwriter"):
            console.wait_for(f"^{program} ok", 40, since=mark)
        lab.exec(host, "pkill", "-KILL", "-f", "qemu-system-x86_64")     # and once more, in place
        cluster.events(host).wait_for("recovery-finished", timeout=40, since=finished["time"] + 1)
        mark = console.mark()
        for program in ("memwriter", "diskwriter"):
            console.wait_for(f"^{program} ok", 40, since=mark)
        assert console.find(vcft.GUEST_FAIL) is None


def test_a_loss_while_images_are_patched(tiny_guest):
    """It takes longer than the loop may stand still: only a thread waits for it, and the recovery with it."""
    with vcft.Lab(3, environment={"VIRTCFT_FAULTS": "apply-slow:*"}) as lab:
        cluster = vcft.Cluster(lab, [vcft.tiny_vm("busy", 1, "host1", ["memwriter 1000 1000"])])
        events = cluster.events("host2")
        cluster.up()
        cluster.wait_ready(90)
        cluster.wait_protected(60)
        events.wait_for("checkpoint-committed", timeout=20, since=vcft.now())
        struck = lab.kill("host1")
        cluster.first = "host2"
        events.wait_for("recovery-finished", timeout=40, since=struck)
        mark = cluster.console("busy").mark()
        cluster.console("busy").wait_for("^memwriter ok", 40, since=mark)
        assert cluster.console("busy").find(vcft.GUEST_FAIL) is None
        assert [host["agent"] for host in lab.status()["hosts"] if host["state"] == "running"] == [True] * 2


def test_losses_before_the_first_commit(tiny_guest):
    """A QEMU is killed while the first checkpoint is on its way, again and again: all are powered on anew."""
    with vcft.Lab(3, environment={"VIRTCFT_FAULTS": "stage-slow:*"}) as lab:
        cluster = vcft.Cluster(lab, [vcft.tiny_vm("a", 1, "host1"), vcft.tiny_vm("b", 2, "host2")], interval="100ms")
        events = cluster.events("host1")
        cluster.up()
        for _ in range(4):
            moment = vcft.now()
            lab.exec("host2", "pkill", "-KILL", "-f", "qemu-system-x86_64")
            finished = events.wait_for("recovery-finished", timeout=40, since=moment)
            assert finished["epoch"] == 0, "the loss came too late"
        cluster.wait_ready(90)
        cluster.wait_protected(60)
        assert [host["agent"] for host in lab.status()["hosts"]] == [True] * 3


def lose_host(lab, cluster):
    """Attempts to restore a VM fail, and it turns out that there is no room when one has succeeded; all is made good, and as it must be."""
    cluster.first = "host2"
    events, struck = cluster.events(), lab.kill("host1")
    troubles = [events.wait_for("trouble", lambda e: e["why"] == why, 40, since=struck)     # noqa: B023
                for why in ("it could not be started", "no room for its memory or disk")]
    events.wait_for("recovery-finished", timeout=40, since=max(trouble["time"] for trouble in troubles))
    console = cluster.console("busy")
    mark = console.mark()
    for program in ("memwriter", "diskwriter"):
        console.wait_for(f"^{program} ok", 40, since=mark)
    assert console.find(vcft.GUEST_FAIL) is None
    cluster.wait_protected(60)
    assert [host["agent"] for host in lab.status()["hosts"] if host["state"] == "running"] == [True] * 2


@pytest.mark.parametrize("faults", [CAPTURE, {**STORE, **RECOVERY}], ids=["capture", "store-and-recovery"])
def test_faults(faults, tiny_guest):
    reasons, aborted = run_with(faults)
    for fault, reason in faults.items():
        assert reason is None or any(reason in given for given in reasons), fault
    assert len(aborted) >= len([reason for reason in set(faults.values()) if reason])
