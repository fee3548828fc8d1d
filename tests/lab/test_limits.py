"""test_limits.py - running out of things: the VMs run on, others stay protected, what is short is said, and it heals by itself.

One cluster on four hosts lives through all shortages; each heals before the next. Images are verified at every epoch.

    a  host1   diskwriter on a disk      b  host2   memwriter      c  host3   ends itself, reboots
    host4      may hold hardly any image: backup_memory     host2   holds little for the outside: held_memory

What a test takes away it gives back in the end, whatever happens.
"""

import contextlib
import json
import os
import subprocess
import time

import pytest

import vcft

pytestmark = pytest.mark.limit(180)

VMS_SPACE = "48m"                            # of the file system under each host's disks and images of disks
RAM_SPACE = "600m"                           # of the tmpfs of each host
LIMITED = "host4"
FLOOD_LEAST = 1000                           # frames that find no room
HELD_MEMORY = 256 << 10                      # of host2
SETTINGS = {LIMITED: "backup_memory: 4M\n", "host2": "held_memory: 256K\n"}


class World(vcft.World):
    """The cluster of the picture."""

    def bring_up(self):
        for host in self.lab.names:                          # each agent once more, with its limits
            self.lab.exec(host, "pkill", "-x", "virtcftd")
            vcft.wait_until("the agent to end", lambda: not self.lab.exec(host, "pgrep", "-x", "virtcftd", check=False), 10)  # noqa: B023
            self.lab.exec(host, "sh", "-c", f"mkdir -p /var/lib/virtcft/vms && mount -t tmpfs -o size={VMS_SPACE} tmpfs /var/lib/virtcft/vms && "
                          f"mount -o remount,size={RAM_SPACE} /dev/shm")
            with open(os.path.join(self.lab.folder(host), "etc", "virtcft", "virtcftd.yaml"), "a", encoding="utf-8") as file:
                file.write(SETTINGS.get(host, ""))
            self.lab("agent", host)
        self.cluster = vcft.Cluster(self.lab, interval="200ms", vms=[
            vcft.tiny_vm("a", 1, "host1", ["diskwriter 50 2000"], disks=[self.lab.zeros("a.raw", 32 << 20)]),
            vcft.tiny_vm("b", 2, "host2", ["memwriter 500 500"], ("lan", "wan"), memory="128M"),    # 96M: its kernel kills who asks for 8000 pages
            vcft.tiny_vm("c", 3, "host3")])
        self.events = {host: self.cluster.events(host) for host in self.lab.names}
        self.cluster.up()
        self.cluster.wait_ready(90)
        self.make_whole()

    def make_whole(self):
        """Every VM has its backup, nothing is short."""
        self.cluster.wait_status("a whole cluster", lambda s: s["protected"] and s["committed"] > 0 and not any(h["short"] for h in s["hosts"]
                                                                                                                if h["name"] != LIMITED), 60)

    def vm(self, name, host=None):
        return next(vm for vm in self.cluster.status(host)["vms"] if vm["name"] == name)

    def backup_of(self, name):
        return self.vm(name)["backups"][0]

    def commits_go_on(self, epochs=5):
        first = self.cluster.status()["committed"]
        self.cluster.wait_status("more commits", lambda s: s["committed"] >= first + epochs, 40)

    def is_over(self, host, short, since):
        """That shortage was said, and is said to have ended: nothing has to be reset by hand (B1)."""
        said = self.events[host].wait_for("shortage", lambda e: e["short"] == short, 1, since=since)
        self.events[host].wait_for("shortage-over", lambda e: e["short"] == short, 40, since=said["time"])

    def works(self, vm, program):
        """The guest's program checks what it has written and finds it right."""
        console = self.cluster.console(vm)
        console.wait_for(f"^{program} ok", 30, since=console.mark())
        assert console.find(vcft.GUEST_FAIL) is None

    def dirty(self, rate, pages):
        """b's memwriter is put in place of the one that ran, and has begun."""
        console = self.cluster.console("b")
        mark = console.mark()
        console.run("host2", f"killall memwriter; memwriter {rate} {pages} & true")
        console.wait_for(f"^memwriter start rate={rate} pages={pages}", 30, since=mark)

    def agent(self, host):
        """The agent's process, as this machine sees it."""
        inside = self.lab.exec(host, "pgrep", "-o", "-x", "virtcftd").strip()
        names = subprocess.run(["pgrep", "-x", "virtcftd"], text=True, stdout=subprocess.PIPE, check=True).stdout.split()
        return next(pid for pid in names if is_pid_of(pid, inside, self.lab.folder(host)))

    @contextlib.contextmanager
    def full(self, host, folder):
        """All the space of that file system is taken, and is taken again if somebody gives some back."""
        filler = f"{folder}/filler"
        script = f"dd if=/dev/zero bs=1M of={filler} 2>/dev/null; while :; do dd if=/dev/zero bs=4096 oflag=append conv=notrunc of={filler} 2>/dev/null; sleep 0.05; done"
        process = self.lab.popen("exec", host, "--", "sh", "-c", script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            vcft.wait_until(f"a full {folder}", lambda: self.lab.exec(host, "stat", "-f", "-c", "%a", folder).strip() == "0", 30)
            yield
        finally:
            process.kill()
            process.wait()
            self.lab.exec(host, "sh", "-c", f"pkill -x dd; rm -f {filler}", check=False)

    def slow(self, host, rate):
        """What is replicated to that host comes with that rate, all else as ever."""
        return self.lab.shaped(host, [f"dport {vcft.REPLICATION_PORT}"], rate)


def is_pid_of(pid, inside, folder):
    """The process that is number `inside` in the namespace of the host with that folder."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
    return numbers[-1] == inside and os.path.realpath(f"/proc/{pid}/fd/1").startswith(folder)


def make_shared():
    return World(4)


@pytest.fixture
def world(shared, request):
    """The cluster, whole. A test that does not come to its end leaves a new one to the next."""
    try:
        shared.get().make_whole()
        yield shared.get()
    finally:
        if getattr(request.node, "came_to_its_end", False) is False:
            shared.broken()


def test_backup_memory(world, request):
    """d) A backup that has reached its limit refuses and says so; another one is chosen."""
    world.events[LIMITED].wait_for("shortage", lambda e: e["short"] == "memory" and "backup_memory" in e["text"], 30)
    status = world.cluster.status()
    assert status["protected"] and all(LIMITED not in vm["backups"] for vm in status["vms"])
    assert world.cluster.status(LIMITED)["memory"]["image_bytes"] <= 4 << 20
    world.is_over(LIMITED, "memory", 0)
    request.node.came_to_its_end = True


def test_disk_full_at_home(world, request):
    """a) No space for what a VM writes: that VM waits, and is protected like all others; its writes are done when there is space."""
    moment = vcft.now()
    with world.full("host1", "/var/lib/virtcft/vms"):
        world.events["host1"].wait_for("vm-waits", lambda e: e["vm"] == "a", 60, since=moment)
        status = world.cluster.wait_status("words for it", lambda s: any("disk" in h["short"] for h in s["hosts"]), 10)
        assert world.vm("a", "host1")["state"] == "waits for disk space"
        world.commits_go_on()
        assert status["protected"]
        world.works("b", "memwriter")
    world.events["host1"].wait_for("vm-goes-on", lambda e: e["vm"] == "a", 20, since=moment)
    world.is_over("host1", "disk", moment)
    world.works("a", "diskwriter")
    assert not any(events.all("recovery-started", since=moment) for events in world.events.values())
    request.node.came_to_its_end = True


@pytest.mark.parametrize("folder, vm", [("/var/lib/virtcft/vms", "a"), ("/dev/shm", "b")], ids=["disk", "tmpfs"])
def test_backup_full(world, request, folder, vm):
    """a, b) No space for an image on a backup: it refuses, another one takes its place; the VMs that run there do not notice."""
    host, moment = world.backup_of(vm), vcft.now()
    with world.full(host, folder):
        if vm == "b":
            world.dirty(2000, 8000)
        world.cluster.wait_status("another backup", lambda s: s["protected"] and host not in next(v for v in s["vms"] if v["name"] == vm)["backups"], 60)
        world.events[host].wait_for("shortage", lambda e: e["short"] == "memory", 10, since=moment)
        world.commits_go_on()
    if vm == "b":
        world.dirty(500, 500)
    world.is_over(host, "memory", moment)
    assert not any(events.all("recovery-started", since=moment) for events in world.events.values())
    request.node.came_to_its_end = True


def open_always(pid):
    """Descriptors that an agent has open at ten moments of two seconds; else one that a checkpoint has for a moment would count, and one would be left."""
    found = []
    for _ in range(10):
        found.append(set(map(int, os.listdir(f"/proc/{pid}/fd"))))
        time.sleep(0.2)     # an epoch: another moment of it
    return set.intersection(*found)


def test_no_descriptors(world, request):
    """c) Nothing can be opened any more: the agent lives, says so, and goes on when there are some."""
    moment, pid = vcft.now(), world.agent("host1")
    before = subprocess.run(["prlimit", "--pid", pid, "--nofile", "-o", "SOFT,HARD", "--noheadings"], check=True, text=True,
                            stdout=subprocess.PIPE).stdout.split()
    used = open_always(pid)
    lowest_free = next(n for n in range(len(used) + 1) if n not in used)
    subprocess.run(["prlimit", "--pid", pid, f"--nofile={lowest_free}:{before[1]}"], check=True)
    try:
        world.events["host1"].wait_for("shortage", lambda e: e["short"] == "descriptors", 10, since=moment)
        waiting = world.lab.popen("exec", "host1", "--", "virtcft", "status", "--json", stderr=subprocess.DEVNULL)
        world.events["host1"].wait_for("checkpoint-aborted", timeout=20, since=moment)
    finally:
        subprocess.run(["prlimit", "--pid", pid, f"--nofile={before[0]}:{before[1]}"], check=True)
    assert json.loads(waiting.stdout.readline())["cluster"] == "test"        # whoever has waited is served
    world.is_over("host1", "descriptors", moment)
    world.commits_go_on()
    assert not any(events.all("recovery-started", since=moment) for events in world.events.values())
    request.node.came_to_its_end = True


def test_slow_backup(world, request):
    """e) A backup that takes too little is given up, suspected, and used again when its link is well."""
    host, moment = world.backup_of("b"), vcft.now()
    world.dirty(4000, 3000)
    with world.slow(host, "4mbit"):
        world.events["host2"].wait_for("shortage", lambda e: e["short"] == "backup" and ("too slow" in e["text"] or "no progress" in e["text"]), 40,
                                       since=moment)
        world.cluster.wait_status("another backup", lambda s: s["protected"] and host not in next(v for v in s["vms"] if v["name"] == "b")["backups"], 60)
        world.commits_go_on()
    world.is_over("host2", "backup", moment)
    with world.slow(world.backup_of("b"), "4mbit"):     # the only one that is left then is the one that was suspected
        world.cluster.wait_status("the first one again", lambda s: next(v for v in s["vms"] if v["name"] == "b")["backups"] == [host], 60)
        world.commits_go_on()
    world.dirty(500, 500)
    assert not any(events.all("recovery-started", since=moment) for events in world.events.values())
    request.node.came_to_its_end = True


def test_dirty_faster_than_the_link(world, request):
    """f) A guest that dirties more than the link takes: epochs get longer, memory does not, and it is said."""
    host, moment = world.backup_of("b"), vcft.now()
    pid = world.agent("host2")
    before = own_memory(pid)
    world.dirty(0, 8000)
    with world.slow(host, "32mbit"):
        world.events["host2"].wait_for("shortage", lambda e: e["short"] == "time", 40, since=moment)
        world.commits_go_on(4)
        status = world.cluster.status("host2")
        assert own_memory(pid) - before < 2 * (96 << 20) + (32 << 20)
        assert status["commit_ms"] > status["interval_ms"]
    world.dirty(500, 500)
    world.is_over("host2", "time", moment)
    request.node.came_to_its_end = True


def own_memory(pid):
    """Bytes of memory that are the process's own."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:"))


