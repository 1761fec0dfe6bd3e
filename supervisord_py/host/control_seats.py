"""Which connections there may be: a bounded number, and none of them able to keep the operator out.

Theory of operation
-------------------
Every connection holds a seat. Seats are bounded in all and for each subject (a uid, a key, a unit once the peer is
known to be one); root and the supervisor's own user are bounded in all only, and the last ``reserved`` seats are
theirs.
When a newcomer finds no seat, an idle connection gives up its own: of the same subject when the subject's bound is
reached, else of the subject that holds most. Who stays silent goes first, then who was answered and is idle longest,
then newcomers. A connection with a call in flight is never put out.

So 5,000 connections that say nothing push out each other, and whoever comes to work gets a seat.
"""

from collections import Counter

from msgspec import Struct

SILENT_S = 1.0
"""A connection that has made no call for so long is one that does not mean to. A younger one is a newcomer whose call
is on its way: it must not be what a crowd pushes out."""


class SeatLimits(Struct, frozen=True):
    """Numbers of connections. ``per_uid`` is not for root and the supervisor's own user, ``per_unit`` is for every
    unit, ``per_key`` for every key that comes over TCP."""

    total: int = 512
    reserved: int = 16
    per_uid: int = 128
    per_unit: int = 32
    per_key: int = 32


class Seat:
    """One connection's place. ``touched_s`` is when it last finished something [s]."""

    def __init__(self, subject: str, *, privileged: bool, touched_s: float) -> None:
        self.subject = subject
        self.privileged = privileged
        self.touched_s = touched_s
        self.has_called = False
        self.is_busy = False

    def worth(self, now_s: float) -> int:
        """Return how late an idle seat is to be given up: the silent first, newcomers last."""
        if self.has_called:
            return 1
        return 2 if now_s - self.touched_s < SILENT_S else 0


class Seats:
    """All seats of one server."""

    def __init__(self, limits: SeatLimits, *, own_uid: int) -> None:
        self._limits = limits
        self._own_uid = own_uid
        # A dict keeps the order of arrival, and taking a seat out of the middle is cheap.
        self._seats: dict[Seat, None] = {}
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._seats)

    def take(self, uid: int, now_s: float) -> tuple[Seat | None, Seat | None]:
        """Give a seat to a newcomer.

        Returns:
            The seat, or None when there is none; and the seat that was taken from an idle connection for it, which
            must be closed.
        """
        return self._take(f"uid {uid}", self._limits.per_uid, now_s, privileged=uid in (0, self._own_uid))

    def take_for_key(self, name: str, now_s: float) -> tuple[Seat | None, Seat | None]:
        """As ``take``, for somebody who shows a key."""
        return self._take(f"key {name}", self._limits.per_key, now_s, privileged=False)

    def _take(self, subject: str, most: int, now_s: float, *, privileged: bool) -> tuple[Seat | None, Seat | None]:
        total = self._limits.total if privileged else self._limits.total - self._limits.reserved
        victim = None
        if not privileged and self._held[subject] >= most:
            victim = self._idle_seat(subject, now_s)
        elif len(self._seats) >= total:
            victim = self._idle_seat(None, now_s)
        else:
            return self._sit(subject, privileged, now_s), None
        if victim is None:
            return None, None
        self.leave(victim)
        return self._sit(subject, privileged, now_s), victim

    def become_unit(self, seat: Seat, unit: str) -> bool:
        """Note that the peer is a process of ``unit``, whatever its uid; False when the unit holds too many seats."""
        if seat not in self._seats:
            return False
        self._count(seat, -1)
        seat.subject, seat.privileged = f"unit {unit}", False
        self._count(seat, 1)
        return self._held[seat.subject] <= self._limits.per_unit

    def leave(self, seat: Seat) -> None:
        """Free a seat; one that is free already is left alone."""
        if seat in self._seats:
            del self._seats[seat]
            self._count(seat, -1)

    def give_up_one(self, now_s: float) -> Seat | None:
        """Free the seat that a newcomer of root would get (no descriptor is left, say); None when all are busy."""
        victim = self._idle_seat(None, now_s)
        if victim is not None:
            self.leave(victim)
        return victim

    def _sit(self, subject: str, privileged: bool, now_s: float) -> Seat:
        seat = Seat(subject, privileged=privileged, touched_s=now_s)
        self._seats[seat] = None
        self._count(seat, 1)
        return seat

    def _count(self, seat: Seat, change: int) -> None:
        self._held[seat.subject] += change
        if not self._held[seat.subject]:
            del self._held[seat.subject]

    def _idle_seat(self, subject: str | None, now_s: float) -> Seat | None:
        """The idle seat to give up: of ``subject``, or of the one with most seats."""
        if subject is None:
            idle = Counter(seat.subject for seat in self._seats if not seat.is_busy)
            if not idle:
                return None
            subject = max(idle, key=lambda name: (self._held[name], name))
        return min(
            (seat for seat in self._seats if seat.subject == subject and not seat.is_busy),
            key=lambda seat: (seat.worth(now_s), seat.touched_s),
            default=None,
        )
