"""Problems in unit files: all of them at once, each with its place and what was probably meant."""

import pytest
from unitset_rig import SLEEP, load_texts, problems_of

from supervisord_py.model.problems import Problem


def only(text: str) -> Problem:
    problems = problems_of(text)
    assert len(problems) == 1, [problem.text() for problem in problems]
    return problems[0]


def test_a_problem_shows_file_line_column_line_and_hint() -> None:
    """The whole text of a problem, as it is printed."""
    problem = only('[service]\nexec-start = "/bin/a"\n\tumask = 22\n')
    assert problem.text().split("\n") == [
        "u/web.toml:3:10: service.umask: a mode is written as text",
        "    \tumask = 22",
        "    \t        ^",
        '    hint: write "022", in quotes: an integer would be read as decimal',
    ]


def test_all_problems_of_a_file_come_at_once() -> None:
    """One wrong key hides no other, within lists and tables neither; they are sorted by place."""
    text = """\
[unit]
requires = ["a b", "ok", { unit = "db", until = "soon" }]
enabled = "yes"
[service]
exec-start = [["x y"], ["/a"], [7]]
restart = "allways"
kill-signal = "TREM"
timeout-stop-sec = "5 parsecs"
[service.environment]
"a-b" = "1"
C = 1.5
user = "nobody"
[limits]
nofile = "9:1"
nice = 20
[log]
max-bytes = "1X"
"""
    problems = [problem for problem in problems_of(text) if problem.severity == "error"]
    assert [(problem.line, problem.column) for problem in problems] == [
        (2, 13),
        (2, 49),
        (3, 11),
        (5, 16),
        (5, 33),
        (6, 11),
        (7, 15),
        (8, 20),
        (10, 1),
        (11, 5),
        (12, 1),
        (14, 10),
        (15, 8),
        (17, 13),
    ]
    assert [problem.hint for problem in problems][5] == (
        "did you mean 'always'? possible are no, always, on-success, on-failure, on-abnormal, on-abort, on-watchdog"
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("timeout-sec = 5", "did you mean 'timeout-stop-sec' or 'timeout-start-sec'?"),
        ("restrat = 'no'", "did you mean 'restart'?"),
        ("exec_start_pre = '/a'", "did you mean 'exec-start-pre'?"),
        ("ExecStop = '/a'", "did you mean 'exec-stop'?"),
        ("UMask = '22'", "did you mean 'umask'?"),
        ("LimitNOFILE = 5", "did you mean 'nofile'? It belongs into [limits]"),
        ("WantedBy = 'x'", ""),
        ("nofile = 5", "'nofile' belongs into [limits]"),
        ("requires = 'db'", "'requires' belongs into [unit]"),
        ("schedule = '@daily'", "did you mean 'on-calendar'? It belongs into [timer]"),
        ("start_period = 3", "did you mean 'initial-delay'? It belongs into [health.NAME]"),
        ("command = 'x'", "did you mean 'exec-start'?"),
        ("autostart = true", "did you mean 'enabled'? It belongs into [unit]"),
        ("numprocs = 3", "did you mean 'count'? It belongs into [instances]"),
        ("enforce = 'strict'", "'enforce' belongs into [limits] or [sandbox]"),
    ],
)
def test_unknown_keys_get_what_was_meant(line: str, hint: str) -> None:
    """Near names, systemd's spelling, other tools' words, and the table where a key belongs."""
    problem = only(f'[service]\nexec-start = "/bin/a"\n{line}\n')
    assert problem.message == f"unknown key '{line.split()[0]}' in [service]"
    assert problem.hint == hint
    assert (problem.line, problem.column) == (3, 1)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "exec-start = 'x'\n" + SLEEP,
            "the key 'exec-start' stands outside of all tables",
            "'exec-start' belongs into [service]",
        ),
        ("[servise]\n" + SLEEP, "unknown table [servise]", "did you mean [service]?"),
        (SLEEP + "[Unit]\n", "unknown table [Unit]", "did you mean [unit]?"),
        (SLEEP + "[[limits]]\n", "limits is a table", "write [limits], in single brackets"),
        (SLEEP + "[health]\nkind = 'x'\n", "[health.NAME] has a name of its own", "write [health.NAME], with any name"),
        (SLEEP + "[socket]\nname = 'x'\n", "[[socket]] is a list of tables", "write [[socket]], in double brackets"),
        (SLEEP + "[[socket]]\nx = 1\n[[socket]]\n", "[[socket]] is not supported yet", ""),
        (SLEEP + "idle-exit-sec = 5\n", "idle-exit-sec is not supported yet", ""),
        (
            SLEEP + "environment-file = '/e'\n",
            "environment-file is not supported yet",
            "write the variables into [service.environment]",
        ),
        (
            "[unit]\nwants = { unit = 'db', until = 'well' }\n" + SLEEP,
            "'well' is not possible here",
            "possible are started, ready, healthy and exited",
        ),
    ],
)
def test_wrong_tables_and_what_is_not_built(text: str, message: str, hint: str) -> None:
    """Nothing is accepted and then ignored."""
    problem = only(text)
    assert (problem.message, problem.hint) == (message, hint)


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("[service]\nexec-start = /bin/a\n", 2, 14, "text stands in quotes: '/bin/a'"),
        ("[service]\nremain-after-exit = yes\n", 2, 21, "write true"),
        ("[service]\numask = 0077\n", 2, 9, 'a mode is written as text: "0077"'),
        ("[service\n", 1, 9, ""),
        ("[service]\nexec-start\n", 2, 11, "write one KEY = VALUE a line"),
        ("[service]\ntype = 'exec'\ntype = 'simple'\n", 3, 16, "it is written twice: leave one"),
        ("[service]\nexec-start = 'a\n", 2, 16, ""),
        ("[service]\n[log]\n[service]\n", 3, 9, "the table stands twice: put all its keys into one"),
    ],
)
def test_syntax_errors_are_one_problem_with_its_place(text: str, line: int, column: int, hint: str) -> None:
    """A file that is no TOML is one problem; the slips of people who come from INI files get a hint."""
    problem = only(text)
    assert problem.line == line
    assert problem.hint == hint
    assert abs(problem.column - column) <= 2, problem.text()
    assert problem.message[0].islower()


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    """Ten thousand brackets neither end the process nor the load of other units."""
    result = load_texts({"deep": "[service]\nexec-start = " + "[" * 10_000 + "]" * 10_000, "web": SLEEP})
    assert list(result.unit_set.units) == ["web"]
    assert list(result.unit_set.bad) == ["deep"]


