"""test_idle.py - checkpoints are incremental: that of an idle guest copies and sends what it has written, not its memory."""

import pytest

import vcft

GIB = 1 << 30


@pytest.mark.limit(120)
def test_an_idle_guest_of_1_gib_sends_little(lab, tiny_guest):
    cluster = vcft.Cluster(lab, [vcft.tiny_vm("idle", 1, "host1", memory="1G")], interval="200ms", verify=False)
    events = cluster.events("host1")
    cluster.up()
    cluster.wait_ready()
    cluster.wait_protected(60)
    last = events.wait_for("checkpoint-committed", since=vcft.now())["epoch"]
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= last + 10)
    rows = [e["vms"]["idle"] for e in events.all("checkpoint-committed", lambda e: e["epoch"] > last)]
    assert len(rows) >= 10
    assert max(row["dirty_pages"] for row in rows) * 4096 < GIB // 200
    assert max(row["sent_bytes"] for row in rows) < GIB // 200
