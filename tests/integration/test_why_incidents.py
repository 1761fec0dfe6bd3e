"""Incidents among real processes: one population in which much has gone wrong, and ``supctl why`` of each unit names
its own cause and nobody else's.
"""

import json
import socket

from tests.integration.supervisor_rig import supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
FAST = 'restart = "always"\nrestart-sec = "10ms"\nrestart-max-delay-sec = "10ms"\n'


def test_each_of_many_troubles_has_its_own_cause() -> None:
    """Dependency, pool, quarantine, back-off, check, person, timer, condition and silence, side by side."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        # Closed again at once: nobody listens there, and nobody else is given it while this runs.
        port = server.getsockname()[1]
    units = {
        "db": '[service]\ntype = "oneshot"\nexec-start = ["sh", "-c", "exit 3"]\nrestart = "no"\n',
        "web": '[unit]\nrequires = ["db", "cache"]\n' + SLEEP,
        "cache": SLEEP,
        "render": SLEEP + '[pool]\nname = "gpu"\n',
        "train": '[unit]\nafter = ["render"]\n' + SLEEP + '[pool]\nname = "gpu"\n',
        "loop": f'[service]\nexec-start = ["sh", "-c", "exit 9"]\n{FAST}[quarantine]\nfailures = 3\n',
        "slow": '[service]\nexec-start = ["sh", "-c", "exit 4"]\nrestart-sec = "1h"\nrestart-max-delay-sec = "1h"\n',
        "api": SLEEP + f'[health.port]\nkind = "readiness"\ntcp = "127.0.0.1:{port}"\ninterval = "100ms"\n',
        "mail": SLEEP,
        "report": '[service]\ntype = "oneshot"\nexec-start = ["true"]\n[timer]\non-calendar = "2099-01-01"\n',
        "picky": '[unit]\ncondition-path-exists = "/no/such/file"\n' + SLEEP,
        "silent": f"{SLEEP}{FAST}" + 'watchdog-sec = "300ms"\n[quarantine]\nfailures = 1\n',
    }
    with supervisor(units, settings="[pools.gpu]\nmax-workers = 1\n") as running:
        running.wait_state("cache", "active")
        running.wait_state("mail", "active")
        assert running.supctl("stop", "mail", "-m", "the queue is full").returncode == 0
        running.wait_state("loop", "quarantined")
        running.wait_state("silent", "quarantined")
        until(lambda: running.status("slow")["sub_state"] == "auto_restart", "the back-off")
        until(lambda: "refused" in running.supctl("why", "api").stdout, "a check that failed")
        causes = {
            "web": ("db: it failed (exit-code)", "exited with code 3", "next: supctl logs db"),
            "train": ('pool "gpu" (max-workers = 1), held by render', "next: supctl jobs"),
            "loop": ("failed 3 times", "exited with code 9", "next: supctl lives loop", "next: supctl release loop"),
            "slow": ("failure 1 of 5, and is restarted at 20", "exited with code 4", "next: supctl lives slow"),
            "api": ("readiness check port failed", f"tcp 127.0.0.1:{port}", "next: supctl logs api"),
            "mail": ("it was stopped by ", ": the queue is full", "next: supctl start mail"),
            "report": ("it is not due until 20", "next: supctl trigger report"),
            "picky": ('condition-path-exists = "/no/such/file"', "next: supctl start picky"),
            "silent": (
                "(watchdog): it has given no sign of life for 300ms (watchdog-sec)",
                "next: supctl release silent",
            ),
        }
        for name, words in causes.items():
            told = running.supctl("why", name).stdout
            for each in words:
                assert each in told, told
            lines = json.loads(running.supctl("why", name, "--json").stdout)["causes"]
            assert {line["about"] for line in lines} == ({"web", "db"} if name == "web" else {name}), told
