"""test_redundancy.py - P5 with two backups on five hosts: any two hosts lost at once; new backups are filled while checkpoints go on; a returned
host is used again. And the loss of every copy of a VM: it is said, nothing is half recovered, `up` starts anew.

    sender ──lan: numbered datagrams──► receiver        busy: memwriter, diskwriter        every image is verified at every epoch
"""

import pytest

import vcft

pytestmark = [pytest.mark.hosts(5), pytest.mark.limit(400)]

WAIT_S = 120


def make_cluster(lab, backups):
    """The cluster of the picture, protected; busy has written all its memory and disk once."""
    cluster = vcft.Cluster(lab, interval="200ms", backups=backups, vms=[
        vcft.tiny_vm("sender", 1, "host1", [f"udpseq send {vcft.lan_address(2)}:7000 50"], neighbours=[2]),
        vcft.tiny_vm("receiver", 2, "host2", ["udpseq recv 7000"], neighbours=[1]),
        vcft.tiny_vm("busy", 3, "host3", ["memwriter 500 500", "diskwriter 50 100"], disks=[lab.zeros("busy.raw", 16 << 20)])])
    cluster.up(WAIT_S)
    for program in ("memwriter", "diskwriter"):
        cluster.console("busy").wait_for(f"^{program} ok .* passes=[1-9]", WAIT_S)
    cluster.console("receiver").wait_for(r"^udpseq recv next=[1-9]", WAIT_S)
    cluster.wait_protected(WAIT_S)
    return cluster


def row_of(cluster, vm):
    """Its row of the status."""
    return next(v for v in cluster.status()["vms"] if v["name"] == vm)


def state_of(status, host):
    return next((h["state"] for h in status["hosts"] if h["name"] == host), None)


def kill(cluster, victims):
    """All at once; the events of a host that stays, and when it was."""
    cluster.first = next(host for host in cluster.lab.running() if host not in victims)
    events = cluster.events()
    return events, min(cluster.lab.kill(host) for host in victims)


def check_guests(cluster):
    """From now on all of them go on, and none has found anything wrong, ever."""
    for vm, words in (("busy", "memwriter ok"), ("busy", "diskwriter ok"), ("receiver", "udpseq recv next=")):
        console = cluster.console(vm)
        console.wait_for(f"^{words}", WAIT_S, since=console.mark())
    assert cluster.console("busy").find(vcft.GUEST_FAIL) is None
    assert cluster.console("receiver").find(r"^udpseq recv .*(missing|double|late|bad)=[1-9]") is None


def test_two_hosts_at_once_then_new_backups_then_the_returned_host(lab, tiny_guest):
    cluster = make_cluster(lab, backups=2)
    busy = row_of(cluster, "busy")
    victims = [busy["host"], busy["backups"][0]]
    events, struck = kill(cluster, victims)
    recovered = events.wait_for("recovery-finished", since=struck, timeout=WAIT_S)
    check_guests(cluster)

    ready = events.wait_for("backup-ready", since=recovered["time"], timeout=WAIT_S)
    assert events.all("degraded", lambda e: e["time"] < ready["time"], since=recovered["time"])
    filled = [e for e in events.all("checkpoint-committed", since=recovered["time"]) if e["time"] < ready["time"]]
    assert len(filled) > 1, "the new backups are filled while checkpoints go on"
    for vm in cluster.status()["vms"]:
        assert len(vm["backups"]) == 2 and not {vm["host"], *vm["backups"]} & set(victims)

    returned = victims[0]
    lab.start(returned)
    cluster.wait_status("it to take part", lambda s: state_of(s, returned) in ("leader", "member"), WAIT_S)
    third = next(host for host in lab.running() if host not in (returned, row_of(cluster, "sender")["host"]))
    events, struck = kill(cluster, [third])
    events.wait_for("recovery-finished", since=struck, timeout=WAIT_S)
    status = cluster.wait_protected(WAIT_S)
    assert all(returned in (vm["host"], *vm["backups"]) for vm in status["vms"]), "three hosts are left, and each VM needs three"
    check_guests(cluster)


def test_every_copy_of_a_vm_is_lost(lab, tiny_guest):
    cluster = make_cluster(lab, backups=1)
    busy = row_of(cluster, "busy")
    victims = [busy["host"], *busy["backups"]]
    events, struck = kill(cluster, victims)
    assert events.wait_for("cluster-lost", since=struck, timeout=WAIT_S)["vm"] == "busy"
    survivors = lab.running()
    for host in survivors:
        status = cluster.wait_status(f"{host} to say so", lambda s: s["state"] == "lost", WAIT_S, host)
        assert {vm["state"] for vm in status["vms"]} == {"lost"}
        assert "no image of busy is left" in status["trouble"]
    said = {vm: cluster.console(vm).text() for vm in cluster.vms}

    for host in victims:
        lab.start(host)
    cluster.wait_status("five hosts", lambda s: sum(h["state"] != "lost" for h in s["hosts"]) == 5, WAIT_S)
    assert cluster.status()["state"] == "lost", "an empty host does not bring back what is lost"
    assert {vm: cluster.console(vm).text() for vm in cluster.vms} == said, "nothing runs"
    assert not events.all("recovery-finished", since=struck)

    marks = {vm: cluster.console(vm).mark() for vm in cluster.vms}
    cluster.up(WAIT_S)
    assert events.all("cluster-ended", since=struck), "what is lost is ended first"
    assert cluster.status()["trouble"] is None
    for vm in cluster.vms:
        cluster.console(vm).wait_for("^VCFT-GUEST-READY", WAIT_S, since={**marks[vm], **dict.fromkeys(lab.names, 0)})
    assert cluster.wait_protected(WAIT_S)["state"] == "running"
    check_guests(cluster)
