"""test_smoke.py - the shortest way through everything: a cluster on three hosts, one of them killed, the guests go on."""

import pytest

import vcft


@pytest.mark.limit(240)
def test_guests_go_on_when_a_host_dies(lab, tiny_guest):
    cluster = vcft.Cluster(lab, [
        vcft.tiny_vm("receiver", 1, "host1", ["udpseq recv 7000"], neighbours=[2]),
        vcft.tiny_vm("sender", 2, "host2", [f"udpseq send {vcft.lan_address(1)}:7000 100", "memwriter 500 500"], neighbours=[1])])
    cluster.up()
    events = cluster.events("host1")
    receiver, sender = cluster.console("receiver"), cluster.console("sender")
    receiver.wait_for(r"^udpseq recv next=[1-9]", 60)
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= 20)
    cluster.wait_protected()

    killed = lab.kill("host2")
    recovered = events.wait_for("recovery-finished", since=killed)
    assert recovered["generation"] >= 1
    assert cluster.host_of("sender") != "host2"

    mark = receiver.mark()
    receiver.wait_for(vcft.UDPSEQ_STATE, 20, since=mark)
    state = vcft.udpseq_state(receiver.run("host1", "udpseq ask 127.0.0.1:7000"))
    assert state["next"] == state["seen"] > 0 and state["double"] == 0
    sender.wait_for("^memwriter ok", 20, since=sender.mark())
    assert sender.find(vcft.GUEST_FAIL) is None
