"""test_loss.py - something is lost, everything goes on (P5), and nobody inside or outside can tell: P1, P2, P3, P4, P6.

One cluster on three hosts lives through all losses; each time it is made whole again before the next. Every image is verified at every epoch.

        outside 10.78.0.1:  nonces ◄─────────┐   echo ──┐            (observers that are never put back)
                                             │          ▼
        left   host1   udpseq send, nonce ───┘        right   host2   udpseq recv, echo
                            └───────── lan: numbered datagrams ─────────▲
        third  host3   memwriter, diskwriter on a disk
        each VM counts on its console: tick 0, tick 1, ...

For each loss: test_loss (P5: everything runs again), test_rollback (survivors go back too), test_inflight (P1, P2: the receiver and the sender
agree), test_output_commit (P3: what was seen outside is never undone). Then partitions (P4).
"""

import contextlib
import re

import pytest

import vcft

pytestmark = pytest.mark.limit(120)

SEND_RATE = 400
TICK = "tick 100"
ECHO = "nc -ll -p 7100 -e cat"
RIGHT_OUTSIDE, LEFT_TO_RIGHT = vcft.wan_address(2), vcft.lan_address(2)


class World(vcft.World):
    """The cluster of the picture and its observers."""

    def bring_up(self):
        both = ("lan", "wan")
        self.cluster = vcft.Cluster(self.lab, interval="100ms", backups=2, vms=[
            vcft.tiny_vm("left", 1, "host1", [f"udpseq send {LEFT_TO_RIGHT}:7000 {SEND_RATE}", "nonce 10.78.0.1:7200 100", TICK], both, [2]),
            vcft.tiny_vm("right", 2, "host2", ["udpseq recv 7000", ECHO, TICK], both, [1]),
            vcft.tiny_vm("third", 3, "host3", ["memwriter 1000 1000", "diskwriter 50 200", TICK], disks=[self.lab.zeros("third.raw", 16 << 20)])])
        self.nonces = vcft.Outside(self.lab, "nonces", "7200")
        self.echo = vcft.Outside(self.lab, "echo", f"{RIGHT_OUTSIDE}:7100")
        self.mend = None
        self.cluster.up()
        self.cluster.wait_ready(90)
        self.echo.wait_for("the first answer", lambda s: s["error"] or s["echoed"], 60)
        third = self.cluster.console("third")
        for program in ("memwriter", "diskwriter"):
            third.wait_for(f"^{program} ok .* passes=[1-9]", 60)

    def make_whole(self):
        """Brings back what the loss before took away; all VMs have all their backups."""
        if self.mend:
            self.mend()
            self.mend = None
        self.cluster.wait_protected(60)
        self.cluster.wait_status("three hosts", lambda s: [h["state"] for h in s["hosts"]].count("member") == 2, 30)

    def datagrams(self):
        return vcft.udpseq_ask_outside(self.lab, f"{RIGHT_OUTSIDE}:7000")

    def check_inside(self):
        """The stream between the VMs goes on from now, and no number was missing or came twice, ever."""
        wanted = self.datagrams()["next"] + SEND_RATE // 2
        state = vcft.wait_until(f"number {wanted}", lambda: (s := self.datagrams())["next"] >= wanted and s, 20, step=0.3)
        assert state == {**state, "seen": state["next"], "missing": 0, "double": 0, "late": 0, "bad": 0, "dropped": 0}

    def check_outside(self):
        """The outside sees more from now on, enough for the guest to have sent again all that it lost; nothing that was seen has been undone."""
        echoed, highest = self.echo.state["echoed"], self.nonces.state["highest"]
        echo = self.echo.wait_for("answers", lambda s: s["error"] or s["echoed"] > echoed + 5, 20)
        assert echo["error"] is None
        left = self.cluster.console("left")
        nonces = self.nonces.wait_for("more of them", lambda s: s["undone"] or s["highest"] > highest + 50 or left.find("^nonce: "), 20)
        assert left.find("^nonce: .*") is None
        assert nonces["undone"] == []

    def place(self, vm):
        return self.cluster.host_of(vm)

    def agent_runs(self, host):
        return next(h["agent"] for h in self.lab.status()["hosts"] if h["name"] == host)

    def signal(self, host, number, *pgrep):
        """To the one process of the host that pgrep finds; the time before."""
        pid = self.lab.exec(host, "pgrep", *pgrep).split()
        assert len(pid) == 1, f"{pgrep}: {pid}"
        moment = vcft.now()
        self.lab.exec(host, "kill", number, pid[0])
        return moment


