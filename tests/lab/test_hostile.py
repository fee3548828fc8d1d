"""test_hostile.py - a guest that floods its network with everything an Ethernet can carry, while the others' checkpoints and pings go on (rules N3, N8).

    lan    flooder (host1) ──► victim (host2)          side   ask (host2) ◄──► tell (host3): hear nothing of it, lose nothing
"""

import re
import statistics

import pytest

import vcft

pytestmark = [pytest.mark.limit(600), pytest.mark.hosts(3)]

SIDE = {"name": "side"}
OUTSIDE_MAC = "02:78:00:00:00:99"
EPOCHS = 15
LATER_MS_MOST = 1000 + 2000    # SECURITY.md: a second at the gate; four times queue_memory and a record, 124 MiB, at 62 MiB a second
HEAR_S = 30                    # of the guest's time
ANON_KIB_MOST = 512 << 10      # of an agent: 16 MiB for each of some ports, twice, and pools; a flood of a minute without bounds is far more


def agent_anon_kib(lab, host):
    """Memory of the agent on that host that is not the guests' RAM."""
    status = lab.exec(host, "sh", "-c", "cat /proc/$(pgrep -o -x virtcftd)/status")
    return int(re.search(r"RssAnon:\s*(\d+)", status).group(1))


def commit_ms(events, after):
    """The median of EPOCHS checkpoints behind that one: one that waited for a busy machine says nothing."""
    rows = vcft.wait_until("checkpoints", lambda: len(found := events.all("checkpoint-committed", lambda e: e["epoch"] > after)) >= EPOCHS and found, 120)
    return statistics.median(row["commit_ms"] for row in rows[:EPOCHS])


def test_a_flooding_guest_stops_nobody(lab, tiny_guest):
    ask, tell = vcft.tiny_vm("ask", 3, "host2", networks=("side",)), vcft.tiny_vm("tell", 4, "host3", networks=("side",))
    for vm, other in ((ask, 4), (tell, 3)):
        vm["append"] += f" vcft.arp={vcft.lan_address(other)}@{vcft.mac(0, other)}"
    tell["append"] += " vcft.run=" + vcft.encode("pinger serve 7001") + " vcft.run=" + vcft.encode("udpseq recv 7000")
    ask["append"] += " vcft.run=" + vcft.encode(f"udpseq send {vcft.lan_address(4)}:7000 50")
    cluster = vcft.Cluster(lab, [
        vcft.tiny_vm("flooder", 1, "host1"),
        vcft.tiny_vm("victim", 2, "host2", ["memwriter 200 200"]),
        ask, tell], networks=(vcft.LAN, SIDE), interval="500ms")
    cluster.up()
    events = cluster.events("host3")
    cluster.wait_ready(300)
    cluster.wait_protected(60)

    quiet = commit_ms(events, events.wait_for("checkpoint-committed", since=vcft.now(), timeout=60)["epoch"])
    cluster.console("tell").run("host3", f"flood heard eth0 {HEAR_S} & true")

    flooder = lab.popen("exec", "host1", "--", "virtcft", "console", "flooder")
    flooder.stdin.write(f"flood eth0 {vcft.mac(0, 2)} {OUTSIDE_MAC} &\n")
    flooder.stdin.flush()
    cluster.console("flooder").wait_for(r"flood sent=\d+", 60)
    begun = events.wait_for("checkpoint-committed", since=vcft.now(), timeout=60)["epoch"]
    answer = cluster.console("ask").run("host2", f"pinger {vcft.lan_address(4)}:7001 1 200", 120)
    assert "lost=0" in answer
    flooded = commit_ms(events, begun)
    assert flooded <= quiet + LATER_MS_MOST
    assert len(events.all("recovery-started")) <= 1   # the start itself
    victim, tell_console = cluster.console("victim"), cluster.console("tell")
    victim.wait_for("^memwriter ok", 60, since=victim.mark())
    assert tell_console.wait_for(r"^flood heard=(\d+)", 60).group(1) == "0", "of another network"
    heard = victim.run("host2", "flood heard eth0 2", 120)
    assert int(re.search(r"flood heard=(\d+)", heard).group(1)) > 0, "what there is to hear is heard"
    mark = tell_console.mark()
    tell_console.wait_for(r"^udpseq recv next=\d+ seen=\d+ missing=0 double=0 late=0 bad=0", 60, since=mark)
    for host in lab.names:
        assert agent_anon_kib(lab, host) < ANON_KIB_MOST, host
    sent = int(cluster.console("flooder").find_last(r"flood sent=(\d+)", "host1").group(1))
    print(f"{sent} frames; commit {quiet:.0f} ms, {flooded:.0f} ms with the flood; {answer.strip()}; anon KiB",
          {host: agent_anon_kib(lab, host) for host in lab.names})
