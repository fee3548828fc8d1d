"""test_local.py - one host without corosync: a cluster.yaml without `hosts`. What dies is put back on the same machine, all VMs to one moment."""

import json
import os
import re
import socket

import pytest

import vcft

pytestmark = pytest.mark.limit(120)

TICK = "tick 50"
HOST = "host1"
MONITOR = "/run/virtcft/sender/second.sock"


class Monitor:
    """A second way to a VM's QEMU, which the agent knows nothing of: what somebody does behind its back."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self.order("qmp_capabilities")

    def order(self, command):
        """Returns when it has been carried out."""
        self.socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while "return" not in json.loads(self.lines.readline()):
            pass


class Alone(vcft.World):
    """An agent on one host, group local, and a cluster of four VMs: two of Linux, one that boots from its disk, and one that panics when it has."""

    faults = ""

    def bring_up(self):
        with open(os.path.join(self.lab.folder(HOST), "virtcftd.log"), "wb") as log:
            self.agent = self.lab.popen("exec", HOST, "--", "env", f"VIRTCFT_FAULTS={self.faults}", "virtcftd", "--config", self.lab.write("virtcftd.yaml", b"name: host1\ngroup: local\n"), stdout=log)
        vcft.wait_until("the agent", lambda: self.lab.exec(HOST, "sh", "-c", "test -S /run/virtcft/control.sock && echo yes", check=False), 30)
        disk = self.lab.zeros("disk.raw", 4 << 20)
        boot, panic = self.lab.write("boot.raw", vcft.boot_disk()), self.lab.write("panic.raw", vcft.boot_disk(vcft.PANIC))
        self.cluster = vcft.Cluster(self.lab, interval="100ms", vms=[
            vcft.tiny_vm("sender", 1, None, [f"udpseq send {vcft.lan_address(2)}:7000 200", TICK], neighbours=[2],
                         qemu=["-qmp", f"unix:{MONITOR},server=on,wait=off"]),
            vcft.tiny_vm("receiver", 2, None, ["udpseq recv 7000", "memwriter 1000 1000", "diskwriter 50 200", TICK], neighbours=[1], disks=[disk]),
            {"name": "booter", "memory": "32M", "disks": [{"image": boot}]},
            {"name": "panicker", "memory": "32M", "disks": [{"image": panic}], "qemu": ["-device", "pvpanic"]}])
        del self.cluster.config["hosts"]
        self.cluster.up()
        self.cluster.wait_ready()
        for program in ("memwriter", "diskwriter"):
            self.cluster.console("receiver").wait_for(f"^{program} ok .* passes=[1-9]", 60)

    def inside(self, path):
        """What has that path on the host, as this machine sees it."""
        return f"/proc/{self.lab.node_pid(HOST)}/root{path}"

    def state_of(self, vm):
        return next(row["state"] for row in self.cluster.status()["vms"] if row["name"] == vm)

    def virtcft(self, *arguments):
        """Status, output of a command that may fail."""
        process = self.lab.popen("exec", HOST, "--", "virtcft", *arguments)
        return process.wait(20), process.stdout.read()


def make_shared():
    return Alone(1, agent=False)


def test_boots_from_its_disk(shared):
    """Without `kernel` the firmware boots from the first disk, through nbdkit as any other read."""
    assert shared.get().cluster.console("booter").find("^VCFT-GUEST-READY from its disk")


def test_a_guest_that_panics_is_off(shared):
    """As one that powered itself off: it stands, the others go on, all are checkpointed; test_loss_on_one_host puts it back as it is."""
    cluster = shared.get().cluster
    cluster.events(HOST).wait_for("vm-off", lambda e: e["vm"] == "panicker", 20)
    cluster.wait_status("it to be off, and a checkpoint", lambda s: s["committed"] > 0 and shared.get().state_of("panicker") == "off", 20)


def test_a_vm_that_somebody_stops(shared):
    """Its checkpoints are given up while it stands, the last one stays, the others run on; it is not taken for broken. When it goes on so do checkpoints."""
    alone, cluster = shared.get(), shared.get().cluster
    events, monitor, moment = cluster.events(HOST), Monitor(alone.inside(MONITOR)), vcft.now()
    monitor.order("stop")
    events.wait_for("checkpoint-aborted", since=moment, timeout=20)
    committed, last = cluster.status()["committed"], vcft.now()
    marks = {vm: cluster.console(vm).mark() for vm in cluster.vms}
    for _ in range(5):
        last = events.wait_for("checkpoint-aborted", since=last, timeout=20)["time"] + 1
    cluster.console("receiver").wait_for(r"^tick \d+$", 20, since=marks["receiver"])
    assert cluster.console("sender").find(r"^tick \d+$", marks["sender"]) is None
    assert cluster.status()["committed"] == committed
    monitor.order("cont")
    events.wait_for("checkpoint-committed", since=vcft.now(), timeout=20)
    cluster.console("sender").wait_for(r"^tick \d+$", 20, since=marks["sender"])
    assert not events.all("recovery-started", since=moment) and not events.all("trouble", since=moment)


def test_who_does_not_read_is_cut_off(shared):
    """A client of the control socket that asks and asks and never reads: the agent keeps so much for it and no more, and serves the others."""
    alone = shared.get()
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(alone.inside("/run/virtcft/control.sock"))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            client.sendall(b'{"verb": "status"}\n' * 100)
    assert alone.cluster.status()["state"] == "running"


@pytest.mark.parametrize("pgrep, process", [(("-f", "^/[^ ]*qemu-system.* -name sender "), "QEMU"), (("-x", "nbdkit"), "nbdkit")], ids=["qemu", "nbdkit"])
def test_loss_on_one_host(shared, pgrep, process):
    alone = shared.get()
    cluster, receiver = alone.cluster, alone.cluster.console("receiver")
    marks = {vm: cluster.console(vm).mark() for vm in cluster.vms}
    events = cluster.events(HOST)
    events.wait_for("checkpoint-committed", since=vcft.now())
    for vm in ("sender", "receiver"):
        cluster.console(vm).wait_for(r"^tick \d+$", 15, since=marks[vm])
    killed = vcft.now()
    alone.lab.exec(HOST, "kill", "-KILL", alone.lab.exec(HOST, "pgrep", *pgrep).split()[0])
    assert events.wait_for("vm-exited", since=killed, timeout=10)["process"] == process
    events.wait_for("recovery-finished", since=killed, timeout=20)
    mark = receiver.mark()
    for program in ("memwriter", "diskwriter", r"udpseq recv next=\d+ seen=\d+ missing=0 double=0 late=0 bad=0"):
        receiver.wait_for(f"^{program}", 20, since=mark)
    assert receiver.find(vcft.GUEST_FAIL) is None and receiver.find(r"^udpseq recv .*(missing|double|late|bad)=[1-9]") is None
    assert alone.state_of("panicker") == "off"
    assert cluster.status()["trouble"] is None, "it is over"
    committed = cluster.status()["committed"]
    events.wait_for("checkpoint-committed", lambda e: e["epoch"] > committed)


YAML = """\
cluster: bad
networks: [ { name: lan } ]
vms:
  - { name: a, memory: %(memory)s, kernel: /proc/version, nics: [ { network: %(network)s, mac: 52:54:00:00:00:01 } ] }
