"""The process that keeps the answering one alive: small, without PyTorch, holding the socket meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

SOCKET, PARENT = "HSCC_SERVE_SOCKET", "HSCC_SERVE_PARENT"
FINAL = (0, 2)  # exit codes that a restart would not change
LONGEST = 30.0  # seconds between two starts
STEADY = 60.0  # seconds of life after which a death counts as the first


def supervise(command: Sequence[str], listening: socket.socket, environment: Mapping[str, str]) -> int:
    """Runs the command until it ends by itself or by our SIGTERM; starts it anew when it is killed or broken.

    Connections that come meanwhile wait in the socket, which the command finds by the number in ``HSCC_SERVE_SOCKET``.
    The descriptor of ``HSCC_SERVE_PARENT`` reads as ended when this process is gone. Returns the exit code.
    """
    reading, writing = os.pipe()
    kept = (listening.fileno(), reading)
    inherited = {**environment, SOCKET: str(kept[0]), PARENT: str(kept[1])}
    state: dict = {"child": None, "ending": False}

    def forward(number: int, frame: object) -> None:
        state["ending"] = True
        if state["child"] is not None:
            state["child"].send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        wait = 0.25
        while True:
            began = time.monotonic()
            child = state["child"] = subprocess.Popen(
                command, env=inherited, pass_fds=kept, start_new_session=True
            )  # a session of its own: Ctrl-C reaches it once, by us
            if state["ending"]:
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            if state["ending"] or code in FINAL:
                return 0 if state["ending"] and code in (0, -signal.SIGTERM) else code
            wait = 0.25 if time.monotonic() - began > STEADY else min(2 * wait, LONGEST)
            print(f"the server ended with code {code}; starting it again in {wait:g} s", file=sys.stderr, flush=True)
            _sleep(wait, state)
            if state["ending"]:
                return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _sleep(seconds: float, state: Mapping[str, object]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not state["ending"]:
        time.sleep(0.05)
