"""Fake clients: random requests, repeated tokens, people who hang up, and an operator who edits unit files.

A client waits for one reply. When the manager dies before it came, a client with a token asks again with the same
token (as ``supctl`` does), one without gives up. ``Request`` remembers what a checker needs to know about each
question.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from msgspec.structs import replace

from supervisord_py.core.actions import Reply
from supervisord_py.core.events import CommandRequested, Origin
from supervisord_py.model.states import JobMode
from supervisord_py.testing.clock import SECOND_NS
from supervisord_py.testing.population import BROKEN
from supervisord_py.testing.profile import Profile
from supervisord_py.testing.timers import TIMED


class Request:
    """One question of one client, and what became of it."""

    def __init__(self, event: CommandRequested) -> None:
        self.event = event
        self.taken = False
        """The manager has handled it."""
        self.replies: list[Reply] = []
        self.gone = False
        """The client hung up, or the manager that knew it died: nothing is promised any more."""

    @property
    def answered(self) -> bool:
        return bool(self.replies)


_ODD_MODES = tuple(mode for mode in JobMode if mode is not JobMode.REPLACE)


class Clients:
    """Everybody who asks for something."""

    def __init__(self, rng: Random, profile: Profile) -> None:
        self._rng = rng
        self._profile = profile
        self._tokens: list[CommandRequested] = []
        self._jobs_seen: list[int] = []
        self._next_id = 1
        self._asked = 0
        self.waiting: dict[int, Request] = {}
        """The requests of the manager's present life, by number: a new life counts from 1 again, as the driver does."""

    def ask(self, names: Sequence[str], has_bad: bool, rollout: Sequence[int] = ()) -> CommandRequested:
        """Make up a request about some of ``names``, or call off one of the jobs ``rollout``, or say an earlier one
        again.
        """
        if rollout:
            return self.enter("cancel", arguments={"job": self._rng.choice(rollout)})
        if self._tokens and self._chance("token_repeated"):
            return self._enter(self._rng.choice(self._tokens))
        verb, units, arguments = self._draw_verb(names)
        if has_bad and self._chance("bad_unit"):
            units = (*units, BROKEN) if self._rng.random() < 0.5 else (BROKEN,)
        self._asked += 1
        token = f"token-{self._asked}" if self._chance("token") else ""
        event = CommandRequested(
            request_id=0,
            verb=verb,
            units=units,
            origin=Origin(uid=1000, user="ada"),
            reason=self._rng.choice(("", "because", "a reason with \u201cquotes\u201d")),
            mode=self._draw_mode() if self._chance("odd_mode") else JobMode.REPLACE,
            wait=not self._chance("no_wait"),
            plan=self._chance("plan"),
            token=token,
            arguments=arguments,
        )
        entered = self._enter(event)
        if token and not event.plan:
            self._tokens = [*self._tokens[-20:], entered]
        return entered

    def ask_again(self, event: CommandRequested) -> CommandRequested:
        """Say the same once more, under a new number and with the same token."""
        return self._enter(event)

    def enter(self, verb: str, *units: str, **fields: Any) -> CommandRequested:
        """Ask something definite."""
        fields = {"origin": Origin(uid=1000, user="ada"), **fields}
        return self._enter(CommandRequested(request_id=0, verb=verb, units=units, **fields))

    def see(self, request: Request, reply: Reply) -> None:
        request.replies.append(reply)
        self._jobs_seen = [*self._jobs_seen, *(outcome.job for outcome in reply.outcomes)][-10:]

    def manager_died(self) -> list[CommandRequested]:
        """Everybody's connection is lost; returns what those with a token will ask again."""
        lost = [request for request in self.waiting.values() if not request.answered]
        self.waiting = {}
        self._next_id = 1
        again = []
        for request in lost:
            if request.event.token and not request.gone:
                again.append(request.event)
            request.gone = True
        return again

    def forget_tokens(self) -> None:
        """The supervisor has begun anew: what was asked before is nothing that could be asked again."""
        self._tokens = []
        self._jobs_seen = []

    def _enter(self, event: CommandRequested) -> CommandRequested:
        numbered = replace(event, request_id=self._next_id)
        self._next_id += 1
        self.waiting[numbered.request_id] = Request(numbered)
        return numbered

    def _chance(self, name: str) -> bool:
        return self._rng.random() < float(getattr(self._profile, name))

    def _draw_mode(self) -> JobMode:
        return self._rng.choice(_ODD_MODES)

    def _draw_verb(self, names: Sequence[str]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        units = tuple(self._rng.sample(list(names), min(len(names), self._rng.choice((1, 1, 1, 2, 3)))))
        if self._chance("cancel"):
            known = bool(self._jobs_seen) and not self._chance("unknown_job")
            return "cancel", (), {"job": self._rng.choice(self._jobs_seen) if known else 987_654}
        if self._chance("apply"):
            return "apply", units if self._rng.random() < 0.3 else (), self._draw_rollout()
        if self._chance("rolling"):
            some = tuple(self._rng.sample(list(names), self._rng.randint(1, len(names))))
            most = self._rng.choice((1, 1, 2))
            return "restart", some, {**self._draw_rollout(), "max_unavailable": most, "reverts": False}
        if self._chance("kill"):
            signal = self._rng.choice((1, 9, 10, 15, 19))
            return "kill", units, {"signal": signal, "whom": self._rng.choice(("main", "all"))}
        if self._chance("trigger"):
            timed = tuple(name for name in names if name in TIMED)
            return "trigger", timed or units, {}
        if self._chance("reset_failed"):
            return "reset-failed", units, {}
        if self._chance("pause"):
            return self._rng.choice(("pause", "pause", "resume")), units, {}
        if self._chance("release"):
            return "release", units, {}
        if self._chance("reload"):
            return self._rng.choice(("reload", "reload-or-restart")), units, {}
        if self._chance("restart"):
            return self._rng.choice(("restart", "try-restart")), units, {}
        return self._rng.choice(("start", "start", "stop")), units, {}

    def _draw_rollout(self) -> dict[str, Any]:
        most, probation_ns = self._rng.choice((0, 1, 1, 1, 2, 3)), self._rng.choice((0, 0, 1, 5, 30)) * SECOND_NS
        # the host goes back unless everything was to be restarted at once and without a look at it
        return {"max_unavailable": most, "probation_ns": probation_ns, "reverts": bool(most or probation_ns)}
