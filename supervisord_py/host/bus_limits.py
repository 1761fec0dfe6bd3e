"""What the bus counts: how often a unit may send, which messages it has sent already, what became of them.

Nothing here is touched by more than one thread, and nothing grows without a bound: ids are remembered for the newest
lives, as many as one life can have under way many times over.
"""

from collections import Counter, OrderedDict

from supervisord_py.model.log import Rate
from supervisord_py.wire.bus import Id

IDS_A_LIFE_MAX = 4096
IDS_MAX = 65_536
UNITS_MAX = 10_000


class Bucket:
    """Lets a rate through, and at once as much as one of its spans holds.

    Args:
        rate: How much.
        now_ns: Boot-clock or monotonic time [ns]; always the same clock.
    """

    def __init__(self, rate: Rate, now_ns: int) -> None:
        self.rate = rate
        self._level_ns = rate.span_ns
        self._filled_ns = now_ns

    def take(self, now_ns: int, times: int = 1) -> bool:
        """Say whether one more is let through, and take it; one that counts so often takes all there can be at most."""
        span_ns = self.rate.span_ns
        # The level is time, in which nothing is rounded: one message costs span / count of it.
        self._level_ns = min(span_ns, self._level_ns + max(0, now_ns - self._filled_ns))
        self._filled_ns = now_ns
        cost_ns = min(span_ns, -(-span_ns * times // self.rate.count))
        if self._level_ns < cost_ns:
            return False
        self._level_ns -= cost_ns
        return True


class Memory:
    """Which number a message got: one that is sent again gets the same."""

    def __init__(self) -> None:
        self._lives: OrderedDict[str, OrderedDict[Id, int]] = OrderedDict()
        self._count = 0

    def find(self, invocation: str, id: Id) -> int | None:
        """Return the number of a message of a life, None when it is new."""
        ids = self._lives.get(invocation)
        return None if ids is None else ids.get(id)

    def remember(self, invocation: str, id: Id, seq: int) -> None:
        ids = self._lives.setdefault(invocation, OrderedDict())
        self._lives.move_to_end(invocation)
        self._count += id not in ids
        ids[id] = seq
        if len(ids) > IDS_A_LIFE_MAX:
            ids.popitem(last=False)
            self._count -= 1
        while self._count > IDS_MAX:
            # Those of the life that has been silent for longest, which waits for nothing any more.
            _, forgotten = self._lives.popitem(last=False)
            self._count -= len(forgotten)


class Meter:
    """Counts by unit what became of messages since this manager began: ``sent``, ``delivered``, ``dropped``, and each
    refusal by its slug."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.by_unit: dict[str, Counter[str]] = {}

    def count(self, unit: str, what: str, times: int = 1) -> None:
        self.total[what] += times
        counter = self.by_unit.get(unit)
        if counter is None:
            if len(self.by_unit) >= UNITS_MAX:
                return
            counter = self.by_unit[unit] = Counter()
        counter[what] += times
