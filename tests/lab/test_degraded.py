"""test_degraded.py - a cluster with less than it should have.

While a VM has fewer backups `run` goes on speaking, `hold` commits but says nothing to the outside. A host that cannot have a network's uplink is done without.
"""

import pytest

import vcft

pytestmark = pytest.mark.limit(300)

WAIT_S = 90
EPOCHS = 10


def nonces_after(nonces, events):
    """The newest number seen, when all that had left before has arrived: after one more epoch."""
    last = events.wait_for("checkpoint-committed", since=vcft.now(), timeout=WAIT_S)["epoch"]
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] > last, timeout=WAIT_S)
    return nonces.state["highest"]


@pytest.mark.parametrize("degraded", ["hold", "run"])
def test_degraded(lab, tiny_guest, degraded):
    cluster = vcft.Cluster(lab, interval="200ms", backups=2, degraded=degraded, vms=[
        vcft.tiny_vm("speaker", 1, "host2", ["nonce 10.78.0.1:7200 50", "memwriter 300 300"], ("lan", "wan"))])
    nonces = vcft.Outside(lab, "nonces", "7200")
    events = cluster.events()
    cluster.up(WAIT_S)
    cluster.wait_protected(WAIT_S)
    nonces.wait_for("the first ones", lambda s: s["highest"] > 0, WAIT_S)

    killed = lab.kill("host2")
    events.wait_for("recovery-finished", since=killed, timeout=WAIT_S)
    events.wait_for("degraded", since=killed, timeout=WAIT_S)
    highest, committed = nonces_after(nonces, events), cluster.status()["committed"]
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= committed + EPOCHS, WAIT_S)
    status = cluster.status()
    assert not status["protected"] and status["state"] == "running"
    if degraded == "hold":
        assert nonces.state["highest"] == highest and status["released"] < status["committed"] - EPOCHS + 1
    else:
        nonces.wait_for("more", lambda s: s["highest"] > highest, WAIT_S)

    lab.start("host2")
    cluster.wait_protected(WAIT_S)
    nonces.wait_for("more, with all backups again", lambda s: s["highest"] > highest + 50, WAIT_S)
    speaker = cluster.console("speaker")
    speaker.wait_for("^memwriter ok", WAIT_S, since=speaker.mark())
    assert speaker.find(vcft.GUEST_FAIL) is None
    assert nonces.state["undone"] == []


def test_a_host_that_cannot_have_the_uplink_leaves(lab, tiny_guest):
    """The name of its TAP device is taken: it says so and leaves; the others start without it."""
    lab.exec("host2", "ip", "link", "delete", "vcft-wan")
    lab.exec("host2", "ip", "link", "add", "vcft-wan", "type", "veth", "peer", "name", "other-end")
    cluster = vcft.Cluster(lab, [vcft.tiny_vm("speaker", 1, "host2", ["nonce 10.78.0.1:7200 50"], ("lan", "wan"))])
    nonces = vcft.Outside(lab, "nonces", "7200")
    cluster.up(WAIT_S)
    cluster.wait_protected(WAIT_S)
    nonces.wait_for("the first ones", lambda s: s["highest"] > 0, WAIT_S)
    assert cluster.host_of("speaker") != "host2"
    assert [host["agent"] for host in lab.status()["hosts"]] == [True, False, True]
    assert "uplink vcft-wan" in lab.log_tails(100)