def test_moderately_deep_nesting_has_places() -> None:
    """What tomli still takes, the position index takes too."""
    problem = only("[service]\nexec-start = " + "[" * 90 + "]" * 90)
    assert problem.line == 2


def test_a_key_with_dots_is_the_table_it_spells() -> None:
    """``service.exec-start`` at the top is the key of the table, with its own place."""
    problem = only('service.exec-start = "/a"\nservice.umask = 1\n')
    assert (problem.key, problem.line, problem.column) == ("service.umask", 2, 17)


def test_columns_count_characters() -> None:
    """An umlaut before the value is one column, in the caret's line too."""
    problem = only(SLEEP + 'environment = { A = "Ä", "B-" = 1 }\n')
    assert (problem.line, problem.column) == (3, 26)


def test_giant_numbers_are_problems_and_no_crash() -> None:
    """Numbers beyond 64 bits, and texts of thousands of digits, which Python itself refuses to read."""
    digits = "9" * 5000
    assert [problem.message for problem in problems_of(SLEEP + f"timeout-stop-sec = {digits}\n")] == [
        "a number is too large"
    ]
    giant = only(SLEEP + f"restart-sec = 0x{'f' * 5000}\n")
    assert (giant.message, giant.line, giant.key) == ("the number is too large", 3, "service.restart-sec")
    within = only(SLEEP + "environment = { A = 0xffffffffffffffffff }\n")
    assert within.key == "service.environment.A"
    for key in ("restart-sec", "kill-signal", "umask"):
        assert "5000 characters" in only(SLEEP + f"{key} = '{digits}'\n").message
    for table, key in (("limits", "nofile"), ("limits", "core"), ("limits", "cpu"), ("log", "max-bytes")):
        assert "5000 characters" in only(SLEEP + f"[{table}]\n{key} = '{digits}'\n").message
    assert "too long" in only(SLEEP + "restart-sec = 1e305\n").message


def test_nothing_in_a_file_reaches_the_terminal_raw() -> None:
    """An escape sequence in a line is shown as a replacement character, one column wide; in a description it is
    refused."""
    problem = only("[service]\n# \x1b[31m\n\x1b[2J = 1\n")
    assert "\x1b" not in problem.text() and "\ufffd[" in problem.source
    problem = only('[unit]\ndescription = "a\\u001b[31mb"\n' + SLEEP)
    assert problem.message == "a text with a line break or a control character"