def test_output(world, request):
    """g) The outside does not read, the uplink is down: what is held is bounded, drops are counted and shown."""
    moment, console = vcft.now(), world.cluster.console("b")
    world.lab.outside_popen("/usr/bin/python3", "-c", "import signal, socket\ns = socket.create_server(('10.78.0.1', 7300))\nc = s.accept()\nsignal.pause()")
    console.run("host2", "(sleep 1; cat /dev/zero | nc 10.78.0.1 7300) >/dev/null 2>&1 & true")    # the server outside is there by then
    world.commits_go_on()
    world.lab.exec("host2", "ip", "link", "set", "vcft-wan", "down")
    try:
        console.run("host2", "udpseq ask 10.78.0.1:7301 >/dev/null & ping -c 20 -i 0.1 10.78.0.1 >/dev/null 2>&1; true")
        world.events["host2"].wait_for("shortage", lambda e: e["short"] == "output" and "down" in e["text"], 20, since=moment)
        network = world.cluster.status("host2")["network"]
        assert network["dropped_down"] > 0 and network["held_bytes"] <= network["held_limit"]
        world.commits_go_on()
    finally:
        world.lab.exec("host2", "ip", "link", "set", "vcft-wan", "up")
    world.is_over("host2", "output", moment)
    vcft.wait_until("an answer from outside", lambda: "bytes from" in console.run("host2", "ping -c 1 -W 1 10.78.0.1; true"), 20)
    request.node.came_to_its_end = True


