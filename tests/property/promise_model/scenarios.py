"""Small repositories in which everything that can go wrong between promising, pushing and evicting has room to."""

from __future__ import annotations

from .explorer import Scenario
from .world import SEALED, File, Index, Note, Process, Row, Step, World

Closures = dict[tuple[int, int], str]
M, N = 0, 1


def _scenario(
    *workers: tuple[Step, ...],
    closures: Closures,
    records: str = "ab",
    rounds: int = 1,
    upkeepers: int = 1,
    crashes: int = 0,
    power_losses: int = 0,
    bad_syncs: int = 0,
) -> Scenario:
    """One sealed segment with ``records``, none of them used of late, where name M lies if it is one of theirs."""
    blobs = sorted(set("".join(closures.values())) | set(records))
    end = len(records)
    bound = bool(closures.get((M, 1))) and set(closures[M, 1]) <= set(records)
    note: Note | None = (1, ((1, 0),)) if bound else None
    everybody = (*workers, *(((),) * (2 - len(workers))), *((("begin", rounds),),) * upkeepers)
    start = World(
        files=(File(1, records, end, entered=True, footer=records, footer_synced=True),),
        index=Index(
            tuple((1, records.index(blob)) if blob in records else None for blob in blobs),
            (Row(SEALED, end, end),),
            (note, None),
        ),
        names=(int(bound), 0),
        counter=1,
        log=(),
        used="",
        processes=tuple(Process(steps) for steps in everybody),
        crashes=crashes,
        power_losses=power_losses,
        bad_syncs=bad_syncs,
        whole=((M, 1),) if bound else (),
    )
    return Scenario(start, closures, after_power_loss=((("fetch", M), ("fetch", N)), (), (("begin", 1),)))


PUSH_AND_FETCH = _scenario((("push", N, 1),), (("fetch", M), ("read", "a", 3)), closures={(M, 1): "ab", (N, 1): "ac"})
"""One pushes a name that shares a blob with what is to go, one fetches a name that lies there wholly."""

TWO_PUSHES = _scenario((("push", N, 1),), (("push", M, 1),), closures={(M, 1): "a", (N, 1): "a"})
"""Two clients push what is on its way out, and send it again."""

SENT_UNASKED = _scenario((("put", "a"),), (("walk", N, 1),), closures={(N, 1): "b"}, rounds=2)
"""Clients that send what is there, or push a name, without having asked."""

SEALED_AT_ONCE = _scenario((("put", "c"),), (("seal", 0),), closures={(N, 1): "c"}, rounds=2)
"""A segment is full and sealed before the client of its last blob has heard that it is stored."""

MOVED = _scenario((("ask", "a"),), (("fetch", M),), closures={(M, 1): "ab"}, rounds=2)
"""A segment loses a blob to a forward segment, and is let go."""

READ = _scenario((("ask", "a"), ("read", "a", 3)), closures={(M, 1): "ab"}, rounds=2)
"""One reads what is moved under its eyes."""

READ_AND_STORE = _scenario(
    (("put", "c"),), (("read", "b", 3), ("ask", "ac"), ("read", "a", 3), ("read", "c", 3)), closures={(N, 1): "c"}
)
"""One reads what is evicted and uploaded under its eyes."""

BOUND_ANEW = _scenario((("fetch", M), ("read", "a", 3)), (("push", M, 2),), closures={(M, 1): "ab", (M, 2): "c"})
"""A name is fetched and bound to something else."""

DEATHS = _scenario((("push", N, 1),), (("fetch", M),), closures={(M, 1): "ab", (N, 1): "a"}, crashes=1)
"""Any process is killed at any step."""

TWO_DEATHS = _scenario((("push", N, 1),), (), closures={(M, 1): "ab", (N, 1): "a"}, crashes=2)
"""So is whoever comes after it."""

POWER_LOSS = _scenario((("push", N, 1),), (("fetch", M),), closures={(M, 1): "ab", (N, 1): "ac"}, power_losses=1)
"""Power is lost at any step."""

POWER_LOSS_AND_SEALING = _scenario((("push", N, 1),), (("seal", 0),), closures={(N, 1): "bc"}, power_losses=1)
"""... while a segment is sealed."""

SHARED_SEGMENT = _scenario(
    (("put", "b"), ("push", N, 1)),
    (("push", M, 1),),
    records="a",
    closures={(N, 1): "bc", (M, 1): "b"},
    power_losses=1,
    rounds=0,
)
"""One worker syncs what the other is appending to."""

BAD_SYNC = _scenario(
    (("push", N, 1),),
    (("push", M, 1),),
    records="a",
    closures={(N, 1): "b", (M, 1): "b"},
    power_losses=1,
    bad_syncs=1,
    rounds=0,
)
"""The disk refuses a sync, and then says that all is well."""

TWO_UPKEEPERS = _scenario((), (), closures={(M, 1): "ab"}, upkeepers=2)
"""What upkeeper.lock is for."""

ALL = {
    name.lower(): value
    for name, value in list(globals().items())
    if isinstance(value, Scenario) and name != "TWO_UPKEEPERS"
}
