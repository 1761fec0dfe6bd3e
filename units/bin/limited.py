"""Prints the limits it was given, then waits."""

import os
import resource
import signal

for name in ("RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_CORE"):
    print(name, resource.getrlimit(getattr(resource, name)), flush=True)
print("nice", os.nice(0), "umask", oct(os.umask(0o022)), flush=True)
signal.pause()