class Loss:
    """What was lost, when, and what was before."""

    def __init__(self, world, kind):
        self.world, self.kind = world, kind
        self.lab, self.cluster = world.lab, world.cluster
        self.places = {vm: world.place(vm) for vm in self.cluster.vms}
        self.victim = kind.victim(world)
        self.generation = self.cluster.status()["generation"]
        self.survivors = [host for host in self.lab.names if not kind.host_is_lost or host != self.victim]
        self.cluster.first = self.survivors[0]
        self.marks = {vm: self.cluster.console(vm).mark() for vm in self.cluster.vms}
        self.events = {host: self.cluster.events(host) for host in self.survivors}
        for vm in self.cluster.vms:
            self.cluster.console(vm).wait_for(r"^tick \d+$", 15, since=self.marks[vm])
        world.mend = lambda: kind.mend(world, self.victim)
        self.moment = kind.strike(world, self.victim)
        self.recovered = [events.wait_for("recovery-finished", timeout=60, since=self.moment) for events in self.events.values()]

    def ticks(self, vm):
        """The numbers that the VM has counted on its console since shortly before the loss, on the host where it was then."""
        host = self.places[vm]
        return [int(n) for n in re.findall(r"^tick (\d+)$", self.cluster.console(vm).text(host)[self.marks[vm][host]:], re.MULTILINE)]


def descents(numbers):
    """How often they go back."""
    return sum(b <= a for a, b in zip(numbers, numbers[1:]))


def skips(numbers):
    """Where they leave something out. At the place where a VM was put back its line of the console may be torn."""
    back = [b <= a for a, b in zip(numbers, numbers[1:])]
    return [(a, b) for i, (a, b) in enumerate(zip(numbers, numbers[1:])) if b > a + 1 and not any(back[max(0, i - 1):i + 2])]


# ---- kinds of loss -----------------------------------------------------------------------------------------------------

class HostKilled:
    host_is_lost = True

    def __init__(self, host):
        self.name, self.host = f"{host}-killed", host

    def victim(self, _world):
        return self.host

    def strike(self, world, host):
        return world.lab.kill(host)

    def mend(self, world, host):
        world.lab.start(host)


class HostCut(HostKilled):
    """Both cables pulled; it lives and must find its place afterwards."""

    def __init__(self, vm):
        self.name, self.vm = f"host-of-{vm}-cut", vm

    def victim(self, world):
        return world.place(self.vm)

    def strike(self, world, host):
        return world.lab.cut(host)

    def mend(self, world, host):
        world.cluster.wait_status("no quorum there", lambda s: s["state"] == "no quorum", 10, host)
        world.lab.heal(host)
        world.cluster.wait_status("it to take its place", lambda s: s["state"] == "running", 30, host)


class Agent:
    """The agent alone; its QEMUs must die with it."""
    host_is_lost = True

    def __init__(self, vm, number, name):
        self.name, self.vm, self.number = name, vm, number

    def victim(self, world):
        return world.place(self.vm)

    def strike(self, world, host):
        moment = world.signal(host, self.number, "-x", "virtcftd")
        vcft.wait_until("the agent to be gone", lambda: not world.agent_runs(host), 5)
        vcft.wait_until("its QEMU to die with it", lambda: not world.lab.exec(host, "pgrep", "-f", "^/[^ ]*(qemu-system|nbdkit)", check=False), 3)
        return moment

    def mend(self, world, host):
        world.lab("agent", host)


class Process:
    """A process of one VM: the cluster is recovered in place."""
    host_is_lost = False

    def __init__(self, name, vm, *pgrep, number="-KILL"):
        self.name, self.vm, self.pgrep, self.number = name, vm, pgrep, number

    def victim(self, world):
        return world.place(self.vm)

    def strike(self, world, host):
        return world.signal(host, self.number, *self.pgrep)

    def mend(self, world, host):
        pass


class Tunnel:
    """The tunnels of a host break, while the group goes on as ever: the cluster is recovered in place. silent: what others send into them just does not
    come any more, until TCP gives up."""
    host_is_lost = False

    def __init__(self, name, vm, silent):
        self.name, self.vm, self.silent = name, vm, silent

    def victim(self, world):
        return world.place(self.vm)

    def strike(self, world, host):
        moment, events = vcft.now(), world.cluster.events()
        ports = [f"{end} {vcft.TUNNEL_PORT}" for end in ("dport", "sport")]
        with world.lab.shaped(host, ports) if self.silent else contextlib.nullcontext():
            if not self.silent and str(vcft.TUNNEL_PORT) not in world.lab.exec(host, "ss", "-K", "-tn", " or ".join(ports)):
                pytest.skip("this kernel closes no sockets of others")
            events.wait_for("trouble", lambda e: e["why"] == "a tunnel broke", 40, since=moment)
        return moment

    def mend(self, world, host):
        pass


LOSSES = [
    HostKilled("host3"),                                                    # neither sender nor receiver
    HostKilled("host2"),                                                    # the receiver
    HostKilled("host1"),                                                    # the sender, and the leader
    Agent("right", "-KILL", "agent-killed"),
    Agent("left", "-STOP", "agent-hangs"),                                  # the watchdog's affair
    Process("qemu-killed", "third", "-f", "^/[^ ]*qemu-system.* -name third "),
    Process("qemu-hangs", "third", "-f", "^/[^ ]*qemu-system.* -name third ", number="-STOP"),   # QMP does not answer
    Process("nbdkit-killed", "third", "-x", "nbdkit"),
    Process("nbdkit-hangs", "third", "-x", "nbdkit", number="-STOP"),
    Tunnel("tunnels-broken", "left", silent=False),
    Tunnel("tunnels-silent", "right", silent=True),
    HostCut("left"),
]


