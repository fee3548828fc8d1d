"""test_privilege.py - who may do what: QEMU and nbdkit have no rights, files are for whom they must be, the control socket knows who speaks."""

import grp
import json
import os
import pwd
import re
import shutil

import pytest

import vcft

pytestmark = pytest.mark.limit(480)

HOST = "host1"
GROUP = "daemon"
AGENT_CAPABILITIES = {0, 1, 5, 6, 7, 8, 12, 19, 23}     # chown dac_override kill setgid setuid setpcap net_admin sys_ptrace sys_nice: src/agent/privilege.c
FOLDERS = "/run/virtcft /dev/shm/virtcft /var/lib/virtcft"
# What the agent, QEMU and nbdkit have made: pattern, type, owner, group, mode.
FILES = [
    (r"/run/virtcft", "d", "root", "root", "711"),
    (r"/run/virtcft/control.sock", "s", "root", GROUP, "660"),
    (r"/run/virtcft/guest", "d", "USER", "USER", "700"),
    (r"/run/virtcft/guest/console.sock", "s", "USER", "USER", "[67]00"),
    (r"/run/virtcft/guest-nic0.sock", "s", "root", "root", "600"),
    (r"/run/virtcft/guest/disk0.sock", "s", "USER", "USER", "755"),                # nbdkit's own umask; the folder is closed
    (r"/run/virtcft/guest/state.fifo", "p", "USER", "USER", "600"),
    (r"/run/virtcft/guest/qemu.log", "f", "root", "root", "600"),
    (r"/dev/shm/virtcft", "d", "root", "root", "711"),
    (r"/dev/shm/virtcft/guest", "d", "root", "USER", "710"),
    (r"/dev/shm/virtcft/guest/image", "f", "root", "root", "600"),
    (r"/dev/shm/virtcft/guest/ram.\d+", "f", "USER", "USER", "600"),
    (r"/var/lib/virtcft", "d", "root", "root", "711"),
    (r"/var/lib/virtcft/generation", "f", "root", "root", "600"),
    (r"/var/lib/virtcft/vms", "d", "root", "root", "711"),
    (r"/var/lib/virtcft/vms/guest", "d", "root", "USER", "710"),
    (r"/var/lib/virtcft/vms/guest/disk0", "d", "USER", "USER", "700"),
    (r"/var/lib/virtcft/vms/guest/disk0/(overlay|map|sums|log.\d+(.idx)?)", "f", "USER", "USER", "600"),
    (r"/var/lib/virtcft/vms/guest/disk0/nbdkit.log", "f", "root", "root", "600"),
    (r"/var/lib/virtcft/console", "d", "root", "root", "711"),
    (r"/var/lib/virtcft/console/guest.log", "f", "USER", "USER", "600"),
    (r"/var/lib/virtcft/cache(/.*)?", "[df]", "root", "root", "[67]00"),
]


