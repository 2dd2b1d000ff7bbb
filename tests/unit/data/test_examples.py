"""tf.Example without TensorFlow: what is encoded is what TensorFlow encodes, and parses."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from elasticdl.data import examples
from elasticdl.errors import UserError


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


# No name begins another: the order of those is an oddity of the protobuf library's.
COLUMNS: dict[str, NDArray[Any]] = {
    "float": np.array([1.5, -0.0, np.nan, np.inf], np.float32),
    "double": np.array([1e-50, 1 / 3, -np.inf, 3e38]),
    "half": np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float16),
    "small": np.array([0, 127, 128, -1]),
    "int64": np.array([[2**63 - 1], [-(2**63)], [2**62], [1 << 56]]),
    "uint8": np.array([0, 1, 128, 255], np.uint8),
    "uint64": np.array([0, 1, 2**63 - 1, 300], np.uint64),
    "bool": np.array([True, False, True, False]),
    "image": np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28),
    "text": np.array(["", "plain", "Grüße", "x" * 300]),
    "bytes": np.array([b"", b"\x00\xff", b"nul\x00", b"\x00"], object),
    "both": np.array([["a", b"b\x00"], ["", b""], ["é", b"\xe9"], ["c" * 200, b"d"]], object),
    "nothing": np.zeros((4, 0), np.float32),
    "no text": np.zeros((4, 0), object),
    "no int": np.zeros((4, 0), np.int64),
    "z" * 200: np.array([1, 2, 3, 4]),
}


def _as_tensorflow(tf: Any, columns: dict[str, NDArray[Any]]) -> list[bytes]:
    records = []
    for row in range(len(next(iter(columns.values())))):
        example = tf.train.Example()
        for name, column in columns.items():
            feature = example.features.feature[name]
            values = column[row : row + 1].reshape(-1).tolist()
            if column.dtype.kind == "f":
                feature.float_list.value.extend(np.float32(values))
            elif column.dtype.kind in "iub":
                feature.int64_list.value.extend(map(int, values))
            else:
                encoded = [v.encode() if isinstance(v, str) else v for v in values]
                feature.bytes_list.value.extend(encoded)
            if not values:
                kind = {"f": "float_list", "i": "int64_list"}.get(column.dtype.kind, "bytes_list")
                getattr(feature, kind).SetInParent()
        records.append(example.SerializeToString(deterministic=True))
    return records


@pytest.mark.parametrize("names", [[name] for name in COLUMNS] + [list(COLUMNS)])
def test_records_are_those_that_tensorflow_writes(tf: Any, names: list[str]) -> None:
    columns = {name: COLUMNS[name] for name in names}
    assert examples.encode(columns) == _as_tensorflow(tf, columns)


def test_tensorflow_parses_what_was_encoded(tf: Any) -> None:
    kinds = {"float": tf.float32, "int": tf.int64, "bytes": tf.string}
    columns = {name: column for name, column in COLUMNS.items() if column.size}
    parsed = tf.io.parse_example(
        examples.encode(columns),
        {
            name: tf.io.FixedLenFeature(
                column.shape[1:], kinds[str(examples.column_type(column.dtype))]
            )
            for name, column in columns.items()
        },
    )
    for name, column in columns.items():
        found = parsed[name].numpy()
        if column.dtype.kind == "f":
            np.testing.assert_array_equal(found, column.astype(np.float32))
        elif column.dtype.kind in "iub":
            np.testing.assert_array_equal(found, column.astype(np.int64))
        else:
            encoded = [v.encode() if isinstance(v, str) else v for v in column.reshape(-1).tolist()]
            assert found.reshape(-1).tolist() == encoded


def test_what_tensorflow_wrote_is_decoded(tf: Any) -> None:
    for record, row in zip(_as_tensorflow(tf, COLUMNS), range(4), strict=True):
        decoded = examples.decode(record)
        assert list(decoded) == sorted(COLUMNS)
        assert decoded["int64"] == COLUMNS["int64"][row].tolist()
        assert decoded["bytes"] == [COLUMNS["bytes"][row]]
        assert decoded["text"] == [str(COLUMNS["text"][row]).encode()]
        assert decoded["image"] == COLUMNS["image"][row].reshape(-1).tolist()
        assert decoded["nothing"] == []
        np.testing.assert_array_equal(decoded["double"], np.float32(COLUMNS["double"][row]))


rows = st.integers(1, 5)
values = (
    st.floats(width=32).map(lambda value: ("f4", value))
    | st.integers(-(2**63), 2**63 - 1).map(lambda value: ("i8", value))
    | st.binary(max_size=200).map(lambda value: ("O", value))
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.lists(values, min_size=4, max_size=4), min_size=1))
def test_every_value_comes_back(table: dict[str, list[tuple[str, Any]]]) -> None:
    columns = {
        name: np.array([value for kind, value in cells if kind == cells[0][0]][:1] * 3, cells[0][0])
        for name, cells in table.items()
    }
    for record in examples.encode(columns):
        decoded = examples.decode(record)
        assert list(decoded) == sorted(columns)
        for name, column in columns.items():
            np.testing.assert_array_equal(decoded[name], [column[0]])


def test_many_rows_are_encoded_as_few_are() -> None:
    numbers = np.random.default_rng(0).integers(-(2**40), 2**40, (10_000, 3))
    columns = {"number": numbers, "text": np.array([str(n) for n in numbers[:, 0]], object)}
    one_by_one = [
        examples.encode({name: column[row : row + 1] for name, column in columns.items()})[0]
        for row in range(0, 10_000, 97)
    ]
    assert examples.encode(columns)[::97] == one_by_one


def test_no_rows_make_no_records() -> None:
    assert examples.encode({"x": np.zeros((0, 3)), "y": np.array([], object)}) == []


def test_rows_in_any_memory_layout_are_the_same() -> None:
    array = np.arange(24.0).reshape(4, 2, 3)
    expected = examples.encode({"x": array})
    assert examples.encode({"x": np.asfortranarray(array)}) == expected
    assert examples.encode({"x": array.astype(">f8")}) == expected
    assert examples.encode({"x": np.repeat(array, 2, axis=0)[::2]}) == expected


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({}, "expected at least one; got none"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "as many rows in each; got x: 2, y: 3"),
        ({"x": np.float32(1)}, "column 'x': expected an array of rows"),
        ({"x": np.zeros(2, complex)}, "column 'x': .* got dtype complex128"),
        ({"x": np.zeros(2, "M8[s]")}, "column 'x': .* got dtype datetime64"),
        ({"x": np.array(["a", None], object)}, "column 'x': .* got None of type NoneType"),
        ({"x": np.array([1e39])}, r"column 'x': .* fit float32, .* got 1e\+39"),
        ({"x": np.array([2**63], np.uint64)}, "column 'x': .* fit int64; got 9223372036854775808"),
    ],
)
def test_what_has_no_place_in_an_example_is_named(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        examples.encode(columns)


@pytest.mark.parametrize("record", [b"0", b"\x0a\x05abc", b"\x12\x01x", b"\xff" * 50])
def test_a_record_that_is_no_example_is_refused(record: bytes) -> None:
    with pytest.raises(UserError, match=r"expected a serialized tf\.Example; got a record of"):
        examples.decode(record)


def test_a_schema_says_where_records_differ() -> None:
    records = [
        *examples.encode({"a": np.array([1, 2]), "b": np.array([[1.0, 2.0], [3.0, 4.0]])}),
        *examples.encode({"a": np.array(["x"]), "b": np.array([[1.0]]), "c": np.array([True])}),
    ]
    assert examples.schema(records) == (
        examples.Feature("a", "mixed", 1),
        examples.Feature("b", "float", None),
        examples.Feature("c", "int", 1, missing=2),
    )
    assert examples.schema([]) == ()
