"""Units that start each other by their ends, round and round: bounded, said aloud, and named by why."""

from core_rig import Rig, notify, oneshot, service

from supervisord_py.core import view
from supervisord_py.core.consequences import CHAIN_MAX
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import Restart, Severity
from supervisord_py.model.unit import RestartPolicy, Unit

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0)


def round_of(first: Unit, second: Unit, *, pause_s: float, ends: int) -> Rig:
    """Start the first; whichever of them is up ends well after a while, so many times."""
    rig = Rig(first, second)
    rig.ask("start", first.name)
    for _ in range(ends):
        name = next((each for each in (first.name, second.name) if rig.manager.ledger.state(each).main), None)
        if name is None:
            break
        rig.up(name)
        rig.later(pause_s)
        rig.exited(name, 0)
    return rig


def test_a_hook_that_starts_what_conflicts_with_what_starts_it_went_round_for_ever() -> None:
    """Each start comes more than half a second after the one before, slow enough for the bound of a burst."""
    web = service("web", relations={"on_success": ("page",)}, restart=NEVER)
    page = service("page", relations={"on_success": ("web",), "conflicts": ("web",)}, restart=NEVER)
    rig = round_of(web, page, pause_s=0.65, ends=1000)
    assert len(rig.launched()) == 1 + CHAIN_MAX
    said = next(record for record in reversed(rig.records) if record.event == "job.finished")
    assert (said.unit, said.severity, said.fields["job"]) == ("page", Severity.ERROR, None)
    why = view.why(rig.manager, "page")[0]
    assert why.kind == "limit"
    assert why.message == said.fields["message"]
    assert "64 starts within 2min have followed one from the end of another, of web and page" in why.message
    rig.ask("start", "web")
    assert (rig.launched()[-1], rig.manager.ledger.state("web").chain) == ("web", None)
    rig.up("web")
    rig.exited("web", 0)
    assert rig.launched()[-1] == "page", "what somebody starts begins anew"
    assert "64 starts" not in (rig.status("page").why or "")


def test_a_round_that_somebody_wants_goes_on() -> None:
    """Two oneshots that take their time, each started by the success of the other, are a way to do things in turn."""
    poll = oneshot("poll", relations={"on_success": ("rest",)}, restart=NEVER)
    rest = oneshot("rest", relations={"on_success": ("poll",)}, restart=NEVER)
    rig = round_of(poll, rest, pause_s=2, ends=200)
    assert len(rig.launched()) == 201


def test_a_chain_is_counted_over_a_stop_that_follows_from_it() -> None:
    """web does not end by itself: page, which conflicts with it, stops it, and that counts as well; so it does for the
    manager that comes after.
    """
    web = notify("web", relations={"on_success": ("page",)}, restart=NEVER)
    page = notify("page", relations={"conflicts": ("web",)}, restart=NEVER)
    rig = Rig(web, page, notify("log", relations={"on_success": ("page",)}, restart=NEVER))
    rig.ask("start", "web", "log", wait=False)
    rig.up("web")
    rig.up("log")
    rig.exited("log", 0)
    rig.exited("web", signal=15)
    state = rig.manager.ledger.state("web")
    assert state.chain is not None
    assert (state.chain.links, state.chain.units) == (1, ("log",))
    later = Manager.restore(rig.state, rig.units, shift_ns=5).ledger.state("web").chain
    assert later is not None
    assert later.from_ns == state.chain.from_ns + 5
