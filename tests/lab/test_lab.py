"""test_lab.py - the rules of lab/virtcft-lab (L1 to L6 at its top), without agents and guests."""

import os
import re
import subprocess
import time

import pytest

import vcft

pytestmark = [pytest.mark.no_agent, pytest.mark.limit(90)]


def members(lab, host):
    return next(h["members"] for h in lab.status()["hosts"] if h["name"] == host)


def wait_members(lab, host, count):
    vcft.wait_until(f"{host} to see {count} hosts", lambda: members(lab, host) == count, 10)


def processes_with(word):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if word.encode() in file.read() and int(entry) != os.getpid():
                    found.append(int(entry))
        except OSError:
            pass
    return found


def lab_mounts():
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return [line for line in file if "virtcft" in line or "corosync" in line]


def test_hosts_have_namespaces_of_their_own(lab):
    for kind in ("net", "mnt", "ipc", "pid", "uts"):
        places = {lab.exec(host, "readlink", f"/proc/self/ns/{kind}") for host in lab.names} | {os.readlink(f"/proc/self/ns/{kind}") + "\n"}
        assert len(places) == 4, kind
    assert lab.exec("host2", "hostname") == "host2\n"
    assert lab.exec("host2", "sh", "-c", "ls -A /run /dev/shm | grep -c ringid; test -e /proc/1/comm && cat /proc/1/comm").endswith("vcft-host2\n")


def test_exec_passes_status_input_and_output(lab):
    done = subprocess.run([vcft.LAB_PROGRAM, "exec", "host1", "--", "sh", "-c", "cat; echo error >&2; exit 7"], input="text", text=True,
                          capture_output=True, env=lab.environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "text", "error\n")


def test_exec_ends_its_command_when_it_is_ended(lab):
    process = lab.popen("exec", "host1", "--", "sleep", "7341")
    vcft.wait_until("the command to run", lambda: processes_with("sleep\0007341"), 5)
    process.kill()
    vcft.wait_until("the command to end", lambda: not processes_with("sleep\0007341"), 5)


def test_L1_kill_ends_every_process_of_the_host(lab):
    stubborn = lab.popen("exec", "host2", "--", "sh", "-c", "trap '' TERM HUP INT; setsid sh -c 'echo up; sleep 7342' & wait")
    assert stubborn.stdout.readline() == "up\n"
    lab.kill("host2")
    assert not processes_with("sleep\0007342")
    assert lab.running() == ["host1", "host3"]


def test_kill_is_seen_and_start_brings_the_host_back(lab):
    lab.kill("host3")
    wait_members(lab, "host1", 2)
    lab.start("host3")
    wait_members(lab, "host1", 3)
    wait_members(lab, "host3", 3)


def test_L2_a_killed_host_says_no_goodbye(lab):
    server = lab.popen("exec", "host1", "--", "/usr/bin/python3", "-c", (
        "import socket,sys\n"
        "s = socket.create_server(('10.77.0.1', 7000)); print('up', flush=True)\n"
        "c, _ = s.accept(); print('joined', flush=True); c.settimeout(2)\n"
        "try: print('goodbye' if c.recv(1) == b'' else 'data', flush=True)\n"
        "except TimeoutError: print('silence', flush=True)\n"))
    assert server.stdout.readline() == "up\n"
    lab.popen("exec", "host2", "--", "/usr/bin/python3", "-c",
              "import socket,time\ns = socket.create_connection(('10.77.0.1', 7000)); time.sleep(60)")  # a process that must be killed
    assert server.stdout.readline() == "joined\n"
    lab.kill("host2")
    assert server.stdout.readline() == "silence\n"


def test_cut_and_heal_both_links(lab):
    lab.cut("host3")
    wait_members(lab, "host3", 1)
    wait_members(lab, "host1", 2)
    assert lab.status()["hosts"][2]["links"] == "down"
    lab.heal("host3")
    wait_members(lab, "host1", 3)
    assert lab.status()["hosts"][2]["links"] == "up"


