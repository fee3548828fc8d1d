"""conftest.py - what every lab test gets: a lab that always ends, a time limit, the agents' logs when it fails.

Run: /usr/bin/python3 -m pytest tests/lab        (as root; skipped with the reason where something is missing)

Markers:
  @pytest.mark.hosts(N)        how many hosts the fixture `lab` brings up (default 3)
  @pytest.mark.no_agent        without agents
  @pytest.mark.limit(SECONDS)  time limit of the test, its fixtures included (default 180)
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import vcft  # noqa: E402

LIMIT_S = 180


def pytest_configure(config):
    for line in ("hosts(n): number of hosts of the lab", "no_agent: a lab without agents", "limit(seconds): time limit of the test"):
        config.addinivalue_line("markers", line)


def argument(item, marker, default):
    found = item.get_closest_marker(marker)
    return found.args[0] if found else default


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    limit = argument(item, "limit", LIMIT_S)

    def too_long(_number, _frame):
        raise vcft.Timeout(f"the test took longer than its limit of {limit} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    held = [getattr(value, "kept", value) for value in getattr(item, "funcargs", {}).values()]    # a Shared keeps what has the lab
    labs = [lab for value in held if isinstance(lab := getattr(value, "lab", value), vcft.Lab)]
    if report.failed and labs:
        report.sections.append(("agents' logs", labs[0].log_tails()))
    if report.failed and Shared.tails:
        report.sections.append(("agents' logs when it broke", Shared.tails))
        Shared.tails = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown():
    signal.alarm(60)  # what takes the lab down has time of its own


def missing():
    """Why no lab can be made here, or None."""
    if os.geteuid() != 0:
        return "must run as root"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    return next((f"{program} is not installed" for program in ("corosync", "ip", "qemu-system-x86_64") if shutil.which(program) is None), None)


def skip_without_lab(agent=True):
    """Skips the test where no lab can be made, with the reason."""
    reason = missing()
    if reason is None and agent and not os.path.exists(os.path.join(vcft.BUILD, "src", "agent", "virtcftd")):
        reason = f"no agent in {vcft.BUILD}: build first"
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lab(request):
    """A lab that is up: three hosts with agents, unless the test is marked otherwise."""
    agent = request.node.get_closest_marker("no_agent") is None
    skip_without_lab(agent)
    with vcft.Lab(argument(request.node, "hosts", 3), agent=agent) as made:
        yield made


class Shared:
    """Something costly that the tests of a module share, with its lab: made when it is first needed, and made anew after a test has broken it."""
    tails = None  # what the agents had said when one was last broken

    def __init__(self, make):
        self.make, self.kept = make, None

    def get(self):
        if self.kept is None:
            self.kept = self.make()
        return self.kept

    def broken(self):
        """Ends it; the next get() makes a new one."""
        kept, self.kept = self.kept, None
        if kept is not None:
            Shared.tails = kept.lab.log_tails()
            kept.close()


@pytest.fixture(scope="module")
def shared(request, tiny_guest):
    """A Shared of what the module's function make_shared() returns."""
    skip_without_lab()
    holder = Shared(request.module.make_shared)
    yield holder
    holder.broken()


@pytest.fixture(scope="session")
def tiny_guest():
    """The tiny guest is there (built now if not)."""
    subprocess.run([os.path.join(vcft.REPOSITORY, "guests", "build-tiny")], check=True, timeout=300)
    return os.path.join(vcft.GUESTS, "tiny.cpio.gz")


@pytest.fixture(scope="session")
def demo_guest():
    """The Debian guest is there (built now if not, which takes minutes)."""
    subprocess.run([os.path.join(vcft.REPOSITORY, "guests", "build-demo")], check=True, timeout=1200)
    return os.path.join(vcft.GUESTS, "demo.raw")
