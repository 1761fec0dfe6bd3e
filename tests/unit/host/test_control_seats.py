"""Connections are bounded, and no crowd keeps the operator out."""

from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.host.control_seats import Seat, SeatLimits, Seats

OWN_UID = 4000


def seats(**limits: int) -> Seats:
    return Seats(SeatLimits(**limits), own_uid=OWN_UID)


def take(room: Seats, uid: int, now_s: float = 0.0) -> Seat:
    seat, _ = room.take(uid, now_s)
    assert seat is not None
    return seat


def test_a_uid_beyond_its_bound_gives_up_its_own_idle_seat() -> None:
    """The connection of a uid that stays silent goes first, then the one that is idle longest."""
    room = seats(total=10, reserved=1, per_uid=2)
    caller, silent = take(room, 7, 1.0), take(room, 7, 2.0)
    other = take(room, 8, 0.0)
    caller.has_called = True
    seat, victim = room.take(7, 3.0)
    assert (seat is not None, victim) == (True, silent)
    assert room.take(7, 3.5)[1] is caller
    assert other.subject == "uid 8"
    assert len(room) == 3


def test_a_newcomer_is_not_the_first_to_go() -> None:
    """In a crowd that has made its calls, who has just come and is about to call keeps the seat."""
    room = seats(total=2, reserved=0)
    newcomer, caller = take(room, 0, 1.0), take(room, 0, 1.1)
    caller.has_called = True
    assert room.take(0, 1.2)[1] is caller
    assert room.take(0, 1.3)[1] is newcomer


def test_busy_seats_are_never_taken() -> None:
    """When all of a uid's connections are at work, its next one is turned away."""
    room = seats(total=10, reserved=1, per_uid=1)
    take(room, 7).is_busy = True
    assert room.take(7, 1.0) == (None, None)


def test_root_is_not_bound_by_the_number_a_uid() -> None:
    """Root and the own user have as many as there are."""
    room = seats(total=10, reserved=1, per_uid=1)
    for _ in range(5):
        assert room.take(0, 0.0)[1] is None
        assert room.take(OWN_UID, 0.0)[1] is None
    assert len(room) == 10


def test_the_last_seats_are_roots() -> None:
    """Busy users leave the reserved seats to root."""
    room = seats(total=6, reserved=2, per_uid=9)
    for _ in range(4):
        take(room, 7).is_busy = True
    assert room.take(8, 0.0) == (None, None)
    assert take(room, 0)
    assert take(room, OWN_UID)
    assert room.take(0, 0.0) == (None, None) or len(room) == 6


def test_a_full_room_loses_a_seat_of_who_holds_most() -> None:
    """A newcomer to a full room gets the idle seat of the subject that holds most, not that of a neighbour."""
    room = seats(total=6, reserved=0, per_uid=9)
    for number in range(4):
        take(room, 0, float(number))
    quiet = take(room, 8, -5.0)
    take(room, 9)
    seat, victim = room.take(10, 9.0)
    assert seat is not None
    assert victim is not None
    assert (victim.subject, victim.touched_s) == ("uid 0", 0.0)
    assert quiet is not victim


def test_a_units_connections_are_counted_together() -> None:
    """Agents of one unit share its seats, whatever their uid, and are no longer privileged."""
    room = seats(total=10, reserved=1, per_uid=9, per_unit=2)
    first, second, third = (take(room, 0) for _ in range(3))
    assert room.become_unit(first, "planner")
    assert room.become_unit(second, "planner")
    assert not room.become_unit(third, "planner")
    room.leave(third)
    assert (first.subject, first.privileged) == ("unit planner", False)
    assert not room.become_unit(third, "planner")


def test_room_is_made_when_descriptors_run_out() -> None:
    """An idle seat is given up, none when all are busy, and leaving twice does no harm."""
    room = seats()
    seat = take(room, 7)
    seat.is_busy = True
    assert room.give_up_one(9.0) is None
    seat.is_busy = False
    assert room.give_up_one(9.0) is seat
    room.leave(seat)
    assert len(room) == 0


STEPS = st.lists(st.tuples(st.sampled_from(["take", "leave", "busy", "idle"]), st.integers(0, 12)), max_size=200)


@given(STEPS)
def test_the_bounds_hold_whatever_comes(steps: list[tuple[str, int]]) -> None:
    """No order of comings and goings breaks a bound, and an idle crowd never keeps root out."""
    limits = SeatLimits(total=8, reserved=2, per_uid=3, per_unit=2)
    room = Seats(limits, own_uid=OWN_UID)
    held: list[Seat] = []
    for now_s, (step, number) in enumerate(steps):
        if step == "take":
            seat, victim = room.take(number % 4, float(now_s))
            if victim is not None:
                assert not victim.is_busy
                held.remove(victim)
            if seat is not None:
                held.append(seat)
        elif held:
            seat = held[number % len(held)]
            if step == "leave":
                held.remove(seat)
                room.leave(seat)
            else:
                seat.is_busy = step == "busy"
        assert len(room) == len(held) <= limits.total
        for uid in (1, 2, 3):
            assert sum(seat.subject == f"uid {uid}" for seat in held) <= limits.per_uid
        assert sum(not seat.privileged for seat in held) <= limits.total
    if any(not seat.is_busy for seat in held) or len(held) < limits.total:
        assert room.take(0, 1e9)[0] is not None
