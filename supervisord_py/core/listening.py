"""Units with sockets: opened before a start, awaited, run at a connection, listening again; instances that accept.

Theory of operation
-------------------
Before each start the keeper is asked to listen (``OpenSockets``); what is open as it is asked for stays open, so nobody
waits in vain over restarts. A unit that is started *on demand* is then up without a process (``listening``): the keeper
tells of one connection each time that it is asked to (``AwaitConnection``), and that begins a run as a timer does. A
run that ends by itself is followed by listening again. With ``accept`` each connection becomes an instance,
a unit without a file (``NAME@CONNECTION``) that is forgotten when it has ended, and its parent goes on listening.

Too many connections within the trigger limit are waited out: nothing is awaited until the oldest of them does not
count any more. They stay in the queue of the kernel, and nothing fails.

A unit with ``idle-exit-sec`` is asked to end when nothing has come for so long and no connection is open: the keeper
tells of something that waits to be taken, at most some times in that span, and who is connected is looked at before.

Laws: whatever the keeper holds for a unit is closed when that is at rest with nothing to start it, and never before; a
connection is awaited whenever a unit listens, is not full and not paused; one that is accepted has an instance, or is
closed; no unit has two runs at a time.

Source: systemd, core/socket.c (socket_enter_running, socket_dispatch_io), system-anchors 1.8. There too many
activations make the unit fail; here they pause it, as systemd's later PollLimit does.
"""

from msgspec.structs import replace

from supervisord_py.core import quarantine
from supervisord_py.core.actions import AwaitConnection, CloseSockets, LookAtConnections, OpenSockets
from supervisord_py.core.events import ConnectionCame, DescriptorsStored
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.socket_state import Connection, SocketState
from supervisord_py.core.state import ARMED, REST, STARTING, UP, Ending, Job
from supervisord_py.core.timers import DeadlineKind
from supervisord_py.model.names import NAME_MAX
from supervisord_py.model.sockets import Sockets, connection_name
from supervisord_py.model.states import JobType, Restart, Result, Severity, SubState
from supervisord_py.model.unit import ExitStatuses, Quarantine, Unit
from supervisord_py.model.values import SECOND_NS, format_timespan

REFUSED_MAX_NS = 60 * SECOND_NS
"""The longest pause after connections that have begun no run: what they need is down, or a condition does not hold."""

LOOKS = 8
"""So often within ``idle-exit-sec`` the keeper may tell that something has come."""

_STARTING_JOBS = frozenset({JobType.START, JobType.RESTART, JobType.VERIFY_ACTIVE})
_NONE = SocketState()


def of(ledger: Ledger, name: str) -> SocketState:
    """Return what is known of the unit's sockets."""
    return ledger.state(name).sockets or _NONE


def text_of_start(ledger: Ledger, name: str) -> Unit | None:
    """Return the text that the unit's next life begins by."""
    return ledger.set.units.get(name) or ledger.unit(name)


def is_on_demand(ledger: Ledger, name: str) -> bool:
    """Tell whether a start of the unit would make it listen, and no process."""
    unit = text_of_start(ledger, name)
    return unit is not None and unit.sockets is not None and unit.sockets.is_on_demand


def text_of_run(ledger: Ledger, name: str, unit: Unit) -> Unit:
    """Return the text of the next run: that of the file, by the sockets that are listened on."""
    own = ledger.unit(name)
    if not of(ledger, name).armed or own is None or (unit.sockets is not None and unit.sockets.is_on_demand):
        return unit
    return replace(unit, sockets=own.sockets)


# opened and closed


def ask(ledger: Ledger, job: Job) -> bool:
    """Have the keeper listen before a start; False when there is nothing to ask."""
    name = job.unit
    unit = text_of_start(ledger, name)
    if job.opened or unit is None or (unit.sockets is None and not of(ledger, name).held):
        return False
    ledger.edit_job(job).opening = True
    # A run that is tried again goes on with what it listens on, as long as nobody starts the unit anew.
    _open(ledger, name, text_of_run(ledger, name, unit).sockets)
    return True


