"""Who may do what: admission.

The rule (I7): whoever lacks the right learns nothing and changes nothing. Admission returns a :class:`Reader` or a
:class:`Writer`, and only these have methods, so a check that was forgotten cannot be written.
"""

from collections.abc import Collection
from dataclasses import dataclass

from millpond.core.errors import InstanceNotServed, NotPermitted
from millpond.services.cache import Cache
from millpond.services.reading import Reader
from millpond.services.writing import Writer


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``identity`` is empty for anybody, else says how they were recognised (``key:SHA256…``)."""

    identity: str = ""


class Admission:
    """Admits principals to one cache, once it is open; until then the edge says ``NotReady``."""

    def __init__(self, cache: Cache, *, instances: Collection[str], push: bool) -> None:
        self._cache = cache
        self._instances = frozenset(instances)
        self._push = push
        self._readers = {instance: Reader(cache, instance) for instance in self._instances}

    def allows_push(self, principal: Principal) -> bool:  # noqa: ARG002 - who it is will matter as soon as roles do
        """Whether ``principal`` may write at all."""
        return self._push

    def check_push(self, principal: Principal) -> None:
        """Whether ``principal`` may write at all. Comes before any look at a request.

        Raises:
            NotPermitted: it may not.
        """
        if not self.allows_push(principal):
            raise NotPermitted("this cache does not accept pushes from you: it was started without push")

    def reader(self, principal: Principal, instance: str) -> Reader:  # noqa: ARG002
        """Everything that a puller may do in ``instance``.

        Raises:
            InstanceNotServed: no such instance here.
        """
        try:
            return self._readers[instance]
        except KeyError:
            raise self._not_served(instance) from None

    def writer(self, principal: Principal, instance: str) -> Writer:
        """Everything that a pusher may do in ``instance``.

        Raises:
            NotPermitted: the principal may not write.
            InstanceNotServed: no such instance here.
        """
        self.check_push(principal)
        if instance not in self._instances:
            raise self._not_served(instance)
        return Writer(self._cache, instance, principal.identity)

    def _not_served(self, instance: str) -> InstanceNotServed:
        return InstanceNotServed(f"instance name {instance[:255]!r} is not served here: check instance-name")
