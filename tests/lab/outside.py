#!/usr/bin/python3
"""outside.py - the two observers beyond the uplink; each prints its state as a line of JSON ten times a second.

    outside.py nonces PORT            takes what the guest program `nonce` sends (guests/src/nonce.c):
                                      {"highest": newest number seen, "seen": how many numbers' nonces are known,
                                       "undone": [[number, nonce seen first, nonce seen later], …]}
    outside.py echo ADDRESS:PORT      one TCP connection to an echo, once it can be had; sends n, waits for n, and so on:
                                      {"echoed": n, "longest_ms": longest wait for an answer, "error": null or why it ended}

Both live on the outside for the whole of a test: what they have seen cannot be taken back.
"""

import json
import select
import socket
import struct
import sys
import time

STEP_S = 0.1


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


if __name__ == "__main__":
    {"nonces": nonces, "echo": echo}[sys.argv[1]](sys.argv[2])
