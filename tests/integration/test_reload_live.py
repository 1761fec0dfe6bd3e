"""Live keys of a reload, on real processes."""

import signal

from tests.integration.supervisor_rig import SYSTEM_PYTHON, supervisor, until

CHATTER = (
    "import select, itertools; "
    "[(print('x' * 99, flush=True), select.select([], [], [], 0.01)) for _ in itertools.count()]"
)
DEAF = "import signal; signal.signal(15, 1); print('deaf', flush=True); signal.pause()"


def service(script: str, more: str = "") -> str:
    return f'[service]\nexec-start = ["{SYSTEM_PYTHON}", "-c", "{script}"]\n{more}'


def test_a_log_that_fills_the_disk_is_bounded_while_its_unit_runs() -> None:
    """[log] max-bytes of a running unit holds from the reload on."""
    with supervisor({"chatter": service(CHATTER)}) as running:
        pid = running.wait_state("chatter", "active")["pid"]
        log = running.log_folder / "chatter.log"
        until(lambda: log.exists() and log.stat().st_size > 8192, "output")
        (running.units / "chatter.toml").write_text(service(CHATTER, '[log]\nmax-bytes = "4K"\nbackups = 1\n'))
        assert "log.max-bytes: 50M -> 4K" in running.supctl("daemon-reload").stdout
        until(lambda: list(running.log_folder.glob("chatter.log.*")), "an older file")
        until(lambda: log.stat().st_size < 8192, "a file that is not larger than it may be")
        assert running.status("chatter")["pid"] == pid


def test_a_stop_that_hangs_is_cut_short_by_a_reload() -> None:
    """timeout-stop-sec was an hour; the operator who waits for the stop writes a second, and it is over."""
    with supervisor({"deaf": service(DEAF, 'timeout-stop-sec = "1h"\n')}) as running:
        running.wait_state("deaf", "active")
        until(lambda: "deaf" in running.supctl("logs", "deaf").stdout, "a deaf process")
        assert running.supctl("stop", "--no-wait", "deaf").returncode == 0
        running.wait_state("deaf", "deactivating")
        (running.units / "deaf.toml").write_text(service(DEAF, 'timeout-stop-sec = "1s"\n'))
        assert running.supctl("daemon-reload").returncode == 0
        ended = running.wait_state("deaf", "failed")
        assert (ended["result"], ended["exit"]["signal"]) == ("timeout", signal.Signals.SIGKILL.name)
