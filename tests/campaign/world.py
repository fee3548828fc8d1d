"""world.py - the cluster that the campaign strikes, who watches it from outside, and what must be true after every fault.

    outside 10.78.0.1:  histories ──► redis     nonces ◄── a, b, c     echo ──► a        (never put back; connections are opened once)
                                        │
    redis  host1   Debian, redis with appendfsync always on its disk        a host1, b host2, c host3: memory and disk writers, nonces
              └────────────── lan: numbered datagrams from each to each ──────────────┘

Promise: two hosts lost at once (B = 2 on three hosts) cost nothing but time, if a third one, or one that comes back, makes a majority with what
is left. Nothing that the campaign does goes beyond: so no connection may ever be reset.
"""

import os
import re
import time

import strikes
import vcft

HOSTS = 3
TINY = {"a": 1, "b": 2, "c": 3}
REDIS = 4
NUMBERS = {**TINY, "redis": REDIS}
RATE = 20                     # datagrams a second for each ordered pair
DISK_BYTES = 16 << 20
CONNECTIONS = 3
INTERVAL = "400ms"
BOOT_S, WHOLE_S, CHECK_S = 240, 240, 90     # limits, not verdicts: a loaded machine is slow, not wrong
BROKEN = re.compile(r"^.*(rule \w+ is broken|is not what the paused VM was|AddressSanitizer|no image of .* is left).*$", re.MULTILINE)


def pairs():
    return [(sender, receiver) for sender in NUMBERS for receiver in NUMBERS if sender != receiver]


def port(sender):
    return 7000 + NUMBERS[sender]


def streams_of(vm):
    """Commands of a guest: a receiver for every other guest, and a sender to it."""
    others = [other for other in NUMBERS if other != vm]
    return [f"udpseq recv {port(other)} QUIET" for other in others] + \
           [f"udpseq send {vcft.lan_address(NUMBERS[other])}:{port(vm)} {RATE}" for other in others]


class Follower:
    """The events of all hosts, also of an agent's next life."""

    def __init__(self, lab):
        self.lab, self.streams = lab, []
        self.refresh()

    def refresh(self):
        """After a host came back."""
        followed = {stream.host for stream in self.streams if not stream.ended}
        self.streams += [vcft.Events(self.lab, host) for host in self.lab.names if host not in followed and not strikes.agent_gone(self.lab, host)]

    def find(self, event, since):
        return [e for stream in self.streams for e in stream.all(event, since=since)]


