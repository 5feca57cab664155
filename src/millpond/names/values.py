"""How a binding lies in a table: a version, a checksum, the name, the binding.

The rule: a value is believed only in the row it was written for and only whole. The checksum covers the row, the
version and the payload, so neither a flipped bit nor a value that strayed into another row can become a wrong
binding; both are as good as absent.

Layout (format 1)::

    0   1 byte    version of this layout
    1   16 bytes  blake2b-128 of row, version byte and payload
    17  payload   of a binding: the JSON array [instance, namespace, key], a line feed, Binding.encode()

The name stands there in full because the row is only its hash. Whatever a newer Millpond has to add goes into the
binding, which keeps fields that it does not know.
"""

from hashlib import blake2b

from millpond.core import json_text
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding

_VERSION = b"\x01"
_CHECKSUM_BYTES = 16
_PAYLOAD_AT = 1 + _CHECKSUM_BYTES


class Damaged(ValueError):
    """A value that is not what was written to its row, or is written in a layout of a newer Millpond."""


def seal(row: bytes, payload: bytes) -> bytes:
    """The value that holds ``payload`` in ``row``."""
    return _VERSION + _checksum(row, payload) + payload


def unseal(row: bytes, value: bytes) -> bytes:
    """The payload that was sealed for ``row``.

    Raises:
        Damaged: anything else was.

    """
    payload = value[_PAYLOAD_AT:]
    if value[:1] != _VERSION:
        raise Damaged(f"unknown layout {value[:1]!r}")
    if value[1:_PAYLOAD_AT] != _checksum(row, payload):
        raise Damaged("the checksum does not match")
    return payload


def value_of(name: Name, binding: Binding) -> bytes:
    """What stands in ``name.row`` while ``name`` is bound to ``binding``."""
    head = json_text.compact([name.instance, name.namespace, name.key])
    return seal(name.row, head.encode() + b"\n" + binding.encode())


def binding_of(row: bytes, value: bytes) -> Binding:
    """The binding in ``value``.

    Raises:
        Damaged: see :func:`unseal`; or the payload is no binding.

    """
    _, _, encoded = unseal(row, value).partition(b"\n")
    return _decoded(encoded)


def entry_of(row: bytes, value: bytes) -> tuple[Name, Binding] | None:
    """The name and the binding in ``value``; None when only a newer Millpond knows the namespace.

    Raises:
        Damaged: see :func:`binding_of`.

    """
    head, _, encoded = unseal(row, value).partition(b"\n")
    try:
        instance, kind, key = json_text.parse(head)
    except (ValueError, TypeError) as error:
        raise Damaged(f"no name: {error}") from error
    try:
        namespace = Namespace(kind)
    except ValueError:
        return None
    return Name(instance, namespace, key), _decoded(encoded)


def _decoded(encoded: bytes) -> Binding:
    try:
        return Binding.decode(encoded)
    except ValueError as error:
        raise Damaged(str(error)) from error


def _checksum(row: bytes, payload: bytes) -> bytes:
    return blake2b(row + _VERSION + payload, digest_size=_CHECKSUM_BYTES).digest()
