"""Hands its place to a fork of tests/forks.py, which says more: `python -I -S tests/forked.py SOCKET ARGUMENT...`."""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

signal.signal(signal.SIGINT, signal.SIG_DFL)
place = socket.socket(socket.AF_UNIX)
place.connect(sys.argv[1])
streams = [0, 1, 2] + ([int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else [])
told = json.dumps({"environment": dict(os.environ), "folder": os.getcwd(), "arguments": sys.argv[2:]}).encode()
socket.send_fds(place, [len(told).to_bytes(8, "big")], streams)
place.sendall(told)
fork = int(place.recv(16))


def forward(number, frame):
    with suppress(ProcessLookupError):  # it has just ended, and its status is on the way
        os.kill(fork, number)


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, forward)
status = int(place.recv(16))  # as subprocess's returncode
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