def _open(ledger: Ledger, name: str, sockets: Sockets | None) -> None:
    number = ledger.new_look_id()
    # Where nothing is listened on any more nobody is told of.
    is_awaited = of(ledger, name).awaited and sockets is not None
    ledger.set_sockets(name, replace(of(ledger, name), held=True, asked=number, awaited=is_awaited))
    ledger.act(OpenSockets(number, name, () if sockets is None else sockets.sockets))


def is_answer(ledger: Ledger, name: str, number: int) -> bool:
    """Take the answer to the last question; False when it is another one's."""
    if of(ledger, name).asked != number:
        return False
    ledger.set_sockets(name, replace(of(ledger, name), asked=None))
    return True


def close_if_at_rest(ledger: Ledger, name: str) -> None:
    """Let the keeper close all that it holds for a unit that is at rest with nothing to start it."""
    state, job = ledger.state(name), ledger.job_of.get(name)
    if state.sub not in REST or (job is not None and job.type in _STARTING_JOBS):
        return
    if state.connection is not None:
        _instance_over(ledger, name, state.connection)
    if state.sockets is None:
        return
    if state.sockets.held or state.sockets.stored:
        ledger.act(CloseSockets(name))
    ledger.set_sockets(name, None)


def stored(ledger: Ledger, event: DescriptorsStored) -> None:
    """What the processes of a unit have left with the keeper is this now."""
    ledger.set_sockets(event.unit, replace(of(ledger, event.unit), stored=event.names))


def text_changed(ledger: Ledger, name: str) -> None:
    """The file has been loaded anew: what listens between two runs does so as that says."""
    running, loaded, state = ledger.texts.get(name), ledger.set.units.get(name), ledger.state(name)
    if state.sub is not SubState.LISTENING or running is None or loaded is None:
        return
    wanted = text_of_run(ledger, name, loaded)
    if wanted.sockets != running.sockets:
        ledger.keep_text(name, replace(running, sockets=wanted.sockets))
        _open(ledger, name, wanted.sockets)


def start_changed(ledger: Ledger, name: str, before: Unit | None) -> None:
    """The file of a unit that is about to start has been loaded anew: what was opened for that is asked for again."""
    job, now = ledger.job_of.get(name), text_of_start(ledger, name)
    if job is None or not (job.opening or job.opened) or now is None or now.sockets == (before and before.sockets):
        return
    ledger.edit_job(job).opened = False
    if job.opening:
        _open(ledger, name, now.sockets)


def keeper_lost(ledger: Ledger) -> list[str]:
    """A killed keeper has taken its descriptors with it: what listens is opened anew, the rest at its next start.

    Returns:
        Instances whose programs were not asked for yet: nobody is there for them to talk to.
    """
    in_vain = []
    for name, state in sorted(ledger.states.items()):
        unit, found = ledger.unit(name), state.sockets
        if state.connection is not None:
            ledger.edit(name).connection = replace(state.connection, number=None)
            has_begun = state.sub not in STARTING | REST or state.main is not None or state.started
            in_vain += [] if has_begun else [name]
        if found is None or unit is None:
            continue
        lost = replace(found, held=False, asked=None, awaited=False, idle_at_ns=None, look_id=None, stored=())
        ledger.set_sockets(name, lost)
        job, wanted = ledger.job_of.get(name), unit
        if job is not None and job.opening:
            # What was asked of a keeper that was killed is answered by none.
            wanted = text_of_start(ledger, name) or unit
        elif state.sub is not SubState.LISTENING:
            continue
        _open(ledger, name, wanted.sockets)
    return in_vain


# listening


def arm(ledger: Ledger, name: str) -> None:
    """Begin to listen: the unit is up."""
    unit = text_of_start(ledger, name)
    assert unit is not None and unit.sockets is not None, f"internal error: {name} has no sockets"
    ledger.keep_text(name, unit)
    quarantine.begin_life(ledger, name)
    state = ledger.edit(name)
    state.result, state.message, state.ending = Result.SUCCESS, None, Ending.ITSELF
    state.stopped = state.succeeded = state.accomplished = False
    ledger.arm_uphold(name, None)
    ledger.set_sockets(name, replace(of(ledger, name), armed=True, came=0))
    _listen(ledger, name)
    ledger.record("unit.ready", name, fields={"listening": list(unit.sockets.addresses)})