def test_flood_to_the_outside(world, request):
    """g) A guest sends to the outside what its NIC takes: `held_memory` is kept, what is too much is dropped and counted, checkpoints go on."""
    moment, console, pid = vcft.now(), world.cluster.console("b"), world.agent("host2")
    anonymous, network = own_memory(pid), world.cluster.status("host2")["network"]
    assert network["held_limit"] == HELD_MEMORY
    wan, stranger = vcft.mac(1, 2), "02:78:00:00:00:99"
    console.run("host2", f"cd /sys/class/net; for i in *; do grep -q {wan} $i/address && flood $i {stranger} {stranger} >/dev/null & done; true")
    try:
        held = []
        for _ in range(20):
            world.commits_go_on(1)
            held.append(world.cluster.status("host2")["network"])
        assert all(n["held_bytes"] <= HELD_MEMORY for n in held) and any(n["held_frames"] for n in held)
        assert held[-1]["dropped_full"] - network["dropped_full"] > FLOOD_LEAST
        assert own_memory(pid) - anonymous < 64 << 20
        world.events["host2"].wait_for("shortage", lambda e: e["short"] == "output" and "full queues" in e["text"], 10, since=moment)
    finally:
        console.run("host2", "killall flood", 60)
    world.is_over("host2", "output", moment)
    vcft.wait_until("an answer from outside", lambda: "bytes from" in console.run("host2", "ping -c 1 -W 1 10.78.0.1; true"), 20)
    world.works("b", "memwriter")
    assert not any(events.all("recovery-started", since=moment) for events in world.events.values())
    request.node.came_to_its_end = True


