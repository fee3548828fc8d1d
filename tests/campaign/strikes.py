"""strikes.py - what can happen to a host: the faults of the campaign, and the operator who puts things right again.

A fault strikes a victim and may leave it hanging for a while. Afterwards the operator brings the host back: cables in, stopped processes
continued, a host without power or corosync booted, an ended agent started. A fault draws all its choices from one random generator, so a seed
gives the same campaign again (up to where VMs happen to be).

Rules:
  F1 Processes are found in /proc by the host's PID namespace and ended by their number; nothing outside the lab is touched.
  F2 What is stopped (SIGSTOP) is continued or killed by the operator at the latest.
  F3 No fault asks a stopped process for something: that would wait for ever.
"""

import os
import signal

import vcft

ACT_S = 180                   # limit for what must follow from a fault for certain: an agent that ends, a recovery
LONG_S = 3.0                  # something stopped or cut for a random time: at most this, which others notice or do not


# ---- processes of a host -----------------------------------------------------------------------------------------------

def processes(lab, host):
    """[(pid, name, words of the command line)] of a host; empty if it has no power."""
    first, found = lab.node_pid(host), []
    if first is None:
        return found
    namespace = os.stat(f"/proc/{first}/ns/pid")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if not os.path.samestat(os.stat(f"/proc/{entry}/ns/pid"), namespace):
                continue
            with open(f"/proc/{entry}/comm", encoding="utf-8") as name, open(f"/proc/{entry}/cmdline", "rb") as line:
                found.append((int(entry), name.read().strip(), line.read().decode(errors="replace").split("\0")))
        except OSError:
            pass
    return found


def find(lab, host, name, word=""):
    """Numbers of the processes of this name with such a word on their command line."""
    return [pid for pid, comm, words in processes(lab, host) if comm.startswith(name) and any(word in w for w in words)]


def qemus(lab, vm):
    """[(host, pid)] of the QEMU processes of a VM, on all hosts."""
    return [(host, pid) for host in lab.names for pid, comm, words in processes(lab, host)
            if comm.startswith("qemu-system") and "-name" in words and words[words.index("-name") + 1] == vm]


def send(number, pids):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def agent_gone(lab, host):
    return not find(lab, host, "virtcftd")


# ---- faults ------------------------------------------------------------------------------------------------------------

class Fault:
    """One thing that happens. host_is_lost: all that this host held is gone; noticed: a recovery must follow."""
    host_is_lost, noticed = True, True

    def __init__(self, name):
        self.name = name

    def choose(self, world, dice):
        """The victim: a host, and the VM that it was chosen for."""
        vm = dice.choice(world.cluster.vms)
        return world.host_of(vm), vm

    def strike(self, world, host, vm, dice):
        """Returns what was done, for the report; "" if its name says all."""
        raise NotImplementedError

    def after(self, world, host, dice):
        """When the others have gone on, before the operator comes."""


class HostKilled(Fault):
    def strike(self, world, host, vm, dice):
        world.lab.kill(host)
        return ""


class HostStopped(Fault):
    """Every process of it, as if the machine hung. It comes back to life by itself, after a short or a long time, or is booted."""

    def __init__(self, name, how):
        super().__init__(name)
        self.how = how
        self.noticed = how != "short"

    def strike(self, world, host, vm, dice):
        send(signal.SIGSTOP, [pid for pid, _, _ in processes(world.lab, host)])
        if self.how == "short":
            return pause(world, dice, lambda: send(signal.SIGCONT, [pid for pid, _, _ in processes(world.lab, host)]))
        return ""

    def after(self, world, host, dice):
        if self.how == "booted":
            world.lab.kill(host)
        else:
            send(signal.SIGCONT, [pid for pid, _, _ in processes(world.lab, host)])


class Process(Fault):
    """One process of a VM: QEMU or nbdkit. The cluster is recovered in place."""
    host_is_lost = False

    def __init__(self, name, process, number, short=False):
        super().__init__(name)
        self.process, self.number, self.short = process, number, short
        self.noticed = not short

    def find(self, world, vm):
        """Wherever the VM is just now."""
        if self.process == "qemu":
            return [pid for _, pid in qemus(world.lab, vm)]
        return [pid for host in world.lab.names for pid in find(world.lab, host, "nbdkit", f"/{vm}/")]

    def choose(self, world, dice):
        vm = dice.choice([vm["name"] for vm in world.cluster.config["vms"] if self.process != "nbdkit" or vm.get("disks")])
        return world.host_of(vm), vm

    def strike(self, world, host, vm, dice):
        pids = vcft.wait_until(f"a {self.process} of {vm}", lambda: self.find(world, vm), ACT_S)
        send(self.number, pids)
        return f"of {vm}" + (" " + pause(world, dice, lambda: send(signal.SIGCONT, pids)) if self.short else "")


