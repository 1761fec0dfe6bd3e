"""The simulated day of the soak, cut short: nobody who is well is ended for a silence or a check."""

from msgspec.structs import replace
from mutants import MUTANTS

from supervisord_py.testing.soak import DAY, run_day

AN_HOUR = replace(DAY, requests=60)


def test_nobody_is_blamed_for_having_been_stopped() -> None:
    """Units beat and are checked while the machine stops them, stalls, sleeps and has its clock set."""
    result = run_day(3, AN_HOUR)
    assert result.report is None, result.report
    assert result.blamed == ()
    assert result.hours > 0.5
    assert min(result.stops, result.suspends) > 3


def test_a_day_notices_who_blames_the_innocent() -> None:
    """With a core that does not look whether a process is stopped the same day fails."""
    with MUTANTS["blames_who_is_stopped"].plant() as manager_type:
        result = run_day(3, AN_HOUR, manager_type)
    assert result.report is not None
    assert "watchdog-blame" in result.report
