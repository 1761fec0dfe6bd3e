"""Secrets are taken out of records, whatever form they come in, and what is no secret stays legible."""

import time

import pytest

from supervisord_py.store.redact import REDACTED, is_secret_name, redact, redact_text, redact_words


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "DB_PASSWORD", "dbPassword", "PGPASSWORD", "MYSQL_PWD",
        "passphrase", "passwd", "token", "authToken", "GITHUB_TOKEN", "csrftoken", "secret",
        "client-secret", "AWS_SECRET_ACCESS_KEY", "api_key",
        "apiKey", "APIKEY", "X-Api-Key", "ssh_key", "sshkey", "privateKey", "credential",
        "credentials", "Authorization",
        "session_cookie", "jwt", "DB_PASS",
    ],
)  # fmt: skip
def test_secret_names_are_known_in_every_spelling(name: str) -> None:
    """A name that says secret is one, in camel case, snake case, kebab case or shouted."""
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["key", "keys", "path", "PWD", "OLDPWD", "author", "authority", "monkey", "public_key", "compass", "passes",
     "keyboard", "unit"],
)  # fmt: skip
def test_ordinary_names_are_no_secrets(name: str) -> None:
    """Names that only look like secrets stay legible, the key of a unit file first of all."""
    assert not is_secret_name(name)


def test_a_bare_key_is_a_secret_where_it_is_assigned() -> None:
    """KEY=x of an environment or --key=x of a command line hides its value, a record's field ``key`` does not."""
    assert is_secret_name("key", assigned=True)
    assert redact({"key": "service.exec-start"}) == {"key": "service.exec-start"}
    assert redact_words(["tool", "--key=abc", "KEY=abc"]) == ["tool", f"--key={REDACTED}", f"KEY={REDACTED}"]


def test_values_are_redacted_at_any_depth() -> None:
    """Mappings in lists in mappings hide their secrets too, and keep everything else."""
    fields = {"config": [{"db": {"password": "hunter2", "host": "h"}}], "n": 1}
    assert redact(fields) == {"config": [{"db": {"password": REDACTED, "host": "h"}}], "n": 1}


def test_a_secret_container_is_hidden_whole() -> None:
    """A mapping or list under a secret name goes as a whole, its shape included."""
    assert redact({"credentials": {"user": "u", "x": "y"}, "secrets": ["a", "b"]}) == {
        "credentials": REDACTED,
        "secrets": REDACTED,
    }


def test_counts_of_tokens_stay() -> None:
    """A number called tokens is a count; a number called password is a password."""
    assert redact({"max_tokens": 4096, "password": 1234, "token": None, "has_secret": True}) == {
        "max_tokens": 4096,
        "password": REDACTED,
        "token": None,
        "has_secret": True,
    }


@pytest.mark.parametrize("name", ["environment", "env", "Environ"])
def test_every_environment_value_is_hidden(name: str) -> None:
    """Of an environment only the names of variables are written, in each form that it comes in."""
    assert redact({name: {"HOME": "/root", "X": 1}}) == {name: {"HOME": REDACTED, "X": REDACTED}}
    assert redact({name: ["HOME=/root", "odd"]}) == {name: [f"HOME={REDACTED}", REDACTED]}
    assert redact({name: [("HOME", "/root")]}) == {name: [f"HOME={REDACTED}"]}
    assert redact({name: "HOME=/root"}) == {name: REDACTED}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["db", "--password=x y", "-u", "root"], ["db", f"--password={REDACTED}", "-u", "root"]),
        (["db", "--password", "hunter2", "start"], ["db", "--password", REDACTED, "start"]),
        (["db", "--password", "--verbose"], ["db", "--password", "--verbose"]),
        (["env", "PGPASSWORD=x", "LANG=C", "psql"], ["env", f"PGPASSWORD={REDACTED}", "LANG=C", "psql"]),
        (["curl", "-H", "Authorization: Basic dXNlcg==", "u"], ["curl", "-H", f"Authorization: Basic {REDACTED}", "u"]),
        (["app", "postgres://me:pw@host/db"], ["app", f"postgres://me:{REDACTED}@host/db"]),
        (["sh", "-c", "mysql --password=x -e q"], ["sh", "-c", f"mysql --password={REDACTED} -e q"]),
    ],
)
def test_command_lines_keep_their_options_and_lose_their_secrets(words: list[str], shown: list[str]) -> None:
    """A command line stays readable without the values that nobody may see."""
    assert redact_words(words) == shown
    assert redact({"argv": words}) == {"argv": shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("restart with token=abc now", f"restart with token={REDACTED} now"),
        ('{"api_key": "sk-1", "n": 1}', f'{{"api_key": "{REDACTED}", "n": 1}}'),
        ("Bearer eyJhbGciOi.x.y", f"Bearer {REDACTED}"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b", f"a {REDACTED} b"),
        ("unknown key: exec-strat", "unknown key: exec-strat"),
        ("cannot start web: no such file /srv/web", "cannot start web: no such file /srv/web"),
        ("the token has expired", "the token has expired"),
    ],
)
def test_text_loses_what_is_surely_secret_only(text: str, shown: str) -> None:
    """Messages lose assignments, headers, credentials in addresses and keys; prose about them stays."""
    assert redact_text(text) == shown


def test_nesting_without_end_is_cut() -> None:
    """A value nested a thousand deep neither exhausts the stack nor reaches the encoder."""
    value: object = "end"
    for _ in range(1000):
        value = [value]
    assert "[too deep]" in repr(redact({"x": value}))


@pytest.mark.parametrize(
    "part", ["a=", "token", "--token ", '"token":"', "://a:", "Bearer ", "-----BEGIN PRIVATE KEY", 'x="', "a.-"]
)
def test_no_text_makes_redaction_slow(part: str) -> None:
    """A megabyte that an agent made up costs seconds at the very most, not hours: every pattern is linear."""
    text = part * (400_000 // len(part))
    begun = time.process_time()
    redact_text(text)
    assert time.process_time() - begun < 10