def disarm(ledger: Ledger, name: str) -> None:
    """A stop of a unit that listens."""
    state = ledger.set_sub(name, SubState.DEAD)
    ledger.record("unit.stopped", name, fields={"result": state.result.value})


def wait_again(ledger: Ledger, name: str) -> bool:
    """After a run: listen again; False where that is not to be."""
    state = ledger.state(name)
    goes_on = state.ending in (Ending.ITSELF, Ending.IDLE) and ledger.globals.shutdown is None
    if not of(ledger, name).armed or not goes_on:
        return False
    _listen(ledger, name)
    text_changed(ledger, name)
    unit = ledger.unit(name)
    if unit is not None and not of(ledger, name).held:
        # A keeper has been lost meanwhile.
        _open(ledger, name, unit.sockets)
    return True


def _listen(ledger: Ledger, name: str) -> None:
    ledger.set_sub(name, SubState.LISTENING)
    ledger.arm_phase(name, None)
    ledger.set_sockets(name, replace(of(ledger, name), idle_at_ns=None, look_id=None, refused=0))
    await_next(ledger, name)


def await_next(ledger: Ledger, name: str) -> None:
    """Ask for the next connection, unless there were too many, or as many as may be."""
    found, unit = of(ledger, name), ledger.unit(name)
    if ledger.state(name).sub is not SubState.LISTENING or found.awaited or found.resume_at_ns is not None:
        return
    if not found.held or found.asked is not None:
        # When they are open it is asked again.
        return
    assert unit is not None and unit.sockets is not None, f"internal error: {name} has no sockets"
    job = ledger.job_of.get(name)
    if is_full(ledger, name) or (job is not None and job.runs):
        return
    left_ns = _too_many_for_ns(ledger, found, unit.sockets)
    if left_ns is None:
        ledger.set_sockets(name, replace(found, awaited=True))
        ledger.act(AwaitConnection(name))
        return
    resume_at_ns = ledger.now.mono_ns + left_ns
    ledger.set_sockets(name, replace(found, resume_at_ns=resume_at_ns))
    ledger.timers.arm(resume_at_ns, name, DeadlineKind.LISTEN)
    message = f"it was started {len(found.triggers_ns)} times in too short a time by connections"
    fields = {"message": f"{message}: the next is waited with for {format_timespan(left_ns)}"}
    ledger.record("socket.paused", name, severity=Severity.WARNING, fields=fields, chain=False)


