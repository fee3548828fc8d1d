"""test_starved.py - a guest that gets next to no CPU takes no frames: what its network card's ring has no room for is in flight all the same (P2, N9).

        left   host1   udpseq send ──numbered datagrams──► right   host2   udpseq recv, its vCPU starved until the ring is full

QEMU throws away at a stop what it has read for a full ring; so without the gate datagrams are missing, with and without a recovery. And a QEMU that was
merely kept from running must not be taken for one whose ring is full.
"""

import os

import pytest

import vcft

pytestmark = pytest.mark.limit(120)

RATE, RING = 2000, 256
STARVE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "starve.py")


@pytest.fixture
def stream(lab, tiny_guest):
    cluster = vcft.Cluster(lab, interval="100ms", vms=[
        vcft.tiny_vm("left", 1, "host1", [f"udpseq send {vcft.lan_address(2)}:7000 {RATE}"], neighbours=[2]),
        vcft.tiny_vm("right", 2, "host2", ["udpseq recv 7000"], neighbours=[1])]).up()
    cluster.wait_ready(60)
    cluster.wait_protected(60)
    cluster.console("right").wait_for(vcft.UDPSEQ_STATE, 30)
    cluster.console("left").wait_for(r"^udpseq sent ", 30)
    return cluster


def qemu(lab, host, vm):
    return lab.exec(host, "pgrep", "-f", f"^/[^ ]*qemu-system.* -name {vm} ").split()[0]


def vcpu_of(lab, host, pid):
    """The thread of a QEMU that has used most CPU, but for the first one: that is its main loop, which may have used more."""
    lines = lab.exec(host, "sh", "-c", f"cat /proc/{pid}/task/*/stat").splitlines()
    return max((int(f[13]) + int(f[14]), f[0]) for f in map(str.split, lines) if f[0] != pid)[1]


def received(cluster, host):
    """The receiver's newest state."""
    return vcft.udpseq_state(cluster.console("right").find_last(vcft.UDPSEQ_STATE, host).group(0))


def sent(cluster):
    """Datagrams, at least."""
    return int(cluster.console("left").find_last(r"^udpseq sent (\d+)$", "host1").group(1))


def starve(lab, cluster):
    """The receiver's vCPU; when this returns many more datagrams than the ring takes are waiting, and one more checkpoint has been committed since."""
    events = cluster.events("host2")
    starver = lab.popen("exec", "host2", "--", "/usr/bin/python3", STARVE, vcpu_of(lab, "host2", qemu(lab, "host2", "right")))
    assert starver.stdout.readline() == "starving\n"
    vcft.wait_until("frames to wait for the receiver", lambda: sent(cluster) > received(cluster, "host2")["next"] + 8 * RING, 40, step=0.2)
    events.wait_for("checkpoint-committed", timeout=30, since=vcft.now())
    return starver


def check(cluster, host):
    """The receiver catches up, and has seen each number once, and in order."""
    wanted = sent(cluster)
    state = vcft.wait_until(f"number {wanted}", lambda: (s := received(cluster, host))["next"] >= wanted and s, 40, step=0.2)
    assert state == {**state, "seen": state["next"], "missing": 0, "double": 0, "late": 0, "bad": 0, "dropped": 0}


def test_P2_starved(stream, lab):
    """Checkpoints of a guest whose ring is full lose nothing of what it is being sent."""
    starve(lab, stream).stdin.close()
    check(stream, "host2")


def test_P2_starved_and_rolled_back(stream, lab):
    """Nor does a recovery to such a checkpoint."""
    starve(lab, stream)
    events = stream.events("host2")
    killed = vcft.now()
    lab.exec("host1", "kill", "-KILL", qemu(lab, "host1", "left"))
    events.wait_for("recovery-finished", timeout=30, since=killed)
    check(stream, "host2")


def test_P2_hangs_for_a_while(stream, lab):
    """A QEMU that is stopped longer than the gate waits, and goes on before it counts as hung, has no frame twice: what it has read is in the guest."""
    for _ in range(3):
        pid, before = qemu(lab, "host2", "right"), sent(stream)
        lab.exec("host2", "kill", "-STOP", pid)
        vcft.wait_until("two seconds' datagrams", lambda: sent(stream) >= before + 3 * RATE, 20, step=0.05)
        lab.exec("host2", "kill", "-CONT", pid)
        check(stream, "host2")
