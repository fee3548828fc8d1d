"""starve.py TID - lets a thread run for a millisecond at a time, with fifty between, until standard input ends.

By ptrace, which stops this one thread of its process: a low nice value counts within a session only where the kernel shares CPU time out among sessions first,
and takes nothing from a thread that sleeps often. Whoever waits for the thread waits 50 ms. If this process is killed the thread goes on.
"""

import ctypes
import os
import select
import signal
import sys
import time

RUN_S, STOPPED_S = 0.001, 0.05
PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 0x4206, 0x4207     # linux/ptrace.h
WALL = 0x40000000                                                  # threads too
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, tid, signal_number=0):
    if libc.ptrace(request, tid, None, signal_number) != 0:
        error = ctypes.get_errno()
        sys.exit(f"starve.py: ptrace of {tid}: {os.strerror(error)}")


def stop(tid):
    """Signals that come meanwhile are the thread's."""
    ptrace(PTRACE_INTERRUPT, tid)
    while True:
        _, status = os.waitpid(tid, WALL)
        if not os.WIFSTOPPED(status):
            sys.exit()      # it has ended
        if status >> 16:
            return
        ptrace(PTRACE_CONT, tid, os.WSTOPSIG(status))


def main():
    tid = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ptrace(PTRACE_SEIZE, tid)
    print("starving", flush=True)
    while True:
        stop(tid)
        if select.select([sys.stdin], [], [], STOPPED_S)[0]:
            return
        ptrace(PTRACE_CONT, tid)
        time.sleep(RUN_S)       # the turn that the thread has


main()
