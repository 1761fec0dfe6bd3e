"""A record as a line: values read as in the unit files and in JSON, not as Python writes them."""

from supervisord_py.model.event_text import event_words


def test_values_are_not_told_in_python() -> None:
    """Truth, lists and what became of each unit are words for people; what is null is not told."""
    record = {"event": "rollout.finished", "limit_hit": True, "wanted": ["a", "b"], "units": {"web": "done"}, "x": None}
    assert event_words(record) == "limit_hit=true wanted=a b units=web:done"


def test_an_error_with_a_traceback_is_one_line() -> None:
    """The message says what the traceback ends with; the record has the whole of it."""
    record = {"event": "unit.error", "message": "one\ntwo", "traceback": "Traceback:\n  ...\nValueError: one\ntwo"}
    assert event_words(record) == "message=one two"


def test_a_program_that_never_ran_had_the_pid_none() -> None:
    """What kept it from running is told, with systemd's code for that where there is one."""
    record = {"event": "unit.exited", "pid": None, "role": "main", "code": 203, "step": "exec", "runtime_ms": 0}
    assert event_words(record) == "never ran: step exec (203)"
    record |= {"role": "start-pre", "code": None, "step": "environment-file"}
    assert event_words(record) == "start-pre never ran: step environment-file"
