"""GVariant, the format of everything that OSTree writes: Python values to bytes and back.

The rule: :func:`decode` accepts the normal form and nothing else, so bytes that it accepts are the bytes that
:func:`encode` makes of its answer. What is not normal has two readings, and a hash that covers one of them proves
nothing about the other.

Facts about the format: a container's *framing offsets* (where its elements of no fixed size end) stand at its end, as
wide as its size demands, and are little-endian whatever the byte order of the numbers. Everything is aligned to its
type, counted from the start.

==============  =====================================================================
type            value
==============  =====================================================================
``b y n q i u x t h d``  bool, int, float
``s o g``       str
``ay``          bytes
``a…``          list; of ``a{…}`` too, as pairs: their order and doubles are kept
``m…``          list of one value or none
``(…) {…}``     tuple
``v``           :class:`Variant`
==============  =====================================================================
"""

from __future__ import annotations

from struct import Struct

from millpond.protocol.gvariant_framing import NotNormal as NotNormal
from millpond.protocol.gvariant_framing import aligned, deeper, framed, framed_size, width_of

_DEPTH = 64
"""Containers in containers; GLib allows 128 (``G_VARIANT_MAX_RECURSION_DEPTH``), OSTree's own types need 5."""
_SIGNATURE_CHARS = 255
"""The longest type string (D-Bus specification, "Type System")."""

Value = object
"""See the table above; what is decoded has the shape that its type says."""


class Variant(tuple[str, Value]):
    """A value together with its type, as in ``a{sv}``."""

    __slots__ = ()

    def __new__(cls, type: str, value: Value) -> Variant:  # noqa: A002 — what GVariant calls it
        """Of this type and value."""
        return tuple.__new__(cls, (type, value))

    @property
    def type(self) -> str:
        """The type string."""
        return self[0]

    @property
    def value(self) -> Value:
        """The value."""
        return self[1]


def encode(type_string: str, value: Value, *, order: str = "little") -> bytes:
    """The bytes of a value, its numbers in this byte order.

    Raises:
        NotNormal: no value of this type.
    """
    try:
        return _codec(type_string, order).encode(value)
    except NotNormal:
        raise
    except Exception as failure:  # whatever a value of another shape provokes
        raise NotNormal(f"no value of type {type_string}: {failure}") from None


def decode(type_string: str, data: bytes, *, order: str = "little") -> Value:
    """The value in ``data``, of which nothing may be left over.

    Raises:
        NotNormal: it is none of this type, or not in normal form.
    """
    return _codec(type_string, order).decode(data, 0, len(data), _DEPTH)


class _Codec:
    """Writes and reads one type. ``fixed`` is its size, or 0 when that depends on the value."""

    __slots__ = ()
    alignment = 1
    fixed = 0

    def encode(self, value: Value) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes, start: int, end: int, depth: int, /) -> Value:
        raise NotImplementedError


class _Number(_Codec):
    __slots__ = ("alignment", "fixed", "kind", "struct")

    def __init__(self, kind: type, layout: str, order: str) -> None:
        self.kind = kind
        self.struct = Struct((">" if order == "big" else "<") + layout)
        self.fixed = self.alignment = self.struct.size

    def encode(self, value: Value) -> bytes:
        if type(value) is not self.kind:
            raise NotNormal(f"{value!r} is no {self.kind.__name__}")
        return self.struct.pack(value)

    def decode(self, data: bytes, start: int, end: int, _depth: int) -> Value:
        if end - start != self.fixed:
            raise NotNormal("a number of the wrong size")
        return self.struct.unpack_from(data, start)[0]


class _Boolean(_Codec):
    __slots__ = ()
    fixed = 1

    def encode(self, value: Value) -> bytes:
        if not isinstance(value, bool):
            raise NotNormal(f"{value!r} is no boolean")
        return b"\1" if value else b"\0"

    def decode(self, data: bytes, start: int, end: int, _depth: int) -> Value:
        if end - start != 1 or data[start] > 1:
            raise NotNormal("a boolean that is neither 0 nor 1")
        return data[start] == 1


class _Text(_Codec):
    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def encode(self, value: Value) -> bytes:
        assert isinstance(value, str)
        if "\0" in value or not self._allows(value):
            raise NotNormal("a text that may not stand here")
        return value.encode() + b"\0"

    def decode(self, data: bytes, start: int, end: int, _depth: int) -> Value:
        if data.find(b"\0", start, end) != end - 1 or end == start:
            raise NotNormal("a text that does not end where its zero byte is")
        try:
            text = str(data[start : end - 1], "utf-8")
        except UnicodeDecodeError:
            raise NotNormal("a text that is not UTF-8") from None
        if not self._allows(text):
            raise NotNormal("a text that may not stand here")
        return text

    def _allows(self, text: str) -> bool:
        if self.kind == "o":
            return _is_object_path(text)
        return self.kind == "s" or _is_signature(text)


