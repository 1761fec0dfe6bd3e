"""A main process, its child, and a grandchild in a session of its own; each logs the signals that it gets.

    python3 stop_matrix.py stop-matrix LOG MAIN_IGNORES CHILDREN_IGNORE

A signal that is not ignored ends the process with 0. ``ROLE up PID`` is logged when it is ready for them.
"""

import os
import signal
import sys


def live(role: str, log: str, ignored: str) -> None:
    def say(text: str) -> None:
        with open(log, "a") as file:
            file.write(f"{role} {text}\n")

    def heard(number: int, _: object) -> None:
        name = signal.Signals(number).name
        say(name)
        if name != "SIGCONT" and name not in ignored.split(","):
            os._exit(0)

    for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGCONT"):
        signal.signal(signal.Signals[name], heard)
    say(f"up {os.getpid()}")
    while True:
        signal.pause()


_, _, LOG, MAIN_IGNORES, CHILDREN_IGNORE = sys.argv
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        live("grandchild", LOG, CHILDREN_IGNORE)
    live("child", LOG, CHILDREN_IGNORE)
live("main", LOG, MAIN_IGNORES)
