"""From what is asked for to a set of jobs that can be installed whole, or a refusal: nothing is applied here.

Theory of operation
-------------------
A transaction is a graph of nodes (unit, job type); each remembers who pulled it in, and whether that one cannot do
without it (the pull *matters*). It is built in numbered passes:

1. pull in what the relations of each node ask for; drop what would change nothing and contradicts nothing;
2. mark the nodes that matter to an anchor: reachable by pulls that matter;
3. mode ``fail``: drop nodes that do not matter and would stop something or change a queued job;
4. merge the nodes of each unit; of two that cannot merge drop the one that does not matter, else refuse;
5. look for cycles in the order; drop a node on it that does not matter, else refuse with the whole path;
6. refuse what would replace a queued job: any in mode ``fail``, an irreversible one in every mode.

``isolate`` stops in pass 1 whatever was not pulled in; ``flush`` and ``isolate`` cancel, when the transaction is
applied, the jobs of all other units. ``ignore-dependencies`` pulls in nothing and keeps no order,
``ignore-requirements`` pulls in nothing. What an automatic restart does to dependents never matters to it.

Dropping a node drops what cannot do without it and what only it pulled in. An *optional* anchor (everything that is
started with the supervisor) is dropped like any other node, with the reason; any other makes the whole transaction
fail.

Source: systemd, core/transaction.c (transaction_activate); system-anchors 1.2.
"""

from collections import deque
from itertools import combinations

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import jobs
from supervisord_py.core.actions import Refusal
from supervisord_py.core.demand import is_kept, is_met
from supervisord_py.core.graph import find_cycle
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.quarantine import is_given_up
from supervisord_py.core.state import STARTING, THERE, Chain, JobOrigin
from supervisord_py.errors import SupervisordError
from supervisord_py.model.states import JobMode, JobType
from supervisord_py.model.unit import Dependency

Key = tuple[str, JobType]

ALONE = frozenset({JobMode.IGNORE_DEPENDENCIES, JobMode.IGNORE_REQUIREMENTS})
"""Modes in which nothing is pulled in."""


