"""The keys of a ``supervisord.conf`` that are no keys of a unit, each with the reason; reviewed by hand."""

from typing import Final

PROGRAM_KEYS: Final = frozenset(
    {
        "command", "environment", "directory", "user", "umask", "autostart", "autorestart", "exitcodes", "startsecs",
        "startretries", "stopsignal", "stopwaitsecs", "stopasgroup", "killasgroup", "numprocs", "numprocs_start",
        "process_name", "priority", "redirect_stderr", "stdout_logfile", "stdout_logfile_maxbytes",
        "stdout_logfile_backups", "stdout_syslog", "stderr_logfile", "depend", "serverurl", "socket", "socket_mode",
        "socket_backlog", "socket_owner",
    }
)  # fmt: skip

_CAPTURE = "what a program has to say goes to $NOTIFY_SOCKET (STATUS=), or to the message bus"
_OURS = "the supervisor's own records are its journal: [journal] in supervisord.toml"
_CONTROL = "who may do what is said in [control] of supervisord.toml, and the kernel says who asks"

NEEDLESS_KEYS: Final = {
    "program.stderr_logfile_maxbytes": "standard error goes into the unit's log too",
    "program.stderr_logfile_backups": "standard error goes into the unit's log too",
    "program.stderr_syslog": "standard error goes where standard output goes",
    "supervisord.nodaemon": "supervisord-py run stays in the foreground; install makes it a service",
    "supervisord.pidfile": "supctl version tells the pid, and a lock keeps a second one away",
    "supervisord.logfile": _OURS,
    "supervisord.logfile_maxbytes": _OURS,
    "supervisord.logfile_backups": _OURS,
    "supervisord.loglevel": _OURS,
    "supervisord.childlogdir": "run --log-dir says where the logs of units are",
    "supervisord.nocleanup": "the logs of units are kept",
    "supervisord.silent": "the foreground is silent unless it is a terminal",
}
LOST_KEYS: Final = {
    "program.stdout_capture_maxbytes": _CAPTURE,
    "program.stderr_capture_maxbytes": _CAPTURE,
    "program.stdout_events_enabled": _CAPTURE,
    "program.stderr_events_enabled": _CAPTURE,
    "supervisord.minfds": "write nofile into [limits] of defaults.toml",
    "supervisord.minprocs": "write nproc into [limits] of defaults.toml",
    "supervisord.identifier": "write name into [supervisor] of supervisord.toml",
    "supervisord.strip_ansi": "output is kept as it was written",
}
ELSEWHERE: Final[dict[str, tuple[bool, str]]] = {
    "unix_http_server.file": (True, "the control socket is in the runtime folder; run --socket names another"),
    "unix_http_server": (False, _CONTROL),
    "inet_http_server": (False, "nothing listens on a port"),
    "supervisorctl.username": (True, _CONTROL),
    "supervisorctl.password": (True, _CONTROL),
    "supervisorctl": (True, "supctl finds the socket by itself, or by --socket"),
    "rpcinterface.supervisor.rpcinterface_factory": (True, "the control interface is always there"),
    "rpcinterface": (False, "extensions of supervisor's RPC interface do not run here"),
    "ctlplugin": (False, "extensions of supervisorctl do not run here"),
}
