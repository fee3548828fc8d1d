"""test_guests.py - the tiny guest in plain QEMU, without VirtCFT: it boots, takes its role, its programs find what they are for."""

import os
import re
import subprocess
import threading

import pytest

import vcft

pytestmark = pytest.mark.limit(120)


class PlainGuest:
    """The tiny guest in a QEMU of its own."""

    def __init__(self, append, *arguments):
        self.text = ""
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", "qemu64", "-m", "128M", "-nodefaults", "-display", "none",
             "-serial", "stdio", "-no-reboot", "-kernel", f"{vcft.GUESTS}/vmlinuz", "-initrd", f"{vcft.GUESTS}/tiny.cpio.gz",
             "-append", f"{vcft.APPEND} vcft.name=plain {append}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            self.text += chunk.decode(errors="replace").replace("\r", "")

    def wait_for(self, pattern, timeout=40):
        """In whole lines: what has been read may end in the middle of one."""
        return vcft.wait_until(f"'{pattern}'", lambda: re.search(pattern, self.text[:self.text.rfind("\n") + 1], re.MULTILINE), timeout,
                               seen=lambda: self.text[-2000:])

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def boot(tiny_guest):
    started = []

    def boot_one(append="", *arguments):
        started.append(PlainGuest(append, *arguments))
        return started[-1]

    yield boot_one
    for guest in started:
        guest.end()


def test_boots_and_runs_commands(boot):
    guest = boot()
    guest.wait_for(r"^VCFT-GUEST-READY plain$")
    guest.type("echo $((6 * 7)); false")
    guest.wait_for(r"^42\nVCFT-EXIT 1$")


def test_writers_pass_on_sound_memory_and_disk(boot, tmp_path):
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(16 << 20)
    guest = boot("vcft.run=memwriter+2000+500 vcft.run=diskwriter+100+50", "-drive", f"file={disk},format=raw,if=none,id=d",
                 "-device", "virtio-blk-pci,drive=d")
    guest.wait_for(r"^memwriter ok .* passes=[3-9]")
    guest.wait_for(r"^diskwriter ok .* passes=[3-9]")
    assert "FAIL" not in guest.text


def test_diskwriter_finds_a_changed_block(boot, tmp_path):
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(16 << 20)
    guest = boot("vcft.run=diskwriter+100+50", "-drive", f"file={disk},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d")
    guest.wait_for(r"^diskwriter ok .* passes=[1-9]")
    guest.type("dd if=/dev/zero of=/dev/vda bs=4096 seek=7 count=1 conv=fsync")
    guest.wait_for(r"^diskwriter FAIL block=7 ")


def test_udpseq_counts_every_kind_of_trouble(boot):
    guest = boot("vcft.run=udpseq+recv+7000+QUIET")
    guest.wait_for(r"^udpseq recv ready")
    guest.type("udpseq send 127.0.0.1:7000 0 64 300; udpseq send 127.0.0.1:7000 0 64 10; udpseq ask 127.0.0.1:7000")
    state = vcft.udpseq_state(guest.wait_for(r"^(udpseq recv next=300 .* double=10 .*)$").group(1))
    assert state == {"next": 300, "seen": 300, "missing": 0, "double": 10, "late": 0, "bad": 0, "dropped": 0}


def test_pinger_measures(boot):
    guest = boot("vcft.run=pinger+serve+7001")
    guest.wait_for(r"^pinger serve")
    guest.type("pinger 127.0.0.1:7001 1 100")
    match = guest.wait_for(r"^pinger n=100 lost=0 median_us=(\d+) p99_us=(\d+) max_us=(\d+)$")
    median, p99, most = map(int, match.groups())
    assert median <= p99 <= most
