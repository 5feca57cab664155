"""What every index of names promises; an implementation is one that passes this.

A new one adopts it by a factory in ``PLACES``.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, NameNotFound, NotReady
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.interface import NameIndex, NumberSource
from millpond.names.lmdb_names import LmdbNames
from millpond.names.memory import MemoryNames, Shelf

BLOB, DIRECTORY = Namespace.ASSET_BLOB, Namespace.ASSET_DIRECTORY
CALLERS = 8
MANY = 600  # more than one chunk of a listing


class Names(NameIndex, NumberSource, Protocol):
    """Every implementation plays both roles."""


class Elsewhere(Protocol):
    """What the tests ask of a second index over the same names."""

    def resolve(self, name: Name) -> Binding: ...
    def bind(self, bindings: Any) -> None: ...
    def take_numbers(self, count: int) -> range: ...


class Place(Protocol):
    """Where names outlive the index that wrote them."""

    def open(self) -> Names:
        """The index, fresh; what was open before is closed."""

    def elsewhere(self) -> Elsewhere:
        """One more index over the same names: where it can be, in another process."""

    def leave(self) -> None: ...


class MemoryPlace:
    def __init__(self, _: Path) -> None:
        self.shelf = Shelf()
        self.index = MemoryNames(self.shelf)

    def open(self) -> MemoryNames:
        self.index.close()
        self.index = MemoryNames(self.shelf)
        return self.index

    def elsewhere(self) -> MemoryNames:
        return MemoryNames(self.shelf)

    def leave(self) -> None:
        self.index.close()


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from millpond.core.errors import NameNotFound
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames

index = LmdbNames(Path(sys.argv[1]))
for line in sys.stdin:
    verb, *rest = json.loads(line)
    if verb == "take":
        numbers = index.take_numbers(*rest)
        answer = [numbers.start, numbers.stop]
    else:
        name = Name(rest[0], Namespace(rest[1]), rest[2])
        try:
            answer = index.bind([(name, Binding.decode(rest[3].encode()))]) if verb == "bind" else (
                index.resolve(name).encode().decode())
        except NameNotFound:
            answer = None
    print(json.dumps(answer), flush=True)
index.close()
"""


class OtherProcess:
    """An LmdbNames in a Python process of its own."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *question: object) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def resolve(self, name: Name) -> Binding:
        answer = self.ask("resolve", name.instance, name.namespace, name.key)
        if answer is None:
            raise NameNotFound(name.key)
        return Binding.decode(answer.encode())

    def bind(self, bindings: Any) -> None:
        for name, binding in bindings:
            self.ask("bind", name.instance, name.namespace, name.key, binding.encode().decode())

    def take_numbers(self, count: int) -> range:
        return range(*self.ask("take", count))

    def end(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


class LmdbPlace:
    def __init__(self, path: Path) -> None:
        self.path = path / "names"
        self.index: LmdbNames | None = None
        self.others: list[OtherProcess] = []

    def open(self) -> LmdbNames:
        if self.index:
            self.index.close()
        self.index = LmdbNames(self.path)
        return self.index

    def elsewhere(self) -> OtherProcess:
        self.others.append(OtherProcess(self.path))
        return self.others[-1]

    def leave(self) -> None:
        for other in self.others:
            other.end()
        if self.index:
            self.index.close()


PLACES: dict[str, Callable[[Path], Place]] = {"memory": MemoryPlace, "lmdb": LmdbPlace}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = PLACES[request.param](tmp_path)
    yield place
    place.leave()


@pytest.fixture
def make_names(place: Place) -> Callable[[], Names]:
    """Opens the index; again after a close, with what it held."""
    return place.open


MakeNames = Callable[[], Names]


def name(key: str, namespace: Namespace = BLOB, instance: str = "main") -> Name:
    return Name(instance, namespace, key)


def binding(text: str, **fields: Any) -> Binding:
    return Binding(Digest.of(text.encode()), 1_700_000_000_000, **fields)


class Hesitant(Name):
    """A name that lets another thread run whenever it is looked at: what is not locked shows."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        time.sleep(0)
        return super().__eq__(other)


class HesitantCount(int):
    def __radd__(self, other: int) -> int:
        time.sleep(0)
        return other + int(self)


