"""What a peer that is not admin is shown of settings and unit files."""

import pytest
import tomli

from supervisord_py.host.redaction import WITHHELD, redact_change, redact_file, redact_setting
from supervisord_py.store.redact import REDACTED

UNIT = '''\
# DATABASE_URL = "postgres://u:hunter1@db"  and nothing else
[service]
exec-start = ["serve", "--port", "80", "--token", "hunter2"]   # was: --password=hunter3
exec-stop = "stop --password hunter4 $FOO"
user = "web" # a comment stays
set-credential = { tls = "hunter5" }

[service.environment]
PORT = 8080
KEY = """
hunter6
hunter7""" # hunter6 until May
"quoted name" = 'hunter8'

[agent.config]
api_key = "hunter9"
depth = 3
nested = [{ db_password = "hunter0" }]
'''


def test_a_file_keeps_its_shape_and_loses_its_secrets() -> None:
    """Environment values, credentials and what is named like a secret are gone, with the comments behind them; all
    else, and every line number, stays."""
    text = redact_file(UNIT)
    assert "hunter" not in text
    assert text.count("\n") == UNIT.count("\n")
    before, after = tomli.loads(UNIT), tomli.loads(text)
    assert after["service"]["exec-start"] == ["serve", "--port", "80", "--token", "[redacted]"]
    assert after["service"]["user"] == before["service"]["user"]
    assert after["service"]["environment"].keys() == before["service"]["environment"].keys()
    assert after["agent"]["config"]["depth"] == 3
    assert "# a comment stays" in text
    assert text.splitlines().index("[agent.config]") == UNIT.splitlines().index("[agent.config]")


def test_a_file_without_secrets_is_untouched() -> None:
    """What holds no secret is shown byte by byte."""
    text = '[service]\nexec-start = "/bin/sleep 60"  # a comment\nrestart-sec = "1s"\n'
    assert redact_file(text) == text


def test_a_file_that_is_no_toml_is_withheld() -> None:
    """Where secrets cannot be told apart, nothing is shown."""
    assert redact_file('[service.environment]\nKEY = "hunter1\n') == WITHHELD
    assert redact_file("x = " + "[" * 100_000) == WITHHELD


def test_settings() -> None:
    """A setting is judged by its dotted key and its value."""
    assert redact_setting("service.environment.PORT", 8080) == "[redacted]"
    assert redact_setting("service.exec-start", ["a", "--token=x"]) == ["a", "--token=[redacted]"]
    assert redact_setting("service.restart", "always") == "always"
    assert redact_setting("agent.config", {"token": "x", "depth": 3}) == {"token": "[redacted]", "depth": 3}
    assert redact_setting("service.pass-environment", ["HOME"]) == ["HOME"]


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("service.exec-start", '["web", "--token", "hunter1"]', f'["web", "--token", "{REDACTED}"]'),
        ("service.exec-stop", 'stop --password=hunter1 now\n["ok"]', f"stop '--password={REDACTED}' now\n[\"ok\"]"),
        ("service.exec-start", '["a", "b', REDACTED),
        ("service.environment.TOKEN", "hunter1", REDACTED),
        ("service.environment.HOME", "/x", REDACTED),
        ("service.user", "web", "web"),
        ("unit.description", "see http://u:hunter1@x", f"see http://u:{REDACTED}@x"),
        ("service.user", None, None),
    ],
)
def test_a_changed_key_is_told_without_its_secrets(key: str, text: str | None, shown: str | None) -> None:
    """Each command of a list for itself, every environment value, and what text gives away."""
    assert redact_change(key, text) == shown