def make_shared():
    return World(3)


@pytest.fixture(scope="module", params=LOSSES, ids=lambda kind: kind.name)
def loss(request, shared):
    try:
        shared.get().make_whole()
        return Loss(shared.get(), request.param)
    except BaseException:
        shared.broken()
        raise


def test_loss(loss):
    """P5: every VM runs again, on a host that lives, and its memory and disk are what they must be (P6)."""
    assert {event["generation"] for event in loss.recovered} == {loss.recovered[0]["generation"]}
    assert loss.recovered[0]["generation"] > loss.generation
    status = loss.cluster.wait_status("all VMs run", lambda s: all(vm["state"] == "running" for vm in s["vms"]), 10)
    assert {vm["host"] for vm in status["vms"]} <= set(loss.survivors)
    third = loss.cluster.console("third")
    mark = third.mark()
    for program in ("memwriter", "diskwriter"):
        third.wait_for(f"^{program} ok", 15, since=mark)
    assert third.find(vcft.GUEST_FAIL) is None


def test_rollback(loss):
    """A survivor is put back as well, and counts on from there without a gap."""
    for vm, host in loss.places.items():
        if host not in loss.survivors:
            continue
        mark = loss.cluster.console(vm).mark()
        loss.cluster.console(vm).wait_for(r"^tick \d+$", 15, since=mark)
        assert not skips(loss.ticks(vm)), vm
        if loss.kind.host_is_lost:                          # noticed after a while, in which some ticks were counted in vain
            assert descents(loss.ticks(vm)) > 0, vm


def test_inflight(loss):
    """P1, P2: no number is missing, none came twice: what was under way at the cut belongs to the checkpoint."""
    loss.world.check_inside()


def test_output_commit(loss):
    """P3: what has been seen outside was never undone, and the outside was answered: a TCP connection goes on."""
    loss.world.check_outside()


# ---- partitions --------------------------------------------------------------------------------------------------------

@pytest.fixture
def world(shared, request):
    """The cluster, whole. If the test does not come to its end, or leaves trouble behind, the next one gets a new one."""
    try:
        shared.get().make_whole()
        yield shared.get()
    finally:
        if getattr(request.node, "came_to_its_end", False) is False:
            shared.broken()


@contextlib.contextmanager
def unplugged(lab, host):
    lab.fabric_link(host, "down")
    try:
        yield
    finally:
        lab.fabric_link(host, "up")


@pytest.mark.parametrize("way", [unplugged, vcft.Lab.deaf, vcft.Lab.mute], ids=["both-ways", "it-hears-nobody", "nobody-hears-it"])
def test_partition_with_a_way_outside(world, request, way):
    """P4: a host that is alone runs nothing that the outside could see, although it could reach it; afterwards it takes its place."""
    victim = world.place("left")
    others = [host for host in world.lab.names if host != victim]
    world.cluster.first = others[0]
    events = world.cluster.events(others[0])
    cut = vcft.now()
    with way(world.lab, victim):
        events.wait_for("recovery-finished", timeout=30, since=cut)
        world.cluster.wait_status("no quorum there", lambda s: s["state"] == "no quorum", 10, victim)
        alone = world.cluster.console("left").text(victim)
        highest = world.nonces.state["highest"]
        world.nonces.wait_for("the other side's", lambda s: s["highest"] > highest + 100, 20)
        assert world.cluster.console("left").text(victim) == alone
    world.cluster.wait_status("it to take its place", lambda s: s["state"] == "running", 30, victim)
    assert world.place("left") != victim
    world.check_inside()
    world.check_outside()
    request.node.came_to_its_end = True


def test_partition_without_a_majority(world, request):
    """P4, P5: the last of three hosts is silent; when another one comes back it brings everything back from its images."""
    last = "host2"
    world.cluster.first = last
    events = world.cluster.events(last)
    world.mend = lambda: world.lab.start("host3")
    world.lab.kill("host1")
    world.lab.kill("host3")
    world.cluster.wait_status("no quorum", lambda s: s["state"] == "no quorum", 10)
    consoles = {vm: world.cluster.console(vm).text(last) for vm in world.cluster.vms}
    started = world.lab.start("host1")
    assert {vm: world.cluster.console(vm).text(last) for vm in world.cluster.vms} == consoles
    assert world.nonces.state["undone"] == []
    events.wait_for("recovery-finished", timeout=30, since=started)
    world.check_inside()
    world.check_outside()
    third = world.cluster.console("third")
    third.wait_for("^diskwriter ok", 15, since=third.mark())
    assert third.find(vcft.GUEST_FAIL) is None
    request.node.came_to_its_end = True
