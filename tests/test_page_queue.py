"""Who works and who waits: visitors take turns, and one of them holds a share of the places."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from hierclass.errors import InputError
from hierclass.page import fair_queue
from hierclass.page.fair_queue import FairQueue, QueuePlace


class Line:
    """A queue with places that are left in any order."""

    def __init__(self, most: int, at_once: int = 1) -> None:
        self.queue = FairQueue(most, at_once)
        self.stacks: dict[QueuePlace, ExitStack] = {}

    def join(self, visitor: str) -> QueuePlace:
        stack = ExitStack()
        place = stack.enter_context(self.queue.joined(visitor))
        self.stacks[place] = stack
        return place

    def leave(self, place: QueuePlace) -> None:
        self.stacks.pop(place).close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test moves on."""
    now = [0.0]
    monkeypatch.setattr(fair_queue.time, "monotonic", lambda: now[0])
    return now


def test_visitors_take_turns_and_the_requests_of_one_are_in_order(clock: list[float]) -> None:
    line = Line(10)
    places = {name: line.join(name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c1")}
    order = []
    while places:
        (name,) = [name for name, place in places.items() if place.starts.is_set()]
        order.append(name)
        clock[0] += 1
        line.leave(places.pop(name))
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_comes_later_is_before_the_second_request_of_another() -> None:
    line = Line(10)
    first, second = line.join("a"), line.join("a")
    late = line.join("b")
    assert [line.queue.num_before(each) for each in (first, late, second)] == [0, 1, 2]
    line.leave(first)
    again = line.join("a")
    assert [line.queue.num_before(each) for each in (late, second, again)] == [0, 1, 2]


def test_those_who_worked_long_leave_a_place_to_others(clock: list[float]) -> None:
    line = Line(10, at_once=2)
    slow = line.join("a"), line.join("b")
    clock[0] += 10
    for place in slow:
        line.leave(place)
    first, second, other = line.join("a"), line.join("b"), line.join("c")
    assert [each.starts.is_set() for each in (first, second, other)] == [True, False, True]
    line.leave(other)
    assert not second.starts.is_set()
    line.leave(first)
    assert second.starts.is_set()
    clock[0] += 10 * fair_queue.HALF_LIFE  # forgotten
    assert line.join("a").starts.is_set()


def test_what_works_long_holds_up_nobody(clock: list[float]) -> None:
    line = Line(10, at_once=2)
    _, _, other, more = (line.join(visitor) for visitor in "abcd")
    assert not other.starts.is_set()
    clock[0] += 3
    assert list(other.wait()) == []
    assert line.queue.num_before(more) == 3
    jobs = Line(10)  # one at a time stays one at a time
    _, waits = jobs.join("a"), jobs.join("b")
    clock[0] += 3
    assert jobs.queue.num_before(waits) == 1


def test_one_visitor_leaves_room_to_work_for_others() -> None:
    line = Line(10, at_once=2)
    slow, waits = line.join("a"), line.join("a")
    other = line.join("b")
    assert [each.starts.is_set() for each in (slow, waits, other)] == [True, False, True]
    line.leave(slow)
    assert waits.starts.is_set()


def test_one_visitor_holds_half_of_the_places() -> None:
    line = Line(4)
    for _ in range(3):
        line.join("a")
    with pytest.raises(InputError, match="2 requests from your address wait"):
        line.join("a")
    for visitor in "bc":
        line.join(visitor)
    with pytest.raises(InputError, match="4 others wait for their turn"):
        line.join("d")


def test_a_place_that_is_left_is_free() -> None:
    line = Line(2)
    at_work, waits = line.join("a"), line.join("b")
    line.leave(waits)
    line.leave(at_work)
    assert line.join("c").starts.is_set()


def test_waiting_says_how_many_are_before_it_and_ends_when_it_may_work() -> None:
    line = Line(5)
    first, second = line.join("a"), line.join("b")
    waiting = second.wait()
    assert next(waiting) == 1
    threading.Timer(0.05, line.leave, [first]).start()
    assert list(waiting) in ([], [1])