class _Bytes(_Codec):
    """``ay``, the array that nobody wants as a list."""

    __slots__ = ()

    def encode(self, value: Value) -> bytes:
        if not isinstance(value, bytes):
            raise NotNormal("ay is of bytes")
        return value

    def decode(self, data: bytes, start: int, end: int, _depth: int) -> Value:
        return data[start:end]


class _Array(_Codec):
    __slots__ = ("alignment", "element")

    def __init__(self, element: _Codec) -> None:
        self.element = element
        self.alignment = element.alignment

    def encode(self, value: Value) -> bytes:
        assert isinstance(value, list)
        body, ends = bytearray(), []
        for one in value:
            body += bytes(-len(body) % self.alignment)
            body += self.element.encode(one)
            ends.append(len(body))
        return bytes(body) if self.element.fixed else framed(body, ends)

    def decode(self, data: bytes, start: int, end: int, depth: int) -> Value:
        size = end - start
        if not size:
            return []
        depth = deeper(depth)
        read, fixed = self.element.decode, self.element.fixed
        if fixed:
            if size % fixed:
                raise NotNormal("an array that ends within an element")
            return [read(data, at, at + fixed, depth) for at in range(start, end, fixed)]
        width = width_of(size)
        table = start + int.from_bytes(data[end - width : end], "little")
        count, rest = divmod(end - table, width)
        if table < start or count < 1 or rest or framed_size(table - start, count) != size:
            raise NotNormal("an array whose framing offsets do not fit")
        values, at = [], start
        for place in range(table, end, width):
            begin = aligned(data, start, at, self.alignment)
            at = start + int.from_bytes(data[place : place + width], "little")
            if not begin <= at <= table:
                raise NotNormal("an array whose elements overlap")
            values.append(read(data, begin, at, depth))
        return values


class _Maybe(_Codec):
    __slots__ = ("alignment", "element")

    def __init__(self, element: _Codec) -> None:
        self.element = element
        self.alignment = element.alignment

    def encode(self, value: Value) -> bytes:
        assert isinstance(value, list)
        if not value:
            return b""
        (one,) = value
        return self.element.encode(one) + (b"" if self.element.fixed else b"\0")

    def decode(self, data: bytes, start: int, end: int, depth: int) -> Value:
        if start == end:
            return []
        if not self.element.fixed:
            end -= 1
            if data[end]:
                raise NotNormal("a maybe without its zero byte")
        return [self.element.decode(data, start, end, deeper(depth))]


class _Tuple(_Codec):
    __slots__ = ("alignment", "fixed", "members")

    def __init__(self, members: list[_Codec]) -> None:
        self.members = members
        self.alignment = max((one.alignment for one in members), default=1)
        size = 0
        for one in members:
            size += -size % one.alignment + one.fixed
        size += -size % self.alignment
        self.fixed = (size or 1) if all(one.fixed for one in members) else 0

    def encode(self, value: Value) -> bytes:
        assert isinstance(value, tuple)
        body, ends = bytearray(), []
        for one, part in zip(self.members, value, strict=True):
            body += bytes(-len(body) % one.alignment)
            body += one.encode(part)
            ends += [] if one.fixed else [len(body)]
        if self.fixed:
            return bytes(body).ljust(self.fixed, b"\0")
        if not self.members[-1].fixed:  # the last one ends where the offsets begin
            ends.pop()
        return framed(body, ends[::-1])

    def decode(self, data: bytes, start: int, end: int, depth: int) -> Value:
        size, depth = end - start, deeper(depth)
        if self.fixed and size != self.fixed:
            raise NotNormal("a tuple of the wrong size")
        width = 0 if self.fixed else width_of(size)
        values, at, limit, offsets = [], start, end, 0
        last = len(self.members) - 1
        for index, one in enumerate(self.members):
            begin = aligned(data, start, at, one.alignment)
            if one.fixed:
                at = begin + one.fixed
            elif index == last:
                at = limit
            else:
                limit -= width
                offsets += 1
                at = start + int.from_bytes(data[limit : limit + width], "little") if limit >= start else limit
            if not begin <= at <= limit:
                raise NotNormal("a tuple whose members overlap")
            values.append(one.decode(data, begin, at, depth))
        if self.fixed:
            if any(data[at:end]):
                raise NotNormal("padding that is not zero")
        elif at != limit or framed_size(at - start, offsets) != size:
            raise NotNormal("a tuple whose framing offsets do not fit")
        return tuple(values)


