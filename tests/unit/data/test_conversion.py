"""CSV and NPZ to RecordIO: every value arrives, in order, or is named and nothing is left."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elasticdl.data import conversion, examples, recordio
from elasticdl.errors import UserError

Options = conversion.Options


def rows_of(files: Sequence[str]) -> list[dict[str, Any]]:
    """The rows in files, a value or a list of values for each column."""
    decoded = [examples.decode(record) for path in files for record in recordio.read(path)]
    return [
        {name: values[0] if len(values) == 1 else values for name, values in row.items()}
        for row in decoded
    ]


def csv_file(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def npz_file(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


# ---- CSV --------------------------------------------------------------------------------------


def test_a_column_is_as_narrow_as_all_of_its_cells_allow(tmp_path: Path) -> None:
    source = csv_file(
        tmp_path / "t.csv",
        "i,f,t,sign,exp,special,under,big,sp ace\n"
        "1,1,1,-1,1e3,nan,1_0,1,a\n"
        "2,2.5,x,+7,1,-inf,1,99999999999999999999, b \n",
    )
    written = conversion.convert(source, str(tmp_path / "out"))
    assert written.records == 2
    assert written.types == {
        "i": "int",
        "f": "float",
        "t": "bytes",
        "sign": "int",
        "exp": "float",
        "special": "float",
        "under": "bytes",
        "big": "float",
        "sp ace": "bytes",
    }
    one, two = rows_of(written.files)
    assert np.isnan(one.pop("special"))
    assert one == {
        "i": 1,
        "f": 1.0,
        "t": b"1",
        "sign": -1,
        "exp": 1000.0,
        "under": b"1_0",
        "big": 1.0,
        "sp ace": b"a",
    }
    assert two["t"] == b"x"
    assert two["sign"] == 7
    assert two["special"] == -np.inf
    assert two["sp ace"] == b" b "


def test_quotes_line_ends_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffa,b\r\n1,"x, ""y""\r\nz"\r\n\r\n2,\r\n'
    written = conversion.convert(csv_file(tmp_path / "t.csv", text), str(tmp_path / "out"))
    assert rows_of(written.files) == [{"a": 1, "b": b'x, "y"\r\nz'}, {"a": 2, "b": b""}]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    table=st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=32, allow_nan=False),
            # As a whole no number, which the column would be taken for.
            st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5).map(
                "a{}".format
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    shards=st.integers(1, 4),
)
def test_every_cell_arrives(
    tmp_path: Path, table: list[tuple[int, float, str]], shards: int
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("i", "f", "t"), *table])
    source = csv_file(tmp_path / "t.csv", text.getvalue())
    options = Options(shards=min(shards, len(table)), overwrite=True)
    written = conversion.convert(source, str(tmp_path / "out"), options)
    assert len(os.listdir(tmp_path / "out")) == options.shards
    for row, (integer, number, word) in zip(rows_of(written.files), table, strict=True):
        assert row["i"] == integer
        assert row["f"] == number
        assert row["t"] == word.encode()


def test_rows_beyond_a_batch_decide_a_type_too(tmp_path: Path) -> None:
    cells = [str(number) for number in range(9000)]
    source = csv_file(tmp_path / "t.csv", "\n".join(["n", *cells, "0.5"]))
    written = conversion.convert(source, str(tmp_path / "out"), Options(shards=3))
    assert written.types == {"n": "float"}
    assert [row["n"] for row in rows_of(written.files)] == [*map(float, range(9000)), 0.5]


def test_shards_hold_contiguous_parts(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "t.csv", "n\n" + "\n".join(map(str, range(11))))
    written = conversion.convert(source, str(tmp_path / "out"), Options(shards=4, name="part"))
    assert [os.path.basename(path) for path in written.files] == [
        f"part-{shard:05d}-of-00004.recordio" for shard in range(4)
    ]
    assert [[row["n"] for row in rows_of([path])] for path in written.files] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7],
        [8, 9, 10],
    ]


def test_only_the_wanted_columns_are_written(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "t.csv", "a,b,c\n1,,3\n4,5,6\n")
    written = conversion.convert(source, str(tmp_path / "out"), Options(columns=("c", "a")))
    assert rows_of(written.files) == [{"a": 1, "c": 3}, {"a": 4, "c": 6}]


def test_progress_goes_from_reading_to_all_rows_written(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "t.csv", "n\n" + "1\n" * 10_000)
    seen: list[tuple[str, int, int]] = []
    conversion.convert(
        source, str(tmp_path / "out"), progress=lambda *progress: seen.append(progress)
    )
    assert [phase for phase, _, _ in seen] == ["reading"] * 3 + ["writing"] * 3
    assert all(done <= total for _, done, total in seen)
    assert seen[2][1] == os.path.getsize(source)
    assert seen[-1] == ("writing", 10_000, 10_000)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: expected a header"),
        ("\n1\n", "line 1: expected a header"),
        ("a,\n1,2\n", "line 1: expected a header .* got 'a,'"),
        ("a,a\n1,2\n", "line 1: expected a header with a distinct name .* got 'a,a'"),
        ("a,b\n", "expected at least one row; got none"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells, as in the header; got 1"),
        ('a,b\n"1\n1",2\n3,4,5\n', "line 4: expected 2 cells, as in the header; got 3"),
        (b"a,b\n1,2\n3,\xe9\n", "line 3: expected UTF-8; got the byte 0xe9 at position 3"),
        ("a,b\n1,2\n3,\n,4\n", "line 4, column 'a': expected a number, .* got an empty cell"),
        ("a,b\n1.5,2\n3, \n", "line 3, column 'b': expected a number, .* got an empty cell"),
        ('a,b\n1,2\n3,"4\n', "line 3: expected comma-separated values"),
        ('a\n"1"2\n', "line 2: expected comma-separated values"),
        ("a\n1\n-1e300\n", "line 3, column 'a': .* fits float32, .* got -1e300"),
        ("a\n1\n1e999\n", "line 3, column 'a': .* fits float32, .* got 1e999"),
    ],
)
def test_bad_csv_is_named_and_leaves_nothing(
    tmp_path: Path, text: str | bytes, problem: str
) -> None:
    source = csv_file(tmp_path / "t.csv", text)
    with pytest.raises(UserError, match=problem):
        conversion.convert(source, str(tmp_path / "out" / "deep"))
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_column_that_is_text_in_the_end_may_have_empty_cells_and_any_number(
    tmp_path: Path,
) -> None:
    source = csv_file(tmp_path / "t.csv", "a,b\n1,\n,1e300\nx,y\n")
    written = conversion.convert(source, str(tmp_path / "out"))
    assert written.types == {"a": "bytes", "b": "bytes"}
    assert [row["a"] for row in rows_of(written.files)] == [b"1", b"", b"x"]


def test_a_source_that_changes_between_the_readings_is_an_error(tmp_path: Path) -> None:
    for text in ("n\n1\n", "n\n1\nx\n3\n", "m\n1\n2\n3\n"):
        source = csv_file(tmp_path / "t.csv", "n\n1\n2\n3\n")

        def replace(phase: str, done: int, total: int, text: str = text) -> None:
            csv_file(tmp_path / "t.csv", text)

        with pytest.raises(UserError, match="changed during the second"):
            conversion.convert(source, str(tmp_path / "out"), progress=replace)
        assert os.listdir(tmp_path) == ["t.csv"]


# ---- NPZ --------------------------------------------------------------------------------------

ARRAYS: dict[str, Any] = {
    "image": np.arange(7 * 8 * 8, dtype=np.float32).reshape(7, 8, 8),
    "column": np.asfortranarray(np.arange(14.0).reshape(7, 2)),
    "label": np.arange(7, dtype=np.uint8),
    "flag": np.arange(7) % 2 == 0,
    "word": np.array(["", "é", "three", "4", "5", "6", "7"]),
    "nothing": np.zeros((7, 0)),
    "swapped": np.arange(7, dtype=">i4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_arrives(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "t.npz", **ARRAYS)
    options = Options(shards=2, compressor="gzip")
    written = conversion.convert(str(tmp_path / "t.npz"), str(tmp_path / "out"), options)
    for number, row in enumerate(rows_of(written.files)):
        assert row == {
            "image": ARRAYS["image"][number].reshape(-1).tolist(),
            "column": ARRAYS["column"][number].tolist(),
            "label": number,
            "flag": int(number % 2 == 0),
            "word": str(ARRAYS["word"][number]).encode(),
            "nothing": [],
            "swapped": number,
        }


def test_rows_too_large_for_a_batch_arrive(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).normal(size=(3, 1200, 1000)).astype(np.float32)
    written = conversion.convert(npz_file(tmp_path / "t.npz", x=arrays), str(tmp_path / "out"))
    assert [row["x"] for row in rows_of(written.files)] == arrays.reshape(3, -1).tolist()


def test_a_seed_shuffles_rows_and_keeps_them_together(tmp_path: Path) -> None:
    source = npz_file(tmp_path / "t.npz", a=np.arange(100), b=np.arange(100) * 2)

    def shuffled(seed: int) -> list[dict[str, Any]]:
        options = Options(shuffle_seed=seed, overwrite=True)
        return rows_of(conversion.convert(source, str(tmp_path / "out"), options).files)

    assert sorted(row["a"] for row in shuffled(1)) == list(range(100))
    assert all(row["b"] == 2 * row["a"] for row in shuffled(1))
    assert shuffled(1) == shuffled(1)
    assert shuffled(1) != shuffled(2)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "expected at least one row; got none"),
        ({"a": np.zeros((0, 3))}, "expected at least one row; got none"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "as many rows each; got a: 3, b: 4"),
        ({"a": np.float32(1)}, "array 'a': expected an array of rows; got a single value"),
        ({"a": np.zeros(3, complex)}, "array 'a': .* got dtype complex128"),
        ({"a": np.zeros(3, "i4,f4")}, "array 'a': .* got dtype"),
        ({"a": np.array([{}, []], object)}, "array 'a': .* pickled Python objects"),
        ({"a": np.array([1e40])}, "column 'a': .* fit float32"),
    ],
)
def test_bad_arrays_are_named_and_leave_nothing(
    tmp_path: Path, arrays: dict[str, Any], problem: str
) -> None:
    source = npz_file(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError, match=problem):
        conversion.convert(source, str(tmp_path / "out" / "deep"))
    assert os.listdir(tmp_path) == ["t.npz"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"label,image\n1,2\n", "File is not a zip file"),
        (lambda data: b"", "File is not a zip file"),
        (lambda data: data[:-30], "File is not a zip file"),
        (lambda data: data.replace(b"\x93NUMPY", b"\x93NUMPX"), "array 'x' cannot be read"),
        (lambda data: data[:2000] + b"\xff" + data[2001:], "array 'x' cannot be read: Bad CRC"),
    ],
)
def test_damaged_npz_is_named_and_leaves_nothing(
    tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    source = tmp_path / "t.npz"
    npz_file(source, x=np.zeros(1000))
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(UserError, match=problem):
        conversion.convert(str(source), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["t.npz"]


# ---- both -------------------------------------------------------------------------------------


def test_earlier_files_are_replaced_only_on_request(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "t.csv", "n\n1\n2\n3\n")
    out = tmp_path / "out"
    conversion.convert(source, str(out), Options(shards=3))
    (out / "t-other.recordio").touch()
    before = sorted(os.listdir(out))
    with pytest.raises(UserError, match=r"got t-00000-of-00003\.recordio\. Use --overwrite"):
        conversion.convert(source, str(out), Options(shards=2))
    assert sorted(os.listdir(out)) == before
    conversion.convert(source, str(out), Options(shards=2, overwrite=True))
    assert sorted(os.listdir(out)) == [
        "t-00000-of-00002.recordio",
        "t-00001-of-00002.recordio",
        "t-other.recordio",
    ]
    csv_file(tmp_path / "t.csv", "n\n1\n2,3\n")
    with pytest.raises(UserError, match="line 3"):
        conversion.convert(source, str(out), Options(overwrite=True))
    assert len(os.listdir(out)) == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"shards": 0}, "shards: expected at least 1; got 0"),
        ({"shards": 3}, "shards: expected at most one for each of the 2 rows"),
        ({"name": "a/b"}, "name: expected the beginning of a file name; got 'a/b'"),
        ({"compressor": "zip"}, "compressor: expected one of none, snappy, gzip; got 'zip'"),
        ({"shuffle_seed": -1}, "shuffle_seed: expected 0 or more"),
        ({"shuffle_seed": 1}, r"shuffle_seed: expected an \.npz file"),
        ({"columns": ("b", "c")}, "columns: .* which has a, b; got c"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    source = csv_file(tmp_path / "t.csv", "a,b\n1,2\n3,4\n")
    with pytest.raises(UserError, match=problem):
        conversion.convert(source, str(tmp_path / "out"), Options(**options))
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    for name, problem in (
        ("t.txt", r"expected a \.csv or \.npz file; got \.txt"),
        ("t", "got no suffix"),
        ("t.csv", "there is no such file"),
        ("d.csv", "it is a directory"),
    ):
        with pytest.raises(UserError, match=problem):
            conversion.convert(str(tmp_path / name), str(tmp_path / "out"))


def test_an_output_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "t.csv", "a\n1\n")
    with pytest.raises(UserError, match="expected a directory that can be written to"):
        conversion.convert(source, source)
    with pytest.raises(UserError, match="expected a directory that can be written to"):
        conversion.convert(source, os.path.join(source, "out"))
