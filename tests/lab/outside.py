#!/usr/bin/python3
"""outside.py - the observers beyond the uplink; each prints its state as a line of JSON ten times a second.

    outside.py nonces PORT            takes what the guest program `nonce` sends (guests/src/nonce.c):
                                      {"highest": newest number seen, "seen": how many numbers' nonces are known,
                                       "undone": [[number, nonce seen first, nonce seen later], …]}
    outside.py echo ADDRESS:PORT      one TCP connection to an echo, once it can be had; sends n, waits for n, and so on:
                                      {"echoed": n, "longest_ms": longest wait for an answer, "error": null or why it ended}
    outside.py histories ADDRESS:PORT N
                                      N TCP connections to a redis, each opened once. Each appends 1, 2, 3, ... (8 digits each) to a key of its own; the
                                      answer, the key's length, says at once what was undone or done twice. A line on standard input: one further
                                      connection, opened once as well, reads all keys; each must be 1, 2, 3, ... without a gap or a double, and
                                      go as far as the last number that was acknowledged before.
                                      {"acknowledged": [n, …], "checked": lines answered, "lost": acknowledged numbers that are not there,
                                       "wrong": [what was not as it must be, …], "errors": [why a connection ended, …],
                                       "gaps": [[when it ended, ns, how long it was, ms], …] the newest waits for an answer of 50 ms and more}

All live on the outside for the whole of a test: what they have seen cannot be taken back.
"""

import json
import select
import socket
import struct
import sys
import threading
import time

STEP_S = 0.1
PAUSE_S = 0.02              # between two requests of a connection: a client that thinks
DIGITS = 8
GAP_MS, GAPS_KEPT = 50, 200
CHUNK = 1 << 16             # bytes of a key that are read at once


def report(state):
    print(json.dumps(state), flush=True)


def nonces(port):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("", int(port)))
    known, undone, highest = {}, [], -1
    due = time.monotonic()
    while True:
        if select.select([receiver], [], [], STEP_S)[0]:
            datagram = receiver.recv(65536)
            if datagram[:8] == b"vcftnonc":
                number, *drawn = struct.unpack(f"<{len(datagram) // 8 - 1}Q", datagram[8:])
                highest = max(highest, number)
                for i, nonce in enumerate(drawn):
                    if known.setdefault(number - i, nonce) != nonce:
                        undone.append([number - i, known[number - i], nonce])
        if time.monotonic() >= due:
            due = time.monotonic() + STEP_S
            report({"highest": highest, "seen": len(known), "undone": undone[:5]})


def connect(where):
    """The connection, as soon as somebody listens there."""
    while True:
        try:
            stream = socket.create_connection(where, timeout=STEP_S * 10)
            stream.settimeout(None)
            return stream
        except OSError:
            time.sleep(STEP_S)  # the pace of what is sent


def echo(address_port):
    address, port = address_port.split(":")
    state = {"echoed": 0, "longest_ms": 0, "error": None}
    try:
        stream = connect((address, int(port)))
        lines = stream.makefile("rb")
        due = time.monotonic()
        while True:
            asked = time.monotonic()
            stream.sendall(b"%d\n" % (state["echoed"] + 1))
            answer = lines.readline()
            if answer != b"%d\n" % (state["echoed"] + 1):
                raise OSError(f"{answer!r} instead of {state['echoed'] + 1}")
            state["echoed"] += 1
            state["longest_ms"] = max(state["longest_ms"], round((time.monotonic() - asked) * 1000))
            if time.monotonic() >= due:
                due = time.monotonic() + STEP_S
                report(state)
    except OSError as error:
        state["error"] = str(error)
    report(state)


class Redis:
    """One connection, opened once; the little of the protocol that is needed."""

    def __init__(self, address_port):
        address, port = address_port.split(":")
        self.stream = connect((address, int(port)))
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.stream.makefile("rb")

    def ask(self, *words):
        """The answer: a number or bytes."""
        self.stream.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        line = self.input.readline()
        if line[:1] == b":":
            return int(line[1:])
        if line[:1] != b"$":
            raise OSError(f"redis: {line!r}")
        return self.input.read(int(line[1:]) + 2)[:-2]


class Histories:
    """Writers of numbers, a reader, and what they have found."""

    def __init__(self, where, count):
        self.where, self.count = where, count
        self.state = {"acknowledged": [0] * count, "checked": 0, "lost": 0, "wrong": [], "errors": [], "gaps": []}

    def guarded(self, name, work):
        """A thread of work; its end is an error."""
        def run():
            try:
                work()
                self.state["errors"].append(f"{name}: ended")
            except (OSError, ValueError) as error:
                self.state["errors"].append(f"{name}: {error}")

        threading.Thread(target=run, daemon=True).start()

    def write(self, i):
        redis, key = Redis(self.where), b"history:%d" % i
        while True:
            number, asked = self.state["acknowledged"][i] + 1, time.monotonic_ns()
            length = redis.ask(b"APPEND", key, b"%0*d" % (DIGITS, number))
            answered = time.monotonic_ns()
            if length != number * DIGITS:
                self.state["wrong"].append(f"connection {i}: {length} bytes after number {number}")
            self.state["acknowledged"][i] = number
            if answered - asked >= GAP_MS * 1000000:
                self.state["gaps"] = [*self.state["gaps"][1 - GAPS_KEPT:], [answered, round((answered - asked) / 1e6)]]
            time.sleep(PAUSE_S)  # the pace of what is sent

    def read(self):
        redis = Redis(self.where)
        for _ in sys.stdin:
            for i in range(self.count):
                self.compare(redis, i)
            self.state["checked"] += 1

    def compare(self, redis, i):
        acknowledged, size = self.state["acknowledged"][i], redis.ask(b"STRLEN", b"history:%d" % i)
        text = b"".join(redis.ask(b"GETRANGE", b"history:%d" % i, b"%d" % at, b"%d" % (min(at + CHUNK, size) - 1)) for at in range(0, size, CHUNK))
        found = [int(text[at:at + DIGITS]) for at in range(0, size, DIGITS)]
        self.state["lost"] += len(set(range(1, acknowledged + 1)) - set(found))
        if found != list(range(1, len(found) + 1)):
            self.state["wrong"].append(f"history {i} is not 1, 2, 3, ... {len(found)}")


def histories(where, count):
    writing = Histories(where, int(count))
    for i in range(writing.count):
        writing.guarded(f"connection {i}", lambda i=i: writing.write(i))
    writing.guarded("reader", writing.read)
    while True:
        report(writing.state)
        time.sleep(STEP_S)  # the pace of what is told


if __name__ == "__main__":
    {"nonces": nonces, "echo": echo, "histories": histories}[sys.argv[1]](*sys.argv[2:])
