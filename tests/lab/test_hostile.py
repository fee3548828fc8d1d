"""test_hostile.py - a guest that floods its network with everything an Ethernet can carry, while the others' checkpoints and pings go on (rules N3, N8)."""

import re

import pytest

import vcft

pytestmark = [pytest.mark.limit(600), pytest.mark.hosts(3)]

SIDE = {"name": "side"}
OUTSIDE_MAC = "02:78:00:00:00:99"
EPOCHS = 15
ANON_KIB_MOST = 512 << 10      # of an agent: 16 MiB for each of some ports, twice, and pools; a flood of a minute without bounds is far more


def agent_anon_kib(lab, host):
    """Memory of the agent on that host that is not the guests' RAM."""
    status = lab.exec(host, "sh", "-c", "cat /proc/$(pgrep -o -x virtcftd)/status")
    return int(re.search(r"RssAnon:\s*(\d+)", status).group(1))


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

    flooder = lab.popen("exec", "host1", "--", "virtcft", "console", "flooder")
    flooder.stdin.write(f"flood eth0 {vcft.mac(0, 2)} {OUTSIDE_MAC} &\n")
    flooder.stdin.flush()
    cluster.console("flooder").wait_for(r"flood sent=\d+", 60)
    begun = events.wait_for("checkpoint-committed", since=vcft.now(), timeout=60)["epoch"]
    answer = cluster.console("ask").run("host2", f"pinger {vcft.lan_address(4)}:7001 1 200", 120)
    assert "lost=0" in answer
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= begun + EPOCHS, timeout=120)
    assert len(events.all("recovery-started")) <= 1   # the start itself
    victim, tell_console = cluster.console("victim"), cluster.console("tell")
    victim.wait_for("^memwriter ok", 60, since=victim.mark())
    mark = tell_console.mark()
    tell_console.wait_for(r"^udpseq recv next=\d+ seen=\d+ missing=0 double=0 late=0 bad=0", 60, since=mark)
    for host in lab.names:
        assert agent_anon_kib(lab, host) < ANON_KIB_MOST, host
    sent = int(cluster.console("flooder").find_last(r"flood sent=(\d+)", "host1").group(1))
    print(f"{sent} frames; {answer.strip()}; anon KiB", {host: agent_anon_kib(lab, host) for host in lab.names})
