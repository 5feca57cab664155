"""The one thread of a process that writes to an LMDB environment.

LMDB lets one writer in at a time, over all processes; threads that queued for its mutex would convoy, and pay one sync
each where there is one. The rule: what waits is committed together, and still everybody gets the answer that they would
have got alone: when a group fails, each of it is done again by itself, so work may be run twice.
"""

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from millpond.core.errors import NotReady
from millpond.core.outcome import Outcome
from millpond.disk import environment
from millpond.disk.blocks import ROWS

Transaction = Any
"""``lmdb.Transaction``."""
T = TypeVar("T")
_AT_ONCE = 64
_MOST_ROWS = 1000


class Job(Protocol):
    """Something to be written."""

    outcome: "Outcome[Any]"
    rows: int
    """The most rows that it changes; a few in small tables do not count."""

    def prepare(self) -> None:
        """File work, before the transaction. Done once."""

    def apply(self, txn: Transaction) -> Any:
        """Work inside the transaction; its result is the outcome's. May be done again in another transaction."""

    def committed(self) -> None:
        """The transaction is through."""

    def failed(self) -> None:
        """It was prepared, and there will be no transaction."""


class Writing(Protocol):
    """Begins a write transaction."""

    def __call__(self, *, rows: int) -> contextlib.AbstractContextManager[Transaction]:
        """``rows``: how many it changes at most."""


class Work:
    """A job that is only a function of a transaction."""

    def __init__(
        self,
        apply: Callable[[Transaction], Any],
        *,
        rows: int = ROWS,
        first: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """``first`` prepares it; where it raises, that is the outcome."""
        self.outcome: Outcome[Any] = Outcome()
        self.apply = apply
        self.rows = rows
        self._first = first
        self._failed = failed

    def prepare(self) -> None:
        """Do what comes first."""
        if self._first is not None:
            self._first()

    def committed(self) -> None:
        """Nothing."""

    def failed(self) -> None:
        """Have it done again, perhaps."""
        if self._failed is not None:
            self._failed()


class GroupWriter:
    """Runs jobs in order, many per transaction."""

    def __init__(
        self,
        writing: Writing,
        name: str,
        *,
        told: Callable[[Exception], Exception] = lambda error: error,
        ending: Callable[[Transaction], None] = lambda _: None,
        most_rows: Callable[[], int] = lambda: _MOST_ROWS,
        gather_seconds: float = 0.0,
    ) -> None:
        """``told`` turns a failure into what the caller is to see. ``ending`` is done last in each transaction, for all jobs.

        ``most_rows``: jobs that change more than so many together are not committed together. ``gather_seconds``: how
        long after a commit a group waits, at most, to become as large as the one before. Those whose jobs were committed
        together come back together, and where a commit costs a sync, one less is worth that. Nor does this thread ask for
        the interpreter, then, while another one is still busy with what comes.
        """
        self._writing = writing
        self._ending = ending
        self._gather_seconds = gather_seconds
        self._told = told
        self._most_rows = most_rows
        self._awaited = 0
        self._enough = threading.Event()
        self._door = threading.Lock()
        self._closed = False
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._lazy: deque[tuple[Callable[[Transaction], Any], int, bool]] = deque()
        # A daemon: what was acknowledged is safe, so an exit without close() loses nothing and must not hang.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> "Outcome[Any]":
        """Queue a job; what it will come to.

        Raises:
            NotReady: the writer is closed.
        """
        with self._door:
            if self._closed:
                raise NotReady("the cache is stopping: try again in a few seconds")
            self._waiting.put(job)
            if 0 < self._awaited <= self._waiting.qsize():
                self._enough.set()
        return job.outcome

    def submit_lazily(self, work: Callable[[Transaction], Any], *, rows: int = ROWS, insist: bool = False) -> None:
        """Have ``work`` done together with the next job, or at the next :meth:`flush`; nobody learns how it went.

        With ``insist`` it is done again until it went well.
        """
        self._lazy.append((work, rows, insist))

    def flush(self) -> None:
        """See to it that lazy work is done soon."""
        if self._lazy:
            with contextlib.suppress(NotReady):
                self.submit(Work(lambda _: None))

    def run(self, work: Callable[[Transaction], T], *, rows: int = ROWS) -> T:
        """What ``work`` returns, once it is committed; it changes at most so many rows.

        Raises:
            NotReady: the writer is closed.
            Exception: what ``work`` or its commit raised; nothing was written then.
        """
        result: T = self.submit(Work(work, rows=rows)).result()
        return result

    def close(self) -> None:
        """Finish what waits, then end the thread. Repeating it is fine."""
        with self._door:
            if not self._closed:
                self._closed = True
                if self._lazy:
                    self._waiting.put(Work(lambda _: None))  # takes it along
                self._waiting.put(None)  # nothing follows it: submit() looks at _closed behind the same door
        self._thread.join()

    def _serve(self) -> None:
        job = self._waiting.get()
        while job is not None:
            group, rows, most_rows = [job], job.rows, self._most_rows()
            while len(group) < _AT_ONCE and not self._waiting.empty():
                job = self._waiting.get()
                if job is None or rows + job.rows > most_rows:
                    break
                group.append(job)
                rows += job.rows
            self._run_group(group, most_rows - rows)
            if job is group[-1]:
                if len(group) > 1 and self._gather_seconds:
                    self._gather(len(group))
                job = self._waiting.get()

    def _gather(self, count: int) -> None:
        """Wait until so many jobs wait."""
        self._enough.clear()
        self._awaited = count
        if self._waiting.qsize() < count:
            self._enough.wait(self._gather_seconds)
        self._awaited = 0

    def _run_group(self, group: list[Job], rows_left: int) -> None:
        """``rows_left``: lazy work is taken along that changes no more; some of it in any case."""
        ready = [job for job in group if self._prepared(job)]
        taken = 0
        while self._lazy and (not taken or taken + self._lazy[0][1] <= rows_left):
            lazy = self._lazy.popleft()
            work, rows, insist = lazy
            ready.append(Work(work, rows=rows, failed=functools.partial(self._lazy.append, lazy) if insist else None))
            taken += rows
        self._commit(ready)

    def _prepared(self, job: Job) -> bool:
        try:
            job.prepare()
        except Exception as failure:
            job.outcome.set_exception(self._told(failure))
            return False
        return True

    def _commit(self, group: list[Job]) -> None:
        if not group:
            return
        try:
            with self._writing(rows=sum(job.rows for job in group)) as txn:
                results = [job.apply(txn) for job in group]
                self._ending(txn)
        except Exception as failure:
            environment.heed(failure)
            if len(group) == 1:
                group[0].failed()
                group[0].outcome.set_exception(self._told(failure))
                return
            for job in group:
                self._commit([job])
            return
        for job, result in zip(group, results, strict=True):
            job.committed()
            job.outcome.set_result(result)
