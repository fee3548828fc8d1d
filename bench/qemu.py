"""qemu.py - a QEMU of our own with the tiny guest, as VirtCFT starts it but for nobody's protection, and its monitor.

    with Qemu(folder, memory="256M", run=["beat work"]) as qemu:
        qemu.wait_console("^beat n="); qemu.call("stop"); qemu.stops(since)

 Z1 The devices are those of src/vm/command.c: pc, a RAM file that is shared, one virtio disk, one virtio NIC (on its other end `join`, or nobody).
 Z2 What was started ends with the object.
"""

import json
import os
import re
import socket
import subprocess
import threading
import time

import vcft
from cluster import DISK_MIB


class QmpError(Exception):
    """QEMU said no."""


class Monitor:
    """QMP over a socket: commands one after the other; a thread takes in what comes."""

    def __init__(self, sock):
        self.socket = sock
        self.changed = threading.Condition()
        self.events, self.answers, self.ended = [], [], False
        threading.Thread(target=self._read, daemon=True).start()
        self.call("qmp_capabilities")

    def _read(self):
        try:
            for line in self.socket.makefile("r", encoding="utf-8"):
                self._take(json.loads(line))
        except OSError:        # QEMU was killed
            pass
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _take(self, message):
        with self.changed:
            if "event" in message:
                self.events.append((time.monotonic_ns(), message))
            elif "QMP" not in message:
                self.answers.append(message)
            self.changed.notify_all()

    def _wait(self, what, condition, limit_s):
        with self.changed:
            self.changed.wait_for(lambda: self.ended or condition(), limit_s)
            if not (found := condition()):
                raise QmpError(f"{what}: " + ("QEMU has ended" if self.ended else f"not within {limit_s} s"))
            return found

    def call(self, command, limit_s=60, fds=(), **arguments):
        names = {key.replace("_", "-"): value for key, value in arguments.items()}
        data = json.dumps({"execute": command, "arguments": names}).encode() + b"\n"
        if fds:
            socket.send_fds(self.socket, [data], list(fds))
        else:
            self.socket.sendall(data)
        self._wait(command, lambda: self.answers, limit_s)
        answer = self.answers.pop(0)
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name, since=0, limit_s=60, matches=lambda data: True):
        """(time it was read, the event), of the first such event read after `since`."""
        def found():
            return next(((at, e) for at, e in self.events if e["event"] == name and at >= since and matches(e.get("data", {}))), None)

        return self._wait(name, found, limit_s)

    def stops(self, since=0, until=None):
        """Times stopped, µs, by QEMU's own stamps: from each STOP to the RESUME after it."""
        result, stopped = [], None
        for at, event in self.events:
            stamp = event["timestamp"]["seconds"] * 1e6 + event["timestamp"]["microseconds"]
            if at < since or (until and at > until):
                continue
            if event["event"] == "STOP":
                stopped = stamp
            elif event["event"] == "RESUME" and stopped is not None:
                result.append(stamp - stopped)
                stopped = None
        return result


def run_words(run):
    return "".join(" vcft.run=" + vcft.encode(command) for command in run)


class Qemu:
    """One QEMU with the tiny guest; `arguments` are added."""

    def __init__(self, folder, memory="256M", run=(), arguments=(), name="plain", number=1, join=None):
        self.folder, self.name, self.disk = folder, name, os.path.join(folder, f"{name}.qcow2")
        self.ram = os.path.join("/dev/shm", f"virtcft-bench-{os.getpid()}-{name}.ram")
        self.console = os.path.join(folder, f"{name}.console")
        if os.path.exists(self.console):
            os.unlink(self.console)
        ours, theirs = socket.socketpair()
        with theirs:
            nic = f"server=off,addr.type=unix,addr.path={join.ram}.nic" if join else f"server=on,addr.type=unix,addr.path={self.ram}.nic"
            self.process = subprocess.Popen(self._command(memory, run, number, nic, theirs.fileno()) + list(arguments),
                                            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.monitor = Monitor(ours)
        self.call, self.wait_event, self.stops = self.monitor.call, self.monitor.wait_event, self.monitor.stops

    def _command(self, memory, run, number, nic, qmp_fd):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.disk, f"{DISK_MIB}M"], check=True)
        mac = vcft.mac(0, number)
        return ["qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-name", self.name,
                "-machine", "pc,accel=tcg,memory-backend=ram0,suppress-vmdesc=on",
                "-object", f"memory-backend-file,id=ram0,mem-path={self.ram},size={memory},share=on",
                "-cpu", "qemu64", "-smp", "1", "-m", memory, "-kernel", f"{vcft.GUESTS}/vmlinuz", "-initrd", f"{vcft.GUESTS}/tiny.cpio.gz",
                "-append", f"{vcft.APPEND} vcft.name={self.name} vcft.ip0={vcft.lan_address(number)}/24@{mac}{run_words(run)}",
                "-chardev", f"socket,id=qmp0,fd={qmp_fd}", "-mon", "chardev=qmp0,mode=control",
                "-chardev", f"null,id=con0,logfile={self.console}", "-serial", "chardev:con0",
                "-netdev", f"stream,id=n0,{nic}", "-device", f"virtio-net-pci,id=nic0,netdev=n0,romfile=,rx_queue_size=1024,mac={mac}",
                "-blockdev", f"driver=qcow2,node-name=d0,file.driver=file,file.filename={self.disk},cache.no-flush=on",
                "-device", "virtio-blk-pci,id=disk0,drive=d0"]

    def console_text(self):
        with open(self.console, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\r", "")

    def wait_console(self, pattern, limit_s=90):
        return vcft.wait_until(f"'{pattern}' on the console of {self.name}", lambda: re.search(pattern, self.console_text(), re.MULTILINE), limit_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for path in (self.ram, f"{self.ram}.nic", self.disk):
            if os.path.exists(path):
                os.unlink(path)
