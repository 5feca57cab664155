"""Bindings and values for all inputs: written and read back is the same, damaged is absent, never something else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.core.digest import Digest
from millpond.core.errors import NameNotFound
from millpond.core.names import Name, Namespace
from millpond.names import values
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames

KNOWN = {field for field in Binding.__slots__ if field != "extra"}

digests = st.builds(
    lambda data, size: Digest(Digest.of(data).key, size), st.binary(max_size=8), st.integers(0, 2**63 - 1)
)
times = st.integers(0, 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
bindings = st.builds(
    Binding,
    digest=digests,
    pushed_at_ms=times,
    pushed_by=st.text(),
    blobs=st.lists(digests, max_size=4).map(tuple),
    directories=st.lists(digests, max_size=4).map(tuple),
    expires_at_ms=st.none() | times,
    closure_bytes=st.integers(0, 2**63 - 1),
    foreign=st.booleans(),
    message=st.binary(max_size=40),
    extra=st.dictionaries(st.text().filter(lambda key: key not in KNOWN), json_values, max_size=4),
)
names = st.builds(Name, instance=st.text(max_size=20), namespace=st.sampled_from(Namespace), key=st.text(max_size=50))


@given(bindings)
def test_a_binding_is_read_as_it_was_written(binding: Binding) -> None:
    assert Binding.decode(binding.encode()) == binding


@given(names, bindings)
def test_a_value_holds_the_name_and_the_binding(name: Name, binding: Binding) -> None:
    value = values.value_of(name, binding)
    assert values.binding_of(name.row, value) == binding
    assert values.entry_of(name.row, value) == (name, binding)


@given(
    st.binary() | json_values.map(lambda value: json.dumps(value).encode()) | bindings.map(lambda b: b.encode() + b"0")
)
def test_what_is_no_binding_is_a_value_error_and_nothing_else(encoded: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any of them: the callers catch them all
        Binding.decode(encoded)


@given(names, bindings, st.data())
def test_a_flipped_bit_is_damage(name: Name, binding: Binding, data: st.DataObject) -> None:
    value = bytearray(values.value_of(name, binding))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(values.Damaged):
        values.binding_of(name.row, bytes(value))
    with pytest.raises(values.Damaged):
        values.entry_of(name.row, bytes(value))


@given(names, names, bindings)
def test_a_value_in_the_row_of_another_name_is_damage(name: Name, other: Name, binding: Binding) -> None:
    if name != other:
        with pytest.raises(values.Damaged):
            values.binding_of(other.row, values.value_of(name, binding))


def test_every_single_flip_and_truncation_is_damage() -> None:
    name = Name("main", Namespace.ASSET_BLOB, "key")
    value = values.value_of(name, Binding(Digest.of(b"a"), 1))
    lies = [value[:length] for length in range(len(value))]
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        lies.append(bytes(flipped))
    for lie in lies:
        with pytest.raises(values.Damaged):
            values.binding_of(name.row, lie)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(binding=bindings, data=st.data())
def test_a_damaged_value_in_the_table_is_an_absent_name(tmp_path: Path, binding: Binding, data: st.DataObject) -> None:
    name, neighbour = (Name("main", Namespace.ASSET_BLOB, key) for key in ("damaged", "neighbour"))
    index = LmdbNames(tmp_path / "names")
    try:
        index.bind([(name, binding), (neighbour, binding)])
        value = values.value_of(name, binding)
        cut = data.draw(st.integers(0, len(value) - 1))
        lie = value[:cut] + data.draw(st.sampled_from([b"", bytes([value[cut] ^ 1]) + value[cut + 1 :]]))
        index._write(lambda transaction: transaction.put(name.row, lie, db=index._bindings))
        with pytest.raises(NameNotFound):
            index.resolve(name)
        assert list(index.names()) == [(neighbour, binding)]
        assert index.unbind(name, expected=binding) is False
        index.bind([(name, binding)])  # the name is not poisoned
        assert index.resolve(name) == binding
    finally:
        index.close()
