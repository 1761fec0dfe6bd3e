"""Names of exit codes, and the sets of ways to end that ``success-exit-status`` and its kin hold.

Source: systemd src/shared/exit-status.c (exit_status_mappings of systemd 252: the codes of libc, of LSB init scripts,
of BSD's sysexits.h, and systemd's own for what fails before exec); systemd.exec(5), "Process Exit Codes".
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import ExitStatuses
from supervisord_py.model.values import SIGNALS, parse_signal, shown

EXIT_STATUS_NAMES: Final[dict[str, int]] = {
    "SUCCESS": 0, "FAILURE": 1, "INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6, "NOTRUNNING": 7, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75,
    "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78, "CHDIR": 200, "NICE": 201, "FDS": 202, "EXEC": 203, "MEMORY": 204,
    "LIMITS": 205, "OOM_ADJUST": 206, "SIGNAL_MASK": 207, "STDIN": 208, "STDOUT": 209, "CHROOT": 210, "IOPRIO": 211,
    "TIMERSLACK": 212, "SECUREBITS": 213, "SETSCHEDULER": 214, "CPUAFFINITY": 215, "GROUP": 216, "USER": 217,
    "CAPABILITIES": 218, "CGROUP": 219, "SETSID": 220, "CONFIRM": 221, "STDERR": 222, "PAM": 224, "NETWORK": 225,
    "NAMESPACE": 226, "NO_NEW_PRIVILEGES": 227, "SECCOMP": 228, "SELINUX_CONTEXT": 229, "PERSONALITY": 230,
    "APPARMOR": 231, "ADDRESS_FAMILIES": 232, "RUNTIME_DIRECTORY": 233, "CHOWN": 235, "SMACK_PROCESS_LABEL": 236,
    "KEYRING": 237, "STATE_DIRECTORY": 238, "CACHE_DIRECTORY": 239, "LOGS_DIRECTORY": 240,
    "CONFIGURATION_DIRECTORY": 241, "NUMA_POLICY": 242, "CREDENTIALS": 243, "BPF": 244, "EXCEPTION": 255,
}  # fmt: skip
"""Exit codes by name."""

CODE_MAX: Final = 255


def parse_exit_status(value: object) -> int:
    """Read an exit code: 0 to 255, as a number or as text, or its name (``TEMPFAIL``).

    Raises:
        BadValue: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadValue(f"{shown(value)} is not an exit code", "write a number or a name such as TEMPFAIL")
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        if value in EXIT_STATUS_NAMES:
            return EXIT_STATUS_NAMES[value]
        raise BadValue(f"no exit code is called {value!r}", _near(value))
    if len(str(value)) > 3 or not 0 <= int(value) <= CODE_MAX:
        raise BadValue(f"there is no exit code {shown(value)}", f"exit codes are 0 to {CODE_MAX}")
    return int(value)


def parse_exit_statuses(value: object) -> ExitStatuses:
    """Read ways to end: exit codes by number or name, signals by name (``SIGKILL``, ``KILL``).

    A name that is both is the exit code, as in systemd; a text may hold several, with blanks between.

    Raises:
        BadValue: One of them is neither.
    """
    words = value.split() if isinstance(value, str) else [value]
    if not words:
        raise BadValue("an empty text is no exit status", "to take back what is below write []")
    codes: list[int] = []
    signals: list[int] = []
    for word in words:
        _parse_one(word, codes, signals)
    return ExitStatuses(tuple(codes), tuple(signals))


def join_exit_statuses(parts: Iterable[ExitStatuses]) -> ExitStatuses:
    """One set of several, sorted."""
    codes: set[int] = set()
    signals: set[int] = set()
    for part in parts:
        codes.update(part.codes)
        signals.update(part.signals)
    return ExitStatuses(tuple(sorted(codes)), tuple(sorted(signals)))


def _parse_one(word: object, codes: list[int], signals: list[int]) -> None:
    is_name = isinstance(word, str) and not (word.isascii() and word.isdigit())
    if not is_name or word in EXIT_STATUS_NAMES:
        codes.append(parse_exit_status(word))
        return
    try:
        signals.append(parse_signal(word))
    except BadValue:
        raise BadValue(f"{shown(word)} is neither an exit code nor a signal", _near(str(word))) from None


def _near(text: str) -> str:
    names = [*EXIT_STATUS_NAMES, *(f"SIG{name}" for name in SIGNALS)]
    near = get_close_matches(text.upper().removeprefix("EX_"), names, 1)
    return f"did you mean {near[0]!r}?" if near else "write 0 to 255, a name such as TEMPFAIL, or a signal"
