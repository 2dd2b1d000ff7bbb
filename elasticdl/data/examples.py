"""Rows of columns to serialized tf.Example messages and back, without TensorFlow."""

import itertools
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
    unknown_fields,
)
from numpy.typing import NDArray

from elasticdl.errors import UserError

Value = float | int | bytes

# Tags of fields: number and wire type. All of them are of length-delimited fields.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"
_FIRST, _SECOND = b"\x0a", b"\x12"

# Bounds what encoding takes in memory beside its result.
_ROWS_AT_ONCE = 4096
_VALUES_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Feature:
    """One named feature of a set of records.

    Attributes:
        name: its key in tf.Example.
        type: "float", "int", "bytes", or "mixed" where records differ.
        length: values in each record; None where records differ.
        missing: records that lack it.
    """

    name: str
    type: str
    length: int | None
    missing: int = 0


def encode(columns: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """One serialized tf.Example for each row.

    Floats become a float_list (of float32), integers and booleans an int64_list, strings and
    bytes a bytes_list (strings as UTF-8). Further dimensions of a column are flattened in row-major
    order. Features stand in the order of their names, so equal rows are equal bytes. Bytes belong
    in arrays of dtype object: NumPy's own dtype for them cannot tell trailing NULs from none.

    Args:
        columns: arrays [n, ...] by the feature's name; those of dtype object hold str or bytes.

    Raises:
        UserError: there is no column, columns differ in length, or a value has no place in
            tf.Example.
    """
    if not columns:
        raise UserError("columns: expected at least one; got none.")
    arrays = dict(sorted(columns.items()))
    for name, array in arrays.items():
        if array.ndim == 0:
            raise UserError(f"column {name!r}: expected an array of rows; got a single value.")
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1:
        lengths = ", ".join(f"{name}: {len(array)}" for name, array in arrays.items())
        raise UserError(f"columns: expected as many rows in each; got {lengths}.")
    encoders = [(_head(name), name, array) for name, array in arrays.items()]
    found: list[bytes] = []
    count = rows.pop()
    widest = max(array.size for array in arrays.values()) // max(count, 1)
    step = max(1, min(_ROWS_AT_ONCE, _VALUES_AT_ONCE // max(widest, 1)))
    for start in range(0, count, step):
        part = slice(start, start + step)
        entries = [_entries(head, name, array[part]) for head, name, array in encoders]
        bodies = entries[0] if len(entries) == 1 else map(b"".join, zip(*entries, strict=True))
        heads = _Heads(_FIRST)
        found += [heads[len(body)] + body for body in bodies]
    return found


def decode(record: bytes) -> dict[str, list[Value]]:
    """The values of each feature of a serialized tf.Example, by name, in the names' order.

    A feature without a list of values has an empty one.

    Raises:
        UserError: the record is not a tf.Example.
    """
    return {name: values for name, (_, values) in _parsed(record).items()}


def schema(records: Iterable[bytes]) -> tuple[Feature, ...]:
    """The features that the records have, in the order of their names.

    Raises:
        UserError: a record is not a tf.Example.
    """
    kinds: dict[str, set[str]] = {}
    lengths: dict[str, set[int]] = {}
    present: dict[str, int] = {}
    count = 0
    for record in records:
        count += 1
        for name, (kind, values) in _parsed(record).items():
            kinds.setdefault(name, set()).add(kind)
            lengths.setdefault(name, set()).add(len(values))
            present[name] = present.get(name, 0) + 1
    return tuple(
        Feature(
            name=name,
            type=next(iter(kinds[name])) if len(kinds[name]) == 1 else "mixed",
            length=next(iter(lengths[name])) if len(lengths[name]) == 1 else None,
            missing=count - present[name],
        )
        for name in sorted(present)
    )


def column_type(dtype: np.dtype[Any]) -> str | None:
    """What `encode` makes of arrays of a dtype: "float", "int", "bytes"; None if it cannot."""
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return "float"
    if dtype.kind in "iub":
        return "int"
    if dtype.kind in "USOT":
        return "bytes"
    return None


class _Heads(dict[int, bytes]):
    """By the length of what follows: the bytes that announce it, outermost first.

    Args:
        tags: of the messages around it, innermost last; each is followed by its length.
    """

    def __init__(self, *tags: bytes) -> None:
        self._tags = tags

    def __missing__(self, length: int) -> bytes:
        head = b""
        for tag in reversed(self._tags):
            head = tag + _varint(length + len(head)) + head
        self[length] = head
        return head


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _head(name: str) -> bytes:
    """The key of an entry in the map of features, with its tag and length."""
    key = name.encode()
    return _FIRST + _varint(len(key)) + key


def _entries(key: bytes, name: str, array: NDArray[Any]) -> list[bytes]:
    """The entry of the map of features for each row: key, and the values as a Feature."""
    kind = column_type(array.dtype)
    flat = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
    match kind:
        case "float":
            tag, values = _FLOAT_LIST, _floats(name, flat)
        case "int":
            tag, values = _INT64_LIST, _integers(name, flat)
        case "bytes":
            tag, values = _BYTES_LIST, _strings(name, flat)
        case _:
            raise UserError(
                f"column {name!r}: expected floats, integers, booleans, strings or bytes; got "
                f"dtype {array.dtype}. Convert it or leave it out."
            )
    heads = _EntryHeads(key, tag)
    return [heads[len(body)] + body for body in values]


class _EntryHeads(dict[int, bytes]):
    """By the length of a list's packed values: all of an entry that comes before them."""

    def __init__(self, key: bytes, tag: bytes) -> None:
        self._key = key
        self._feature = _Heads(_SECOND, tag)

    def __missing__(self, length: int) -> bytes:
        inner = self._key + self._feature[length]
        head = _FIRST + _varint(len(inner) + length) + inner
        self[length] = head
        return head


def _packed(values: list[bytes]) -> list[bytes]:
    """Packed numbers as a field; none at all for no numbers, as protobuf writes them."""
    heads = _Heads(_FIRST)
    heads[0] = b""
    return [heads[len(body)] + body for body in values]


def _floats(name: str, flat: NDArray[Any]) -> list[bytes]:
    with np.errstate(over="ignore"):
        narrow = flat.astype("<f4")
    if flat.dtype.itemsize > 4 and not np.array_equal(np.isinf(narrow), np.isinf(flat)):
        raise UserError(
            f"column {name!r}: expected numbers that fit float32, at most 3.4e38; got "
            f"{flat[np.isinf(narrow) & ~np.isinf(flat)][0]}. Scale the column."
        )
    size = 4 * flat.shape[1]
    if not size:
        return [b""] * len(flat)
    rows = struct.iter_unpack(f"{size}s", np.ascontiguousarray(narrow).data)
    head = _FIRST + _varint(size)
    return [head + row for row in itertools.chain.from_iterable(rows)]


def _integers(name: str, flat: NDArray[Any]) -> list[bytes]:
    if flat.dtype.kind == "u" and flat.size and int(flat.max()) > np.iinfo(np.int64).max:
        raise UserError(
            f"column {name!r}: expected integers that fit int64; got {flat.max()}. Convert it to "
            "float or to text."
        )
    numbers = flat.astype(np.int64).view(np.uint64)
    digits = 1
    highest = int(numbers.max()) if numbers.size else 0
    while highest >> 7 * digits:
        digits += 1
    # Column d of `coded` is the d-th group of 7 bits; all but the last in use say that more follow.
    groups = numbers[:, :, None] >> (7 * np.arange(digits, dtype=np.uint64))
    used = groups > 0
    used[:, :, 0] = True
    coded = (groups & np.uint64(127)).astype(np.uint8)
    coded[:, :, :-1] |= used[:, :, 1:].astype(np.uint8) << 7
    packed = coded[used].tobytes()
    ends = used.sum(axis=(1, 2)).cumsum().tolist()
    return _packed([packed[a:b] for a, b in itertools.pairwise([0, *ends])])


def _strings(name: str, flat: NDArray[Any]) -> list[bytes]:
    heads = _Heads(_FIRST)
    rows = []
    for row in flat.tolist():
        pieces = []
        for value in row:
            text = value.encode() if isinstance(value, str) else value
            if not isinstance(text, bytes):
                raise UserError(
                    f"column {name!r}: expected strings or bytes in an array of dtype "
                    f"{flat.dtype}; got {value!r} of type {type(value).__name__}."
                )
            pieces.append(heads[len(text)])
            pieces.append(text)
        rows.append(b"".join(pieces))
    return rows


def _example_class() -> type[message.Message]:
    """The message class tf.Example, in a pool of its own: TensorFlow registers the same name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="example.proto", package="tensorflow", syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto

    def add(name: str, *fields: tuple[str, int, int, bool, str]) -> descriptor_pb2.DescriptorProto:
        built = file.message_type.add(name=name)
        for title, number, kind, repeated, of in fields:
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            built.field.add(name=title, number=number, type=kind, label=label, type_name=of or None)
        return built

    of_message, root = field.TYPE_MESSAGE, ".tensorflow."
    add("BytesList", ("value", 1, field.TYPE_BYTES, True, ""))
    add("FloatList", ("value", 1, field.TYPE_FLOAT, True, ""))
    add("Int64List", ("value", 1, field.TYPE_INT64, True, ""))
    feature = add(
        "Feature",
        ("bytes_list", 1, of_message, False, root + "BytesList"),
        ("float_list", 2, of_message, False, root + "FloatList"),
        ("int64_list", 3, of_message, False, root + "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = add("Features", ("feature", 1, of_message, True, root + "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=of_message,
        label=field.LABEL_OPTIONAL,
        type_name=root + "Feature",
    )
    add("Example", ("features", 1, of_message, False, root + "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_EXAMPLE = _example_class()
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int"}


def _parsed(record: bytes) -> dict[str, tuple[str, list[Value]]]:
    """Type and values of each feature, by name, in the names' order."""
    example: Any = _EXAMPLE()
    try:
        example.ParseFromString(record)
    except message.DecodeError as error:
        raise UserError(_not_an_example(record)) from error
    if len(unknown_fields.UnknownFieldSet(example)):
        raise UserError(_not_an_example(record))
    parsed: dict[str, tuple[str, list[Value]]] = {}
    for name in sorted(example.features.feature):
        feature = example.features.feature[name]
        kind = feature.WhichOneof("kind")
        # A feature that names no kind is legal, and has no values of any.
        parsed[name] = (
            ("bytes", []) if kind is None else (_KINDS[kind], list(getattr(feature, kind).value))
        )
    return parsed


def _not_an_example(record: bytes) -> str:
    start = repr(record[:20]) + ("..." if len(record) > 20 else "")
    return f"expected a serialized tf.Example; got a record of {len(record)} bytes: {start}."
