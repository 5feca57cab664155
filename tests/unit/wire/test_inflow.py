"""Room for what is on its way in: in order, bounded, and not for those who stall."""

from __future__ import annotations

from millpond.wire.inflow import Inflow, Message


class Peers:
    """Messages by name, and who was let in."""

    def __init__(self, room: int) -> None:
        self.inflow = Inflow(room)
        self.open: list[str] = []
        self.messages: dict[str, Message] = {}

    def ask(self, name: str, size: int) -> None:
        self.messages[name] = Message(size, lambda: self.open.append(name))
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
    peers.inflow.look()
    peers.inflow.look()
    peers.messages["late"].came_bytes = 50
    peers.inflow.look()
    peers.ask("next", 60)
    assert peers.open == ["late"]
    peers.over("late")
    assert peers.open == ["late", "next"]
    peers.over("next")
    peers.ask("all of it", 100)
    assert peers.open[-1] == "all of it"
