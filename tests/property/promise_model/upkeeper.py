"""What the upkeeper does to make room: move what is to be kept, give the rest up, and finish what another began.

Which untouched blobs it finds worth keeping is left open: every choice is tried. What was touched while the model runs
is never old enough to go.
"""

from __future__ import annotations

from collections.abc import Iterator

from .steps import Steps
from .world import FORWARD, OPEN, SEALED, SWEEPING, File, Row, Step, World, at, changed, joined, lies_in, linked


class UpkeeperSteps(Steps):
    """Rounds of eviction, and what a successor does first."""

    def begin(self, world: World, me: int, rest: tuple[Step, ...], rounds: int) -> list[World]:
        """begins"""
        steps: list[Step] = [("fence",)] if self.rules.fences else []
        for number, row in enumerate(world.index.rows, start=1):
            if row is not None and row.state == SWEEPING and self.rules.finishes:
                steps += self._finishing(world, number)
            elif row is not None and row.state == SWEEPING and self.rules.withdraws:
                steps.append(("withdraw", number))
            elif row is not None and row.state == FORWARD and self.rules.clears:
                steps += [("unlink", number), ("drop_row", number)]
        if self.rules.clears_by_lock_alone:
            for file in world.files:
                if file.linked and world.index.row(file.number) is None and file.locked_by < 0:
                    steps.append(("unlink", file.number))
        return [self.then(world, me, rest, *steps, ("round", rounds))]

    def fence(self, world: World, me: int, rest: tuple[Step, ...]) -> list[World]:
        """takes the exclusive lock and lets it go"""
        # Whoever looked at a name before its last blobs were moved has noted by now that it is used.
        if any(process.lock == "shared" for process in world.processes):
            return []
        return [self.then(world, me, rest)]

    def withdraw(self, world: World, me: int, rest: tuple[Step, ...], number: int) -> list[World]:
        """takes the mark of segment {0} back"""
        row = world.index.row(number)
        assert row is not None
        return [self.then(world, me, rest, index=world.index.with_row(number, row._replace(state=SEALED)))]

    def round(self, world: World, me: int, rest: tuple[Step, ...], rounds: int) -> list[World]:
        """reads the logs and chooses a victim"""
        if not rounds:
            return [self.then(world, me, rest)]
        used = self._in_use(world)
        worlds = []
        for number, row in enumerate(world.index.rows, start=1):
            if (
                row is None
                or row.suspect
                or row.state not in ((SEALED, OPEN) if self.rules.takes_from_open else (SEALED,))
            ):
                continue
            here = self._blobs_in(world, number)
            hot = "".join(blob for blob in here if blob in used)
            for kept in _with_some(hot, "".join(blob for blob in here if blob not in used)):
                moving: tuple[Step, ...] = (("forward", number, kept),) if kept else ()
                steps = (*moving, ("check", number, rounds))
                worlds.append(self.then(world, me, rest, *steps, used=used, log=()))
        return worlds or [self.then(world, me, rest, used=used, log=())]

    # -- (1) move what is to be kept ------------------------------------------------------------------------------

    def forward(self, world: World, me: int, rest: tuple[Step, ...], victim: int, kept: str) -> list[World]:
        """says that it begins a forward segment"""
        number = self.fresh_number(world)
        index = world.index.with_row(number, Row(FORWARD))
        steps = ("create_forward", number, kept), ("copy", number, victim, kept)
        return [self.then(world, me, rest, *steps, index=index, counter=max(number, world.counter))]

    def create_forward(self, world: World, me: int, rest: tuple[Step, ...], number: int, kept: str) -> list[World]:
        """makes forward segment {0} with copies of {1}"""
        return [self.then(world, me, rest, files=(*world.files, File(number, kept, locked_by=me)))]

    def copy(self, world: World, me: int, rest: tuple[Step, ...], number: int, victim: int, kept: str) -> list[World]:
        """syncs forward segment {0}, writes its footer, and syncs it again"""  # Sealer
        place = linked(world, number)
        files = self.synced(world, place) if self.rules.syncs_copies else world.files
        file = files[place]
        if self.rules.syncs_copies:
            file = file._replace(footer=kept, footer_synced=True)
        if not self.rules.syncs_directory_of_copies:
            file = file._replace(entered=False)
        files = changed(files, place, file)
        return [self.then(world, me, rest, ("repoint", number, victim, kept), files=files)]

    def repoint(
        self, world: World, me: int, rest: tuple[Step, ...], number: int, victim: int, kept: str
    ) -> list[World]:
        """points {2} from segment {1} to segment {0}"""
        index = world.index
        for offset, blob in enumerate(kept):
            if lies_in(world.index, blob, victim):
                index = index._replace(entries=changed(index.entries, at(blob), (number, offset)))
        index = index.with_row(number, Row(SEALED, len(kept), len(kept)))
        row = index.row(victim)
        if row is not None and self.rules.raises_incarnation:
            index = index.with_row(victim, row._replace(incarnation=row.incarnation + 1))
        place = linked(world, number)
        files = changed(world.files, place, world.files[place]._replace(locked_by=-1))
        return [self.then(world, me, rest, index=index, files=files)]

    # -- (2) give up the rest, or let go --------------------------------------------------------------------------

    def check(self, world: World, me: int, rest: tuple[Step, ...], victim: int, rounds: int) -> list[World]:
        """takes the exclusive lock and reads the logs to their ends"""
        lock = ""
        if self.rules.promise_lock:
            if any(process.lock == "shared" for process in world.processes):
                return []
            lock = "exclusive"
        used, names, log = world.used, set[int](), world.log
        if self.rules.reads_logs_again:
            names = self._segments_of_names(world)
            # Names are walked before the next choice, not under the lock.
            used = joined(used, "".join(what for kind, what in log if kind == "lease"))
            log = tuple(line for line in log if line[0] == "name")
        wanted = victim in names or any(lies_in(world.index, blob, victim) for blob in used)
        if wanted:
            return [self.then(world, me, rest, ("let_go", rounds - 1), lock=lock, used=used, log=log)]
        if not self.rules.marks_under_lock:
            lock = ""
        return [self.then(world, me, rest, ("mark", victim, rounds - 1), lock=lock, used=used, log=log)]

    def let_go(self, world: World, me: int, rest: tuple[Step, ...], rounds: int) -> list[World]:
        """lets the victim go, because it was used meanwhile"""
        return [self.then(world, me, rest, ("round", rounds), lock="")]

    def mark(self, world: World, me: int, rest: tuple[Step, ...], victim: int, rounds: int) -> list[World]:
        """marks segment {0} sweeping and lets the lock go"""
        row = world.index.row(victim)
        assert row is not None
        lost = set(self._blobs_in(world, victim))
        whole = tuple(one for one in world.whole if not lost.intersection(self.closure(*one)))
        index = world.index.with_row(victim, row._replace(state=SWEEPING))
        world = world._replace(index=index, whole=whole)
        return [self.then(world, me, rest, *self._finishing(world, victim), ("round", rounds), lock="")]

    # -- (3), (4) take it away ------------------------------------------------------------------------------------

    def _finishing(self, world: World, victim: int) -> list[Step]:
        place = linked(world, victim)
        deletes: list[Step] = [
            ("delete", victim, blob) for blob in self._blobs(world) if place >= 0 and blob in world.files[place].records
        ]
        unlink: list[Step] = [("unlink", victim)]
        order = deletes + unlink if self.rules.entries_before_bytes else unlink + deletes
        return [*order, ("drop_row", victim)]

    def delete(self, world: World, me: int, rest: tuple[Step, ...], victim: int, blob: str) -> list[World]:
        """deletes the entry of {1}, if it points to segment {0}"""
        index = world.index
        if lies_in(world.index, blob, victim) or not self.rules.compares_before_deleting:
            index = index._replace(entries=changed(index.entries, at(blob), None))
        return [self.then(world, me, rest, index=index)]

    def unlink(self, world: World, me: int, rest: tuple[Step, ...], victim: int) -> list[World]:
        """unlinks segment {0}"""
        place = linked(world, victim)
        files = world.files
        if place >= 0:
            files = changed(files, place, files[place]._replace(linked=False))
        return [self.then(world, me, rest, files=files)]

    def drop_row(self, world: World, me: int, rest: tuple[Step, ...], victim: int) -> list[World]:
        """forgets segment {0}"""
        return [self.then(world, me, rest, index=world.index.with_row(victim, None))]

    # -- what it knows --------------------------------------------------------------------------------------------

    def _in_use(self, world: World) -> str:
        """The blobs in use, now that the logs are read; names that were answered are walked."""
        used = world.used
        for kind, what in world.log:
            if kind == "lease":
                used = joined(used, what)
            elif kind == "name" and self.rules.counts_names:
                binding, note = world.names[int(what)], world.index.notes[int(what)]
                used = joined(used, self.closure(int(what), binding))
                if self.rules.keeps_former_notes and note and note[0] != binding:
                    used = joined(used, "".join(self._blobs_in(world, number) for number, _ in note[1]))
            elif kind == "former":
                used = joined(used, self._blobs_in(world, int(what)))
        return used

    def _segments_of_names(self, world: World) -> set[int]:
        """Where the names lie that were answered since the logs were last read: by their notes, without a walk."""
        numbers = set[int]()
        for kind, what in world.log:
            if kind == "former":
                numbers.add(int(what))
            elif kind == "name" and self.rules.counts_names and (note := world.index.notes[int(what)]):
                numbers |= {
                    number
                    for number, inc in note[1]
                    if self.rules.compares_numbers_only or self._same(world, number, inc)
                }
        return numbers

    def _same(self, world: World, number: int, incarnation: int) -> bool:
        row = world.index.row(number)
        return row is not None and row.incarnation == incarnation

    def _blobs(self, world: World) -> str:
        return "".join(chr(ord("a") + place) for place in range(len(world.index.entries)))

    def _blobs_in(self, world: World, number: int) -> str:
        return "".join(blob for blob in self._blobs(world) if lies_in(world.index, blob, number))


def _with_some(hot: str, cold: str) -> Iterator[str]:
    """What may be kept: all that is hot and any of the others but all. Nothing when there is nothing to gain."""
    if not cold and hot:
        return
    for choice in range(max(1, 2 ** len(cold) - 1)):
        yield joined(hot, "".join(blob for place, blob in enumerate(cold) if choice >> place & 1))
