"""What is measured: one function per workload, and the table of all of them.

A *session* is one server on one fresh store. Its workloads run in the order of the table; what one of them needs and
nobody stored yet is stored before its clock starts. Every answer is checked after the clock stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks import disk, messages
from benchmarks.calls import CallFailed
from benchmarks.corpus import Corpus
from benchmarks.load import Generator, Timed
from benchmarks.measure import Sample, Usage, metered
from benchmarks.messages import UnexpectedAnswer
from benchmarks.servers import FULL_STORE, OPENINGS, TLS, RunningServer

# A client asks one question after the other: bst waits for the missing digests before it uploads, for one batch before
# it sends the next. So one caller is what one client waits for, and a crowd is what the machine can do. As many calls in
# flight as give the peer its best (see load.py); a few are enough where each call is megabytes or thousands of digests.
ONE = 1
CROWD_SMALL = 32
CROWD_BIG = 8
# One build machine pushes up to four artifacts at a time (BuildStream's default), so this is two of them.
ASSET_CALLERS = 8
OPENERS = 8
STREAMS_TOGETHER = 4
# While a store fills up and overflows: two machines push, one pulls.
WRITERS = 2
READS_PER_SECOND = 200
# So few that each is read twice a second: younger than anything that a full store lets go.
KEEPSAKES = 100
WARM_UP_CALLS = 64
BYTES_PER_MB = 1_000_000


@dataclass(slots=True)
class Session:
    """A server on a fresh store, the open connections to it, and what is known to be stored there."""

    server: RunningServer
    load: Generator
    corpus: Corpus
    stored: set[str] = field(default_factory=set)
    latencies: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """``units`` done in ``timed.seconds``; ``usage`` also has what others did meanwhile."""

    units: float
    timed: Timed
    usage: Usage
    peak_over_quota: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the tables. Workloads of one ``session`` share a store."""

    name: str
    title: str
    unit: str
    session: str
    measure: Callable[[Session], Measured]

    def sample(self, session: Session, run: int) -> Sample:
        """Measure once.

        Raises:
            UnexpectedAnswer: the server failed, took too long or answered something else than what was stored.
        """
        try:
            measured = self.measure(session)
        except (UnexpectedAnswer, CallFailed, OSError) as error:
            raise UnexpectedAnswer(f"{self.name} on {session.server.kind.name}: {error or 'took too long'}") from error
        usage = measured.usage
        return Sample(
            workload=self.name,
            server=session.server.kind.name,
            run=run,
            unit=self.unit,
            units=measured.units,
            wall_seconds=measured.timed.seconds,
            server_cpu_seconds=usage.server_cpu_seconds,
            client_cpu_seconds=usage.client_cpu_seconds,
            others_share=usage.others_share,
            stolen_share=usage.stolen_share,
            peak_over_quota=measured.peak_over_quota,
        )


def _clocked(session: Session, units: float, work: Callable[[], Timed]) -> Measured:
    timed, usage = metered(session.server, work)
    return Measured(units, timed, usage)


