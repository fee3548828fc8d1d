"""vcft.py - test verbs for the lab: hosts, a cluster on them, its events, its VMs' consoles.

    with Lab(3) as lab:                                     # three hosts with corosync and agent
        cluster = Cluster(lab, vms=[tiny_vm("a", 1, host="host1", run=["memwriter 500 1000"])])
        events = cluster.events("host2")                    # follow before anything can happen
        cluster.up()
        events.wait_for("checkpoint-committed", lambda e: e["epoch"] >= 20, 30)
        killed = lab.kill("host1")
        events.wait_for("recovery-finished", timeout=20, since=killed)
        cluster.console("a").wait_for("memwriter ok", 20)

Rules:
  T1 Waiting is for an event or a condition, with a limit; nothing sleeps for a guess. What is not met in time raises Timeout with what was seen.
  T2 What is started is registered with the lab and ends with it, also when a test fails.
  T3 Times are nanoseconds of the machine's monotonic clock, as in the agent's events.
"""

import contextlib
import glob
import json
import os
import re
import subprocess
import tempfile
import threading
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
BUILD = os.path.abspath(os.environ.get("VIRTCFT_BUILD", os.path.join(REPOSITORY, "build")))
GUESTS = os.environ.get("VIRTCFT_GUESTS", os.path.join(REPOSITORY, "build", "guests"))
LAB_PROGRAM = os.path.join(REPOSITORY, "lab", "virtcft-lab")
LAB_NAME = os.environ.get("VIRTCFT_LAB", "test")
TUNNEL_PORT, REPLICATION_PORT = 7700, 7701     # of every agent: lab/virtcft-lab
APPEND = "console=ttyS0 quiet no_timer_check tsc=reliable ipv6.disable=1"


class Timeout(AssertionError):
    """Something awaited did not come."""


class Failed(AssertionError):
    """A command ended with a status that is not 0."""


def now():
    return time.monotonic_ns()


