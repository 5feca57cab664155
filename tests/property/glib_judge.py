"""GLib's opinion on serialised GVariants. Run by Debian's Python, which has PyGObject; it imports nothing of ours.

A line on standard input: type, byte order, bytes in hexadecimal. A line on standard output, in JSON: whether GLib takes
it for normal form, and what it reads in it.
"""

import json
import struct
import sys

from gi.repository import GLib


def plain(variant):
    """A value as JSON can say it."""
    kind = variant.get_type_string()
    first = kind[0]
    if first == "v":
        inner = variant.get_variant()
        return {"type": inner.get_type_string(), "value": plain(inner)}
    if first == "b":
        return variant.get_boolean()
    if first in "sog":
        return variant.get_string()
    if first == "d":
        return struct.pack("<d", variant.get_double()).hex()
    if first in "ynqiuxth":
        names = {"y": "byte", "n": "int16", "q": "uint16", "i": "int32", "u": "uint32", "x": "int64", "t": "uint64"}
        return getattr(variant, "get_" + {**names, "h": "handle"}[first])()
    return [plain(variant.get_child_value(number)) for number in range(variant.n_children())]


for line in sys.stdin:
    type_string, order, data = line.rstrip("\n").split(" ")
    variant = GLib.Variant.new_from_bytes(GLib.VariantType(type_string), GLib.Bytes(bytes.fromhex(data)), False)
    normal = variant.is_normal_form()
    if order == "big" and normal:
        variant = variant.byteswap()
    print(json.dumps({"normal": normal, "value": plain(variant) if normal else None}), flush=True)