class RefusedError(SupervisordError):
    """A request that cannot be done as a whole."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Goal(Struct, frozen=True):
    """What is asked for: the anchors, and how."""

    anchors: tuple[Key, ...]
    origin: JobOrigin
    mode: JobMode = JobMode.REPLACE
    optional: bool = False
    runs: bool = False
    """The anchors have timers, and are run."""
    bound: bool = False
    gently: bool = False
    """What is needed is started as for an automatic restart: not what somebody stopped, or what failed too often."""
    spares_stopped: bool = False
    """What is only wanted is left alone if somebody has stopped it."""
    forced: bool = False
    """It has to be: it replaces irreversible jobs too."""
    by: str = ""
    """Who asked for it."""
    note: str = ""
    """The reason that they gave."""
    reason: str = ""
    """Why, if it does not go without saying."""
    cause: int | None = None
    chain: Chain | None = None
    """What it follows from."""


class Pull(Struct, frozen=True):
    """Why a node is there; ``by`` None is the request itself."""

    by: Key | None
    matters: bool
    conflict: bool = False


class Node(Struct):
    """A job that may come to be."""

    unit: str
    type: JobType
    anchor: bool
    pulls: list[Pull]
    matters: bool = False
    idle: bool = False
    """It would change nothing; it is kept for as long as the unit has another node that it may contradict."""


class Transaction(Struct):
    """What is to be installed, in the order in which it was pulled in; and the optional anchors that cannot be."""

    goal: Goal
    nodes: list[Node]
    dropped: dict[str, Refusal]


def build_stop(ledger: Ledger, goal: Goal) -> Transaction:
    """Build a transaction of stops that has to be: in order, or, where the order contradicts itself, without one."""
    goal = replace(goal, forced=True)
    try:
        return build(ledger, goal)
    except RefusedError:
        return build(ledger, replace(goal, mode=JobMode.IGNORE_DEPENDENCIES))


def build(ledger: Ledger, goal: Goal) -> Transaction:
    """Build the transaction for a goal.

    Raises:
        RefusedError: it cannot be done, and why.
    """
    builder = _Builder(ledger, goal)
    builder.pull_in()
    builder.drop_idle()
    builder.mark()
    if goal.mode is JobMode.FAIL:
        builder.minimise_impact()
    builder.merge()
    builder.drop_idle()
    if goal.mode is not JobMode.IGNORE_DEPENDENCIES:
        builder.verify_order()
    if not goal.forced:
        builder.refuse_destruction()
    return Transaction(goal, list(builder.nodes.values()), builder.dropped)


class _Builder:
    def __init__(self, ledger: Ledger, goal: Goal) -> None:
        self._ledger = ledger
        self._goal = goal
        self._queue: deque[Key] = deque()
        self._poisoned: list[tuple[Key, Refusal]] = []
        self.nodes: dict[Key, Node] = {}
        self.dropped: dict[str, Refusal] = {}

    # pass 1

    def pull_in(self) -> None:
        for unit, kind in self._goal.anchors:
            refusal = self._refuse_anchor(unit, kind)
            if refusal is None:
                self._add((unit, kind), Pull(None, matters=not self._goal.optional), anchor=True)
            elif self._goal.optional:
                self.dropped[unit] = refusal
            else:
                raise RefusedError(refusal)
        if self._goal.mode not in ALONE:
            while self._queue:
                self._expand(self._queue.popleft())
        for key, refusal in self._poisoned:
            if key in self.nodes:
                self._drop(key, refusal)
        # Only now: what was dropped is not wanted, and must not stay up without what it requires.
        if self._goal.mode is JobMode.ISOLATE:
            self._isolate()

    def _refuse_anchor(self, unit: str, kind: JobType) -> Refusal | None:
        if kind in (JobType.STOP, JobType.NOP):
            return None
        return self._refuse_unknown(unit, f"cannot {kind.value} {unit}")

    def _refuse_unknown(self, unit: str, cannot: str) -> Refusal | None:
        """Say why a unit cannot be started at all, None if it can."""
        ledger = self._ledger
        if unit in ledger.set.units or (unit in ledger.texts and self._goal.origin is JobOrigin.AUTOMATIC):
            return None
        bad = ledger.set.bad.get(unit)
        if bad is not None:
            return Refusal(
                "BadUnit",
                f"{cannot}: the file of {unit} is invalid: {bad.reason}",
                {"unit": unit, "problem": bad.reason},
            )
        if unit in ledger.set.masked:
            return Refusal("UnitMasked", f"{cannot}: {unit} is masked; supctl unmask {unit}", {"unit": unit})
        return Refusal(
            "NoSuchUnit",
            f"{cannot}: no file defines {unit}; write one and reload, or correct the name",
            {"unit": unit, "suggestions": []},
        )

    def _expand(self, key: Key) -> None:
        unit, kind = key
        relations = self._ledger.graph[unit]
        if kind in (JobType.START, JobType.RESTART):
            for dependency in (*relations.requires, *relations.binds_to):
                self._pull_start(key, dependency, matters=True)
            for dependency in relations.requisite:
                self._verify(key, dependency)
            for dependency in (*relations.wants, *relations.upholds):
                self._pull_start(key, dependency, matters=False)
            # A conflict holds both ways: whoever names it, the two are never up together.
            for other in (*relations.conflicts, *relations.conflicted_by):
                self._pull_stop(key, other, Pull(key, matters=True, conflict=True))
        if kind is JobType.STOP:
            for other in (*relations.follows_stops(), *relations.stops):
                self._pull_stop(key, other, Pull(key, matters=True))
        elif kind is JobType.RESTART or (self._goal.mode is JobMode.RESTART_DEPENDENCIES and self.nodes[key].anchor):
            for other in relations.follows_stops():
                self._pull_restart(key, other)

    def _pull_restart(self, key: Key, other: str) -> None:
        """A dependent that runs is restarted too; what follows automatically gives way to what is asked for."""
        if jobs.try_restart(self._ledger.state(other).sub) is not JobType.RESTART:
            return
        automatic = self._goal.origin is JobOrigin.AUTOMATIC
        job = self._ledger.job_of.get(other)
        if automatic and job is not None and jobs.merge(job.type, JobType.RESTART) is None:
            return
        self._add((other, JobType.RESTART), Pull(key, matters=not automatic))

    def _verify(self, key: Key, dependency: Dependency) -> None:
        """Ask whether a requisite is there; it is never started."""
        unit = dependency.unit
        if unit == key[0]:
            return
        refusal = self._refuse_unknown(unit, f"cannot {key[1].value} {key[0]}: it needs {unit}")
        if refusal is not None:
            self._poisoned.append((key, refusal))
        elif self._is_to_stop(unit):
            # To ask whether it is there must not call off its stop; whoever needs it waits, and looks again.
            return
        elif not is_kept(self._ledger, unit, dependency.until) or self._goal.mode is JobMode.ISOLATE:
            self._add((unit, JobType.VERIFY_ACTIVE), Pull(key, matters=True))

    def _is_to_stop(self, unit: str) -> bool:
        job = self._ledger.job_of.get(unit)
        return job is not None and job.type is JobType.STOP

    def _pull_start(self, key: Key, dependency: Dependency, *, matters: bool) -> None:
        unit = dependency.unit
        if unit == key[0]:
            return
        refusal = self._refuse_unknown(unit, f"cannot {key[1].value} {key[0]}: it needs {unit}")
        if refusal is None and (self._goal.gently or self._goal.origin is JobOrigin.AUTOMATIC):
            is_there = is_met(self._ledger, unit, dependency.until) and not self._ledger.state(unit).skipped
            if is_there and not (self._goal.gently and self._is_to_stop(unit)):
                return
            refusal = self._refuse_automatic(unit, key[0])
        if not matters and self._goal.spares_stopped and (self._ledger.state(unit).stopped or self._is_to_stop(unit)):
            return
        if refusal is not None:
            if matters:
                self._poisoned.append((key, refusal))
            return
        self._add((unit, JobType.START), Pull(key, matters))

    def _refuse_automatic(self, unit: str, puller: str) -> Refusal | None:
        """What was stopped by hand, or has failed too often, is not started because something else restarts."""
        state = self._ledger.state(unit)
        if self._is_to_stop(unit):
            return Refusal("JobFailed", f"{puller} waits for {unit}, which is being stopped", {"unit": unit})
        if state.stopped:
            return Refusal("JobFailed", f"{puller} waits for {unit}, which was stopped; start it", {"unit": unit})
        if is_given_up(self._ledger, unit):
            why = f"which has failed {state.failures} times; see its log, then start it"
            return Refusal("JobFailed", f"{puller} waits for {unit}, {why}", {"unit": unit})
        return None

    def _pull_stop(self, key: Key, other: str, pull: Pull) -> None:
        if other != key[0]:
            self._add((other, JobType.STOP), pull)

    def _is_redundant(self, key: Key) -> bool:
        unit, kind = key
        job = self._ledger.job_of.get(unit)
        if job is not None and jobs.merge(job.type, kind) is None:
            return False
        return jobs.is_redundant(kind, self._ledger.state(unit).sub)

    def _isolate(self) -> None:
        """Stop whatever is up and was not asked for."""
        wanted = {unit: None for unit, _ in self.nodes}
        for unit in sorted(self._ledger.states | self._ledger.job_of):
            if unit not in wanted:
                self._add((unit, JobType.STOP), Pull(None, matters=False))

    def _add(self, key: Key, pull: Pull, *, anchor: bool = False) -> None:
        idle = not anchor and self._is_redundant(key)
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(key[0], key[1], anchor, [], idle=True)
            if idle and self._goal.mode is JobMode.ISOLATE:
                # What it needs is not to be stopped either, though nothing has to be done about it.
                self._queue.append(key)
        if node.idle and not idle:
            node.idle = False
            self._queue.append(key)
        node.anchor = node.anchor or anchor
        node.pulls.append(pull)

    def drop_idle(self) -> None:
        """Drop the nodes of units for which nothing would change."""
        busy = {node.unit: None for node in self.nodes.values() if not node.idle}
        self.nodes = {key: node for key, node in self.nodes.items() if node.unit in busy}
        self._collect()

    # pass 2

    def mark(self) -> None:
        pulled: dict[Key, list[Key]] = {}
        queue: deque[Key] = deque()
        for key, node in self.nodes.items():
            node.matters = False
            for pull in node.pulls:
                if not pull.matters:
                    continue
                if pull.by is None:
                    queue.append(key)
                else:
                    pulled.setdefault(pull.by, []).append(key)
        while queue:
            key = queue.popleft()
            if not self.nodes[key].matters:
                self.nodes[key].matters = True
                queue.extend(pulled.get(key, ()))

    # pass 3 and 6

    def minimise_impact(self) -> None:
        for key, node in list(self.nodes.items()):
            if key in self.nodes and not node.matters and (self._stops_something(node) or self._changes_job(node)):
                self._drop(key, self._refuse_change(node))

    def refuse_destruction(self) -> None:
        for key, node in list(self.nodes.items()):
            if key in self.nodes and self._changes_job(node):
                job = self._ledger.job_of[node.unit]
                if self._goal.mode is JobMode.FAIL or job.irreversible:
                    self._drop_or_refuse(key, self._refuse_change(node))

    def _drop_or_refuse(self, key: Key, refusal: Refusal) -> None:
        """Do without a node where every anchor is optional, else refuse everything."""
        if not self._goal.optional:
            raise RefusedError(refusal)
        self._drop(key, refusal)

    def _stops_something(self, node: Node) -> bool:
        return node.type is JobType.STOP and self._ledger.state(node.unit).sub in THERE | STARTING

    def _changes_job(self, node: Node) -> bool:
        job = self._ledger.job_of.get(node.unit)
        return job is not None and jobs.merge(job.type, node.type) is None

    def _refuse_change(self, node: Node) -> Refusal:
        job = self._ledger.job_of.get(node.unit)
        if job is None:
            return Refusal("TransactionConflict", f"this would {node.type.value} {node.unit}, which is running")
        advice = "or cancel it" if job.irreversible else "cancel it, or ask without mode fail"
        queued = "is queued and irreversible" if job.irreversible else "is queued"
        return Refusal(
            "TransactionConflict",
            f"this would {node.type.value} {node.unit}, whose {job.type.value} job {job.id} {queued}; "
            f"wait for it, {advice}",
        )

    # pass 4

    def merge(self) -> None:
        while True:
            pair = self._merge_units()
            # What the united nodes pull in matters where one of them does.
            self.mark()
            if pair is None:
                return
            self._drop(self._choose(*pair), self._refuse_pair(*pair))

    def _merge_units(self) -> tuple[Node, Node] | None:
        """Merge the nodes of each unit into one; return the first two that cannot be."""
        by_unit: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            by_unit.setdefault(node.unit, []).append(node)
        for nodes in by_unit.values():
            # Every pair, not each with the first: a nop merges with a start and with a stop, which do not merge.
            for first, second in combinations(nodes, 2):
                if jobs.merge(first.type, second.type) is None:
                    return first, second
            if len(nodes) > 1:
                self._unite(nodes)
        return None

    def _unite(self, nodes: list[Node]) -> None:
        kind = nodes[0].type
        for node in nodes[1:]:
            merged = jobs.merge(kind, node.type)
            assert merged is not None, "internal error: merging is not associative"
            kind = merged
        unit = nodes[0].unit
        key = (unit, kind)
        old = {(node.unit, node.type): None for node in nodes}
        united = Node(
            unit,
            kind,
            anchor=any(node.anchor for node in nodes),
            pulls=[pull for node in nodes for pull in node.pulls if pull.by not in old],
            idle=all(node.idle for node in nodes),
        )
        # The united node takes the first one's place, so that the order of the nodes stays the order of the pulls.
        place = (unit, nodes[0].type)
        self.nodes = {
            (key if each == place else each): (united if each == place else node)
            for each, node in self.nodes.items()
            if each == place or each not in old
        }
        for node in self.nodes.values():
            node.pulls = [Pull(key, pull.matters, pull.conflict) if pull.by in old else pull for pull in node.pulls]

    def _choose(self, a: Node, b: Node) -> Key:
        """Choose which of two nodes that cannot merge goes.

        Raises:
            RefusedError: both matter.
        """
        if a.matters and b.matters:
            raise RefusedError(self._refuse_pair(a, b))
        if a.matters != b.matters:
            loser = b if a.matters else a
        else:
            stop, other = (a, b) if a.type is JobType.STOP else (b, a)
            # A unit that conflicts with another wins over the wish to have both; any other stop is given up.
            loser = other if any(pull.conflict for pull in stop.pulls) else stop
        return loser.unit, loser.type

    def _refuse_pair(self, a: Node, b: Node) -> Refusal:
        return Refusal(
            "TransactionConflict",
            f"this would {a.type.value} {a.unit}{self._because(a)} and {b.type.value} it{self._because(b)}; "
            f"ask for one of them",
        )

    def _because(self, node: Node) -> str:
        for pull in node.pulls:
            if pull.by is not None:
                return f" (because of {pull.by[0]})"
        return ""

    # pass 5

    def verify_order(self) -> None:
        if self._ledger.graph.is_acyclic:
            return
        while (cycle := find_cycle(self._order())) is not None:
            for unit in cycle:
                key = next((key for key in self.nodes if key[0] == unit), None)
                if key is not None and not self.nodes[key].matters:
                    self._drop(key, self._refuse_cycle(cycle))
                    break
            else:
                raise RefusedError(self._refuse_cycle(cycle))

    def _order(self) -> dict[str, list[str]]:
        """Say who waits for whom, among the units of this transaction and those that have a job: stops go first."""
        types = {node.unit: node.type for node in self.nodes.values()}
        for name, job in sorted(self._ledger.job_of.items()):
            types.setdefault(name, job.type)
        order: dict[str, list[str]] = {unit: [] for unit in types}
        for unit, kind in types.items():
            for edge in self._ledger.graph[unit].after:
                if edge.other not in types:
                    continue
                if kind in jobs.STOP_LIKE:
                    order[edge.other].append(unit)
                else:
                    order[unit].append(edge.other)
        return order

    def _refuse_cycle(self, cycle: list[str]) -> Refusal:
        path = [*cycle, cycle[0]]
        return Refusal(
            "DependencyCycle",
            f"the order has a cycle: {' after '.join(path)}; remove one of these relations",
            {"path": path},
        )

    # dropping

    def _drop(self, key: Key, refusal: Refusal) -> None:
        """Remove a node, what cannot do without it, and what only they pulled in.

        Raises:
            RefusedError: an anchor would have to go that is not optional.
        """
        doomed = deque([key])
        while doomed:
            current = doomed.popleft()
            node = self.nodes.pop(current, None)
            if node is None:
                continue
            if node.anchor:
                if not self._goal.optional:
                    raise RefusedError(refusal)
                self.dropped[node.unit] = refusal
            doomed.extend(pull.by for pull in node.pulls if pull.matters and pull.by is not None)
        self._collect()

    def _collect(self) -> None:
        """Remove nodes that nobody pulls in any more."""
        while True:
            lost = [
                key
                for key, node in self.nodes.items()
                if not any(pull.by is None or pull.by in self.nodes for pull in node.pulls)
            ]
            if not lost:
                return
            for key in lost:
                del self.nodes[key]
