"""Verbs that are not here: those that come later, and other tools' words for what has another name with us."""

LATER: dict[str, str] = {
    "top": "supctl status shows memory and CPU of every unit",
}
"""Verbs of the contract that this version does not have, with what helps until then."""

OTHERS_WORDS: dict[str, str] = {
    "update": "apply reads the unit files again and restarts only what changed",
    "reread": "daemon-reload --plan shows what has changed in the unit files",
    "reloadconfig": "daemon-reload reads the unit files again",
    "add": "daemon-reload takes up new unit files",
    "remove": "take its file away, then stop UNIT and daemon-reload",
    "rm": "take its file away, then stop UNIT and daemon-reload",
    "del": "take its file away, then stop UNIT and daemon-reload",
    "delete": "take its file away, then stop UNIT and daemon-reload",
    "avail": "list shows every unit",
    "all": "name units after a verb, '*' is every unit: supctl restart '*'",
    "list-unit-files": "list shows every unit",
    "tail": "logs UNIT shows its output, journal tail what happened",
    "maintail": "journal tail shows what the supervisor did",
    "fg": "logs -f UNIT follows its output",
    "attach": "logs -f UNIT follows its output",
    "listen": "journal tail -f follows every event",
    "events": "journal tail -f follows every event",
    "log": "logs UNIT shows its output, journal what happened",
    "monit": "status shows memory and CPU of every unit",
    "up": "start '*' starts every unit",
    "down": "stop '*' stops every unit, shutdown the supervisor too",
    "quit": "shutdown stops every unit and the supervisor",
    "exit": "shutdown stops every unit and the supervisor",
    "poweroff": "shutdown stops every unit and the supervisor",
    "condrestart": "try-restart restarts units that run",
    "try-reload-or-restart": "reload-or-restart reloads units that can and restarts the others",
    "is-system-running": "health exits 0 when nothing is wrong",
    "doctor": "it is a command of the other program: supervisord-py doctor",
    "check": "it is a command of the other program: supervisord-py check",
    "pid": "show -p pid --value UNIT prints it",
    "incr": "scale TEMPLATE=N says how many instances there are",
    "decr": "scale TEMPLATE=N says how many instances there are",
    "flush": "journal and output are cut by their own rules: [journal] and [log]",
    "clear": "reset-failed forgets failures; output is cut by [log]",
    "isolate": "start --job-mode isolate UNIT starts a unit and stops all others",
    "reopen": "output is rotated by the supervisor: see [log]",
}
"""Words of supervisorctl, circusctl, systemctl, pm2 and others, with ours."""
