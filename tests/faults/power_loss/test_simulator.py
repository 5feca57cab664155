"""The simulator is right: what it reads out of a trace, what it takes for durable, and how it loses the rest."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from faults.power_loss import survival
from faults.power_loss.disk import Change, Directory, Disk, Entered, File, Resized, Written, applied
from faults.power_loss.recording import Playback, Recording, record, settled
from faults.power_loss.strace_output import Call, NotUnderstood, calls, hexadecimal
from system.parts import require

ROOT = "/disk"


def strace(text: str) -> list[str]:
    """Lines of a trace, in which strings and paths may be written as one reads them."""
    text = re.sub(r'"([^"]*)"', lambda found: f'"{hexadecimal(found[1])}"', text)
    text = re.sub(r"<(/[^>]*)>", lambda found: f"<{hexadecimal(found[1])}>", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def recorded(text: str) -> Recording:
    return Recording(ROOT, list(calls(strace(text), [ROOT])))


def played(text: str) -> Disk:
    recording = recorded(text)
    playback = Playback(recording)
    playback.go_to(recording.end)
    return playback.disk


def seen(disk: Disk) -> dict[str, bytes]:
    """The files of the root as processes see them."""
    return {name: bytes(inode.content()) for name, inode in disk.root.entries.items() if isinstance(inode, File)}


def left(disk: Disk, tmp_path: Path, way: survival.Way = survival.nothing) -> dict[str, bytes]:
    """The files of the root after a power loss."""
    tmp_path.mkdir(exist_ok=True)
    disk.write_out(way(disk.unsynced(), Random(0)), tmp_path / "left")
    return {path.name: path.read_bytes() for path in (tmp_path / "left").iterdir() if path.is_file()}


# -- reading --------------------------------------------------------------------------------------------------------


def test_a_call_that_others_overlap_is_one_call_with_two_times() -> None:
    first, second = calls(
        strace(
            """
            1 pwrite64(3</disk/a>, "ab", 2, 0 <unfinished ...>
            2 fsync(4</disk/a>) = 0
            1 <... pwrite64 resumed>)      = 2
            """
        ),
        [ROOT],
    )
    assert (first.name, second.name) == ("fsync", "pwrite64")
    assert second.begun < first.begun < first.ended < second.ended
    assert (second.words[0].startswith("3<"), second.strings, second.result) == (True, [b"ab"], 2)


def test_syntax_inside_of_strings_is_not_taken_for_syntax() -> None:
    data = '") = -1 EIO <unfinished ...>'
    hidden = "".join(f"\\x{byte:02x}" for byte in data.encode())
    (call,) = calls([f'1 write(3<{hexadecimal("/disk/a")}>, "{hidden}", {len(data)}) = {len(data)}'], [ROOT])
    assert call.strings == [data.encode()]
    assert call.result == len(data)


def test_what_concerns_neither_the_disk_nor_processes_is_left_out() -> None:
    found = calls(
        strace('1 write(1</elsewhere>, "x", 1) = 1\n1 clone3({flags=CLONE_VM}, 88) = 2\n1 close(3</disk/a>) = 0'),
        [ROOT],
    )
    assert [call.name for call in found] == ["clone3", "close"]


@pytest.mark.parametrize(
    "line",
    [
        '1 write(3</disk/a>, "ab"..., 4) = 4',
        "strace: something",
        "1 <... write resumed>) = 4",
        '1 write(3</disk/a>, "ab", 2',
    ],
    ids=["cut off", "no thread", "resumed out of nothing", "no end"],
)
def test_what_is_not_understood_is_an_error(line: str) -> None:
    with pytest.raises(NotUnderstood):
        list(calls(strace(line), [ROOT]))


def test_a_thread_that_was_killed_at_the_door_of_a_call_has_done_nothing() -> None:
    found = calls(
        strace(
            """
            1 ???( <unfinished ...>
            2 fsync(4</disk/a>) = 0
            1 <... ??? resumed>)                = ?
            """
        ),
        [ROOT],
    )
    assert [call.name for call in found] == ["fsync"]


def test_a_process_that_was_gone_before_its_call_was_written_down_may_have_done_it() -> None:
    text = '1 openat(AT_FDCWD</>, "/disk/a", O_RDWR|O_CREAT, 0644 <detached ...>\n1 +++ killed by SIGKILL +++'
    (call,) = calls(strace(text), [ROOT])
    assert (call.name, call.strings, call.result) == ("openat", [b"/disk/a"], None)
    assert call.words[-1] == "0644"


def test_a_process_that_was_killed_in_a_call_may_have_done_it() -> None:
    (call,) = calls(
        strace('1 pwrite64(3</disk/a>, "ab", 2, 0 <unfinished ...>) = ?\n1 +++ killed by SIGKILL +++'), [ROOT]
    )
    assert call.result is None
    assert not call.failed


# -- processes and their files --------------------------------------------------------------------------------------

CREATED = '1 openat(AT_FDCWD</>, "/disk/a", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 3</disk/a>\n'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ('1 write(3</disk/a>, "ab", 2) = 2\n1 write(3</disk/a>, "cd", 2) = 2', b"abcd"),
        ('1 write(3</disk/a>, "abcd", 4) = 2\n1 write(3</disk/a>, "xy", 2) = 2', b"abxy"),
        (
            '1 write(3</disk/a>, "abcd", 4) = 4\n1 lseek(3</disk/a>, 1, SEEK_SET) = 1\n1 write(3</disk/a>, "x", 1) = 1',
            b"axcd",
        ),
        ('1 pwrite64(3</disk/a>, "ab", 2, 2) = 2', b"\0\0ab"),
        ('1 pwritev(3</disk/a>, [{iov_base="ab", iov_len=2}, {iov_base="c", iov_len=1}], 2, 1) = 3', b"\0abc"),
        ('1 pwritev2(3</disk/a>, [{iov_base="ab", iov_len=2}, {iov_base="c", iov_len=1}], 2, 1, 0) = 2', b"\0ab"),
        ('1 writev(3</disk/a>, [{iov_base="ab", iov_len=2}, {iov_base="c", iov_len=1}], 2) = 3', b"abc"),
        ('1 write(3</disk/a>, "abcd", 4) = 4\n1 ftruncate(3</disk/a>, 2) = 0', b"ab"),
        ('1 write(3</disk/a>, "abcd", 4) = 4\n1 truncate("/disk/a", 2) = 0', b"ab"),
        ("1 fallocate(3</disk/a>, 0, 1, 2) = 0", b"\0\0\0"),
        ('1 write(3</disk/a>, "abcd", 4) = 4\n1 fallocate(3</disk/a>, 0, 0, 2) = 0', b"abcd"),
        (
            '1 write(3</disk/a>, "abcd", 4) = 4\n'
            "1 fallocate(3</disk/a>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 1, 9) = 0",
            b"a\0\0\0",
        ),
        ('1 write(3</disk/a>, "ab", 2) = 2\n1 openat(AT_FDCWD</>, "/disk/a", O_RDWR|O_TRUNC) = 4</disk/a>', b""),
        ('1 write(3</disk/a>, "ab", 2) = -1 ENOSPC (No space left on device)', b""),
        (
            '1 openat(AT_FDCWD</>, "/disk/a", O_WRONLY|O_APPEND) = 4</disk/a>\n1 write(3</disk/a>, "ab", 2) = 2\n'
            '1 write(4</disk/a>, "cd", 2) = 2',
            b"abcd",
        ),
        ('1 write(3</disk/a>, "ab", 2) = 2\n1 dup(3</disk/a>) = 7</disk/a>\n1 write(7</disk/a>, "cd", 2) = 2', b"abcd"),
        ('1 fcntl(3</disk/a>, F_DUPFD_CLOEXEC, 0) = 7</disk/a>\n1 pwrite64(7</disk/a>, "cd", 2, 0) = 2', b"cd"),
        ('2 pwrite64(3</disk/a>, "x", 1, 0) = 1\n1 clone3({flags=CLONE_VM|CLONE_FILES} => {}, 88) = 2', b"x"),
        (
            '1 clone(child_stack=NULL, flags=SIGCHLD) = 2\n1 close(3</disk/a>) = 0\n2 write(3</disk/a>, "x", 1) = 1',
            b"x",
        ),
    ],
)
def test_every_way_of_writing_has_its_effect(text: str, content: bytes) -> None:
    assert seen(played(CREATED + text)) == {"a": content}


def test_a_number_that_is_free_again_while_its_close_ends_means_the_new_file() -> None:
    disk = played(
        CREATED
        + """
        1 close(3</disk/a> <unfinished ...>
        2 openat(AT_FDCWD</>, "/disk/b", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 3</disk/b>
        1 <... close resumed>) = 0
        2 write(3</disk/b>, "b", 1) = 1
        9 clone3({flags=CLONE_FILES}, 88) = 1
        9 clone3({flags=CLONE_FILES}, 88) = 2
        """
    )
    assert seen(disk) == {"a": b"", "b": b"b"}


def test_a_file_is_the_same_under_a_new_name_and_without_one() -> None:
    disk = played(
        CREATED
        + """
        1 write(3</disk/a>, "ab", 2) = 2
        1 rename("/disk/a", "/disk/b") = 0
        1 write(3</disk/b>, "cd", 2) = 2
        1 link("/disk/b", "/disk/c") = 0
        1 unlink("/disk/b") = 0
        1 write(3</disk/c>, "ef", 2) = 2
        1 mkdir("/disk/d", 0777) = 0
        1 openat(AT_FDCWD</disk>, "d/e", O_RDWR|O_CREAT) = 4</disk/d/e>
        1 unlinkat(AT_FDCWD</disk/d>, "e", 0) = 0
        1 write(4</disk/d/e>(deleted), "gone", 4) = 4
        1 unlink("/disk/nothing") = -1 ENOENT (No such file or directory)
        """
    )
    assert seen(disk) == {"c": b"abcdef"}
    directory = disk.root.entries["d"]
    assert isinstance(directory, Directory)
    assert directory.entries == {}


def test_descriptors_end_with_execve_when_they_should() -> None:
    opened = (
        CREATED + '1 openat(AT_FDCWD</>, "/disk/b", O_RDWR|O_CREAT, 0644) = 4</disk/b>\n1 execve("/x", [], 0x1) = 0\n'
    )
    assert seen(played(opened + '1 write(4</disk/b>, "b", 1) = 1'))["b"] == b"b"
    with pytest.raises(NotUnderstood, match="never opened"):
        played(opened + '1 write(3</disk/a>, "a", 1) = 1')


def test_of_two_calls_at_once_either_may_have_been_first() -> None:
    disk = played(
        """
        1 openat(AT_FDCWD</>, "/disk/a", O_RDWR|O_CREAT, 0644 <unfinished ...>
        2 openat(AT_FDCWD</>, "/disk/a", O_WRONLY) = 3</disk/a>
        1 <... openat resumed>) = 4</disk/a>
        2 write(3</disk/a>, "a", 1) = 1
        """
    )
    assert seen(disk) == {"a": b"a"}


@pytest.mark.parametrize(
    "text",
    [
        '1 write(9</disk/a>, "x", 1) = 1',
        "1 fsync(9</disk/a>) = 0",
        "1 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3</disk/a>, 0) = 0x7f00",
        "1 sendfile(3</disk/a>, 5</other>, NULL, 100) = 100",
        "1 copy_file_range(5</other>, NULL, 3</disk/a>, NULL, 100, 0) = 100",
        '1 symlink("/other", "/disk/b") = 0',
        '1 rename("/other", "/disk/b") = 0',
        "1 fallocate(3</disk/a>, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) = 0",
        "1 ioctl(3</disk/a>, FICLONE, 5</other>) = 0",
        '1 openat(AT_FDCWD</>, "/disk/missing", O_RDWR) = 9</disk/missing>',
        '1 openat(AT_FDCWD</>, "/disk", O_RDWR|O_TMPFILE, 0600) = 9</disk/#1>',
    ],
)
def test_what_has_no_model_is_an_error(text: str) -> None:
    with pytest.raises(NotUnderstood):
        played(CREATED + text)


def test_memory_of_one_process_and_lmdbs_lock_table_are_no_files() -> None:
    played(
        CREATED
        + """
        1 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE, 3</disk/a>, 0) = 0x7f00
        1 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3</disk/a>, 0) = 0x7f00
        1 openat(AT_FDCWD</>, "/disk/lock.mdb", O_RDWR|O_CREAT, 0644) = 4</disk/lock.mdb>
        1 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 4</disk/lock.mdb>, 0) = 0x7f00
        """
    )


# -- what is durable ------------------------------------------------------------------------------------------------

OPEN_ROOT = '1 openat(AT_FDCWD</>, "/disk", O_RDONLY|O_DIRECTORY) = 9</disk>\n'
SYNC_ROOT = OPEN_ROOT + "1 fsync(9</disk>) = 0\n1 close(9</disk>) = 0\n"


def test_bytes_are_durable_with_a_sync_of_their_file_and_names_with_one_of_their_directory(tmp_path: Path) -> None:
    written = CREATED + '1 write(3</disk/a>, "ab", 2) = 2\n'
    synced = "1 fdatasync(3</disk/a>) = 0\n"
    assert left(played(written + synced), tmp_path / "1") == {}
    assert left(played(written + SYNC_ROOT), tmp_path / "2") == {"a": b""}
    assert left(played(written + synced + SYNC_ROOT), tmp_path / "3") == {"a": b"ab"}
    assert left(played(written + synced + SYNC_ROOT + '1 write(3</disk/a>, "cd", 2) = 2'), tmp_path / "4") == {
        "a": b"ab"
    }
    assert left(played(written + "1 fdatasync(3</disk/a>) = -1 EIO (x)\n" + SYNC_ROOT), tmp_path / "5") == {"a": b""}
    assert left(played(written + "1 sync_file_range(3</disk/a>, 0, 2, 7) = 0\n" + SYNC_ROOT), tmp_path / "6") == {
        "a": b""
    }
    assert left(played(written + "1 syncfs(3</disk/a>) = 0"), tmp_path / "7") == {"a": b"ab"}


def test_a_sync_covers_what_had_ended_before_it_began(tmp_path: Path) -> None:
    disk = played(
        CREATED
        + SYNC_ROOT
        + """
        1 write(3</disk/a>, "before", 6) = 6
        1 pwrite64(3</disk/a>, "overlapping", 11, 6 <unfinished ...>
        2 fdatasync(3</disk/a> <unfinished ...>
        1 <... pwrite64 resumed>) = 11
        1 pwrite64(3</disk/a>, "meanwhile", 9, 20) = 9
        2 <... fdatasync resumed>) = 0
        8 clone3({flags=CLONE_FILES}, 88) = 1
        8 clone3({flags=CLONE_FILES}, 88) = 2
        """
    )
    assert left(disk, tmp_path / "1") == {"a": b"before"}
    rest = b"overlapping" + bytes(3) + b"meanwhile"
    assert left(disk, tmp_path / "2", survival.everything) == {"a": b"before" + rest}


def test_a_sync_in_which_its_process_was_killed_promises_nothing(tmp_path: Path) -> None:
    text = CREATED + SYNC_ROOT + '1 write(3</disk/a>, "ab", 2) = 2\n1 fdatasync(3</disk/a> <unfinished ...>) = ?'
    assert left(played(text), tmp_path) == {"a": b""}


def test_a_sync_of_a_directory_is_of_its_own_entries(tmp_path: Path) -> None:
    inside = '1 mkdir("/disk/d", 0777) = 0\n1 openat(AT_FDCWD</>, "/disk/d/e", O_RDWR|O_CREAT) = 4</disk/d/e>\n'
    left(played(inside + SYNC_ROOT), tmp_path)
    assert list((tmp_path / "left" / "d").iterdir()) == []


def test_room_that_is_set_aside_takes_nothing_away() -> None:
    file = File()
    grown = Resized(file, 2, 0, 0, grows=True)
    assert applied(b"abcd", [grown]) == b"abcd"
    assert applied(b"", [grown]) == b"\0\0"
    disk = Disk()
    disk.add(Written(file, 0, b"abcd", 0, 0))
    disk.add(grown)
    assert file.size == 4


def test_a_sync_that_has_not_ended_promises_nothing(tmp_path: Path) -> None:
    recording = recorded(CREATED + SYNC_ROOT + '1 write(3</disk/a>, "ab", 2) = 2\n1 fdatasync(3</disk/a>) = 0')
    for number, (moment, content) in enumerate([(recording.end - 1, b""), (recording.end, b"ab")]):
        playback = Playback(recording)
        playback.go_to(moment)
        assert left(playback.disk, tmp_path / f"{number}") == {"a": content}


def test_what_is_under_way_may_survive(tmp_path: Path) -> None:
    recording = recorded(CREATED + SYNC_ROOT + '1 write(3</disk/a>, "ab", 2) = 2')
    playback = Playback(recording)
    playback.go_to(recording.calls[-1].begun)
    assert playback.unsynced() == []
    playback.go_to(recording.calls[-1].begun + 1)  # inside of the call
    (under_way,) = playback.unsynced()
    assert isinstance(under_way, Written)
    assert left(playback.disk, tmp_path) == {"a": b""}
    playback.disk.write_out([under_way], tmp_path / "survived")
    assert (tmp_path / "survived" / "a").read_bytes() == b"ab"


def test_a_write_through_a_synchronous_descriptor_makes_itself_durable_and_nothing_else(tmp_path: Path) -> None:
    disk = played(
        CREATED
        + SYNC_ROOT
        + """
        1 write(3</disk/a>, "aaaaaa", 6) = 6
        1 openat(AT_FDCWD</>, "/disk/a", O_WRONLY|O_DSYNC) = 4</disk/a>
        1 pwrite64(4</disk/a>, "bb", 2, 2) = 2
        """
    )
    assert left(disk, tmp_path / "1") == {"a": b"\0\0bb"}
    assert left(disk, tmp_path / "2", survival.everything) == {"a": b"aabbaa"}  # older bytes never cover durable ones


def test_a_rename_is_there_in_both_directories_or_in_none(tmp_path: Path) -> None:
    text = (
        CREATED
        + '1 mkdir("/disk/d", 0777) = 0\n'
        + SYNC_ROOT
        + """
        1 rename("/disk/a", "/disk/d/b") = 0
        1 openat(AT_FDCWD</>, "/disk/d", O_RDONLY|O_DIRECTORY) = 5</disk/d>
        """
    )
    assert left(played(text), tmp_path / "1") == {"a": b""}
    assert left(played(text + "1 fsync(5</disk/d>) = 0"), tmp_path / "2") == {}
    assert (tmp_path / "2" / "left" / "d" / "b").exists()
    assert left(played(text), tmp_path / "3", survival.everything) == {}
    assert (tmp_path / "3" / "left" / "d" / "b").exists()


def test_an_entry_that_came_before_a_durable_one_of_the_same_name_does_not_come_back(tmp_path: Path) -> None:
    disk = played(
        '1 mkdir("/disk/d", 0777) = 0\n'
        + CREATED
        + """
        1 rename("/disk/a", "/disk/d/b") = 0
        1 openat(AT_FDCWD</>, "/disk/d", O_RDONLY|O_DIRECTORY) = 5</disk/d>
        1 fsync(5</disk/d>) = 0
        """
    )
    assert left(disk, tmp_path, survival.everything) == {}


def test_removals_are_changes_like_others(tmp_path: Path) -> None:
    text = CREATED + SYNC_ROOT + '1 unlink("/disk/a") = 0\n'
    assert left(played(text), tmp_path / "1") == {"a": b""}
    assert left(played(text), tmp_path / "2", survival.everything) == {}
    assert left(played(text + SYNC_ROOT), tmp_path / "3") == {}


def test_two_names_of_one_file_stay_two_names_of_one_file(tmp_path: Path) -> None:
    disk = played(CREATED + '1 link("/disk/a", "/disk/b") = 0\n' + SYNC_ROOT)
    assert left(disk, tmp_path) == {"a": b"", "b": b""}
    assert (tmp_path / "left" / "a").samefile(tmp_path / "left" / "b")


# -- what survives --------------------------------------------------------------------------------------------------


def some_changes() -> tuple[Directory, list[Change]]:
    """Two files of pages that say which write they are of, in a directory."""
    directory, files = Directory(), [File(), File()]
    changes: list[Change] = []
    for number, file in enumerate(files):
        changes.append(Entered(((directory, f"{number}", file),), len(changes), len(changes)))
        for byte in (b"a", b"b", b"c"):
            changes.append(Written(file, 100, byte * 10_000, len(changes), len(changes)))
        changes.append(Resized(file, 5000, len(changes), len(changes)))
    return directory, changes


def content_of(changes: Sequence[Change], file: File) -> bytes:
    return bytes(applied(b"", [one for one in changes if not isinstance(one, Entered) and one.file is file]))


@pytest.mark.parametrize("way", survival.WAYS.values(), ids=survival.WAYS.keys())
def test_every_way_takes_only_from_what_there_is_and_repeats_itself(way: survival.Way) -> None:
    _, changes = some_changes()
    for seed in range(50):
        survivors = way(changes, Random(seed))
        assert [vars_of(one) for one in survivors] == [vars_of(one) for one in way(changes, Random(seed))]
        for one in survivors:
            if isinstance(one, Written):
                whole = [other for other in changes if isinstance(other, Written) and other.ended == one.ended]
                assert one.data == whole[0].part(one.offset, one.end).data
                assert one.offset == 100 or one.offset % survival.SECTOR_BYTES == 0
                assert one.end == 10_100 or one.end % survival.SECTOR_BYTES == 0
            elif isinstance(one, Entered):
                assert one in changes
    assert way([], Random(0)) == []


def size_of(changes: Sequence[Change]) -> int:
    return sum(len(one.data) for one in changes if isinstance(one, Written))


def vars_of(change: Change) -> object:
    if isinstance(change, Written):
        return (id(change.file), change.offset, change.data)
    return (id(change.file), change.size) if isinstance(change, Resized) else change


def test_the_ways_are_what_their_names_say() -> None:
    _, changes = some_changes()
    one_file = next(one.file for one in changes if isinstance(one, Written))
    assert survival.nothing(changes, Random(0)) == []
    assert survival.everything(changes, Random(0)) == changes
    newest = survival.newest_only(changes, Random(0))
    assert [type(one) for one in newest] == [Resized, Entered, Resized]
    assert len(survival.one_only(changes, Random(0))) == 1
    lost = [set(changes) - set(survival.all_but_one(changes, Random(seed))) for seed in range(100)]
    assert all(len(one) == 1 for one in lost)
    assert set.union(*lost) == set(changes)
    bytes_left = [size_of(survival.all_but_one(changes, Random(seed))) for seed in range(100)]
    assert {size_of(changes) - left for left in bytes_left if left < size_of(changes) - 10_000} == set()
    assert {size_of(changes), size_of(changes) - 10_000, size_of(changes) - 4096, size_of(changes) - 512} <= set(
        bytes_left
    )
    assert not any(isinstance(one, Entered) for one in survival.bytes_without_names(changes, Random(0)))
    hollow = survival.names_without_bytes(changes, Random(0))
    assert len(hollow) == len(changes)
    assert content_of(hollow[:4], one_file) == bytes(10_100)
    prefixes = {len(survival.in_order(changes, Random(seed))) for seed in range(200)}
    assert prefixes == set(range(1, len(changes) + 1))


def test_pages_of_one_write_survive_without_others_and_older_ones_without_newer() -> None:
    _, changes = some_changes()
    file = next(one.file for one in changes if isinstance(one, Written))
    for way in (survival.scattered, survival.reordered):
        found = [content_of(way(changes, Random(seed)), file)[200:5000] for seed in range(100)]
        assert any(len(set(content)) == 4 for content in found)  # a, b, c and holes, side by side
    torn = [survival.in_order(changes, Random(seed))[-1] for seed in range(100)]
    assert any(isinstance(one, Written) and 0 < len(one.data) < 10_000 for one in torn)


# -- against a real disk --------------------------------------------------------------------------------------------

BUSY = """
import os, random, sys, threading
root = sys.argv[1]
os.makedirs(f"{root}/repo/other")

