"""The one thread of a process that writes to the index.

LMDB has one writer at a time, over all processes. A process that queued its threads at that lock would convoy; one
thread that takes everything that waits into one transaction does not. The rule: work given to it is a function of a
transaction that may be run twice (a neighbour's failure aborts the transaction, and all are then run alone).
"""

import errno
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady
from millpond.store.index import Index, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
_AT_ONCE = 64


class Job(Protocol):
    """Something to be written."""

    future: "Future[Any]"

    def prepare(self) -> None:
        """File work, before the transaction. Done once."""

    def apply(self, txn: Transaction) -> Any:
        """Index work; its result is the future's."""

    def committed(self) -> None:
        """The transaction is through."""


class Work:
    """A job that is only index work."""

    def __init__(self, apply: Callable[[Transaction], Any]) -> None:
        self.future: Future[Any] = Future()
        self.apply = apply

    def prepare(self) -> None:
        """Nothing."""

    def committed(self) -> None:
        """Nothing."""


class IndexWriter:
    """Runs jobs in order, many per transaction."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> "Future[Any]":
        """Queue a job.

        Raises:
            NotReady: the store is closing.
        """
        if self._closed.is_set():
            raise NotReady("the cache is stopping: try again in a few seconds")
        self._jobs.put(job)
        return job.future

    def transact(self, apply: Callable[[Transaction], T]) -> T:
        """Run index work and wait for it."""
        result: T = self.submit(Work(apply)).result()
        return result

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        if not self._closed.is_set():
            self._closed.set()
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while len(batch) < _AT_ONCE and batch[-1] is not None:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            jobs = [job for job in batch if job is not None]
            self._together([job for job in jobs if _prepared(job)])
            if batch[-1] is None:
                return

    def _together(self, jobs: list[Job]) -> None:
        try:
            results = self._commit(jobs)
        except Exception as failure:
            if len(jobs) == 1:
                jobs[0].future.set_exception(told(failure))
                return
            for job in jobs:
                self._together([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.committed()
            job.future.set_result(result)

    def _commit(self, jobs: list[Job]) -> list[Any]:
        if not jobs:
            return []
        with self._index.env.begin(write=True) as txn:
            return [job.apply(txn) for job in jobs]


def _prepared(job: Job) -> bool:
    try:
        job.prepare()
    except Exception as failure:
        job.future.set_exception(told(failure))
        return False
    return True


def told(failure: Exception) -> Exception:
    """``failure`` as it may be told: what the disk and LMDB say, in the family's words."""
    if isinstance(failure, MillpondError):
        return failure
    if isinstance(failure, lmdb.MapFullError | lmdb.DiskError) or (
        isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    ):
        log.warning("no room on the disk: %s", failure)
        return NoSpace("the cache's disk is full")
    if isinstance(failure, OSError | lmdb.Error):
        log.error("the store could not be written: %s", failure, exc_info=failure)
        return NotReady("the cache could not write to its disk: try again, and tell its maintainer")
    return failure
