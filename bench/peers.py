"""peers.py - what people would use instead, on the same guest: savevm, virsh save, x-ignore-shared, background-snapshot, COLO; and VirtCFT.

The guest: the tiny one, 256 MiB, one disk, one NIC; it beats and counts work (guests/src/beat.c), and memwriter dirties nothing, 500 or 5,000 pages
a second. Each way takes a checkpoint of it once a second, in turns, each turn after a second in which nothing is taken:

    | nothing | savevm | nothing | virsh save | nothing | … | nothing | savevm | …          VirtCFT: the same by `virtcft checkpoint`

 freeze    STOP to RESUME by QEMU's own events (VirtCFT: the same events, on a second monitor of its QEMU)
 silence   the longest time without a beat, by this machine's clock, and by the guest's own; in the seconds of nothing too: that is the floor
 work      units of work in the second of a checkpoint (longer if it takes longer) / in the second of nothing before
 bytes     what was written (COLO: sent)

 PE1 Peers write to a tmpfs and without a limit of bandwidth: their best case.
 PE2 COLO runs in a pair of QEMUs of its own; what it did until it hung or ended counts, and how it ended is said.
"""

import os
import re
import socket
import subprocess
import time

import qemu
import vcft
from cluster import LAB, empty_disk
from report import Part, median
from watch import Watch, longest_silence, work_rate

LOADS = {"idle": [], "500 pages/s": ["memwriter 500 500"], "5000 pages/s": ["memwriter 5000 5000"]}
MEMORY = "256M"
TURNS, PERIOD_S = 5, 1.0
COLO_S = 15
NO_LIMIT = 1 << 40     # bytes a second


# ---- the ways of plain QEMU -----------------------------------------------------------------------------------------------

def run_job(vm, command, job, **arguments):
    since = time.monotonic_ns()
    vm.call(command, job_id=job, **arguments)
    vm.wait_event("JOB_STATUS_CHANGE", since, matches=lambda data: data["id"] == job and data["status"] == "concluded")
    error = next(j.get("error") for j in vm.call("query-jobs") if j["id"] == job)
    vm.call("job-dismiss", id=job)
    if error:
        raise qemu.QmpError(f"{command}: {error}")


def savevm(vm, _file):
    """QMP snapshot-save, HMP savevm: RAM and devices into the qcow2 disk."""
    run_job(vm, "snapshot-save", "save", tag="bench", vmstate="d0", devices=["d0"])
    node = next(n for n in vm.call("query-named-block-nodes") if n["node-name"] == "d0")
    return node["image"]["snapshots"][0]["vm-state-size"]


def after_savevm(vm):
    run_job(vm, "snapshot-delete", "delete", tag="bench", devices=["d0"])


def set_capability(vm, name, on):
    if name:
        vm.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": on}])


def migrate(vm, path, capability=None):
    """A migration into a file; its size."""
    set_capability(vm, capability, True)
    with open(path, "wb") as file:
        since = time.monotonic_ns()
        vm.call("getfd", fds=[file.fileno()], fdname="out")
        vm.call("migrate", uri="fd:out")
        _, event = vm.wait_event("MIGRATION", since, matches=lambda data: data["status"] in ("completed", "failed"))
    set_capability(vm, capability, False)
    if event["data"]["status"] == "failed":
        raise qemu.QmpError("migrate: " + vm.call("query-migrate").get("error-desc", "failed"))
    size = os.path.getsize(path)
    os.unlink(path)
    return size


def go_on(vm):
    """`cont` is refused until a migration that is "completed" has been finalized as well."""
    vcft.wait_until("the end of the migration", lambda: vm.call("query-status")["status"] != "finish-migrate", 10, step=0.001)
    vm.call("cont")


def virsh_save(vm, path):
    """As libvirt does it: stop, migrate to a file."""
    vm.call("stop")
    size = migrate(vm, path)
    go_on(vm)
    return size


def live_migrate(vm, path):
    """The same without the stop: QEMU stops the VM for what is left at the end."""
    size = migrate(vm, path)
    go_on(vm)
    return size


def ignore_shared(vm, path):
    """RAM stays in its file: only devices are saved, so this alone is no checkpoint; the copy of RAM comes on top."""
    size = migrate(vm, path, "x-ignore-shared")
    go_on(vm)
    return size


def background_snapshot(vm, path):
    return migrate(vm, path, "background-snapshot")


def nothing(_vm, _path):
    return 0


