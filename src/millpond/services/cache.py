"""The parts that services work on, tied together once."""

from dataclasses import dataclass, field

from millpond.core.clock import Clock
from millpond.names.interface import NameIndex
from millpond.services.joint_promises import JointPromises
from millpond.store.interface import BlobStore, Closures
from millpond.store.uses.counts import Counts


@dataclass(frozen=True, slots=True)
class Cache:
    """One repository as the services see it."""

    blobs: BlobStore
    closures: Closures
    names: NameIndex
    clock: Clock
    index_only: bool = False
    """Names are kept, blobs live elsewhere: nothing is checked against the store."""
    foreign: bool = True
    """Accept names all of whose blobs live elsewhere (see ``services.assets``)."""
    counts: Counts = field(default_factory=Counts)
    """Hits and misses, added up by the services."""
    promises: JointPromises = field(init=False)
    """For pushes that are committed together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "promises", JointPromises(self.closures))
