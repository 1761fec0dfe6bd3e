"""Writes what this process was given, as JSON, to the file that it is told: environment, ids, limits and the like.

python3 dump_self.py FILE
"""

import json
import os
import resource
import subprocess
import sys

with open("/proc/self/status") as status:
    fields = dict(line.split(":", 1) for line in status)
with open("/proc/self/environ") as environ:
    # Not os.environ: Python adds to it.
    given = dict(line.split("=", 1) for line in environ.read().split("\0")[:-1])
with open("/proc/self/timerslack_ns") as slack:
    timer_slack = slack.read().strip()
umask = os.umask(0)
seen = {
    "env": given,
    "cwd": os.getcwd(),
    "umask": oct(umask),
    "uid": list(os.getresuid()),
    "gid": list(os.getresgid()),
    "groups": sorted(os.getgroups()),
    "is_session_leader": os.getsid(0) == os.getpid(),
    "is_pgrp_leader": os.getpgid(0) == os.getpid(),
    "nnp": fields["NoNewPrivs"].strip(),
    "nice": os.nice(0),
    "sched": os.sched_getscheduler(0),
    "caps": {name: fields[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
    "limits": {name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in ("NOFILE", "CORE")},
    "ionice": subprocess.run(["ionice"], capture_output=True, text=True, check=False).stdout.strip(),
    "outputs": [os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)],
    "uname": os.uname().machine,
    "timerslack": timer_slack,
    "stdin": os.readlink("/proc/self/fd/0"),
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
}
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(seen, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