class World(vcft.World):
    def __init__(self, name):
        super().__init__(HOSTS, name=name)

    def bring_up(self):
        self.log_seen, self.ended_agents = {}, set()
        self.cluster = vcft.Cluster(self.lab, [self._tiny(name) for name in TINY] + [self._redis()], interval=INTERVAL, backups=2, name="campaign")
        self.histories = vcft.Outside(self.lab, "histories", f"{vcft.wan_address(REDIS)}:6379", str(CONNECTIONS))
        self.nonces = {vm: vcft.Outside(self.lab, "nonces", str(7200 + n)) for vm, n in TINY.items()}
        self.echo = vcft.Outside(self.lab, "echo", f"{vcft.wan_address(1)}:7100")
        self.cluster.up(BOOT_S)
        self.follower = Follower(self.lab)
        self.cluster.wait_ready(BOOT_S)
        self.histories.wait_for("the first answers", lambda s: s["errors"] or min(s["acknowledged"]) > 0, BOOT_S)
        self.echo.wait_for("the first answer", lambda s: s["error"] or s["echoed"], BOOT_S)
        vcft.wait_until("all streams to flow", lambda: all(s["next"] > 0 for s in self.datagrams().values()), BOOT_S, step=0.5)
        for vm in TINY:
            for program in ("memwriter", "diskwriter"):
                self.cluster.console(vm).wait_for(f"^{program} ok .* passes=[1-9]", BOOT_S)

    def _tiny(self, name):
        disk = self.lab.zeros(f"{name}.raw", DISK_BYTES)
        number = TINY[name]
        run = ["memwriter 300 500", "diskwriter 30 60", f"nonce 10.78.0.1:{7200 + number} 50", *streams_of(name)]
        if name == "a":
            run.append("nc -ll -p 7100 -e cat")
        return vcft.tiny_vm(name, number, f"host{number}", run, ("lan", "wan"), [n for n in NUMBERS.values() if n != number], memory="80M", disks=[disk])

    def _redis(self):
        vm = vcft.tiny_vm("redis", REDIS, "host1", streams_of("redis"), ("lan", "wan"), TINY.values(), memory="128M",
                          disks=[f"{vcft.GUESTS}/demo.raw"])
        return {**vm, "initrd": f"{vcft.GUESTS}/demo-initrd.img", "append": vm["append"] + " net.ifnames=0 vcft.role=redis"}

    def pass_time(self, seconds):
        """A random time, part of the fault."""
        time.sleep(seconds)  # drawn at random, not a guess

    # ---- where things are ----

    def host_of(self, vm):
        """Where it runs, or ran last, as far as somebody says so."""
        return next((v["host"] for v in self.cluster.status()["vms"] if v["name"] == vm and v["host"]), self.cluster.first)

    def statuses(self):
        return {host: self.cluster.status(host) for host in self.lab.names}

    def is_whole(self, generation, committed):
        """All hosts take part, in one generation that is at least this one; every VM has all its backups, as of an epoch after this one."""
        try:
            found = self.statuses()
        except (vcft.Failed, ValueError):
            return None
        same = len({s["generation"] for s in found.values()}) == 1
        whole = all(s["state"] == "running" and s["protected"] and s["committed"] > committed and s["generation"] >= generation
                    and sorted(h["state"] for h in s["hosts"]) == ["leader", "member", "member"] for s in found.values())
        return found if same and whole else None

    def wait_whole(self, generation, committed):
        """The operator looks after agents meanwhile."""
        def check():
            self.revive()
            return self.is_whole(generation, committed)

        return vcft.wait_until("the cluster to be whole", check, WHOLE_S, step=1, seen=self.seen)

    def seen(self):
        try:
            return "\n".join(f"{host}: {s['state']} generation {s['generation']} committed {s['committed']} protected {s['protected']} "
                             f"trouble {s['trouble']} hosts {[h['state'] for h in s['hosts']]}" for host, s in self.statuses().items())
        except (vcft.Failed, ValueError) as error:
            return str(error)

    # ---- what must be true ----

    def datagrams(self):
        """{(sender, receiver): state of udpseq}, asked from outside all at once; a stream that does not answer is missing."""
        asks = " ".join(f"(echo {s} {r} $({vcft.GUESTS}/bin/udpseq ask {vcft.wan_address(NUMBERS[r])}:{port(s)})) &" for s, r in pairs())
        lines = self.lab.outside("sh", "-c", asks + " wait", timeout=CHECK_S).splitlines()
        found = {tuple(line.split()[:2]): vcft.udpseq_state(line) for line in lines if "next=" in line}
        return {pair: found.get(pair, {"next": 0, "unanswered": 1}) for pair in pairs()}

    def check_datagrams(self):
        before = self.datagrams()

        def all_went_on():
            now = self.datagrams()
            return now if all(now[p]["next"] > before[p]["next"] for p in pairs()) else None

        for (sender, receiver), s in vcft.wait_until("all streams to go on", all_went_on, CHECK_S, step=0.5, seen=lambda: str(self.datagrams())).items():
            if s["missing"] != s["dropped"] or s["double"] or s["late"] or s["bad"]:    # dropped: in the receiver's own socket, by its kernel
                yield f"datagrams from {sender} to {receiver}: {s}"

    def check_histories(self):
        state = self.histories.state
        asked, before = state["checked"] + 1, state["acknowledged"]
        if not state["errors"]:
            self.histories.process.stdin.write("\n")
            self.histories.process.stdin.flush()
            state = self.histories.wait_for("the check, and more answers on each connection", lambda s: s["errors"] or (
                s["checked"] >= asked and all(a > b for a, b in zip(s["acknowledged"], before))), CHECK_S)
        yield from (f"redis: connection ended: {error}" for error in state["errors"])
        yield from (f"redis: {wrong}" for wrong in state["wrong"])
        if state["lost"]:
            yield f"redis: {state['lost']} acknowledged writes are lost"

    def check_outside(self):
        echoed, highest = self.echo.state["echoed"], {vm: nonces.state["highest"] for vm, nonces in self.nonces.items()}
        state = self.echo.wait_for("answers", lambda s: s["error"] or s["echoed"] > echoed, CHECK_S)
        if state["error"]:
            yield f"echo: connection ended: {state['error']}"
        for vm, nonces in self.nonces.items():
            state = nonces.wait_for("more of them", lambda s, vm=vm: s["undone"] or s["highest"] > highest[vm] or self.nonces_stopped(vm), CHECK_S)
            if state["undone"]:
                yield f"output of {vm} was undone: {state['undone']}"

    def nonces_stopped(self, vm):
        """The program has ended; that is told by the console check."""
        return self.cluster.console(vm).find("^nonce: ")

    def check_memory_and_disk(self):
        for vm in TINY:
            console = self.cluster.console(vm)
            mark = console.mark()
            for program in ("memwriter", "diskwriter"):
                console.wait_for(f"^{program} (ok|FAIL)", CHECK_S, since=mark)
            found = console.find(vcft.GUEST_FAIL + "|^nonce: .*$")
            if found:
                yield f"{vm}: {found.group()}"

    def check_processes(self, excused):
        """One QEMU for each VM, all hosts together; no agent has ended by itself; none has found a broken rule or image."""
        for vm in self.cluster.vms:
            there = strikes.qemus(self.lab, vm)
            if len(there) != 1:
                yield f"{vm} runs {len(there)} times: {there}"
        for host in self.lab.names:
            if host not in excused and host in self.ended_agents:
                yield f"the agent of {host} ended by itself"
        for host, text in self.new_log().items():
            yield from (f"{host}: {match.group().strip()}" for match in BROKEN.finditer(text))

    def new_log(self):
        """{host: what its agent has said since the last call}"""
        texts = {}
        for host in self.lab.names:
            with open(os.path.join(self.lab.folder(host), "virtcftd.log"), encoding="utf-8", errors="replace") as file:
                file.seek(self.log_seen.get(host, 0))
                texts[host] = file.read()
                self.log_seen[host] = file.tell()
        return texts

    def check(self, excused):
        """Everything that is not as promised; excused: hosts whose agents may have ended."""
        found = []
        for check in (self.check_histories, self.check_datagrams, self.check_outside, self.check_memory_and_disk, lambda: self.check_processes(excused)):
            try:
                found += check()
            except vcft.Timeout as timeout:
                found.append("hang: " + str(timeout).strip())
        return found

    def revive(self):
        """The operator starts agents that have ended; notes which."""
        for host in self.lab.names:
            if strikes.agent_gone(self.lab, host):
                self.ended_agents.add(host)
                strikes.bring_back(self.lab, host)
        self.follower.refresh()

    # ---- for the report ----

    def outage_ms(self, since, until):
        """The longest wait for an answer of redis that ended in between."""
        return max((ms for at, ms in self.histories.state["gaps"] if since <= at <= until), default=0)

    def acknowledged(self):
        return sum(self.histories.state.get("acknowledged", [0]))

    def save(self, folder):
        """Logs, status, events of all hosts, what the observers have seen, what the guests have printed."""
        os.makedirs(folder, exist_ok=True)
        self.write(folder, "status.txt", self.seen())
        self.write(folder, "observers.txt", "\n".join(f"{o.what}: {o.state}" for o in (self.histories, self.echo, *self.nonces.values())))
        for number, stream in enumerate(self.follower.streams):
            self.write(folder, f"events-{stream.host}-{number}.jsonl", "\n".join(str(e) for e in stream.all()))
        for host in self.lab.names:
            for name in ("virtcftd.log", "corosync.log"):
                self.copy(os.path.join(self.lab.folder(host), name), os.path.join(folder, f"{host}-{name}"))
            for vm in self.cluster.vms:
                self.copy(os.path.join(self.lab.folder(host), "lib", "virtcft", "console", f"{vm}.log"), os.path.join(folder, f"{host}-console-{vm}.log"))

    @staticmethod
    def write(folder, name, text):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text + "\n")

    @staticmethod
    def copy(source, target):
        if os.path.exists(source):
            with open(source, "rb") as old, open(target, "wb") as new:
                new.write(old.read())
