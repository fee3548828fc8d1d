"""inside.py - bar 5: what two VMs on two hosts see of each other, checkpointed every 100 ms and not; and the switch beside a bare pair.

    ping (host1) ──switch──tunnel (TLS)──switch── echo (host2)      datagrams every 4 ms; then 8 MiB by TCP (dd | nc)

 B5 round trip: median <= 1.05 x, p99 <= 1.5 x + one pause; throughput >= 0.95 x: checkpointed against not, one cluster in turns (bench/pace), medians
    of the turns. Time is the guest's for round trips, this machine's for throughput (from the command on the console to its end, less that of `true`).
    The switch: both VMs on one host, unprotected, against two QEMUs joined directly (-netdev stream): throughput >= 0.9 x, by the guest's `time`.

As a contrast, what systems for single VMs do, all output held until commit: both VMs have networks of their own, joined beyond their uplinks alone.

    ping (host1) ──wan──► uplink, held ──outside──► uplink ──wan2── echo (host2)      and the same way back
"""

import re
import time

import qemu
import vcft
from cluster import LAB, NEVER, Pace, bring_up, committed, pinger_windows
from report import Part, median

INTERVAL_MS = 100
TURNS, PING_MS, PINGS = 5, 4, 800
SWITCH_TURNS = 3
HELD_PINGS = 200
WAN2 = {**vcft.WAN, "name": "wan2", "uplink": "vcft-wan2"}
PORT, BLOCKS = 5001, 128
SEND_TO = f"time sh -c 'dd if=/dev/zero bs=64k count={BLOCKS} 2> /dev/null | nc {{}} {PORT}'"
SEND = SEND_TO.format(vcft.lan_address(2))
UNTIL_SERVED = f"until nc {vcft.lan_address(2)} {PORT} < /dev/null; do :; done;"
SERVE = ["pinger serve 7", f"nc -ll -p {PORT} -e sh -c 'cat > /dev/null'"]
TOOK = r"real\s+(\d+)m ([\d.]+)s"


def machines(echo_host):
    return [vcft.tiny_vm("ping", 1, "host1", neighbours=[2], memory="256M"), vcft.tiny_vm("echo", 2, echo_host, SERVE, neighbours=[1], memory="256M")]


def timed(console, command):
    start = time.monotonic()
    text = console.run("host1", command, timeout=180)
    return time.monotonic() - start, text


def one_turn(console, events):
    start = vcft.now()
    windows = pinger_windows(console.run("host1", f"pinger {vcft.lan_address(2)}:7 {PING_MS} {PINGS}", timeout=120))
    empty = timed(console, "true")[0]
    took = timed(console, SEND)[0] - empty
    return {"median_us": median([w["median_us"] for w in windows]), "p99_us": median([w["p99_us"] for w in windows]),
            "mbit_per_s": BLOCKS * 65536 * 8 / 1e6 / took, "pause_us": [row["pause_us"] for row in committed(events, "ping", start)]}


def in_turns(part):
    """What each turn found, by the interval, ms; 0: without checkpoints."""
    found = {0: [], INTERVAL_MS: []}
    with vcft.Lab(3, name=LAB) as lab:
        cluster = bring_up(lab, machines("host2"), NEVER)
        events, console, pace = cluster.events("host1"), cluster.console("ping"), Pace(lab, "host1")
        pace.every(INTERVAL_MS)
        cluster.wait_protected(timeout=60)
        for interval in (INTERVAL_MS, *(0, INTERVAL_MS) * TURNS):      # the first one warms up, and is not counted
            pace.every(interval)
            found[interval].append(one_turn(console, events))
            part.keep("inside", interval=interval, **found[interval][-1])
    return {interval: turns[-TURNS:] for interval, turns in found.items()}


def held_machines():
    ping, echo = (vcft.tiny_vm(name, number, host, run, ("wan",), memory="256M")
                  for name, number, host, run in (("ping", 1, "host1", []), ("echo", 2, "host2", SERVE)))
    echo["nics"][0]["network"] = WAN2["name"]
    return [ping, echo]


def held_turn():
    """Median round trip, ms, and throughput, Mbit/s."""
    with vcft.Lab(3, name=LAB) as lab:
        for host in lab.names:
            lab.exec(host, "sh", "-c", f"ip tuntap add dev {WAN2['uplink']} mode tap user 0 && ip link set {WAN2['uplink']} mtu 1500 master br-wan up")
        console = bring_up(lab, held_machines(), f"{INTERVAL_MS}ms", (vcft.WAN, WAN2)).console("ping")
        windows = pinger_windows(console.run("host1", f"pinger {vcft.wan_address(2)}:7 {PING_MS} {HELD_PINGS}", timeout=120))
        empty = timed(console, "true")[0]
        took = timed(console, SEND_TO.format(vcft.wan_address(2)))[0] - empty
        return median([w["median_us"] for w in windows]) / 1e3, BLOCKS * 65536 * 8 / 1e6 / took


def through_switch():
    """Both on one host, Mbit/s."""
    with vcft.Lab(3, name=LAB) as lab:
        cluster = bring_up(lab, machines("host1"), NEVER)
        return speed(timed(cluster.console("ping"), f"{UNTIL_SERVED} {SEND}")[1])


def joined_directly(out):
    run = [f"{UNTIL_SERVED} {SEND}"]
    with qemu.Qemu(out, run=SERVE, name="echo", number=2) as echo, qemu.Qemu(out, run=run, name="ping", join=echo) as ping:
        return speed(ping.wait_console(TOOK, 120).group(0))


def speed(text):
    minutes, seconds = re.search(TOOK, text).groups()
    return BLOCKS * 65536 * 8 / 1e6 / (60 * int(minutes) + float(seconds))


def judge(part, found):
    on, off = ({key: median([turn[key] for turn in found[interval]]) for key in ("median_us", "p99_us", "mbit_per_s")}
               for interval in (INTERVAL_MS, 0))
    pause = median([p for turn in found[INTERVAL_MS] for p in turn["pause_us"]])
    part.bar("5", f"round trip inside: {on['median_us']:.0f} µs checkpointed / {off['median_us']:.0f} µs", on["median_us"] / off["median_us"], 1.05, "x")
    part.bar("5", f"round trip inside, p99: {on['p99_us']:.0f} µs / {off['p99_us']:.0f} µs (a pause is {pause:.0f} µs)", on["p99_us"] / off["p99_us"],
             1.5 + pause / off["p99_us"], "x")
    part.bar("5", f"TCP inside: {on['mbit_per_s']:.0f} Mbit/s / {off['mbit_per_s']:.0f} Mbit/s", on["mbit_per_s"] / off["mbit_per_s"], 0.95, "x", at_least=True)


def measure(out):
    part = Part("inside")
    with part.attempt("5 network inside"):
        judge(part, in_turns(part))
    with part.attempt("5 all output held"):
        trip, speed_held = held_turn()
        part.keep("held", median_ms=trip, mbit_per_s=speed_held)
        part.note(f"5 all output of both VMs held until commit, every {INTERVAL_MS} ms: round trip {trip:.0f} ms, TCP {speed_held:.1f} Mbit/s (no bar)")
    with part.attempt("5 the switch beside a pair joined directly"):
        switch, direct = (median(speeds) for speeds in zip(*((through_switch(), joined_directly(out)) for _ in range(SWITCH_TURNS))))
        part.keep("switch", switch_mbit_per_s=switch, direct_mbit_per_s=direct)
        part.bar("5", f"the switch: {switch:.0f} Mbit/s / joined directly {direct:.0f} Mbit/s", switch / direct, 0.9, "x", at_least=True)
    return part
