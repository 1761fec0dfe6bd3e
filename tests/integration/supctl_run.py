"""Runs supctl in the test's own process and keeps what it printed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.cli import run
from supervisord_py.ctl.session import Session
from tests.integration.supctl_fake import FakeSupervisor

ROOT = Path(__file__).parent.parent.parent


class Ran:
    """What one run of supctl came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def document(self) -> Any:
        """The one JSON document that was printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Supctl:
    """``supctl ARGUMENTS`` against one fake supervisor."""

    def __init__(self, fake: FakeSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
        self.fake = fake
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        session = Session({"SUPERVISORD_PY_SOCKET": str(self.fake.path)})
        code = run(arguments, session)
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)

    def spawn(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start it as a process of its own, for what signals and pipes do."""
        return subprocess.Popen(
            [sys.executable, "-m", "supervisord_py.ctl.cli", *arguments],
            env=os.environ
            | {"SUPERVISORD_PY_SOCKET": str(self.fake.path), "PYTHONPATH": str(ROOT)}
            | (environment or {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell starts what it puts into the background with SIGINT ignored, and this may be below such a one.
            preexec_fn=_hear_interrupts,
        )


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
