"""test_local.py - one host without corosync: a cluster.yaml without `hosts`. What dies is put back on the same machine, all VMs to one moment."""

import re

import pytest

import vcft

pytestmark = pytest.mark.limit(120)

TICK = "i=0; while :; do echo tick $i; i=$((i+1)); usleep 20000; done"
HOST = "host1"


# A disk that boots by itself; 16-bit code at 0x7C00 that says a line on the serial port and sleeps:
#   xor ax,ax; mov ds,ax; mov si,text; mov dx,0x3F8; next: lodsb; or al,al; jz sleep; out dx,al; jmp next; sleep: hlt; jmp sleep; text: ...
BOOT_SECTOR = (bytes.fromhex("31c0 8ed8 be157c baf803 ac 08c0 7403 ee ebf8 f4 ebfd") + b"VCFT-GUEST-READY from its disk\r\n\0").ljust(510, b"\0") + b"\x55\xaa"


class Alone(vcft.World):
    """An agent on one host, group local, and a cluster of three VMs: two of Linux, and one that boots from its disk."""

    def bring_up(self):
        self.agent = self.lab.popen("exec", HOST, "--", "virtcftd", "--config", self.lab.write("virtcftd.yaml", b"name: host1\ngroup: local\n"))
        vcft.wait_until("the agent", lambda: self.lab.exec(HOST, "sh", "-c", "test -S /run/virtcft/control.sock && echo yes", check=False), 10)
        disk = self.lab.zeros("disk.raw", 4 << 20)
        boot = self.lab.write("boot.raw", BOOT_SECTOR.ljust(1 << 20, b"\0"))
        self.cluster = vcft.Cluster(self.lab, interval="100ms", vms=[
            vcft.tiny_vm("sender", 1, None, [f"udpseq send {vcft.lan_address(2)}:7000 200", TICK], neighbours=[2]),
            vcft.tiny_vm("receiver", 2, None, ["udpseq recv 7000", "memwriter 1000 1000", "diskwriter 50 200", TICK], neighbours=[1], disks=[disk]),
            {"name": "booter", "memory": "32M", "disks": [{"image": boot}]}])
        del self.cluster.config["hosts"]
        self.cluster.up()
        self.cluster.wait_ready()
        for program in ("memwriter", "diskwriter"):
            self.cluster.console("receiver").wait_for(f"^{program} ok .* passes=[1-9]", 60)

    def virtcft(self, *arguments):
        """Status, output of a command that may fail."""
        process = self.lab.popen("exec", HOST, "--", "virtcft", *arguments)
        return process.wait(20), process.stdout.read()


def make_shared():
    return Alone(1, agent=False)


def test_boots_from_its_disk(shared):
    """Without `kernel` the firmware boots from the first disk, through nbdkit as any other read."""
    assert shared.get().cluster.console("booter").find("^VCFT-GUEST-READY from its disk")


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
