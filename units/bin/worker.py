"""A worker: says READY, then does a small piece of work every few seconds and reports progress."""

import itertools
import os
import signal
import sys
import threading

from notify import notify

done = threading.Event()
signal.signal(signal.SIGTERM, lambda signum, frame: done.set())
notify("READY=1")
print(f"worker {sys.argv[1]} ready, pid {os.getpid()}", flush=True)
for piece in itertools.count(1):
    if done.wait(5):
        break
    notify(f"X_PROGRESS={piece}\nX_OK=1\nSTATUS=piece {piece} done")
print(f"worker {sys.argv[1]} stops", flush=True)