%(more)s
"""


@pytest.mark.parametrize("change, line, words", [
    ({"memory": "64 cats"}, 4, "memory"), ({"network": "wan"}, 4, "wan"), ({"more": "colour: red"}, 5, "unknown key 'colour'")],
    ids=["unit", "network", "key"])
def test_bad_input_is_refused_with_its_line(shared, change, line, words):
    alone = shared.get()
    path = alone.lab.write("bad.yaml", (YAML % {"memory": "64M", "network": "lan", "more": "", **change}).encode())
    status, output = alone.virtcft("up", path)
    assert status != 0
    assert re.search(rf"bad\.yaml:{line}: .*{re.escape(words)}.*expected", output), output


def test_a_second_cluster_is_refused(shared):
    alone = shared.get()
    status, output = alone.virtcft("up", alone.cluster.file())
    assert status != 0 and "is up already" in output


def test_the_agent_ends_its_vms_and_the_command_says_that_it_is_gone(shared):
    alone = shared.get()
    alone.lab.exec(HOST, "kill", "-TERM", alone.lab.exec(HOST, "pgrep", "-x", "virtcftd").split()[0])
    assert alone.agent.wait(10) == 0
    vcft.wait_until("QEMU and nbdkit to end", lambda: not alone.lab.exec(HOST, "pgrep", "-f", "^/[^ ]*(qemu-system|nbdkit)", check=False), 5)
    status, output = alone.virtcft("status")
    shared.broken()
    assert status != 0 and len(output.splitlines()) == 1 and "agent" in output


class EndsAtCommit(Alone):
    """The first nbdkit that is asked to fold a committed epoch ends instead."""
    faults = "disk-commit"


def test_nbdkit_ends_at_a_commit(shared):
    """D27: what was committed and not yet folded is in the log, which the next nbdkit folds: there is no other copy on a host that is alone."""
    shared.broken()
    alone = EndsAtCommit(1, agent=False)
    try:
        events = alone.cluster.events(HOST)
        assert events.wait_for("vm-exited", timeout=20)["process"] == "nbdkit"
        finished = events.wait_for("recovery-finished", lambda e: e["epoch"] > 0, 20)
        assert "; started anew" in alone.lab.log_tails(1000)
        console = alone.cluster.console("receiver")
        mark = console.mark()
        console.wait_for("^diskwriter ok", 20, since=mark)
        assert console.find(vcft.GUEST_FAIL) is None
        events.wait_for("checkpoint-committed", since=finished["time"], timeout=20)
    finally:
        alone.close()