def work(number):
    chance = random.Random(number)
    for step in range(60):
        path = f"{root}/repo/{number}-{chance.randrange(4)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | chance.choice((0, os.O_TRUNC, os.O_APPEND)), 0o644)
        twin = os.dup(descriptor)
        for _ in range(chance.randrange(6)):
            data = chance.randbytes(chance.randrange(1, 9000))
            chance.choice((
                lambda: os.write(twin, data),
                lambda: os.pwrite(descriptor, data, chance.randrange(9000)),
                lambda: os.pwritev(descriptor, [data, b"tail"], chance.randrange(9000)),
                lambda: os.ftruncate(descriptor, chance.randrange(9000)),
                lambda: os.lseek(descriptor, chance.randrange(9000), os.SEEK_SET),
                lambda: os.fdatasync(descriptor),
                lambda: os.posix_fallocate(descriptor, 0, chance.randrange(1, 9000)),
            ))()
        if chance.random() < 0.3:
            os.rename(path, f"{root}/repo/other/{number}-{chance.randrange(4)}")
        if chance.random() < 0.2:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT))
            os.unlink(path)
        os.write(descriptor, b"the end")
        os.close(descriptor)
        os.close(twin)

def descend(depth):
    threads = [threading.Thread(target=work, args=(f"{depth}.{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    if depth and not os.fork():
        descend(depth - 1)
        os._exit(0)
    for thread in threads:
        thread.join()
    if depth:
        os.wait()

descend(2)
"""


@pytest.fixture
def busy(tmp_path: Path) -> Recording:
    require("tracing")
    (tmp_path / "disk").mkdir()
    record([sys.executable, "-W", "ignore", "-c", BUSY, f"{tmp_path}/disk"], tmp_path / "trace")
    return Recording.load(tmp_path / "trace", tmp_path / "disk", tmp_path / "marks")


def test_what_is_played_is_what_processes_and_threads_did_to_a_real_disk(busy: Recording) -> None:
    playback = Playback(busy)
    playback.go_to(busy.end)
    assert playback.differences() == []
    assert len(busy.calls) > 2000


def test_a_call_that_is_missing_in_the_recording_is_noticed(busy: Recording) -> None:
    writes = [call for call in busy.calls if call.name in ("pwrite64", "write") and (call.result or 0) > 100]

    def is_noticed(victim: Call) -> bool:
        playback = Playback(busy.without(lambda call: call is victim))
        playback.go_to(busy.end)
        return bool(playback.differences())

    # Most writes are overwritten later on, or their file goes; among the last some are not.
    assert any(map(is_noticed, reversed(writes)))


def test_of_a_write_in_which_its_process_was_killed_the_disk_tells_what_became(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    text = strace(
        f"""
        1 openat(AT_FDCWD</>, "{disk}/a", O_RDWR|O_CREAT, 0644) = 3<{disk}/a>
        1 pwrite64(3<{disk}/a>, "{"a" * 9000}", 9000, 0) = 9000
        2 ftruncate(3<{disk}/a>, 9500 <unfinished ...>) = ?
        1 pwrite64(3<{disk}/a>, "{"b" * 9000}", 9000, 0 <unfinished ...>) = ?
        1 +++ killed by SIGKILL +++
        8 clone3({{flags=CLONE_FILES}}, 88) = 1
        8 clone3({{flags=CLONE_FILES}}, 88) = 2
        """
    )
    recording = Recording(f"{disk}", list(calls(text, [f"{disk}"])))
    disk.mkdir()
    for became in (b"b" * 9000, b"a" * 9000, b"b" * 4096 + b"a" * 4904, b"b" * 9000 + bytes(500)):
        (disk / "a").write_bytes(became)
        playback = Playback(settled(recording))
        playback.go_to(recording.end)
        assert seen(playback.disk) == {"a": became}
    (disk / "a").write_bytes(b"b" * 100 + b"a" * 8900)
    with pytest.raises(NotUnderstood, match="9500 bytes played, 9000 there"):
        settled(recording)