def hesitant(key: str) -> Name:
    return Hesitant("main", BLOB, key)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """The results of ``CALLERS`` threads, made to change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            return list(pool.map(work, range(CALLERS)))
    finally:
        sys.setswitchinterval(interval)


# -- bind and resolve ---------------------------------------------------------------------------------------------


def test_a_name_resolves_to_all_that_was_bound(make_names: MakeNames) -> None:
    index = make_names()
    whole = binding(
        "a",
        pushed_by="principal ✓",
        blobs=(Digest.of(b"b"), Digest.of(b"c")),
        directories=(Digest.of(b"d"),),
        expires_at_ms=1_800_000_000_000,
        closure_bytes=2**40,
        foreign=True,
        message=b"\x12\x00as received\xff",
    )
    index.bind([(name("key"), whole)])
    assert index.resolve(name("key")) == whole


def test_a_name_that_is_not_bound_is_not_found_and_the_answer_says_which(make_names: MakeNames) -> None:
    index = make_names()
    with pytest.raises(NameNotFound, match="no-such-key"):
        index.resolve(name("no-such-key"))


def test_a_miss_with_an_endless_key_still_fits_a_status_message(make_names: MakeNames) -> None:
    with pytest.raises(NameNotFound) as miss:
        make_names().resolve(name("k" * 100_000))
    assert len(str(miss.value)) < 1_000


@pytest.mark.parametrize(
    "neighbour", [name("other"), name("key", DIRECTORY), name("key", instance="other"), name("ey", instance="maink")]
)
def test_names_that_differ_in_one_part_are_strangers(make_names: MakeNames, neighbour: Name) -> None:
    index = make_names()
    index.bind([(name("key"), binding("a"))])
    with pytest.raises(NameNotFound):
        index.resolve(neighbour)


@pytest.mark.parametrize("key", ["", "\0", "line\nfeed", "ü☃𝄞", "k" * 100_000], ids=lambda key: repr(key[:9]))
def test_any_text_is_a_key(make_names: MakeNames, key: str) -> None:
    index = make_names()
    index.bind([(name(key), binding("a"))])
    assert index.resolve(name(key)) == binding("a")
    assert [found for found, _ in index.names()] == [name(key)]


def test_binding_again_replaces(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("old", pushed_by="somebody"))])
    index.bind([(name("key"), binding("new"))])
    assert index.resolve(name("key")) == binding("new")
    assert len(list(index.names())) == 1


def test_without_overwriting_a_name_that_is_bound_stays_and_the_others_are_bound(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("a"), binding("first"))])
    index.bind_later([(name("a"), binding("second")), (name("b"), binding("second"))], overwrite=False).result()
    assert index.resolve(name("a")) == binding("first")
    assert index.resolve(name("b")) == binding("second")


def test_what_comes_first_is_done_before_a_name_is_written(make_names: MakeNames) -> None:
    index = make_names()
    seen: list[bool] = []

    def look() -> None:
        with pytest.raises(NameNotFound):
            index.resolve(name("key"))
        seen.append(True)

    index.bind_later([(name("key"), binding("a"))], first=look).result()
    assert seen == [True]
    assert index.resolve(name("key")) == binding("a")


def test_where_what_comes_first_fails_nothing_is_written(make_names: MakeNames) -> None:
    index = make_names()
    why = IncompleteClosure("something is missing")

    def fail() -> None:
        raise why

    failing = index.bind_later([(name("key"), binding("a")), (name("more"), binding("a"))], first=fail)
    other = index.bind_later([(name("other"), binding("b"))])
    assert failing.exception() is why
    other.result()
    assert [found for found, _ in index.names()] == [name("other")]


def test_of_eight_who_do_not_overwrite_one_wins(make_names: MakeNames) -> None:
    index = make_names()
    key = hesitant("key")
    offers = [binding(f"{number}") for number in range(CALLERS)]
    at_once(lambda number: index.bind_later([(key, offers[number])], overwrite=False).result())
    winner = index.resolve(key)
    assert winner in offers
    index.bind_later([(key, binding("late"))], overwrite=False).result()
    assert index.resolve(key) == winner


def test_of_two_bindings_in_one_call_the_last_stays(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("first")), (name("key"), binding("last"))])
    assert index.resolve(name("key")) == binding("last")


def test_several_names_are_bound_by_one_call_and_none_by_an_empty_one(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([])
    assert list(index.names()) == []
    index.bind([(name(str(i)), binding(str(i))) for i in range(10)])
    assert dict(index.names()) == {name(str(i)): binding(str(i)) for i in range(10)}


def test_all_are_bound_or_none(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("held"), binding("before"))])
    unwritable = binding("b", extra={"what": object()})
    with pytest.raises(TypeError):
        index.bind([(name("held"), binding("after")), (name("good"), binding("a")), (name("bad"), unwritable)])
    assert dict(index.names()) == {name("held"): binding("before")}


def test_a_binding_with_100_000_references_is_held(make_names: MakeNames) -> None:
    index = make_names()
    large = binding("a", blobs=tuple(Digest.of(b"%d" % i) for i in range(100_000)))
    index.bind([(name("large"), large)])
    assert index.resolve(name("large")) == large


def test_what_was_written_does_not_change_with_the_callers_objects(make_names: MakeNames) -> None:
    index, extra = make_names(), {"tags": ["a"]}
    index.bind([(name("key"), binding("a", extra=extra))])
    extra["tags"].append("b")
    index.resolve(name("key")).extra["tags"].append("c")
    assert index.resolve(name("key")).extra == {"tags": ["a"]}


def test_fields_of_a_newer_millpond_survive_a_read_and_a_write(make_names: MakeNames) -> None:
    index = make_names()
    newer = binding("a", extra={"reviewed": {"by": ["ü", None, 1.5]}})
    index.bind([(name("key"), newer)])
    index.bind([(name("key"), replace(index.resolve(name("key")), expires_at_ms=5))])
    index = make_names()
    assert index.resolve(name("key")) == replace(newer, expires_at_ms=5)


# -- unbind -------------------------------------------------------------------------------------------------------


def test_an_unbound_name_is_gone_and_its_neighbours_are_not(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("a")), (name("other"), binding("b"))])
    assert index.unbind(name("key")) is True
    with pytest.raises(NameNotFound):
        index.resolve(name("key"))
    assert dict(index.names()) == {name("other"): binding("b")}
    assert dict(make_names().names()) == {name("other"): binding("b")}


def test_unbinding_what_is_not_bound_removes_nothing(make_names: MakeNames) -> None:
    index = make_names()
    assert index.unbind(name("key")) is False
    assert index.unbind(name("key"), expected=binding("a")) is False


def test_a_name_that_was_bound_anew_meanwhile_is_not_unbound(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("a"))])
    assert index.unbind(name("key"), expected=binding("a", closure_bytes=1)) is False
    assert index.unbind(name("key"), expected=binding("b")) is False
    assert index.resolve(name("key")) == binding("a")
    assert index.unbind(name("key"), expected=binding("a")) is True
    assert list(index.names()) == []


def test_unbinding_leaves_the_name_free_for_the_next(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("a"))])
    index.unbind(name("key"))
    index.bind([(name("key"), binding("b"))])
    assert index.resolve(name("key")) == binding("b")


@pytest.mark.parametrize("expected", [None, binding("a")], ids=["whatever", "expected"])
def test_of_eight_who_unbind_one_name_one_is_told_so(make_names: MakeNames, expected: Binding | None) -> None:
    index = make_names()
    keys = [str(i) for i in range(50)]
    index.bind([(hesitant(key), binding("a")) for key in keys])
    told = at_once(lambda _: [index.unbind(hesitant(key), expected=expected) for key in keys])
    assert [sum(column) for column in zip(*told, strict=True)] == [1] * len(keys)


# -- listing ------------------------------------------------------------------------------------------------------


def test_a_listing_is_complete_and_by_namespace(make_names: MakeNames) -> None:
    index = make_names()
    blobs = {name(str(i), instance=f"i{i % 3}"): binding(str(i)) for i in range(MANY)}
    directories = {name(str(i), DIRECTORY): binding(str(i)) for i in range(5)}
    index.bind([*blobs.items(), *directories.items()])
    assert sorted(map(repr, index.names())) == sorted(map(repr, [*blobs.items(), *directories.items()]))
    assert dict(index.names(BLOB)) == blobs
    assert dict(index.names(DIRECTORY)) == directories


def test_a_listing_goes_on_while_names_come_and_go(make_names: MakeNames) -> None:
    index = make_names()
    staying = {name(f"stays {i}"): binding("a") for i in range(MANY)}
    leaving = {name(f"leaves {i}"): binding("a") for i in range(MANY)}
    index.bind([*staying.items(), *leaving.items()])
    listing = index.names()
    seen = [next(listing)]
    for key in list(leaving)[:20]:
        index.unbind(key)
    index.bind([(name(f"comes {i}"), binding("a")) for i in range(MANY)])
    seen += listing
    keys = [key for key, _ in seen]
    assert len(keys) == len(set(keys))
    assert staying.keys() | set(list(leaving)[20:]) <= set(keys)


# -- durability, other processes, threads -------------------------------------------------------------------------


def test_names_outlive_the_index(make_names: MakeNames) -> None:
    index = make_names()
    index.bind([(name("key"), binding("a"))])
    index.close()
    index = make_names()
    assert index.resolve(name("key")) == binding("a")
    assert dict(index.names()) == {name("key"): binding("a")}


def test_every_process_sees_at_once_what_another_has_bound(make_names: MakeNames, place: Place) -> None:
    index = make_names()
    other = place.elsewhere()
    with pytest.raises(NameNotFound):
        other.resolve(name("key"))
    for i in range(20):
        index.bind([(name("key"), binding(str(i)))])
        assert other.resolve(name("key")) == binding(str(i))
        other.bind([(name("key"), binding(f"back {i}"))])
        assert index.resolve(name("key")) == binding(f"back {i}")
    index.unbind(name("key"))
    with pytest.raises(NameNotFound):
        other.resolve(name("key"))


def test_eight_threads_bind_at_once_and_each_finds_its_own(make_names: MakeNames) -> None:
    index = make_names()

    def caller(number: int) -> None:
        for i in range(50):
            mine = name(f"{number}/{i}")
            index.bind([(mine, binding(mine.key)), (name("shared"), binding(mine.key))])
            assert index.resolve(mine) == binding(mine.key)

    at_once(caller)
    index = make_names()
    assert {found.key for found, _ in index.names()} == {"shared"} | {
        f"{c}/{i}" for c in range(CALLERS) for i in range(50)
    }


def test_who_resolves_one_of_what_was_bound_together_resolves_all(make_names: MakeNames) -> None:
    index = make_names()
    keys = [f"{i}" for i in range(50)]
    readers_done: list[int] = []

    def write(turn: int) -> None:
        index.bind([(hesitant(key), binding("a", closure_bytes=turn)) for key in keys])

    def read() -> None:
        first, last = (index.resolve(hesitant(key)).closure_bytes for key in (keys[0], keys[-1]))
        assert first <= last  # what is read later is never older

    def caller(number: int) -> None:
        turn = 0
        while number == 0 and len(readers_done) < CALLERS - 1:
            turn += 1
            write(turn)
        try:
            for _ in range(100 if number else 0):
                read()
        finally:
            readers_done.append(number)

    write(0)
    at_once(caller)


def test_a_binding_that_cannot_be_written_does_not_spoil_its_neighbours(make_names: MakeNames) -> None:
    index = make_names()

    def caller(number: int) -> None:
        for i in range(30):
            if number % 2:
                index.bind([(name(f"{number}/{i}"), binding("a"))])
            else:
                with pytest.raises(TypeError):
                    index.bind([(name(f"{number}/{i}"), binding("a", extra={"what": object()}))])

    at_once(caller)
    assert len(list(index.names())) == CALLERS // 2 * 30


# -- numbers ------------------------------------------------------------------------------------------------------


def test_numbers_are_positive_ascending_and_as_many_as_asked_for(make_names: MakeNames) -> None:
    index = make_names()
    first, second, none, third = (index.take_numbers(count) for count in (64, 1, 0, 3))
    assert [len(numbers) for numbers in (first, second, none, third)] == [64, 1, 0, 3]
    assert first.start > 0
    assert first.stop <= second.start < second.stop <= third.start


def test_a_number_is_never_given_out_twice_across_closing_and_processes(make_names: MakeNames, place: Place) -> None:
    taken: list[int] = []
    for _ in range(3):
        index = make_names()
        other = place.elsewhere()
        for count in (1, 64, 2):
            taken += index.take_numbers(count)
            taken += other.take_numbers(count)
    assert len(set(taken)) == len(taken)
    assert taken == sorted(taken)


def test_eight_threads_never_get_one_number_twice(make_names: MakeNames) -> None:
    index = make_names()
    taken = at_once(lambda _: [number for _ in range(200) for number in index.take_numbers(HesitantCount(3))])
    assert len({number for numbers in taken for number in numbers}) == CALLERS * 200 * 3


def test_numbers_are_no_names(make_names: MakeNames) -> None:
    index = make_names()
    index.take_numbers(64)
    assert list(index.names()) == []


# -- closing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda index: index.bind([(name("key"), binding("a"))]),
        lambda index: index.bind([]),
        lambda index: index.resolve(name("key")),
        lambda index: index.unbind(name("key")),
        lambda index: list(index.names()),
        lambda index: index.take_numbers(1),
    ],
    ids=["bind", "bind nothing", "resolve", "unbind", "names", "take_numbers"],
)
def test_after_close_every_call_says_not_ready_and_changes_nothing(
    make_names: MakeNames, call: Callable[[Names], object]
) -> None:
    index = make_names()
    index.bind([(name("held"), binding("a"))])
    index.close()
    index.close()
    with pytest.raises(NotReady):
        call(index)
    assert dict(make_names().names()) == {name("held"): binding("a")}


def test_what_is_under_way_at_close_is_done_or_refused(make_names: MakeNames) -> None:
    index = make_names()

    def caller(number: int) -> list[Name]:
        done: list[Name] = []
        try:
            while True:
                mine = name(f"{number}/{len(done)}")
                index.bind([(mine, binding("a"))])
                done.append(mine)
                index.resolve(mine)
                if number == 0 and len(done) == 30:
                    index.close()
        except NotReady:
            return done

    bound = at_once(caller)
    held = {found for found, _ in make_names().names()}
    assert held == {key for keys in bound for key in keys}