class Alone(vcft.World):
    """An agent on one host, with a VM whose image, kernel, initrd and plugins only root may read."""

    def __init__(self, settings=""):
        self.settings = settings
        super().__init__(1, agent=False)

    def bring_up(self):
        plugins = self.lab.path("plugins")
        os.makedirs(plugins, exist_ok=True)
        for source in (f"{vcft.BUILD}/src/agent/virtcft-disk.so", f"{vcft.BUILD}/src/agent/virtcft-preload.so", f"{vcft.GUESTS}/vmlinuz",
                       f"{vcft.GUESTS}/tiny.cpio.gz"):
            self.only_root(shutil.copy(source, plugins))
        self.agent = self.lab.popen("exec", HOST, "--", "virtcftd", "--config", self.lab.write(
            "virtcftd.yaml", f"name: host1\ngroup: local\ncontrol_group: {GROUP}\nplugin_dir: {plugins}\n{self.settings}".encode()))
        vcft.wait_until("the agent", lambda: self.sh("test -S /run/virtcft/control.sock && echo yes", check=False), 30)
        disk = self.only_root(self.lab.zeros("disk.raw", 4 << 20))
        guest = vcft.tiny_vm("guest", 1, None, ["memwriter 1000 1000", "diskwriter 50 200"], disks=[disk])
        guest["kernel"], guest["initrd"] = f"{plugins}/vmlinuz", f"{plugins}/tiny.cpio.gz"
        self.cluster = vcft.Cluster(self.lab, interval="100ms", vms=[guest])
        del self.cluster.config["hosts"]
        self.cluster.up()
        self.cluster.wait_ready(240)
        for program in ("memwriter", "diskwriter"):
            self.cluster.console("guest").wait_for(f"^{program} ok .* passes=[1-9]", 120)

    def only_root(self, path):
        os.chmod(path, 0o600)
        return path

    def sh(self, command, **options):
        return self.lab.exec(HOST, "sh", "-c", command, **options)

    def run_as(self, user, group, *command):
        """(status, output) of a command of another user."""
        process = self.lab.popen("exec", HOST, "--", "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def status_of(self, pid):
        """/proc/PID/status as a dict."""
        return dict(line.split(":\t", 1) for line in self.sh(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)

    def pid(self, pattern):
        return self.sh(f"pgrep -o -f '{pattern}'").split()[0]


QEMU, NBDKIT = "^/[^ ]*qemu-system.* -name guest ", "^nbdkit "


def make_shared():
    return Alone()


def capabilities(text):
    return {i for i in range(64) if int(text, 16) >> i & 1}


@pytest.mark.parametrize("pattern", [QEMU, NBDKIT], ids=["qemu", "nbdkit"])
def test_id1_no_rights(shared, pattern):
    alone = shared.get()
    user = pwd.getpwnam("virtcft")
    status = alone.status_of(alone.pid(pattern))
    assert status["Uid"].split() == [str(user.pw_uid)] * 4
    assert status["Gid"].split() == [str(user.pw_gid)] * 4
    kvm = os.stat("/dev/kvm") if os.path.exists("/dev/kvm") else None
    assert status["Groups"].split() == ([str(kvm.st_gid)] if kvm and kvm.st_mode & 0o060 == 0o060 and kvm.st_gid else [])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == ("2" if pattern == QEMU else "0")


def test_pv1_the_agent_keeps_what_it_needs(shared):
    alone = shared.get()
    for pid in alone.sh("pgrep -x virtcftd; pgrep -x virtcft-dog").split():
        status = alone.status_of(pid)
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert capabilities(status[name]) == AGENT_CAPABILITIES, name
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0


def test_the_kernel_notes_written_pages_without_rights(shared):
    """Else the compare tracker would be in use, and this test of everything else would not see it."""
    alone = shared.get()
    features = {f["name"]: f["found"] for f in json.loads(alone.sh("virtcft check --json || true"))["features"]}
    if not features["userfaultfd"] or not features["pagemap-scan"]:
        pytest.skip("this kernel notes none")
    assert "userfaultfd" in alone.sh(f"ls -l /proc/{alone.pid(QEMU)}/fd")
    assert f"/proc/{alone.pid(QEMU)}/pagemap" in alone.sh("ls -l /proc/$(pgrep -o -x virtcftd)/fd"), "and the agent reads them (CAP_SYS_PTRACE)"


def test_the_switch_goes_before_vcpus(shared):
    """CAP_SYS_NICE: one thread of the agent, no more, has another priority than the rest."""
    nice = [int(line.rpartition(")")[2].split()[16]) for line in shared.get().sh("cat /proc/$(pgrep -o -x virtcftd)/task/*/stat").splitlines()]
    assert min(nice) < 0 and sorted(nice)[1] == 0


def test_files_are_for_whom_they_must_be(shared):
    alone = shared.get()
    wrong, met = [], set()
    for line in alone.sh(f"find {FOLDERS} -printf '%y %u %g %m %p\\n' 2>/dev/null || true").splitlines():
        kind, owner, group, mode, path = line.split(" ", 4)
        row = next((i for i, row in enumerate(FILES) if re.fullmatch(row[0], path)), None)
        met.add(row)
        expected = [x.replace("USER", "virtcft") for x in FILES[row][1:]] if row is not None else None
        if not expected or not all(re.fullmatch(e, x) for e, x in zip(expected, (kind, owner, group, mode))):
            wrong.append(line)
    assert not wrong
    assert met >= set(range(len(FILES) - 1)), "a kind of file was not there to be looked at"


def test_a_vm_reaches_nothing_of_the_agents(shared):
    alone = shared.get()
    user = pwd.getpwnam("virtcft")
    for path in ("/dev/shm/virtcft/guest/image", "/run/virtcft/guest/qemu.log", "/var/lib/virtcft/generation", alone.lab.path("disk.raw")):
        status, output = alone.run_as(user.pw_uid, user.pw_gid, "cat", path)
        assert status != 0 and "Permission denied" in output, path
    status, output = alone.run_as(user.pw_uid, user.pw_gid, "rm", "-f", "/dev/shm/virtcft/guest/image")
    assert status != 0 and "Permission denied" in output


def test_cs1_the_control_socket_knows_who_speaks(shared):
    alone = shared.get()
    nobody, group = pwd.getpwnam("nobody"), grp.getgrnam(GROUP)
    member = (nobody.pw_uid, group.gr_gid)
    assert alone.run_as(*member, "virtcft", "status", "--json")[0] == 0
    assert alone.run_as(*member, "virtcft", "events", "--json")[0] == 0
    alone.sh("echo 'cluster: other\nvms: [ { name: x, memory: 16M, kernel: /bin/sh } ]' > /run/other.yaml; chmod 644 /run/other.yaml")
    for verb in (["up", "/run/other.yaml"], ["checkpoint"], ["down"], ["console", "guest"], ["checkpoint", "--bare", "guest", "1"]):
        status, output = alone.run_as(*member, "virtcft", *verb)
        assert status == 1 and re.fullmatch(rf"virtcft: \w+ is for root; this is user {nobody.pw_uid}\n", output), output
    status, output = alone.run_as(nobody.pw_uid, nobody.pw_gid, "virtcft", "status")
    assert status == 1 and len(output.splitlines()) == 1 and "root" in output and "control_group" in output
    assert alone.lab.exec(HOST, "virtcft", "checkpoint")


@pytest.mark.parametrize("settings, words", [("user: nobody-here", "no user 'nobody-here'"), ("user: root", "is root"),
                                             ("control_group: no-such-group", "no group 'no-such-group'")], ids=["user", "root", "group"])
def test_who_is_missing_is_said(shared, settings, words):
    alone = shared.get()
    path = alone.lab.write("wrong.yaml", f"{settings}\nrun_dir: /run/other\n".encode())
    process = alone.lab.popen("exec", HOST, "--", "virtcftd", "--config", path)
    assert process.wait(10) == 2
    output = process.stdout.read()
    assert len(output.splitlines()) == 1 and words in output


def test_a_folder_whose_owner_has_changed_its_mode_is_taken_back(shared):
    """With no right over others' files but to give them away (CAP_CHOWN): a VM that opens its folder to all does not keep it from being started again."""
    alone = shared.get()
    user = pwd.getpwnam("virtcft")
    assert alone.run_as(user.pw_uid, user.pw_gid, "chmod", "777", "/run/virtcft/guest")[0] == 0
    alone.cluster.down()
    alone.cluster.up()
    assert alone.sh("stat -c '%U %G %a' /run/virtcft/guest") == "virtcft virtcft 700\n"


def test_a_user_for_each_vm(shared):
    shared.broken()
    alone = Alone("user_base: 200000\n")
    try:
        for pattern in (QEMU, NBDKIT):
            status = alone.status_of(alone.pid(pattern))
            assert status["Uid"].split() == status["Gid"].split() == ["200000"] * 4
        alone.sh("kill -KILL " + alone.pid(QEMU))
        alone.cluster.events(HOST).wait_for("recovery-finished", lambda e: e["epoch"] > 0, timeout=20)
    finally:
        alone.close()