class Agent(Fault):
    def __init__(self, name, number, short=False):
        super().__init__(name)
        self.number, self.short = number, short
        self.noticed = not short

    def strike(self, world, host, vm, dice):
        pids = find(world.lab, host, "virtcftd")
        send(self.number, pids)
        if self.short:
            return pause(world, dice, lambda: send(signal.SIGCONT, pids))
        vcft.wait_until(f"the agent of {host} to end", lambda: agent_gone(world.lab, host), ACT_S)
        return ""


class Corosync(Fault):
    def __init__(self, name, number, short=False):
        super().__init__(name)
        self.number, self.short = number, short
        self.noticed = not short

    def strike(self, world, host, vm, dice):
        pids = find(world.lab, host, "corosync")
        send(self.number, pids)
        if self.short:
            return pause(world, dice, lambda: send(signal.SIGCONT, pids))
        if self.number == signal.SIGKILL:
            vcft.wait_until(f"the agent of {host}, which has no group any more, to end", lambda: agent_gone(world.lab, host), ACT_S)
        return ""


class Cut(Fault):
    """A cable is pulled: all, or only that between the hosts. It is put in again soon, or by the operator."""

    def __init__(self, name, fabric_only, short=False):
        super().__init__(name)
        self.fabric_only, self.short = fabric_only, short
        self.noticed = not short

    def strike(self, world, host, vm, dice):
        if self.fabric_only:
            world.lab.fabric_link(host, "down")
        else:
            world.lab.cut(host)
        return pause(world, dice, lambda: world.lab.heal(host)) if self.short else ""


class CleanStop(Fault):
    """As an administrator stops a host: the agent, then corosync, then the machine."""

    def strike(self, world, host, vm, dice):
        for name in ("virtcftd", "corosync"):
            pids = find(world.lab, host, name)
            send(signal.SIGTERM, pids)
            vcft.wait_until(f"{name} of {host} to end", lambda name=name: not find(world.lab, host, name), ACT_S)
        world.lab.kill(host)
        return ""


def pause(world, dice, end):
    """A random time of trouble, then its end; says how long."""
    seconds = dice.uniform(0.1, LONG_S)
    world.pass_time(seconds)
    end()
    return f"for {seconds:.1f} s"


KINDS = [
    HostKilled("host killed"),
    HostStopped("host hangs, goes on later", "long"),
    HostStopped("host hangs for a while", "short"),
    HostStopped("host hangs, is booted", "booted"),
    Agent("agent killed", signal.SIGKILL),
    Agent("agent hangs", signal.SIGSTOP),
    Agent("agent hangs for a while", signal.SIGSTOP, short=True),
    Process("QEMU killed", "qemu", signal.SIGKILL),
    Process("QEMU hangs", "qemu", signal.SIGSTOP),
    Process("QEMU hangs for a while", "qemu", signal.SIGSTOP, short=True),
    Process("nbdkit killed", "nbdkit", signal.SIGKILL),
    Process("nbdkit hangs", "nbdkit", signal.SIGSTOP),
    Process("nbdkit hangs for a while", "nbdkit", signal.SIGSTOP, short=True),
    Corosync("corosync killed", signal.SIGKILL),
    Corosync("corosync hangs", signal.SIGSTOP),
    Corosync("corosync hangs for a while", signal.SIGSTOP, short=True),
    Cut("cut", fabric_only=False),
    Cut("cut for a while", fabric_only=False, short=True),
    Cut("cut between the hosts", fabric_only=True),
    Cut("cut between the hosts for a while", fabric_only=True, short=True),
    CleanStop("clean stop"),
]


# ---- the operator ------------------------------------------------------------------------------------------------------

def bring_back(lab, host):
    """The host is as it should be: power, cables, corosync, agent, nothing stopped."""
    send(signal.SIGCONT, [pid for pid, _, _ in processes(lab, host)])
    if lab.node_pid(host) is not None and not find(lab, host, "corosync"):
        lab.kill(host)
    if lab.node_pid(host) is None:
        lab.start(host)
        return
    lab.heal(host)
    if agent_gone(lab, host):
        lab("agent", host)