def _empty_unary(session: Session, callers: int) -> Measured:
    call = partial(session.load.unary, messages.FIND_MISSING_BLOBS, in_flight=callers)
    call([b""] * WARM_UP_CALLS)
    requests = [b""] * (session.corpus.scale.empty_calls if callers > 1 else session.corpus.scale.empty_calls // 4)
    measured = _clocked(session, len(requests), lambda: call(requests))
    for answer in measured.timed.answers:
        messages.require_missing(answer, 0)
    return measured


def _openings(session: Session, clients: int) -> Measured:
    visit = partial(session.load.open, list(messages.PROBES), in_flight=clients)
    visit(WARM_UP_CALLS)
    scale = session.corpus.scale
    count = scale.openings_by_tls if session.server.keys else scale.openings
    measured = _clocked(session, count, lambda: visit(count))
    for codes in measured.timed.answers:
        messages.require_probed(codes)
    return measured


def _batch_update(session: Session, callers: int) -> Measured:
    requests = [batch.update for batch in session.corpus.batches]
    blobs = len(session.corpus.small_digests)
    update = partial(session.load.unary, messages.BATCH_UPDATE_BLOBS, in_flight=callers)
    measured = _clocked(session, blobs, lambda: update(requests))
    messages.require_updated(measured.timed.answers, blobs)
    session.stored.add("small blobs")
    return measured


def _need_small_blobs(session: Session) -> None:
    if "small blobs" not in session.stored:
        _batch_update(session, ONE)


def _find_missing(session: Session, questions: list[bytes], missing_each: int, callers: int) -> Measured:
    _need_small_blobs(session)
    ask = partial(session.load.unary, messages.FIND_MISSING_BLOBS, in_flight=callers)
    ask(questions)
    requests = questions * session.corpus.scale.question_passes
    digests = len(requests) * session.corpus.scale.digests_per_question
    measured = _clocked(session, digests, lambda: ask(requests))
    for answer in measured.timed.answers:
        messages.require_missing(answer, missing_each)
    return measured


def _find_missing_absent(session: Session, callers: int) -> Measured:
    return _find_missing(session, session.corpus.questions_absent, session.corpus.scale.digests_per_question, callers)


def _find_missing_present(session: Session, callers: int) -> Measured:
    return _find_missing(session, session.corpus.questions_present, 0, callers)


def _batch_read(session: Session, callers: int) -> Measured:
    _need_small_blobs(session)
    ask = partial(session.load.unary, messages.BATCH_READ_BLOBS, in_flight=callers)
    once = [batch.read for batch in session.corpus.batches]
    ask(once)
    requests = once * session.corpus.scale.batch_read_passes
    blobs = len(session.corpus.small_digests) * session.corpus.scale.batch_read_passes
    measured = _clocked(session, blobs, lambda: ask(requests))
    messages.require_batches(measured.timed.answers, blobs)
    return measured


def _stream_read_small(session: Session, callers: int) -> Measured:
    _need_small_blobs(session)
    reads = session.corpus.stream_reads * session.corpus.scale.stream_passes
    requests = [request for _, request in reads]
    read = partial(session.load.read, in_flight=callers, keep=True)
    read(requests[:WARM_UP_CALLS])
    measured = _clocked(session, len(requests), lambda: read(requests))
    for (digest, _), answer in zip(reads, measured.timed.answers, strict=True):
        messages.require_stream(answer, digest)
    return measured


def _push_assets(session: Session, label: str, count: int, callers: int) -> Measured:
    _need_small_blobs(session)
    corpus = session.corpus
    push = partial(session.load.unary, messages.PUSH_BLOB, in_flight=callers)
    push(corpus.asset_pushes(f"{label}-warm", callers))
    requests = corpus.asset_pushes(label, count)
    return _clocked(session, count, lambda: push(requests))


def _asset_push(session: Session) -> Measured:
    measured = _push_assets(session, "crowd", session.corpus.scale.assets, ASSET_CALLERS)
    session.stored.add("assets")
    return measured


def _asset_push_one_caller(session: Session) -> Measured:
    return _push_assets(session, "single", session.corpus.scale.assets_by_one_caller, ONE)


def _asset_fetch(session: Session, callers: int) -> Measured:
    if "assets" not in session.stored:
        _asset_push(session)
    fetches = session.corpus.asset_fetches("crowd", session.corpus.scale.assets) * session.corpus.scale.fetch_passes
    if callers == ONE:
        fetches = fetches[: session.corpus.scale.assets]
    requests = [request for _, request in fetches]
    fetch = partial(session.load.unary, messages.FETCH_BLOB, in_flight=callers)
    fetch(requests[:WARM_UP_CALLS])
    measured = _clocked(session, len(requests), lambda: fetch(requests))
    for (digest, _), answer in zip(fetches, measured.timed.answers, strict=True):
        messages.require_asset(answer, digest)
    return measured


def _megabytes(session: Session) -> float:
    return sum(digest.size_bytes for digest, _ in session.corpus.uploads) / BYTES_PER_MB


def _large_write(session: Session, streams: int) -> Measured:
    uploads = [upload for _, upload in session.corpus.uploads]
    measured = _clocked(session, _megabytes(session), lambda: session.load.write(uploads, in_flight=streams))
    for (digest, _), answer in zip(session.corpus.uploads, measured.timed.answers, strict=True):
        messages.require_committed(answer, digest)
    session.stored.add("large blobs")
    return measured


def _large_read(session: Session, streams: int) -> Measured:
    if "large blobs" not in session.stored:
        _large_write(session, streams)
    requests = [messages.read(digest) for digest, _ in session.corpus.uploads]
    digests = [digest for digest, _ in session.corpus.uploads]
    # One blob is read in full and hashed beforehand; inside the clock bytes are only counted, since keeping half a
    # gigabyte would measure the generator's memory.
    messages.require_stream(session.load.read(requests[:1], in_flight=1, keep=True).answers[0], digests[0])
    measured = _clocked(
        session, _megabytes(session), lambda: session.load.read(requests, in_flight=streams, keep=False)
    )
    for digest, received_bytes in zip(digests, measured.timed.answers, strict=True):
        messages.require_at_least(received_bytes, digest)
    return measured


def _fill(session: Session, label: str) -> Measured:
    """Store new blobs, while one client reads small ones all the time; how much of the disk the store takes meanwhile."""
    if label == "overflow" and "roomy" not in session.latencies:
        _fill(session, "roomy")
    corpus = session.corpus
    keepsakes = corpus.batches[0]
    if "keepsakes" not in session.stored:
        session.load.unary(messages.BATCH_UPDATE_BLOBS, [keepsakes.update], in_flight=ONE)
        session.stored.add("keepsakes")
    reads = [messages.read(digest) for digest in corpus.small_digests[:KEEPSAKES]]
    batches = corpus.filling(label, getattr(corpus.scale, f"{label}_bytes"))
    blobs = sum(batch.blobs for batch in batches)
    latencies: list[float] = []

    def work() -> Timed:
        timed, latencies[:] = session.load.write_while_reading(
            [batch.update for batch in batches], reads, writers=WRITERS, reads_per_second=READS_PER_SECOND
        )
        return timed

    with disk.watched(session.server.store) as peak:
        measured = _clocked(session, blobs, work)
    messages.require_updated(measured.timed.answers, blobs)
    session.latencies[label] = sorted(latencies)
    quota_bytes = session.server.kind.quota_bytes
    return replace(measured, peak_over_quota=peak.taken_bytes / quota_bytes if quota_bytes else None)


def _slowest_reads(session: Session, label: str) -> Measured:
    """The time that 99 of 100 small reads took at most during :func:`_fill`, as a rate: so many of them in a second."""
    if label not in session.latencies:
        _fill(session, label)
    latencies = session.latencies[label]
    return Measured(1, Timed(latencies[len(latencies) * 99 // 100], []), Usage(0, 0, 0, 0, 0))


Measure = Callable[..., Measured]


def _alone_and_together(
    name: str, title: str, unit: str, measure: Measure, crowd: int, crowd_session: str = "small"
) -> list[Workload]:
    """The same work by one caller, and by as many as the peer does best with."""
    together = f"{title}, {crowd} callers"
    return [
        Workload(name, title, unit, "small", partial(measure, callers=ONE)),
        Workload(f"{name}-together", together, unit, crowd_session, partial(measure, callers=crowd)),
    ]


def _of_large_blobs(name: str, title: str, measure: Measure) -> list[Workload]:
    """One stream, and several on a store of their own."""
    together = f"{title}, {STREAMS_TOGETHER} streams"
    return [
        Workload(name, f"{title}, 1 stream", "MB", "large", partial(measure, streams=ONE)),
        Workload(f"{name}-together", together, "MB", "large, together", partial(measure, streams=STREAMS_TOGETHER)),
    ]


def _openings_of(name: str, title: str, session: str) -> list[Workload]:
    """One client at a time, and eight machines' jobs at once."""
    return [
        Workload(name, title, "opening", session, partial(_openings, clients=ONE)),
        Workload(
            f"{name}-together", f"{title}, {OPENERS} clients", "opening", session, partial(_openings, clients=OPENERS)
        ),
    ]


def _fillings(label: str, title: str) -> list[Workload]:
    """How fast a store of a small quota takes blobs, and how long a reader waits meanwhile."""
    return [
        Workload(f"fill-{label}", title, "blob", FULL_STORE, partial(_fill, label=label)),
        Workload(
            f"reads-{label}", f"{title}: 1/p99 of a read", "p99", FULL_STORE, partial(_slowest_reads, label=label)
        ),
    ]


WORKLOADS = {
    workload.name: workload
    for workload in (
        *_alone_and_together("empty-unary", "empty unary call", "call", _empty_unary, CROWD_SMALL),
        *_openings_of("openings", "openings of a 1.6.9 job", OPENINGS),
        *_openings_of("openings-tls", "openings, mutual TLS", TLS),
        # What was stored once is not stored again: the crowd gets a store of its own.
        *_alone_and_together("batch-update", "BatchUpdateBlobs", "blob", _batch_update, CROWD_BIG, "small, together"),
        *_alone_and_together(
            "find-missing-absent", "FindMissingBlobs, absent", "digest", _find_missing_absent, CROWD_BIG
        ),
        *_alone_and_together(
            "find-missing-present", "FindMissingBlobs, present", "digest", _find_missing_present, CROWD_BIG
        ),
        *_alone_and_together("batch-read", "BatchReadBlobs", "blob", _batch_read, CROWD_BIG),
        *_alone_and_together(
            "stream-read-small", "ByteStream read, small blobs", "blob", _stream_read_small, CROWD_SMALL
        ),
        Workload("asset-push", f"asset push, {ASSET_CALLERS} callers", "push", "small", _asset_push),
        Workload("asset-push-one-caller", "asset push, 1 caller", "push", "small", _asset_push_one_caller),
        *_alone_and_together("asset-fetch", "asset fetch", "fetch", _asset_fetch, CROWD_SMALL),
        *_of_large_blobs("large-write", "ByteStream write, 128 MB", _large_write),
        *_of_large_blobs("large-read", "ByteStream read, 128 MB", _large_read),
        *_fillings("roomy", "writing while there is room"),
        *_fillings("overflow", "writing three quotas more"),
    )
}
