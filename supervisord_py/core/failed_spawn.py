"""Why no program runs, in words: the step that failed, what it was about, and the kernel's answer.

``detail`` is a path (told with the words for ``errno``) or a sentence that says it all (told as it is); the keeper and
the host send either. The words are ours because the core cannot ask the C library, and a journal should not depend on
its version.
"""

import errno

from msgspec import structs

from supervisord_py.core.events import SpawnFailed
from supervisord_py.model.states import Role
from supervisord_py.model.unit import ExecContext

_CANNOT: dict[str, str] = {
    "exec": "could not be executed",
    "chdir": "could not enter its working directory",
    "user": "could not take its user",
    "group": "could not take its groups",
    "limits": "could not take its limits",
    "cgroup": "could not enter its control group",
    "fork": "could not be forked",
    "environment-file": "could not be given its variables",
    "stdin": "could not open its input",
    "stdout": "could not open its output",
    "stderr": "could not open its error output",
    "credentials": "could not be given its credentials",
    "runtime-directory": "could not be given its runtime folder",
    "state-directory": "could not be given its state folder",
    "cache-directory": "could not be given its cache folder",
    "logs-directory": "could not be given its folder for logs",
    "configuration-directory": "could not be given its configuration folder",
}
"""What a failed step of the child means; any other step is named."""

_WORDS: dict[int, str] = {
    errno.EPERM: "operation not permitted",
    errno.ENOENT: "no such file or directory",
    errno.E2BIG: "argument list too long",
    errno.ENOEXEC: "not a program (a script has to begin with #!)",
    errno.EAGAIN: "resource temporarily unavailable (a limit on processes?)",
    errno.ENOMEM: "out of memory",
    errno.EACCES: "permission denied",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "is a directory",
    errno.EINVAL: "invalid argument",
    errno.ENFILE: "too many open files in the system",
    errno.EMFILE: "too many open files",
    errno.ETXTBSY: "the file is being written",
    errno.ENOSPC: "no space left",
    errno.EROFS: "read-only file system",
    errno.ENAMETOOLONG: "file name too long",
    errno.ELOOP: "too many symbolic links",
}


def describe(role: Role, event: SpawnFailed) -> str:
    """Say why a command of ``role`` never ran: ``its main command could not be executed: /srv/web: no such file or
    directory``.
    """
    cannot = _CANNOT.get(event.step, f"could not be started (step {event.step})")
    return ": ".join((f"its {role.value} command {cannot}", *_reasons(event)))


def with_program(event: SpawnFailed, program: str | None) -> SpawnFailed:
    """Return the event about the program as its unit names it: of one that is looked for in PATH the keeper tells the
    path that it tried last, which need not be where it was found.
    """
    if event.step != "exec" or program is None or "/" in program or not event.detail.startswith("/"):
        return event
    return structs.replace(event, detail=": ".join((f"{program}, looked for in PATH", _words_for(event.errno))))


def with_sandbox(event: SpawnFailed, context: ExecContext) -> SpawnFailed:
    """Return the event with what to do where the unit's own sandbox stood in the way: the kernel names the program, and
    means what it needs.
    """
    hint, sandbox = "", context.sandbox
    if event.step == "namespace" and event.errno == errno.ENOENT and "-paths: " in event.detail:
        return structs.replace(event, detail=f"{event.detail} (with - in front a path may be missing)")
    if event.step != "exec" or not event.detail.startswith("/"):
        return event
    if event.errno == errno.EACCES and (sandbox.landlock or sandbox.no_exec_paths):
        key = "landlock" if sandbox.landlock else "no-exec-paths"
        hint = f"{key} has to leave it, its interpreter and its libraries executable"
    elif event.errno == errno.ENOENT and context.root_directory is not None:
        hint = f"it is looked for in root-directory, {context.root_directory}, and so are its interpreter and libraries"
    if not hint:
        return event
    return structs.replace(event, detail=f"the program {event.detail}: {_words_for(event.errno)} ({hint})")


def _reasons(event: SpawnFailed) -> tuple[str, ...]:
    if not event.errno or (event.detail and not event.detail.startswith("/")):
        return (event.detail,) if event.detail else ()
    words = _words_for(event.errno)
    return (event.detail, words) if event.detail else (words,)


def _words_for(number: int) -> str:
    return _WORDS.get(number) or errno.errorcode.get(number, f"errno {number}")