def is_full(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit that accepts has as many connections as it may."""
    unit = ledger.unit(name)
    sockets = None if unit is None else unit.sockets
    return sockets is not None and sockets.accepts and len(of(ledger, name).instances) >= sockets.connections_max


def _too_many_for_ns(ledger: Ledger, found: SocketState, sockets: Sockets) -> int | None:
    """Return for how long there have been too many connections, None when there were not [ns]."""
    left = []
    for each in sockets.sockets:
        if not each.trigger_burst or not each.trigger_interval_ns or len(found.triggers_ns) < each.trigger_burst:
            continue
        oldest_ns = found.triggers_ns[-each.trigger_burst]
        left_ns = oldest_ns + each.trigger_interval_ns - ledger.now.boot_ns
        left += [left_ns] if left_ns > 0 else []
    return max(left, default=None)


def resume(ledger: Ledger, name: str) -> None:
    """The pause after too many connections is over."""
    ledger.set_sockets(name, replace(of(ledger, name), resume_at_ns=None))
    await_next(ledger, name)


def came(ledger: Ledger, event: ConnectionCame) -> Unit | None:
    """Something has come; returns the instance that is to be started for it."""
    name = event.unit
    found, unit, state = of(ledger, name), ledger.unit(name), ledger.state(name)
    is_expected = found.awaited and unit is not None and unit.sockets is not None
    if is_expected:
        found = replace(found, awaited=False)
        ledger.set_sockets(name, found)
    # What is accepted already cannot wait in the queue of the kernel: a restart takes it along.
    is_heard = state.sub is SubState.LISTENING or (event.connection is not None and _comes_back(ledger, name))
    if is_expected and is_heard and ledger.globals.shutdown is None:
        assert unit is not None and unit.sockets is not None
        if event.connection is None and _too_many_for_ns(ledger, found, unit.sockets) is not None:
            # It was awaited in a run before, which others than those within the limit may have begun.
            await_next(ledger, name)
            return None
        kept = max((each.trigger_burst for each in unit.sockets.sockets), default=0)
        triggers = (*found.triggers_ns, ledger.now.boot_ns)[-kept:] if kept else ()
        ledger.set_sockets(name, replace(found, triggers_ns=triggers, came=found.came + 1))
        fields = {"socket": event.socket} | ({"peer": event.peer} if event.peer else {})
        cause = ledger.record("socket.connection", name, fields=fields)
        if event.connection is None:
            ledger.intents.append(Task(Intent.RUN, name, name, cause))
            return None
        instance = _make_instance(ledger, unit, event)
        await_next(ledger, name)
        return instance
    if event.connection is not None:
        ledger.act(CloseSockets(name, event.connection))
    elif is_expected and state.sub in UP and (found.idle_at_ns is not None or found.look_id is not None):
        # Whoever looks at the connections now has not seen it.
        used = replace(found, used_ns=ledger.now.mono_ns)
        _look_again(ledger, name, used, ledger.now.mono_ns + _idle_ns(ledger, name) // LOOKS)
    return None


def job_ended(ledger: Ledger, name: str) -> None:
    """A start came to nothing, or what stood in its way has: whoever waits in the queue is told of again."""
    state = ledger.state(name)
    if state.sockets is not None and state.sub in REST and name not in ledger.job_of:
        # A restart has left its instances alone, and comes to nothing.
        ledger.intents += [Task(Intent.STOP_ALONG, other, name, state.cause) for other in state.sockets.instances]
    if state.sockets is not None or state.connection is not None:
        ledger.touch_unit(name)
        if name not in ledger.job_of:
            _wait_after_refusal(ledger, name)
            await_next(ledger, name)


def _wait_after_refusal(ledger: Ledger, name: str) -> None:
    """What a connection asked for could not be: whoever waits is looked at again, later and later."""
    found = of(ledger, name)
    is_told = found.awaited or found.resume_at_ns is not None or not found.held or found.asked is not None
    if ledger.state(name).sub is not SubState.LISTENING or is_told or is_full(ledger, name):
        return
    delay_ns = min(REFUSED_MAX_NS, SECOND_NS << min(found.refused, 6))
    resume_at_ns = ledger.now.mono_ns + delay_ns
    ledger.set_sockets(name, replace(found, refused=found.refused + 1, resume_at_ns=resume_at_ns))
    ledger.timers.arm(resume_at_ns, name, DeadlineKind.LISTEN)


# unused


def _idle_ns(ledger: Ledger, name: str) -> int:
    unit = ledger.unit(name)
    return 0 if unit is None or unit.sockets is None else unit.sockets.idle_exit_ns or 0


def begin_use(ledger: Ledger, name: str) -> None:
    """The unit is up: from now on it has to be used, if it says so."""
    idle_ns, found = _idle_ns(ledger, name), of(ledger, name)
    if not idle_ns or not found.armed or not found.held:
        # (what a killed keeper has held the process has still: who comes to it is told to nobody)
        return
    if not found.awaited:
        ledger.act(AwaitConnection(name))
    found = replace(found, used_ns=ledger.now.mono_ns, awaited=True)
    _look_again(ledger, name, found, ledger.now.mono_ns + idle_ns)


def _look_again(ledger: Ledger, name: str, found: SocketState, at_ns: int) -> None:
    ledger.set_sockets(name, replace(found, idle_at_ns=at_ns, look_id=None))
    ledger.timers.arm(at_ns, name, DeadlineKind.UNUSED)


def use_deadline(ledger: Ledger, name: str) -> None:
    """Look whether anything has come since; before the unit is ended, whether anybody is connected."""
    found, sub, idle_ns = of(ledger, name), ledger.state(name).sub, _idle_ns(ledger, name)
    if sub not in UP or not idle_ns:
        ledger.set_sockets(name, replace(found, idle_at_ns=None))
    elif sub is not SubState.RUNNING:
        if not found.awaited:
            ledger.act(AwaitConnection(name))
        found = replace(found, used_ns=ledger.now.mono_ns, awaited=True)
        _look_again(ledger, name, found, ledger.now.mono_ns + idle_ns)
    elif not found.awaited:
        ledger.act(AwaitConnection(name))
        _look_again(ledger, name, replace(found, awaited=True), max(found.used_ns + idle_ns, ledger.now.mono_ns + 1))
    else:
        number = ledger.new_look_id()
        ledger.set_sockets(name, replace(found, idle_at_ns=None, look_id=number))
        ledger.act(LookAtConnections(number, name))


def is_unused(ledger: Ledger, name: str, look_id: int, connections: int) -> bool:
    """Take what was found of a unit's open connections; tells whether it is to end."""
    found = of(ledger, name)
    if found.look_id != look_id:
        return False
    if ledger.state(name).sub is SubState.RUNNING and not connections:
        ledger.set_sockets(name, replace(found, look_id=None))
        return True
    now_ns = ledger.now.mono_ns
    _look_again(ledger, name, replace(found, used_ns=now_ns), now_ns + (_idle_ns(ledger, name) or 1))
    return False


def pending(ledger: Ledger, name: str) -> list[LookAtConnections]:
    """Return what a manager before asked and never heard of."""
    found = of(ledger, name)
    return [] if found.look_id is None else [LookAtConnections(found.look_id, name)]


# instances


def _make_instance(ledger: Ledger, unit: Unit, event: ConnectionCame) -> Unit:
    """Make the unit of one connection: as its parent, but that nothing else has to do with it."""
    assert unit.service is not None and event.connection is not None
    name = _free_name(ledger, connection_name(unit.name, event.connection, event.peer)[:NAME_MAX])
    policy = replace(unit.service.restart, restart=Restart.NO, force=ExitStatuses(), failures=0, limit=None)
    service = replace(unit.service, restart=policy, store_max=0)
    instance = Unit(
        name=name,
        kind=unit.kind,
        service=service,
        description=unit.description,
        documentation=unit.documentation,
        conditions=unit.conditions,
        asserts=unit.asserts,
        job_timeout_ns=unit.job_timeout_ns,
        enabled=False,
        tags=unit.tags,
        on_failure=unit.on_failure,
        on_success=unit.on_success,
        health=unit.health,
        pool=unit.pool,
        quarantine=Quarantine(),
        source=unit.source,
    )
    ledger.keep_text(name, instance)
    vanished = ledger.globals.vanished
    ledger.edit_globals().vanished = {**vanished, name: None}
    ledger.edit(name).connection = Connection(unit.name, event.connection, event.environment)
    parent = of(ledger, unit.name)
    ledger.set_sockets(unit.name, replace(parent, instances=(*parent.instances, name)))
    return instance


def _free_name(ledger: Ledger, name: str) -> str:
    """Return the name, or one like it while that is taken: who follows a killed keeper counts from 1 again, and what it
    has accepted may still be served.
    """
    free, count = name, 1
    while free in ledger.texts or free in ledger.set.units or free in ledger.set.bad:
        count += 1
        end = f"-{count}"
        free = name[: NAME_MAX - len(end)] + end
    return free


def _instance_over(ledger: Ledger, name: str, connection: Connection) -> None:
    """The life for a connection is over: so is the connection."""
    ledger.edit(name).connection = None
    if connection.number is not None:
        ledger.act(CloseSockets(connection.unit, connection.number))
    parent = ledger.state(connection.unit).sockets
    if parent is not None:
        left = tuple(each for each in parent.instances if each != name)
        ledger.set_sockets(connection.unit, replace(parent, instances=left))
        await_next(ledger, connection.unit)


def is_orphan(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit was made for a connection that is there no more, or to one that does not listen any more."""
    connection = ledger.state(name).connection
    if connection is None or ledger.state(name).sub in STARTING | UP:
        return False
    parent = connection.unit
    return connection.number is None or not (ledger.state(parent).sub in ARMED or _comes_back(ledger, parent))


def _comes_back(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit is at rest in a restart: it has listened, and will again."""
    job = ledger.job_of.get(name)
    return ledger.state(name).sub in REST and of(ledger, name).held and job is not None and job.type in _STARTING_JOBS