def test_L6_the_outside_keeps_its_address_whichever_host_dies(lab):
    def address():
        return lab.outside("cat", "/sys/class/net/br-outside/address")

    before = address()
    for host in lab.names:
        lab.kill(host)
        assert address() == before, host


@pytest.mark.hosts(2)
def test_frames_pass_between_tap_and_outside(lab):
    tap = ("import fcntl,struct,os\n"
           "f = open('/dev/net/tun', 'r+b', buffering=0)\n"
           "fcntl.ioctl(f, 0x400454ca, struct.pack('16sH22x', b'vcft-wan', 0x1002))\n"
           "frame = bytes.fromhex('ffffffffffff 525400000001 88b5') + b'hello'.ljust(50)\n"
           "print('up', flush=True); input(); os.write(f.fileno(), frame)\n"
           "while os.read(f.fileno(), 2000)[12:14] != bytes.fromhex('88b6'): pass\n"
           "print('answered', flush=True)\n")
    outside = ("import socket\n"
               "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5)); s.bind(('br-outside', 0x88b5))\n"
               "print('up', flush=True); print(s.recv(2000)[14:19].decode(), flush=True)\n"
               "s.send(bytes.fromhex('525400000001 020000000001 88b6').ljust(60))\n")
    far, near = lab.outside_popen("/usr/bin/python3", "-c", outside), lab.popen("exec", "host1", "--", "/usr/bin/python3", "-c", tap)
    assert far.stdout.readline() == near.stdout.readline() == "up\n"
    near.stdin.write("\n")
    assert far.stdout.readline() == "hello\n"
    assert near.stdout.readline() == "answered\n"


@pytest.mark.parametrize("arguments, words", [
    (("kill", "host9"), "no host 'host9'"), (("cut", "nowhere"), "no host 'nowhere'"), (("start", "host1"), "running already"),
    (("exec", "host1", "true"), "exec HOST -- COMMAND"), (("up", "many"), "number of hosts"), (("up", "2"), "is up already")])
@pytest.mark.hosts(1)
def test_a_wrong_command_is_one_clear_line(lab, arguments, words):
    done = subprocess.run([vcft.LAB_PROGRAM, *arguments], capture_output=True, text=True, env=lab.environment, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"virtcft-lab: .*\n", done.stderr) and words in done.stderr


def test_L3_down_leaves_nothing_also_after_a_failed_up(lab):
    lab("down")
    marker = f"/lab/{lab.name}\0"
    assert not processes_with(marker)
    up = lab.popen("up", "3", "--no-agent")
    vcft.wait_until("the first host", lambda: processes_with(marker + "host1"), 10, step=0.001)
    up.kill()
    up.wait()
    lab("down")
    vcft.wait_until("every process to be gone", lambda: not processes_with(marker), 5)
    assert not lab_mounts()
    lab("down")


@pytest.mark.hosts(1)
def test_L5_two_labs_share_nothing(lab):
    with vcft.Lab(2, agent=False, name=lab.name + "-second") as second:
        second.kill("host1")
        assert lab.running() == ["host1"]
        assert second.running() == ["host2"]
    assert lab.running() == ["host1"]


def test_no_member_is_lost_while_the_machine_is_busy(lab):
    """Corosync's token is 300 ms: hosts that share two processors must not take each other for dead."""
    busy = [subprocess.Popen(["timeout", "8", "sh", "-c", "while :; do :; done"]) for _ in range(6)]
    watch = lab.popen("exec", "host1", "--", "timeout", "8", "stdbuf", "-oL", "corosync-quorumtool", "-m")
    started = time.monotonic()
    output = watch.communicate()[0]
    for process in busy:
        process.wait()
    assert time.monotonic() - started > 7
    assert set(re.findall(r"^Nodes: +(\d+)", output, re.MULTILINE)) == {"3"}