def wait_until(what, condition, timeout, step=0.05, seen=lambda: ""):
    """The first true value of condition(), asked again and again until the limit (seconds)."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Timeout(f"waited {timeout} s for {what}, in vain\n{seen()}")
        time.sleep(step)


# ---- hosts -------------------------------------------------------------------------------------------------------------

class Lab:
    """Hosts on this machine, made by lab/virtcft-lab."""

    def __init__(self, hosts, agent=True, name=LAB_NAME, environment=None):
        self.names = [f"host{i}" for i in range(1, hosts + 1)]
        self.agent = agent
        self.name = name
        self.environment = {**os.environ, "VIRTCFT_LAB": name, "VIRTCFT_BUILD": BUILD, **(environment or {})}
        self.processes = []
        self.scratch = None

    def __enter__(self):
        self("down")
        self("up", str(len(self.names)), "--agent" if self.agent else "--no-agent", timeout=120)
        self.scratch = tempfile.TemporaryDirectory(prefix="vcft-test-")
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        self("down")
        if self.scratch:
            self.scratch.cleanup()

    def __call__(self, *arguments, timeout=60, check=True):
        """Output of `virtcft-lab ARGUMENTS`; Failed if its status is not 0."""
        done = subprocess.run([LAB_PROGRAM, *arguments], env=self.environment, text=True, timeout=timeout, check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def popen(self, *arguments, **options):
        """`virtcft-lab ARGUMENTS` as a process with text pipes; it ends with the lab."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        process = subprocess.Popen([LAB_PROGRAM, *arguments], env=self.environment, text=True, bufsize=1, **pipes)
        self.processes.append(process)
        return process

    def exec(self, host, *command, **options):
        return self("exec", host, "--", *command, **options)

    def outside(self, *command, **options):
        return self("outside", "--", *command, **options)

    def outside_popen(self, *command, **options):
        return self.popen("outside", "--", *command, **options)

    def kill(self, host):
        """Time of the kill."""
        return self._moment("kill", host)

    def cut(self, host):
        return self._moment("cut", host)

    def heal(self, host):
        return self._moment("heal", host)

    def start(self, host):
        return self._moment("start", host)

    def _moment(self, verb, host):
        return int(re.search(r"monotonic_ns=(\d+)", self(verb, host)).group(1))

    def status(self):
        return json.loads(self("status", "--json"))

    def running(self):
        return [host["name"] for host in self.status()["hosts"] if host["state"] == "running"]

    def node_pid(self, node):
        """Process 1 of a node (a host, "fabric", "outside"), or None if it has no power."""
        found = subprocess.run(["pgrep", "-f", f"node-init {os.path.dirname(self.folder(node))} {node} "], check=False, text=True, stdout=subprocess.PIPE)
        return int(found.stdout.split()[0]) if found.stdout else None

    def fabric(self, *command):
        """Runs a command in the network between the hosts, where each host's port has its name."""
        subprocess.run(["nsenter", "-t", str(self.node_pid("fabric")), "-n", *command], check=True, timeout=20)

    def fabric_link(self, host, state):
        """Only the cable between the hosts: the way outside stays. The time when it was done."""
        self.fabric("ip", "link", "set", host, state)
        return now()

    @contextlib.contextmanager
    def deaf(self, host):
        """That host hears nothing from the others, which hear it."""
        self.fabric("tc", "qdisc", "add", "dev", host, "root", "blackhole")
        try:
            yield
        finally:
            self.fabric("tc", "qdisc", "del", "dev", host, "root")

    @contextlib.contextmanager
    def mute(self, host):
        """That host is not heard by the others, but hears them."""
        device = ("dev", "fabric0", "root")
        self.exec(host, "tc", "qdisc", "add", *device, "blackhole")
        try:
            yield
        finally:
            self.exec(host, "tc", "qdisc", "del", *device)

    @contextlib.contextmanager
    def shaped(self, host, ports, rate=None):
        """What comes to that host by these TCP ports ("dport N", "sport N") comes with that rate, or (None) not at all; all else as ever."""
        device = f"dev {host}"
        words = [f"qdisc add {device} root handle 1: htb default 10", f"class add {device} parent 1: classid 1:10 htb rate 10gbit quantum 60000",
                 f"class add {device} parent 1: classid 1:20 htb rate {rate or '10gbit'} quantum 60000",
                 *[f"filter add {device} parent 1: protocol ip u32 match ip {port} 0xffff flowid 1:20" for port in ports]]
        if rate is None:
            words.append(f"qdisc add {device} parent 1:20 blackhole")
        for line in words:
            self.fabric("tc", *line.split())
        try:
            yield
        finally:
            self.fabric("tc", "qdisc", "del", "dev", host, "root")

    def path(self, name):
        """Of a file that lives as long as the lab."""
        return os.path.join(self.scratch.name, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def zeros(self, name, size):
        """A disk's image: so many bytes that are zero, and take no room."""
        os.truncate(self.write(name, b""), size)
        return self.path(name)

    def folder(self, host):
        return os.path.join(REPOSITORY, "build", "lab", self.name, host)

    def log_tails(self, lines=40):
        """The end of every agent's log and guest's console, with status and newest events, for the report of a failed test."""
        texts = []
        for host in self.names:
            folder = self.folder(host)
            for path in [os.path.join(folder, "virtcftd.log"), *glob.glob(os.path.join(folder, "lib/virtcft/console/*.log"))]:
                if os.path.exists(path):
                    with open(path, encoding="utf-8", errors="replace") as file:
                        kept = [line for line in file if not line.startswith("tick ")][-lines:]
                    texts.append(f"---- {host}: {os.path.basename(path)}\n" + "".join(kept))
            texts += [self._answer(host, "status", "--json"), "".join(self._answer(host, "events", "--json").splitlines(True)[-15:])]
        return "\n".join(texts)

    def _answer(self, host, *command):
        try:
            return self.exec(host, "virtcft", *command, timeout=5, check=False)
        except (subprocess.SubprocessError, OSError) as error:
            return f"{' '.join(command)}: {error}\n"


# ---- events ------------------------------------------------------------------------------------------------------------

class Events:
    """Follows the events of one host's agent: those it has kept, then those to come. If the host dies the stream ends, quietly."""

    def __init__(self, lab, host):
        self.host = host
        self.list = []
        self.ended = False
        self.changed = threading.Condition()
        self.process = lab.popen("exec", host, "--", "virtcft", "events", "--follow", "--json", stdin=subprocess.DEVNULL)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{") and "event" in (event := json.loads(line)):     # else: why there will be no more
                with self.changed:
                    self.list.append(event)
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def all(self, event=None, predicate=lambda e: True, since=0):
        with self.changed:
            return [e for e in self.list if event in (None, e["event"]) and e["time"] >= since and predicate(e)]

    def wait_for(self, event, predicate=lambda e: True, timeout=30, since=0):
        """The first such event at or after the time `since`, from the past or to come."""
        end = time.monotonic() + timeout
        seen = 0
        with self.changed:
            while True:
                for e in self.list[seen:]:
                    if e["event"] == event and e["time"] >= since and predicate(e):
                        return e
                seen = len(self.list)
                left = end - time.monotonic()
                if left <= 0 or self.ended:
                    why = "the stream of events has ended" if self.ended else f"waited {timeout} s"
                    raise Timeout(f"{self.host}: no such event '{event}': {why}; the last were\n" + self._tail())
                self.changed.wait(left)

    def _tail(self, count=15):
        return "\n".join(json.dumps(e) for e in self.list[-count:])


# ---- consoles ----------------------------------------------------------------------------------------------------------

class Console:
    """The console of a VM: the log that each host which runs it keeps, and commands to a guest that runs vcft-console."""

    def __init__(self, lab, vm):
        self.lab, self.vm = lab, vm

    def text(self, host=None):
        """What the VM has printed in whole lines, on one host or (host by host) on all."""
        texts = []
        for name in [host] if host else self.lab.names:
            path = os.path.join(self.lab.folder(name), "lib", "virtcft", "console", f"{self.vm}.log")
            if os.path.exists(path):
                with open(path, "rb") as file:
                    text = file.read().decode(errors="replace").replace("\r", "")
                    texts.append(text[:text.rfind("\n") + 1])
        return "".join(texts)

    def mark(self):
        """For wait_for(…, since=…): only what is printed from now on counts."""
        return {name: len(self.text(name)) for name in self.lab.names}

    def find(self, pattern, since=None):
        """The first match, of the text printed since the mark."""
        since = since or {}
        for name in self.lab.names:
            match = re.search(pattern, self.text(name)[since.get(name, 0):], re.MULTILINE)
            if match:
                return match
        return None

    def find_last(self, pattern, host):
        matches = list(re.finditer(pattern, self.text(host), re.MULTILINE))
        return matches[-1] if matches else None

    def wait_for(self, pattern, timeout, since=None):
        return wait_until(f"'{pattern}' on the console of {self.vm}", lambda: self.find(pattern, since), timeout,
                          seen=lambda: self.text()[-2000:])

    def run(self, host, command, timeout=30):
        """Runs a shell command in the guest, which runs on that host; its output, or Failed."""
        since = self.mark()
        process = self.lab.popen("exec", host, "--", "virtcft", "console", self.vm, stdout=subprocess.DEVNULL)
        process.stdin.write(command + "\n")
        process.stdin.flush()
        try:
            match = self.wait_for(r"(?s)\n(.*?)^VCFT-EXIT (\d+)$", timeout, since)
        finally:
            process.kill()
            process.wait()
        if match.group(2) != "0":
            raise Failed(f"{self.vm}: {command}: status {match.group(2)}\n{match.group(1)}")
        return match.group(1)


# ---- observers beyond the uplink ---------------------------------------------------------------------------------------

class Outside:
    """One of the observers of outside.py; it lives as long as the lab. It tells its state all the time, so what is waited for is new."""

    def __init__(self, lab, *arguments):
        self.what = " ".join(arguments)
        self.state = {}
        self.process = lab.outside_popen("/usr/bin/python3", os.path.join(os.path.dirname(os.path.realpath(__file__)), "outside.py"), *arguments)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.state = json.loads(line)
            else:
                self.state = {**self.state, "error": line.strip()}

    def wait_for(self, what, predicate, timeout):
        """The first state for which predicate(state) is true."""
        def check():
            state = self.state
            return state if state and predicate(state) else None

        return wait_until(f"{self.what}: {what}", check, timeout, seen=lambda: json.dumps(self.state))


# ---- clusters ----------------------------------------------------------------------------------------------------------

def mac(network, number):
    return f"52:54:00:00:{network:02x}:{number:02x}"


def lan_address(number):
    return f"10.79.0.{number}"


def wan_address(number):
    return f"10.78.0.{10 + number}"


def tiny_vm(name, number, host=None, run=(), networks=("lan",), neighbours=(), memory="96M", disks=(), **more):
    """A VM of cluster.yaml with the tiny guest. number makes its addresses: lan 10.79.0.N, wan 10.78.0.10+N. run: commands at boot. neighbours:
    numbers of VMs whose lan address is to be known from the start."""
    words = [APPEND, f"vcft.name={name}"]
    nics = []
    for index, network in enumerate(networks):
        address = wan_address(number) if network == "wan" else lan_address(number)
        nics.append({"network": network, "mac": mac(index, number)})
        words.append(f"vcft.ip{index}={address}/24@{mac(index, number)}")
    words += [f"vcft.arp={lan_address(n)}@{mac(networks.index('lan'), n)}" for n in neighbours]
    words += ["vcft.run=" + encode(command) for command in run]
    vm = {"name": name, "memory": memory, "cpus": 1, "kernel": f"{GUESTS}/vmlinuz", "initrd": f"{GUESTS}/tiny.cpio.gz",
          "append": " ".join(words), "nics": nics, **more}
    if disks:
        vm["disks"] = [{"image": image} for image in disks]
    if host:
        vm["host"] = host
    return vm


PANIC = bytes.fromhex("ba0505 b001 ee")     # mov dx,0x505; mov al,1; out dx,al: what a kernel that panics says to a pvpanic device


def boot_disk(then=b""):
    """A disk that boots by itself; 16-bit code at 0x7C00 that says a line on the serial port, does something, and sleeps:
    xor ax,ax; mov ds,ax; mov si,text; mov dx,0x3F8; next: lodsb; or al,al; jz end; out dx,al; jmp next; end: ...; sleep: hlt; jmp sleep; text: ..."""
    text = (0x7C15 + len(then)).to_bytes(2, "little")
    code = bytes.fromhex("31c0 8ed8 be") + text + bytes.fromhex("baf803 ac 08c0 7403 ee ebf8") + then + bytes.fromhex("f4 ebfd")
    return ((code + b"VCFT-GUEST-READY from its disk\r\n\0").ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


def encode(command):
    """As vcft.run wants it."""
    return re.sub(r"[%+&;'\"\\<>|$()]", lambda m: f"%{ord(m.group()):02X}", command).replace(" ", "+")


LAN = {"name": "lan"}
WAN = {"name": "wan", "uplink": "vcft-wan", "output": "commit"}


class Cluster:
    """A cluster on the hosts of a lab. `first` is the host on which commands are given, unless another is named."""

    def __init__(self, lab, vms, networks=(LAN, WAN), interval="200ms", backups=1, verify=True, hosts=None, name="test", **more):
        self.lab = lab
        self.vms = [vm["name"] for vm in vms]
        self.first = lab.names[0]
        used = {nic["network"] for vm in vms for nic in vm.get("nics", [])}
        self.config = {
            "cluster": name,
            "checkpoint": {"interval": interval, "backups": backups},
            "hosts": hosts or [{"name": host, "address": f"10.77.0.{host.removeprefix('host')}"} for host in lab.names],
            "networks": [network for network in networks if network["name"] in used],
            "vms": vms, **more}
        if verify:
            self.config["verify"] = True

    def file(self):
        """Writes cluster.yaml; its path."""
        return self.lab.write("cluster.yaml", to_yaml(self.config).encode())

    def up(self, timeout=60):
        self.lab.exec(self.first, "virtcft", "up", self.file(), timeout=timeout)
        return self

    def down(self, host=None):
        self.lab.exec(host or self.first, "virtcft", "down")

    def status(self, host=None):
        return json.loads(self.lab.exec(host or self.first, "virtcft", "status", "--json"))

    def wait_status(self, what, predicate, timeout, host=None):
        """The first status for which predicate(status) is true."""
        last = {}

        def check():
            last["status"] = self.status(host)
            return last["status"] if predicate(last["status"]) else None

        return wait_until(what, check, timeout, step=0.2, seen=lambda: json.dumps(last.get("status"), indent=1))

    def wait_protected(self, timeout=30, host=None):
        return self.wait_status("the cluster to be protected", lambda s: s["protected"] and s["committed"] > 0, timeout, host)

    def host_of(self, vm, host=None):
        return next(v["host"] for v in self.status(host)["vms"] if v["name"] == vm)

    def events(self, host=None):
        return Events(self.lab, host or self.first)

    def console(self, vm):
        return Console(self.lab, vm)

    def wait_ready(self, timeout=60):
        """All guests of this library's kinds have booted."""
        for vm in self.vms:
            self.console(vm).wait_for(r"^VCFT-GUEST-READY", timeout)


class World:
    """A lab with a cluster on it that several tests share, and whatever watches it: a subclass brings it up. There is all of it or nothing (T2)."""

    def __init__(self, hosts, **options):
        self.lab = Lab(hosts, **options)
        self.lab.__enter__()
        try:
            self.bring_up()
        except BaseException:
            self.close()
            raise

    def bring_up(self):
        """Sets self.cluster."""
        raise NotImplementedError

    def close(self):
        self.lab.__exit__()


def to_yaml(value, indent=0):
    """cluster.yaml from dicts, lists, texts, numbers and booleans."""
    pad = "  " * indent
    if isinstance(value, dict):
        return "".join(f"{pad}{key}:{_yaml_value(item, indent)}" for key, item in value.items())
    return "".join(f"{pad}- {to_yaml(item, indent + 1).lstrip()}" if isinstance(item, dict) else f"{pad}-{_yaml_value(item, indent)}"
                   for item in value)


def _yaml_value(value, indent):
    if isinstance(value, (dict, list, tuple)):
        return "\n" + to_yaml(value, indent + 1) if value else (" {}\n" if isinstance(value, dict) else " []\n")
    return f" {json.dumps(value)}\n"


# ---- what the guests say -----------------------------------------------------------------------------------------------

def udpseq_state(line):
    """{'next': …, 'seen': …, 'missing': …, 'double': …, 'late': …, 'bad': …, 'dropped': …} of a state line of udpseq."""
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}


def udpseq_ask_outside(lab, address_port):
    return udpseq_state(lab.outside(f"{GUESTS}/bin/udpseq", "ask", address_port, timeout=20))


UDPSEQ_STATE = r"^udpseq recv next=(?P<next>\d+) .*$"
GUEST_FAIL = r"^(memwriter|diskwriter) FAIL.*$"
