"""What RecordIO files hold, for people to look at, and whether they are whole."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from elasticdl.data import examples, recordio, sources
from elasticdl.errors import CorruptData, UserError

# files done, of how many, bytes done in all files, of how many
Progress = Callable[[int, int, int, int], None]

_SCHEMA_RECORDS = 1000
_VALUES_SHOWN = 8
_TEXT_SHOWN = 60


@dataclass(frozen=True)
class File:
    """One file's size, by its chunk table."""

    path: str
    records: int
    chunks: int
    stored_bytes: int


@dataclass(frozen=True)
class Record:
    """One record, readable.

    Attributes:
        number: its place in all of the files together, from 0.
        stored_bytes: its size before compression.
        features: the values of each feature as text, shortened; None if it is no tf.Example.
        start: its first bytes as text.
    """

    number: int
    stored_bytes: int
    features: dict[str, str] | None
    start: str


@dataclass(frozen=True)
class Contents:
    """What files hold.

    Attributes:
        files: in the order of their names.
        records: how many there are in all of the files.
        sampled: how many of the first records `features` was made from.
        features: of those records; None if one of them is no tf.Example, or there are none.
        first: the first records.
    """

    files: tuple[File, ...]
    records: int
    sampled: int
    features: tuple[examples.Feature, ...] | None
    first: tuple[Record, ...]


@dataclass(frozen=True)
class Checked:
    """Whether one file is whole.

    Attributes:
        path: the file.
        records: how many it holds, 0 if it is not whole.
        chunks: the same for chunks.
        stored_bytes: its size; 0 if it cannot be opened.
        problem: what is wrong with it; None if nothing is.
        offset: the byte offset of that; None also if the file cannot be read at all.
    """

    path: str
    records: int
    chunks: int
    stored_bytes: int
    problem: str | None
    offset: int | None


def show(patterns: str, limit: int = 3) -> Contents:
    """Sizes, schema and the first `limit` records of the files that patterns name.

    Raises:
        UserError: no file matches, or one cannot be opened.
        CorruptData: one is damaged, as far as it was read.
    """
    if limit < 0:
        raise UserError(f"limit: expected 0 or more; got {limit}.")
    files = tuple(map(_file, sources.files(patterns)))
    sample = list(itertools.islice(_records(files), max(limit, _SCHEMA_RECORDS)))
    try:
        features = examples.schema(sample) if sample else None
    except UserError:
        features = None
    first = tuple(_readable(number, record) for number, record in enumerate(sample[:limit]))
    return Contents(files, sum(file.records for file in files), len(sample), features, first)


def check(patterns: str, progress: Progress | None = None) -> tuple[Checked, ...]:
    """Reads all of the files that patterns name and verifies everything in them.

    Raises:
        UserError: no file matches.
    """
    paths = sources.files(patterns)
    sizes = [_size(path) for path in paths]
    checked: list[Checked] = []
    for number, path in enumerate(paths):
        before = done = sum(sizes[:number])

        def verified(more: int, number: int = number) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(number, len(paths), done, sum(sizes))

        checked.append(_checked(path, sizes[number], verified))
        verified(before + sizes[number] - done, number + 1)
    return tuple(checked)


def _file(path: str) -> File:
    with recordio.Reader(path) as reader:
        return File(path, len(reader), len(reader.chunks), reader.stored_bytes)


def _size(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return file.seek(0, 2)
    except OSError:
        # What is wrong with the file is for `_checked` to report.
        return 0


def _checked(path: str, size: int, verified: Callable[[int], None]) -> Checked:
    try:
        whole = recordio.check(path, verified)
    except CorruptData as error:
        return Checked(path, 0, 0, size, error.problem, error.offset)
    except UserError as error:
        return Checked(path, 0, 0, size, str(error).removeprefix(f"{path}: "), None)
    return Checked(path, whole.records, whole.chunks, whole.stored_bytes, None, None)


def _records(files: tuple[File, ...]) -> Iterator[bytes]:
    for file in files:
        yield from recordio.read(file.path)


def _readable(number: int, record: bytes) -> Record:
    try:
        features: dict[str, str] | None = {
            name: _values(values) for name, values in examples.decode(record).items()
        }
    except UserError:
        features = None
    return Record(number, len(record), features, _text(record))


def _values(values: list[examples.Value]) -> str:
    shown = ", ".join(map(_value, values[:_VALUES_SHOWN]))
    if len(values) == 1:
        return shown
    more = f", ... {len(values)} in all" if len(values) > _VALUES_SHOWN else ""
    return f"[{shown}{more}]"


def _value(value: examples.Value) -> str:
    if isinstance(value, bytes):
        return _text(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value: bytes) -> str:
    """Bytes as a quoted string, where they are printable UTF-8, or as Python writes bytes."""
    try:
        text: str | bytes = value.decode()
    except UnicodeDecodeError:
        text = value
    if isinstance(text, str) and not text.isprintable():
        text = value
    shown = repr(text[:_TEXT_SHOWN])
    return f"{shown}... {len(value)} bytes" if len(text) > _TEXT_SHOWN else shown
