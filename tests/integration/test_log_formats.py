"""``[log]`` on real processes: formats, rate limits, old files compressed and removed, at once and over deaths."""

import gzip
import json
import os
import re
import time

from tests.integration.supervisor_rig import SYSTEM_PYTHON, RunningSupervisor, supervisor, until

COUNTING = (
    "import itertools, select; "
    "[(print(f'line {n} ' + 'x' * 60, flush=True), select.select([], [], [], 0.002)) for n in itertools.count()]"
)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


def service(script: str, more: str = "") -> str:
    return f'[service]\nexec-start = ["{SYSTEM_PYTHON}", "-c", "{script}"]\n{more}'


def numbers(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines()]


def wait_lines(running: RunningSupervisor, unit: str, least: int) -> list[int]:
    """Return the numbers of all lines that logs shows, once there are so many."""

    def there() -> list[int]:
        found = numbers(running.supctl("logs", "-n", "100000", unit).stdout)
        return found if len(found) >= least else []

    return list(until(there, f"{least} lines of {unit}", 60))


def test_lines_keep_their_number_and_time_over_the_deaths_of_managers() -> None:
    """Timestamped, rotated and compressed: three managers are killed in full flow, logs shows each line once."""
    log = '[log]\nformat = "timestamp"\nmax-bytes = "8K"\nbackups = 500\ncompress = true\n'
    with supervisor({"counting": service(COUNTING, log)}) as running:
        for deaths in range(1, 4):
            wait_lines(running, "counting", 300 * deaths)
            running.kill_manager()
        running.wait_state("counting", "active")
        found = wait_lines(running, "counting", 1200)
        assert found == list(range(len(found)))
        until(lambda: list(running.log_folder.glob("counting.log.*.gz")), "a compressed file")
        assert running.supctl("stop", "counting").returncode == 0
        oldest = max(running.log_folder.glob("counting.log.*.gz"), key=lambda path: int(path.name.split(".")[2]))
        first = gzip.decompress(oldest.read_bytes()).decode().splitlines()[0]
        assert STAMP.match(first) and first.endswith("line 0 " + "x" * 60)


def test_logs_finds_lines_by_their_time() -> None:
    """--since and --until, with --grep and --json; a unit without times says what to write."""
    texts = {"plain": service("print('hello')"), "timed": service(COUNTING, '[log]\nformat = "json"\n')}
    with supervisor(texts) as running:
        wait_lines(running, "timed", 20)
        middle = time.time()
        count = len(wait_lines(running, "timed", 40))
        since = running.supctl("--json", "logs", "--since", f"@{middle:.3f}", "timed")
        lines = json.loads(since.stdout)["lines"]
        assert lines and numbers("\n".join(line["text"] for line in lines))[0] > 0
        assert all(line["time"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(middle)) for line in lines)
        before = numbers(running.supctl("logs", "--until", f"@{middle:.3f}", "timed").stdout)
        assert before == list(range(len(before))) and 0 < len(before) < count + 40
        assert numbers(running.supctl("logs", "--until", f"@{middle:.3f}", "-g", "line 3 ", "timed").stdout) == [3]
        assert running.supctl("logs", "--since", "1h", "--until", "30min", "timed").stdout == ""
        refused = running.supctl("logs", "--since", "10m", "plain")
        assert refused.returncode == 1 and 'format = "timestamp"' in refused.stderr
        assert "line" in running.supctl("logs", "--since", "10m").stdout


def test_a_flood_is_dropped_counted_and_told_while_the_process_goes_on() -> None:
    """Set on a unit that runs, a rate holds at once: status, journal and the log itself say how many lines are missing,
    and none of it goes with a manager."""
    flood = "import itertools; [print(f'line {n}', flush=True) for n in itertools.count()]"
    with supervisor({"flood": service(flood)}) as running:
        pid = running.wait_state("flood", "active")["pid"]
        until(lambda: (running.log_folder / "flood.log").exists(), "output")
        assert running.supctl("set", "flood", "log.rate-limit=50/100ms", "log.format=json").returncode == 0
        until(lambda: running.status("flood")["dropped_lines"] > 1000, "dropped lines")
        dropped = running.status("flood")["dropped_lines"]
        running.kill_manager()
        until(lambda: running.status("flood")["dropped_lines"] > dropped, "more of them")
        assert re.search(r"Output: \d+ lines dropped by rate-limit", running.supctl("status", "flood").stdout)
        # It stands before the lines of each window, and one window is as long as what logs shows.
        told = "lines dropped here (rate-limit 50/100ms)"
        until(lambda: told in running.supctl("logs", "-n", "200", "flood").stdout, "the line")
        records = running.supctl("--json", "journal", "query", "-e", "unit.limit", "-u", "flood").stdout
        assert '"output-rate"' in records and '"50/100ms"' in records
        last = json.loads((running.log_folder / "flood.log").read_text().splitlines()[-2])
        assert last.keys() == {"time", "unit", "stream", "invocation", "text"}
        assert running.status("flood")["pid"] == pid
        assert running.supctl("set", "flood", "log.rate-limit=1000000/s", "log.format=raw").returncode == 0
        assert running.supctl("stop", "flood").returncode == 0


def test_which_stream_a_json_line_is_of() -> None:
    """Where one of the two streams goes elsewhere, it is known."""
    script = "import os; os.write(1, b'out\\\\n'); os.write(2, b'err\\\\n')"
    log = '[log]\nformat = "json"\n'
    texts = {
        "both": service(script, log),
        "out": service(script, 'standard-error = "null"\n' + log),
        "err": service(script, 'standard-output = "null"\nstandard-error = "journal"\n' + log),
    }
    with supervisor(texts) as running:
        for unit, wanted in (("both", {"output"}), ("out", {"stdout"}), ("err", {"stderr"})):
            running.wait_state(unit, "inactive")
            path = running.log_folder / f"{unit}.log"
            until(lambda path=path: path.exists() and path.read_text(), f"output of {unit}")
            assert {json.loads(line)["stream"] for line in path.read_text().splitlines()} == wanted


def test_old_files_of_a_unit_that_does_not_run_are_removed() -> None:
    """Those that are too old when a supervisor starts, and later those that become so."""
    text = "[unit]\nenabled = false\n" + service("print()", '[log]\nmax-age = "1h"\n')
    with supervisor({"quiet": text, "other": service("print()")}) as running:
        assert running.supctl("shutdown").returncode == 0
        running.process.wait(30)
        running.log_folder.mkdir(exist_ok=True)
        for name, age_s in (("quiet.log.1", 3598), ("quiet.log.2", 4000), ("other.log.1", 4000)):
            (running.log_folder / name).write_text("x\n")
            os.utime(running.log_folder / name, (time.time() - age_s,) * 2)
        running.start_again()
        until(lambda: not list(running.log_folder.glob("quiet.log.*")), "the end of old files")
        assert (running.log_folder / "other.log.1").exists()