PEERS = {"savevm": savevm, "virsh save": virsh_save, "migrate to a file": live_migrate, "x-ignore-shared (devices only)": ignore_shared,
         "background-snapshot": background_snapshot}
AFTER = {"savevm": after_savevm}


# ---- turns ------------------------------------------------------------------------------------------------------------------

def until(start_ns, seconds):
    """The rest of a turn's second: it is part of what is measured."""
    time.sleep(max(0.0, seconds - (time.monotonic_ns() - start_ns) / 1e9))


def one_turn(name, take, stops):
    start = time.monotonic_ns()
    try:
        size, error = take(), None
    except qemu.QmpError as failed:
        size, error = None, str(failed)
    took = time.monotonic_ns()
    until(start, PERIOD_S)
    end = time.monotonic_ns()
    return {"way": name, "start": start, "end": end, "took_ms": (took - start) / 1e6, "bytes": size, "stops_us": stops(start, end), "error": error}


def judge(turns, rows):
    """Adds silences and work to the turns, from the beats."""
    for turn in turns:
        turn["silence_us"], turn["own_gap_us"] = longest_silence(rows, turn["start"], turn["end"]) or (None, None)
        turn["work"] = work_rate(rows, turn["start"], turn["end"])


def plain_turns(part, out, load):
    with qemu.Qemu(out, MEMORY, ["beat work", *LOADS[load]]) as vm:
        vm.wait_console(r"^beat n=")
        vm.call("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        vm.call("migrate-set-parameters", max_bandwidth=NO_LIMIT)
        turns, file = [], f"{vm.ram}.state"
        with Watch(vm.ram, os.path.join(out, "beats.json")) as watch:
            for _ in range(TURNS):
                for name, way in PEERS.items():
                    turns.append(one_turn("nothing", lambda: nothing(vm, file), vm.stops))
                    turns.append(one_turn(name, lambda way=way: way(vm, file), vm.stops))
                    if turns[-1]["error"]:
                        part.say(f"{load}: {name}: {turns[-1]['error']}")
                        go_on(vm)
                    elif name in AFTER:
                        AFTER[name](vm)
            judge(turns, watch.rows())
    return turns


# ---- VirtCFT ----------------------------------------------------------------------------------------------------------------

def spy_socket(out):
    """Where a QEMU of the lab can make a socket."""
    folder = os.path.join(out, "spy")
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o1777)
    path = os.path.join(folder, f"{os.getpid()}.qmp")
    if os.path.exists(path):
        os.unlink(path)
    return path


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return qemu.Monitor(sock)


def virtcft_turns(out, load):
    """The same guest in a cluster whose interval is so long that every checkpoint is one that we ask for."""
    with vcft.Lab(3, name=LAB) as lab:
        return asked_turns(out, lab, load)


def asked_turns(out, lab, load):
    spy = spy_socket(out)
    extra = ["-chardev", f"socket,id=spy,path={spy},server=on,wait=off", "-mon", "chardev=spy,mode=control"]
    vm = vcft.tiny_vm("beat", 1, "host1", ["beat work", *LOADS[load]], memory=MEMORY, disks=[empty_disk(out)], qemu=extra)
    cluster = vcft.Cluster(lab, [vm], networks=(vcft.LAN,), interval="600s", verify=False, name="bench").up()
    cluster.console("beat").wait_for(r"^beat n=", 90)
    events = cluster.events("host1")
    checkpoint(cluster)       # the first one is of all of RAM
    cluster.wait_protected(60)
    monitor, turns = connect(spy), []
    with Watch("/dev/shm/virtcft/beat/ram.*", os.path.join(out, "beats.json"), [vcft.LAB_PROGRAM, "exec", "host1", "--"], lab.environment) as watch:
        for _ in range(TURNS):
            turns.append(one_turn("nothing", lambda: 0, monitor.stops))
            turns.append(one_turn("VirtCFT", lambda: checkpoint(cluster), monitor.stops))
        judge(turns, watch.rows())
    for turn in turns:
        rows = events.all("checkpoint-committed", lambda e, t=turn: t["start"] <= e["time"] <= t["end"] and "beat" in e["vms"])
        if turn["way"] == "VirtCFT" and rows:
            turn["agent_pause_us"], turn["bytes"] = rows[-1]["vms"]["beat"]["pause_us"], rows[-1]["vms"]["beat"]["sent_bytes"]
            turn["dirty_pages"] = rows[-1]["vms"]["beat"]["dirty_pages"]
    return turns