def test_guest_ends(world, request):
    """h) A reset goes on; a power-off is a normal end: the others go on, and a recovery brings the VM back as it is: off."""
    moment, console = vcft.now(), world.cluster.console("c")
    mark = console.mark()
    again = world.lab.popen("exec", "host3", "--", "virtcft", "console", "c", stdout=subprocess.DEVNULL)
    again.stdin.write("reboot -f\n")
    again.stdin.flush()
    console.wait_for(r"^VCFT-GUEST-READY", 90, since=mark)
    again.kill()
    again.wait()
    assert not world.events["host1"].all("recovery-started", since=moment)
    end = world.lab.popen("exec", "host3", "--", "virtcft", "console", "c", stdout=subprocess.DEVNULL)
    end.stdin.write("poweroff -f\n")
    end.stdin.flush()
    world.events["host3"].wait_for("vm-off", lambda e: e["vm"] == "c", 20, since=moment)
    world.cluster.wait_status("it to be off", lambda s: next(v for v in s["vms"] if v["name"] == "c")["state"] == "off", 10)
    world.commits_go_on()
    world.make_whole()
    killed = world.lab.kill("host3")
    world.events["host1"].wait_for("recovery-finished", timeout=30, since=killed)
    world.cluster.wait_status("it to be off elsewhere", lambda s: next(v for v in s["vms"] if v["name"] == "c")["state"] == "off" and
                              next(v for v in s["vms"] if v["name"] == "c")["host"] != "host3" and s["committed"] > 0, 30)
    world.commits_go_on()
    world.works("a", "diskwriter")
    request.node.came_to_its_end = True


def test_no_room_at_up(world, request):
    """b) A start without room for the VMs' memory fails and says so; with room it passes. Last: it takes the cluster down."""
    hosts = [h["name"] for h in world.lab.status()["hosts"] if h["state"] == "running"]
    world.cluster.down()
    for host in hosts:
        world.lab.exec(host, "mount", "-o", "remount,size=80m", "/dev/shm")
    world.cluster.config["hosts"] = [h for h in world.cluster.config["hosts"] if h["name"] in hosts]
    for vm in world.cluster.config["vms"]:
        if vm.get("host") not in hosts:
            vm.pop("host", None)    # of a host that another test has taken away
    with pytest.raises(vcft.Failed, match="no (room|space) for"):
        world.cluster.up(30)
    assert world.cluster.status()["cluster"] is None
    for host in hosts:
        world.lab.exec(host, "mount", "-o", "remount,size=100%", "/dev/shm")
    world.cluster.up(60)