class _AnyType(_Codec):
    """``v``: the value, a zero byte, its type."""

    __slots__ = ("order",)
    alignment = 8

    def __init__(self, order: str) -> None:
        self.order = order

    def encode(self, value: Value) -> bytes:
        assert isinstance(value, Variant)
        return _codec(value.type, self.order).encode(value.value) + b"\0" + value.type.encode()

    def decode(self, data: bytes, start: int, end: int, depth: int) -> Value:
        zero = data.rfind(b"\0", max(start, end - _SIGNATURE_CHARS - 1), end)
        if zero < 0:
            raise NotNormal("a variant without a type")
        try:
            type_string = str(data[zero + 1 : end], "ascii")
        except UnicodeDecodeError:
            raise NotNormal("a variant of no type") from None
        codec = _codec(type_string, self.order)
        # The place of a variant's content is counted from the variant, which is aligned to 8: nothing to shift.
        return Variant(type_string, codec.decode(data, start, zero, deeper(depth)))


# -- types ------------------------------------------------------------------------------------------------------------

_NUMBERS: dict[str, tuple[type, str]] = {
    "y": (int, "B"), "n": (int, "h"), "q": (int, "H"), "i": (int, "i"), "u": (int, "I"),
    "x": (int, "q"), "t": (int, "Q"), "h": (int, "i"), "d": (float, "d"),
}  # fmt: skip
_BASIC = "bynqiuxthdsog"
_KNOWN: dict[tuple[str, str], _Codec] = {}
_KNOWN_MAX = 256
"""Types of a peer's choosing are not remembered for ever."""


def _codec(type_string: str, order: str) -> _Codec:
    known = _KNOWN.get((type_string, order))
    if known is None:
        if len(type_string) > _SIGNATURE_CHARS:
            raise NotNormal("a type string without end")
        known, at = _parse(type_string, 0, order, _DEPTH)
        if at != len(type_string):
            raise NotNormal(f"{type_string!r} is more than one type")
        if len(_KNOWN) >= _KNOWN_MAX:
            _KNOWN.clear()
        _KNOWN[type_string, order] = known
    return known


def _parse(text: str, at: int, order: str, depth: int) -> tuple[_Codec, int]:
    depth = deeper(depth)
    kind = text[at : at + 1]
    if kind in _NUMBERS:
        return _Number(*_NUMBERS[kind], order), at + 1
    if kind == "b":
        return _Boolean(), at + 1
    if kind in ("s", "o", "g"):
        return _Text(kind), at + 1
    if kind == "v":
        return _AnyType(order), at + 1
    if kind in ("a", "m"):
        if kind == "a" and text[at + 1 : at + 2] == "y":
            return _Bytes(), at + 2
        element, end = _parse(text, at + 1, order, depth)
        return (_Array if kind == "a" else _Maybe)(element), end
    closing = {"(": ")", "{": "}"}.get(kind)
    if closing is None:
        raise NotNormal(f"{text!r} is no type")
    members, at = [], at + 1
    if kind == "{" and text[at : at + 1] not in tuple(_BASIC):
        raise NotNormal(f"{text!r} has a key that is no basic type")
    while text[at : at + 1] != closing:
        member, at = _parse(text, at, order, depth)
        members.append(member)
    if kind == "{" and len(members) != 2:
        raise NotNormal(f"{text!r} has a dictionary entry that is no pair")
    return _Tuple(members), at + 1


def _is_signature(text: str) -> bool:
    """Any number of types, none of them a maybe (``g_variant_is_signature``)."""
    if len(text) > _SIGNATURE_CHARS or "m" in text:
        return False
    at = 0
    try:
        while at < len(text):
            _, at = _parse(text, at, "little", _DEPTH)
    except NotNormal:
        return False
    return True


def _is_object_path(text: str) -> bool:
    """``/`` or ``/a/b_1``, in ASCII (D-Bus specification, "Valid Object Paths")."""
    if text == "/":
        return True
    steps = text.split("/")
    return steps[0] == "" and all(
        step and step.isascii() and step.replace("_", "a").isalnum() for step in steps[1:]
    )  # fmt: skip