def checkpoint(cluster):
    cluster.lab.exec("host1", "virtcft", "checkpoint", timeout=60)


# ---- COLO -------------------------------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def bytes_sent(port):
    """By the primary, over TCP."""
    text = subprocess.run(["ss", "-tinH", f"dport = :{port}"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return max(map(int, re.findall(r"bytes_sent:(\d+)", text)), default=None)


def follow_colo(primary, secondary, port, start):
    """Until it has stood still for good, or one of the two has ended, or the time is over; (bytes after each RESUME, how it ended)."""
    sent, seen = [], 0
    while time.monotonic_ns() < start + COLO_S * 1e9:
        stops = primary.stops(start)
        if len(stops) > seen:
            seen = len(stops)
            sent.append(bytes_sent(port))
        for vm in (primary, secondary):
            if vm.process.poll() is not None:
                return sent, f"the {vm.name} QEMU ended with status {vm.process.returncode}"
        time.sleep(0.02)
    try:
        return sent, "ran on: " + primary.call("query-colo-status", limit_s=3)["mode"]
    except qemu.QmpError as error:
        return sent, f"hung: the primary QEMU answers no more ({error})"


def colo(part, out, load):
    """Periodic mode: no comparison of packets, a checkpoint every second."""
    run, port = ["beat work", *LOADS[load]], free_port()
    with qemu.Qemu(out, MEMORY, run, ["-incoming", "defer"], name="secondary") as secondary, qemu.Qemu(out, MEMORY, run, name="primary") as primary:
        primary.wait_console(r"^beat n=")
        for vm in (secondary, primary):
            set_capability(vm, "x-colo", True)
        secondary.call("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
        primary.call("migrate-set-parameters", x_checkpoint_delay=int(PERIOD_S * 1000), max_bandwidth=NO_LIMIT)
        with Watch(primary.ram, os.path.join(out, "beats.json")) as watch:
            start = time.monotonic_ns()
            primary.call("migrate", uri=f"tcp:127.0.0.1:{port}")
            sent, end = follow_colo(primary, secondary, port, start)
            rows = watch.rows()
        stops = primary.stops(start)
    silences = sorted(((b[0] - a[0]) / 1e3 for a, b in zip(rows, rows[1:]) if a[0] >= start), reverse=True)[:len(stops)]
    part.keep("colo", load=load, stops_us=stops, bytes_sent=sent, longest_silences_us=silences, end=end)
    part.say(f"COLO, {load}: {len(stops)} stops ({', '.join(f'{s / 1000:.1f} ms' for s in stops)}), then: {end}")


# ---- the part ---------------------------------------------------------------------------------------------------------------

def summary(part, load, turns):
    for way in dict.fromkeys(turn["way"] for turn in turns):
        mine = [t for t in turns if t["way"] == way and not t["error"]]
        if not mine:
            part.note(f"{load}, {way}: cannot be run: {next(t['error'] for t in turns if t['way'] == way)}")
            continue
        before = [turns[i - 1]["work"] for i, t in enumerate(turns) if t in mine and i and way != "nothing"]
        values = {
            "freeze_us": median([max(t["stops_us"], default=0.0) for t in mine]),
            "silence_us": median([t["silence_us"] for t in mine]),
            "own_gap_us": median([t["own_gap_us"] for t in mine]),
            "took_ms": median([t["took_ms"] for t in mine]),
            "bytes": median([t["bytes"] or 0 for t in mine]),
            "work": median([t["work"] / b for t, b in zip(mine, before)]) if before else 1.0}
        part.keep("peer", load=load, way=way, turns=len(mine), **values)
        part.say(f"{load:12} {way:31} freeze {values['freeze_us'] / 1e3:8.2f} ms, silence {values['silence_us'] / 1e3:8.2f} ms (own clock "
                  f"{values['own_gap_us'] / 1e3:6.2f}), took {values['took_ms']:7.1f} ms, work {values['work']:.2f}, {values['bytes'] / 1e6:8.3f} MB")


def measure(out):
    part = Part("peers")
    for load in LOADS:
        for name, take in (("peers", lambda load=load: plain_turns(part, out, load)), ("VirtCFT", lambda load=load: virtcft_turns(out, load))):
            with part.attempt(f"{name}, {load}"):
                turns = take()
                part.raw += [{"what": "turn", "load": load, **turn} for turn in turns]
                summary(part, load, turns)
        with part.attempt(f"COLO, {load}"):
            colo(part, out, load)
    return part
