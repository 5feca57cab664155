"""Room for what is on its way in: in order, bounded, and not for those who stall."""

from __future__ import annotations

from millpond.wire.inflow import Inflow, Message


class Peers:
    """Messages by name, and who was let in."""

    def __init__(self, room: int) -> None:
        self.inflow = Inflow(room)
        self.open: list[str] = []
        self.messages: dict[str, Message] = {}

    def ask(self, name: str, size: int, *, peer: str = "") -> None:
        self.messages[name] = Message(peer or name, size, lambda: self.open.append(name))
        self.inflow.ask(self.messages[name])

    def over(self, name: str) -> None:
        self.inflow.over(self.messages[name])


def test_room_is_given_in_the_order_of_asking() -> None:
    peers = Peers(100)
    for name, size in (("a", 60), ("b", 60), ("c", 10)):
        peers.ask(name, size)
    assert peers.open == ["a"]  # c is small enough, but b would wait for ever
    peers.over("a")
    assert peers.open == ["a", "b", "c"]


def test_who_goes_away_before_his_turn_holds_up_nobody() -> None:
    peers = Peers(100)
    for name in ("a", "b", "c"):
        peers.ask(name, 80)
    peers.over("b")
    peers.over("a")
    assert peers.open == ["a", "c"]
    peers.over("c")
    peers.over("c")  # twice is nothing more
    peers.ask("d", 100)
    assert peers.open == ["a", "c", "d"]


def test_what_a_stalled_message_does_not_use_is_given_to_others() -> None:
    peers = Peers(100)
    peers.ask("stalls", 100)
    peers.ask("waits", 90)
    peers.messages["stalls"].came_bytes = 10
    peers.inflow.look()
    assert peers.open == ["stalls"]  # it came a moment ago
    peers.inflow.look()
    assert peers.open == ["stalls", "waits"]


def test_one_that_goes_on_after_all_is_counted_again() -> None:
    peers = Peers(100)
    peers.ask("late", 100)
    peers.ask("other", 60)
    peers.messages["late"].came_bytes = 50
    peers.inflow.look()
    assert peers.open == ["late"]
    peers.inflow.look()  # its window is closed
    assert peers.open == ["late"]
    peers.over("other")
    assert peers.open == ["late", "late"]
    peers.ask("next", 60)
    peers.over("late")
    assert peers.open == ["late", "late", "next"]
    peers.over("next")
    peers.ask("all of it", 100)
    assert peers.open[-1] == "all of it"
    peers.over("all of it")
    assert peers.inflow.is_idle


def test_a_peer_that_asks_for_much_keeps_nobody_waiting() -> None:
    peers = Peers(100)
    for number in range(20):
        peers.ask(f"greedy {number}", 20, peer="greedy")
    peers.ask("modest", 50)
    assert peers.open == ["greedy 0", "greedy 1", "modest"]  # half of the room, and not more
    peers.over("modest")
    peers.over("greedy 0")
    peers.ask("late", 20)
    assert peers.open[3:] == ["greedy 2", "late"]
    for name in list(peers.messages):
        peers.over(name)
    assert peers.inflow.is_idle


def test_what_stands_still_may_not_come_after_all_beyond_the_room() -> None:
    """Many that are announced, stall, and then all come."""
    inflow, held, closed, ended = Inflow(100), [], [], []
    for _ in range(20):
        message = Message("", 50, lambda: None, lambda: closed.append(1), lambda: ended.append(1))
        inflow.ask(message)
        held.append(message)
        inflow.look()
        inflow.look()
    assert len(closed) >= len(held) - 2  # of all but two the windows are closed again


def test_when_what_stands_still_leaves_no_room_the_largest_goes() -> None:
    inflow, ended = Inflow(100), []
    small, large, late = (
        Message(name, 60, lambda: None, give_up=lambda name=name: ended.append(name)) for name in "abc"
    )
    small.came_bytes = 20
    inflow.ask(small)
    inflow.look()
    inflow.look()
    large.came_bytes = 59
    inflow.ask(large)
    inflow.look()
    inflow.look()
    inflow.ask(late)
    inflow.look()
    inflow.look()
    assert "b" in ended


def test_half_of_the_room_is_kept_for_what_is_waited_for() -> None:
    inflow = Inflow(100)
    assert inflow.is_roomy
    inflow.ask(Message("a peer", 50, lambda: None))
    assert inflow.is_roomy
    inflow.ask(Message("another", 1, lambda: None))
    assert not inflow.is_roomy
