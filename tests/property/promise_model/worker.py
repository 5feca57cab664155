"""What a worker does for its client, step by step.

A step is what nobody can see half of: a transaction, a system call, an append to a log. Taking a lock goes together with
what follows it, and letting it go with what precedes it, because nothing that another process does would fit between.
The names of the functions that a step stands for are in its comment.
"""

from __future__ import annotations

from .steps import Steps
from .world import (
    OPEN,
    SEALED,
    UPKEEPER,
    File,
    Row,
    Step,
    World,
    at,
    changed,
    is_owed,
    is_suspect,
    joined,
    linked,
    listed,
    noted,
)

LOOKS = 3
TRIES = 2


class WorkerSteps(Steps):
    """Finding, storing, pushing, fetching, reading."""

    # -- a promise: SegmentStore.find_missing ----------------------------------------------------------------------

    def find(self, world: World, me: int, rest: tuple[Step, ...], blobs: str) -> list[World]:
        """looks up {0} under the shared lock"""
        lock = ""
        if self.rules.promise_lock:
            if world.processes[UPKEEPER].lock == "exclusive":
                return []
            lock = "shared"
        if self.rules.sweeping_is_missing:
            found = "".join(blob for blob in blobs if listed(world.index, blob))
        else:
            found = "".join(blob for blob in blobs if world.index.entries[at(blob)])
        return [self.then(world, me, rest, ("promise", blobs, found), lock=lock)]

    def promise(self, world: World, me: int, rest: tuple[Step, ...], blobs: str, found: str) -> list[World]:
        """notes that {1} is promised, lets the lock go and answers"""
        log = world.log
        for blob in found:
            log = noted(log, "lease", blob)
        missing = "".join(blob for blob in blobs if blob not in found)
        return [self.back(world, me, rest, missing, lock="", log=log, owed=joined(world.owed, found))]

    def ask(self, world: World, me: int, rest: tuple[Step, ...], blobs: str) -> list[World]:
        """asks what is missing of {0}"""
        return [self.then(world, me, rest, ("find", blobs), ("asked",))]

    def asked(self, world: World, me: int, rest: tuple[Step, ...], missing: str) -> list[World]:
        """hears that '{0}' is missing"""
        return [self.then(world, me, rest)]

    # -- storing: SegmentStore.put_many ----------------------------------------------------------------------------

    def put(self, world: World, me: int, rest: tuple[Step, ...], blob: str) -> list[World]:
        """is sent {0}"""
        if listed(world.index, blob):  # SegmentWriter.append: nothing to append
            return [self.then(world, me, rest, *self._stored(blob))]
        current = world.processes[me].current
        row = world.index.row(world.files[current].number) if current >= 0 else None
        if current >= 0 and (row is None or row.holds):  # else SegmentWriter._leave_suspect
            return [self.then(world, me, rest, ("append", blob))]
        number = self.fresh_number(world)  # SegmentWriter._create, up to its flock
        files = (*world.files, File(number))
        counter = max(number, world.counter)
        return [self.then(world, me, rest, ("append", blob), current=len(files) - 1, files=files, counter=counter)]

    def append(self, world: World, me: int, rest: tuple[Step, ...], blob: str) -> list[World]:
        """locks its segment and appends {0}"""
        place = world.processes[me].current
        file = world.files[place]
        files = changed(world.files, place, file._replace(records=file.records + blob, locked_by=me))
        return [self.then(world, me, rest, ("enlist", blob, place, len(file.records)), files=files)]

    def enlist(self, world: World, me: int, rest: tuple[Step, ...], blob: str, place: int, offset: int) -> list[World]:
        """lists {0}"""  # SegmentWriter.list_placed
        number = world.files[place].number
        row = world.index.row(number) or Row(OPEN)
        index = world.index
        if not row.holds:
            return [self.then(world, me, ())]  # NotReady: its client hears so, and nothing is claimed
        if not listed(index, blob):  # of two writers the first entry stays
            index = index._replace(entries=changed(index.entries, at(blob), (number, offset)))
        index = index.with_row(number, row._replace(end=max(row.end, offset + 1)))
        return [self.then(world, me, rest, *self._stored(blob), index=index)]

    def _stored(self, blob: str) -> tuple[Step, ...]:
        if self.rules.looks_after_put:
            return ("find", blob), ("stored", blob)
        return (("promise", blob, blob), ("stored", blob))

    def stored(self, world: World, me: int, rest: tuple[Step, ...], blob: str, missing: str) -> list[World]:
        """has {0} stored"""
        return [self.then(world, me, rest, *((("put", blob),) if missing else ()))]

    # -- the thread that seals a worker's full segment: Sealer._seal

    def seal(self, world: World, me: int, rest: tuple[Step, ...], whose: int) -> list[World]:
        """is told that the segment of worker {0}, and syncs it"""
        place, steps = world.processes[whose].current, world.processes[whose].steps
        if place < 0 or not world.files[place].records or (steps and steps[0][0] == "append"):
            return []  # what is to be appended to is not full
        world = world._replace(processes=changed(world.processes, whose, world.processes[whose]._replace(current=-1)))
        files = self.synced(world, place) if self.rules.syncs_before_footer else world.files
        return [self.then(world, me, rest, ("write_footer", place), files=files)]

    def write_footer(self, world: World, me: int, rest: tuple[Step, ...], place: int) -> list[World]:
        """writes its footer"""
        files = changed(world.files, place, world.files[place]._replace(footer=world.files[place].records))
        return [self.then(world, me, rest, ("call_sealed", place), files=files)]

    def call_sealed(self, world: World, me: int, rest: tuple[Step, ...], place: int) -> list[World]:
        """syncs it with its footer, calls it sealed and lets it go"""
        world = world._replace(files=self.synced(world, place))
        file = world.files[place]
        row = world.index.row(file.number)
        if row is None or row.end < len(file.records):
            return []  # the index writer takes its turn after whoever lists what is in there
        index = world.index.with_row(file.number, row._replace(state=SEALED, synced_to=row.end))
        files = changed(world.files, place, file._replace(locked_by=-1))
        return [self.then(world, me, rest, index=index, files=files)]

    # -- a push: services.assets.push ------------------------------------------------------------------------------

    def push(self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int) -> list[World]:
        """asks what is missing of name {0}"""
        return [self.then(world, me, rest, ("find", self.closure(name, binding)), ("upload", name, binding))]

    def upload(
        self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int, missing: str
    ) -> list[World]:
        """hears that '{2}' is missing"""
        puts = (("put", blob) for blob in missing)
        return [self.then(world, me, rest, *puts, ("walk", name, binding))]

    def walk(self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int) -> list[World]:
        """pushes name {0}"""  # services.closure.walk
        if not self.rules.walks_before_push:
            return [self.then(world, me, rest, ("need", "push", name, binding, TRIES))]
        return [self.then(world, me, rest, ("find", self.closure(name, binding)), ("walked", name, binding))]

    def walked(
        self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int, missing: str
    ) -> list[World]:
        """has walked name {0}, where '{2}' is missing"""
        if any(is_owed(world, blob) for blob in missing):
            return self.break_(world, f"a push is refused for {missing}, which its client was told is here (I8)")
        if missing:
            return [self.then(world, me, rest)]
        return [self.then(world, me, rest, ("need", "push", name, binding, TRIES))]

    # -- Durability.settle

    def need(
        self, world: World, me: int, rest: tuple[Step, ...], why: str, name: int, binding: int, tries: int
    ) -> list[World]:
        """looks which segments must be synced for name {1}"""
        ends: dict[int, int] = {}
        for blob in self.closure(name, binding):
            if entry := listed(world.index, blob):
                ends[entry[0]] = max(ends.get(entry[0], 0), entry[1] + 1)
        numbers = [
            number for number, end in sorted(ends.items()) if (row := world.index.row(number)) and row.synced_to < end
        ]
        if not self.rules.syncs_before_name:
            numbers = []
        rows = {number: world.index.row(number) for number in numbers}
        index = world.index
        if not self.rules.raises_after_sync:
            for number, row in rows.items():
                if row is not None:
                    index = index.with_row(number, row._replace(synced_to=row.end))
        # _sync() reads the end once more; nobody could tell.
        syncs = (("sync", number, row.end) for number, row in rows.items() if row is not None)
        return [self.then(world, me, rest, *syncs, ("look_again", why, name, binding, tries), index=index)]

    def sync(self, world: World, me: int, rest: tuple[Step, ...], number: int, end: int, *ends: Step) -> list[World]:
        """syncs segment {0}"""
        world, place = self.opened(world, me, number)
        row = world.index.row(number)
        if place < 0:  # Sealer.suspect, if it was not evicted meanwhile
            index = world.index.with_row(number, row._replace(suspect=True)) if row else world.index
            return [self._synced(world, me, rest, ends, index=index)]
        worlds = []
        if world.bad_syncs and world.files[place].synced < len(world.files[place].records):
            worlds.append(self._refused_to_sync(world, me, rest, number))
        files = self.synced(world, place)
        if not self.rules.reads_end_before_sync:
            return [*worlds, self.then(world, me, rest, ("read_end", number, *ends), files=files)]
        return [*worlds, self._synced(world, me, rest, (*ends, (number, end)), files=files)]

    def _refused_to_sync(self, world: World, me: int, rest: tuple[Step, ...], number: int) -> World:
        """The disk says no, once, and what it did not write counts as written from then on. The push fails."""
        row = world.index.row(number)
        index = world.index.with_row(number, row._replace(suspect=True)) if row else world.index
        while rest and rest[0][0] in ("sync", "look_again"):
            rest = rest[1:]
        place = linked(world, number)
        files = changed(world.files, place, world.files[place]._replace(refused=True))
        return self.then(world, me, rest, index=index, files=files, bad_syncs=world.bad_syncs - 1)

    def read_end(self, world: World, me: int, rest: tuple[Step, ...], number: int, *ends: Step) -> list[World]:
        """reads where segment {0} ends"""
        row = world.index.row(number)
        return [self._synced(world, me, rest, (*ends, (number, row.end)) if row else ends)]

    def _synced(
        self, world: World, me: int, rest: tuple[Step, ...], ends: tuple[Step, ...], **changes: object
    ) -> World:
        # What was synced is handed on, to the next sync or to the look that follows.
        return self.then(world, me, ((*rest[0], *ends), *rest[1:]), **changes)

    def look_again(
        self,
        world: World,
        me: int,
        rest: tuple[Step, ...],
        why: str,
        name: int,
        binding: int,
        tries: int,
        *ends: tuple[int, int],
    ) -> list[World]:
        """raises synced_to and looks at name {1} once more"""
        index = world.index
        for number, end in ends:
            row = index.row(number)
            if row is not None and row.synced_to < end:
                index = index.with_row(number, row._replace(synced_to=end))
        places: dict[int, int] = {}
        for blob in self.closure(name, binding):
            entry = listed(index, blob) or (None if self.rules.looks_again else index.entries[at(blob)])
            row = index.row(entry[0]) if entry else None
            if self.rules.looks_again and (entry is None or row is None or row.synced_to <= entry[1]):
                if not tries:
                    return [self.then(world, me, rest, index=index)]  # refused: it says so, and nothing is claimed
                again = ("find", self.closure(name, binding)), ("again", why, name, binding, tries - 1)
                return [self.then(world, me, rest, *again, index=index)]
            if entry is not None and row is not None:
                places[entry[0]] = row.incarnation
        note = (binding, tuple(sorted(places.items())))
        return [
            self.then(world, me, rest, ("commit" if why == "push" else "remember", name, binding, note), index=index)
        ]

    def again(
        self, world: World, me: int, rest: tuple[Step, ...], why: str, name: int, binding: int, tries: int, missing: str
    ) -> list[World]:
        """has walked name {1} again, where '{4}' is missing"""
        if any(is_owed(world, blob) for blob in missing):
            return self.break_(world, f"{missing} is gone after it was promised (I8)")
        if missing:
            return [self.then(world, me, rest)]
        return [self.then(world, me, rest, ("need", why, name, binding, tries))]

    def commit(self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int, note: Step) -> list[World]:
        """commits name {0}"""
        whole = tuple(sorted({*(one for one in world.whole if one[0] != name), (name, binding)}))
        names = changed(world.names, name, binding)
        return [self.then(world, me, rest, ("remember", name, binding, note), names=names, whole=whole)]

    def remember(
        self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int, note: Step
    ) -> list[World]:
        """notes where name {0} lies and answers"""
        former = world.index.notes[name]
        log = world.log
        if self.rules.keeps_former_notes and former and former[0] != binding:
            for number, _ in former[1]:
                log = noted(log, "former", str(number))
        index = world.index._replace(notes=changed(world.index.notes, name, note))
        whole = world.whole
        if world.names[name] == binding:
            whole = tuple(sorted({*whole, (name, binding)}))
        return [
            self.then(
                world, me, rest, index=index, log=log, whole=whole, owed=joined(world.owed, self.closure(name, binding))
            )
        ]

    # -- a fetch: services.assets.fetch ----------------------------------------------------------------------------

    def fetch(self, world: World, me: int, rest: tuple[Step, ...], name: int) -> list[World]:
        """resolves name {0}"""
        binding = world.names[name]
        if not binding:
            return [self.then(world, me, rest)]
        return [self.then(world, me, rest, ("intact", name, binding))]

    def intact(self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int) -> list[World]:
        """looks whether name {0} is intact, under the shared lock"""
        lock = "shared" if self.rules.promise_lock else ""
        if lock and world.processes[UPKEEPER].lock == "exclusive":
            return []
        note = world.index.notes[name]
        if note is not None and note[0] == binding and all(self._alive(world, *place) for place in note[1]):
            return [self.then(world, me, rest, ("use", name, binding), lock=lock)]
        return [self.then(world, me, rest, ("find", self.closure(name, binding)), ("fetched", name, binding))]

    def _alive(self, world: World, number: int, incarnation: int) -> bool:
        row = world.index.row(number)
        if row is None:
            return False
        if row.state == "sweeping" and not self.rules.sweeping_is_missing:
            return True
        return row.holds and (row.incarnation == incarnation or not self.rules.checks_incarnation)

    def use(self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int) -> list[World]:
        """notes that name {0} is used, lets the lock go and answers"""
        owed = joined(world.owed, self.closure(name, binding))
        reads = (("read", blob, LOOKS) for blob in self.closure(name, binding)[:1])
        return [self.then(world, me, rest, *reads, lock="", log=noted(world.log, "name", f"{name}"), owed=owed)]

    def fetched(
        self, world: World, me: int, rest: tuple[Step, ...], name: int, binding: int, missing: str
    ) -> list[World]:
        """has walked name {0}, where '{2}' is missing"""
        kept = any(not is_suspect(world, blob) for blob in missing)
        if kept and (name, binding) in world.whole and world.names[name] == binding:
            return self.break_(world, f"name {name} is a miss, and {missing} was not evicted (I2)")
        if missing:
            return [self.then(world, me, rest)]
        return [self.then(world, me, rest, ("need", "fetch", name, binding, TRIES))]

    # -- reading: SegmentLookup ------------------------------------------------------------------------------------

    def read(self, world: World, me: int, rest: tuple[Step, ...], blob: str, looks: int) -> list[World]:
        """looks up where {0} is"""
        entry = listed(world.index, blob)
        if entry is None:
            return self._missed(world, me, rest, blob)
        return [self.then(world, me, rest, ("open", blob, looks, *entry))]

    def open(
        self, world: World, me: int, rest: tuple[Step, ...], blob: str, looks: int, number: int, offset: int
    ) -> list[World]:
        """opens segment {2} to read {0}"""
        world, place = self.opened(world, me, number)
        if place >= 0:
            return [self.then(world, me, rest, ("pread", blob, place, number, offset))]
        if looks > 1 and self.rules.looks_thrice:
            return [self.then(world, me, rest, ("read", blob, looks - 1))]
        return self._missed(world, me, rest, blob)

    def pread(
        self, world: World, me: int, rest: tuple[Step, ...], blob: str, place: int, number: int, offset: int
    ) -> list[World]:
        """reads {0}"""
        if world.files[place].records[offset : offset + 1] == blob:
            return [self.then(world, me, rest)]
        index = world.index
        if index.entries[at(blob)] == (number, offset):  # Durability.quarantine
            index = index._replace(entries=changed(index.entries, at(blob), None))
        return self._missed(world._replace(index=index), me, rest, blob)

    def _missed(self, world: World, me: int, rest: tuple[Step, ...], blob: str) -> list[World]:
        if is_owed(world, blob):
            return self.break_(world, f"{blob} cannot be read, and its client was told that it is here (I5, I8)")
        return [self.then(world, me, rest)]

    def opened(self, world: World, me: int, number: int) -> tuple[World, int]:
        """A descriptor of a segment, kept from then on (SegmentFiles.get); -1 when there is no such file."""
        mine = world.processes[me]
        for place in mine.descriptors:
            if world.files[place].number == number:
                other = linked(world, number) not in (place, -1)
                return (
                    world._replace(broken="a reader takes a file for another of its number (I9)") if other else world
                ), place
        place = linked(world, number)
        if place >= 0:
            mine = mine._replace(descriptors=(*mine.descriptors, place))
            world = world._replace(processes=changed(world.processes, me, mine))
        return world, place
