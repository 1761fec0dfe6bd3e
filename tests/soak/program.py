"""The program that the units of the soak run. It writes every start and end of its own into its unit's ledger.

    program.py FOLDER UNIT [WORD...]

Words: ``beat`` and ``work`` send heartbeats and signs of progress, ``port=N`` and ``unix=PATH`` serve, ``stamp=PATH``
keeps a file fresh, ``tree`` has children, one of them in a session of its own, ``say`` prints a line when it is up,
``exit=CODE`` ends after ``after=SECONDS`` (a random time up to that with ``about=``). SIGUSR1 makes it hang: it lives,
and does nothing of this any more.
"""

import fcntl
import os
import random
import select
import signal
import socket
import sys
import time

PACE_S = 0.3


class Program:
    def __init__(self, folder, unit, words):
        self.folder, self.unit = folder, unit
        self.words = dict(word.partition("=")[::2] for word in words)
        self.hangs = False
        self.notify = None
        self.servers = []
        self.count = 0

    def say(self, text):
        fd = os.open(f"{self.folder}/{self.unit}.ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, f"{text} {os.getpid()} {time.monotonic_ns()}\n".encode())
        os.close(fd)

    def run(self):
        lock = os.open(f"{self.folder}/{self.unit}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.say("double")
        self.say("start")
        signal.signal(signal.SIGUSR1, self.hang)
        if "tree" in self.words:
            self.fork_tree()
        self.serve()
        if "NOTIFY_SOCKET" in os.environ:
            self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.notify.connect(os.environ["NOTIFY_SOCKET"])
            self.notify.send(b"READY=1")
        if "say" in self.words:
            print("up and running", flush=True)
        end_s = None
        if "exit" in self.words:
            span_s = (
                float(self.words["after"]) if "after" in self.words else random.uniform(0, float(self.words["about"]))
            )
            end_s = time.monotonic() + span_s
        while True:
            now_s = time.monotonic()
            if end_s is not None and now_s >= end_s:
                self.say("exit")
                os._exit(int(self.words["exit"]))
            self.beat()
            wait_s = PACE_S if end_s is None else min(PACE_S, end_s - now_s)
            for server in select.select(self.servers, [], [], wait_s)[0]:
                self.answer(server)

    def hang(self, *_):
        self.hangs = True
        for server in self.servers:
            server.close()
        while True:
            signal.pause()

    def fork_tree(self):
        for own in (False, True):
            if os.fork() == 0:
                signal.signal(signal.SIGUSR1, signal.SIG_DFL)
                if own:
                    os.setsid()
                os.execv("/bin/sleep", ["sleep", "100000"])

    def serve(self):
        if "port" in self.words:
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", int(self.words["port"])))
            server.listen(16)
            self.servers.append(server)
        if "unix" in self.words:
            if os.path.exists(self.words["unix"]):
                os.unlink(self.words["unix"])
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(self.words["unix"])
            server.listen(16)
            self.servers.append(server)

    def answer(self, server):
        client, _ = server.accept()
        with client:
            client.settimeout(1)
            try:
                client.recv(4096)
                client.send(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                pass  # who asks has gone

    def beat(self):
        self.count += 1
        words = []
        if "beat" in self.words:
            words.append("WATCHDOG=1")
        if "work" in self.words:
            words.append(f"X_PROGRESS={self.count}")
        if words:
            self.notify.send("\n".join(words).encode())
        if "stamp" in self.words:
            path = self.words["stamp"]
            with open(f"{path}~", "w") as file:
                file.write(f"{int(time.clock_gettime(time.CLOCK_BOOTTIME))}\n")
            os.rename(f"{path}~", path)


if __name__ == "__main__":
    Program(sys.argv[1], sys.argv[2], sys.argv[3:]).run()
