"""CSV and NPZ files to RecordIO files of tf.Example, a batch of rows at a time."""

import contextlib
import csv
import itertools
import math
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elasticdl.data import examples, recordio, sources
from elasticdl.errors import UserError

# phase ("reading" or "writing"), how much of it is done, of how much
Progress = Callable[[str, int, int], None]
Columns = dict[str, NDArray[Any]]

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a table becomes files.

    Attributes:
        name: what file names begin with; empty: the source's name without its suffix.
        shards: how many files; the i-th holds the i-th contiguous part of the rows.
        columns: those to write; empty: all.
        compressor: one of `recordio.COMPRESSORS`.
        shuffle_seed: for NPZ, the seed of a permutation of the rows; None: the order they have.
        overwrite: replaces files that an earlier conversion to the same name left.
    """

    name: str = ""
    shards: int = 1
    columns: tuple[str, ...] = ()
    compressor: str = "snappy"
    shuffle_seed: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise UserError(f"shards: expected at least 1; got {self.shards}.")
        if os.path.basename(self.name) != self.name or self.name.startswith("."):
            raise UserError(f"name: expected the beginning of a file name; got {self.name!r}.")
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            raise UserError(f"shuffle_seed: expected 0 or more; got {self.shuffle_seed}.")
        if self.compressor not in recordio.COMPRESSORS:
            raise UserError(
                f"compressor: expected one of {', '.join(recordio.COMPRESSORS)}; got "
                f"{self.compressor!r}."
            )


@dataclass(frozen=True)
class Written:
    """What a conversion left.

    Attributes:
        files: their paths, in the order of the rows.
        records: how many they hold together.
        types: of each column: "float", "int" or "bytes".
    """

    files: tuple[str, ...]
    records: int
    types: Mapping[str, str]


def convert(
    source: str, output: str, options: Options | None = None, progress: Progress | None = None
) -> Written:
    """Writes the rows of a CSV or NPZ file as `NAME-00000-of-00004.recordio` and so on.

    The files appear in the output directory when all of them are complete; after an error nothing
    is left of them. Memory does not grow with the source, except for the arrays of an NPZ file
    that are in Fortran order or shuffled.

    Raises:
        UserError: the source is not what its format promises, or the output cannot be written.
    """
    options = options or Options()
    progress = progress or _no_progress
    with contextlib.ExitStack() as stack:
        table = _opened(source, options, progress, stack)
        if not table.rows:
            raise UserError(f"{source}: expected at least one row; got none.")
        if options.shards > table.rows:
            raise UserError(
                f"shards: expected at most one for each of the {table.rows} rows of {source}; got "
                f"{options.shards}."
            )
        files = _write(table, source, output, options, progress)
    return Written(files, table.rows, table.types)


class _Table(Protocol):
    """Rows that can be walked through once."""

    rows: int

    @property
    def types(self) -> Mapping[str, str]: ...

    def batches(self) -> Iterator[Columns]: ...


def _no_progress(phase: str, done: int, total: int) -> None:
    """For callers that show none."""


def _opened(
    source: str, options: Options, progress: Progress, stack: contextlib.ExitStack
) -> _Table:
    suffix = os.path.splitext(source)[1].lower()
    if suffix not in (".csv", ".npz"):
        raise UserError(f"{source}: expected a .csv or .npz file; got {suffix or 'no suffix'}.")
    if not os.path.isfile(source):
        there = "it is a directory" if os.path.isdir(source) else "there is no such file"
        raise UserError(f"{source}: expected a {suffix} file; {there}.")
    if suffix == ".npz":
        return _Npz(source, options, stack)
    if options.shuffle_seed is not None:
        raise UserError(
            f"shuffle_seed: expected an .npz file, which is shuffled in memory; got {source}. "
            "Training shuffles anyway; or shuffle the lines of the file first."
        )
    return _Csv(source, options.columns, progress)


def _write(
    table: _Table, source: str, output: str, options: Options, progress: Progress
) -> tuple[str, ...]:
    name = options.name or os.path.splitext(os.path.basename(source))[0]
    ending = f"-of-{options.shards:05d}{sources.SUFFIX}"
    names = [f"{name}-{shard:05d}{ending}" for shard in range(options.shards)]
    with _directory(output):
        earlier = _shards_of(name, output)
        if earlier and not options.overwrite:
            raise UserError(
                f"{output}: expected no files of the name {name!r}; got {earlier[0]}. Use "
                "--overwrite, or another --name or output."
            )
        with _staging(output, name) as staging:
            records = itertools.chain.from_iterable(map(examples.encode, table.batches()))
            done = 0
            for shard, file in enumerate(names):
                end = (shard + 1) * table.rows // options.shards
                path = os.path.join(staging, file)
                with recordio.Writer(path, options.compressor) as writer:
                    while batch := list(itertools.islice(records, min(end - done, _BATCH_ROWS))):
                        writer.extend(batch)
                        done += len(batch)
                        progress("writing", done, table.rows)
                if done != end:
                    raise UserError(_changed(source))
            for file in names:
                os.replace(os.path.join(staging, file), os.path.join(output, file))
            for file in set(earlier) - set(names):
                os.unlink(os.path.join(output, file))
    return tuple(os.path.join(output, file) for file in names)


def _shards_of(name: str, directory: str) -> list[str]:
    shard = re.compile(rf"{re.escape(name)}-\d{{5,}}-of-\d{{5,}}{re.escape(sources.SUFFIX)}")
    return sorted(file for file in os.listdir(directory) if shard.fullmatch(file))


@contextlib.contextmanager
def _directory(path: str) -> Iterator[None]:
    """Makes a directory for the block; if that raises, what was made for it goes again."""
    missing = []
    above = path
    while above and not os.path.exists(above):
        missing.append(above)
        above = os.path.dirname(above)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: expected a directory that can be written to; got: {error.strerror}."
        ) from error
    try:
        yield
    except BaseException:
        # Not where somebody else has put something into it meanwhile.
        with contextlib.suppress(OSError):
            for directory in missing:
                os.rmdir(directory)
        raise


@contextlib.contextmanager
def _staging(output: str, name: str) -> Iterator[str]:
    """A directory beside the result, on the same file system, that does not outlive the block."""
    path = os.path.join(output, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        os.mkdir(path)
    except OSError as error:
        raise UserError(
            f"{output}: expected a directory that can be written to; got: {error.strerror}."
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _changed(source: str) -> str:
    return f"{source}: expected the rows of the first reading; the file changed during the second."


def _chosen(source: str, there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names of the columns to write; all of those that are there unless some are wanted."""
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise UserError(
            f"columns: expected names of columns in {source}, which has {', '.join(there)}; got "
            f"{', '.join(unknown)}."
        )
    return list(dict.fromkeys(wanted or there))


class _Csv:
    """A CSV file with a header line; read once to learn its columns' types, once for its rows.

    A column is of integers if all of its cells are 64-bit integers, else of floats if all are
    numbers, and else of text.
    """

    def __init__(self, path: str, wanted: Sequence[str], progress: Progress) -> None:
        self._path = path
        self.rows = 0
        columns: list[_CsvColumn] = []
        with _Lines(path) as lines:
            for numbers, cells in self._cells(lines, wanted):
                if not columns:
                    columns = [_CsvColumn(path, name) for name in self._names]
                for column, values in zip(columns, cells, strict=True):
                    column.learn(values, numbers)
                self.rows += len(numbers)
                progress("reading", lines.bytes_read, lines.size)
        for column in columns:
            column.require_values()
        self._wanted = wanted
        self.types: Mapping[str, str] = {column.name: column.type for column in columns}

    def batches(self) -> Iterator[Columns]:
        """Columns [k] of each batch of rows."""
        names = tuple(self.types)
        with _Lines(self._path) as lines:
            for _, cells in self._cells(lines, self._wanted):
                if tuple(self._names) != names:
                    raise UserError(_changed(self._path))
                try:
                    yield {
                        name: _CSV_ARRAYS[self.types[name]](values)
                        for name, values in zip(names, cells, strict=True)
                    }
                except (ValueError, OverflowError) as error:
                    raise UserError(_changed(self._path)) from error

    def _cells(
        self, lines: "_Lines", wanted: Sequence[str]
    ) -> Iterator[tuple[list[int], list[tuple[str, ...]]]]:
        """Batches of rows: the line that each begins on, and the cells of each wanted column."""
        reader = csv.reader(lines, strict=True)
        path = self._path
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header or not all(header) or len(set(header)) != len(header):
                raise UserError(
                    f"{path}: line 1: expected a header with a distinct name for each column; got "
                    f"{','.join(header)!r}."
                )
            self._names = _chosen(path, header, wanted)
            places = [header.index(name) for name in self._names]
            numbers: list[int] = []
            rows: list[list[str]] = []
            line = reader.line_num + 1
            for row in reader:
                if len(row) == len(header):
                    numbers.append(line)
                    rows.append(row)
                elif row:
                    raise UserError(
                        f"{path}: line {line}: expected {len(header)} cells, as in the header; got "
                        f"{len(row)}."
                    )
                if len(rows) == _BATCH_ROWS:
                    yield numbers, _transposed(rows, places)
                    numbers, rows = [], []
                line = reader.line_num + 1
            if rows:
                yield numbers, _transposed(rows, places)
        except csv.Error as error:
            raise UserError(
                f"{path}: line {reader.line_num}: expected comma-separated values; got a line that "
                f"is none: {error}."
            ) from error


def _transposed(rows: list[list[str]], places: list[int]) -> list[tuple[str, ...]]:
    columns = list(zip(*rows, strict=True))
    return [columns[place] for place in places]


class _CsvColumn:
    """What the cells seen so far say about a column."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self.name = name
        self.type = "int"
        self._seen = False
        # What is an error unless the column turns out to be text.
        self._empty_line: int | None = None
        self._too_large: tuple[int, str] | None = None

    def learn(self, cells: Sequence[str], lines: Sequence[int]) -> None:
        if self.type == "bytes":
            return
        if not all(cells) or any(map(str.isspace, cells)):
            filled = [(cell, line) for cell, line in zip(cells, lines, strict=True) if cell.strip()]
            if self._empty_line is None:
                self._empty_line = next(
                    line for cell, line in zip(cells, lines, strict=True) if not cell.strip()
                )
            cells, lines = [cell for cell, _ in filled], [line for _, line in filled]
        if not cells:
            return
        self._seen = True
        if self.type == "int" and not _are_integers(cells):
            self.type = "float"
        if self.type == "float":
            self._learn_floats(cells, lines)

    def require_values(self) -> None:
        """Raises `UserError` if a column of numbers has cells that cannot be written as such."""
        if not self._seen:
            self.type = "bytes"
        if self.type == "bytes":
            return
        if self._empty_line is not None:
            raise UserError(
                f"{self._path}: line {self._empty_line}, column {self.name!r}: expected a number, "
                "as in the column's other lines; got an empty cell. Fill it, or leave the column "
                "out with --columns."
            )
        if self._too_large is not None:
            line, cell = self._too_large
            raise UserError(
                f"{self._path}: line {line}, column {self.name!r}: expected a number that fits "
                f"float32, at most 3.4e38; got {cell}. Scale the column, or leave it out with "
                "--columns."
            )

    def _learn_floats(self, cells: Sequence[str], lines: Sequence[int]) -> None:
        try:
            values = np.array(list(map(float, _plain(cells))))
        except ValueError:
            self.type = "bytes"
            return
        if self._too_large is None and not np.abs(values).max() <= _FLOAT32_MAX:
            self._too_large = next(
                (
                    (line, cell)
                    for cell, line, value in zip(cells, lines, values, strict=True)
                    if abs(value) > _FLOAT32_MAX and not _NOT_FINITE.fullmatch(cell.strip())
                ),
                None,
            )


def _are_integers(cells: Sequence[str]) -> bool:
    """Whether all cells are integers of 64 bits."""
    try:
        values = list(map(int, _plain(cells)))
    except ValueError:
        return False
    return min(values) >= -(1 << 63) and max(values) < 1 << 63


def _plain(cells: Sequence[str]) -> Sequence[str]:
    """The cells, unless they hold what Python takes as a number and other programs do not.

    Raises:
        ValueError: they do, such as 1_000.
    """
    joined = "".join(cells)
    if "_" in joined or not joined.isascii():
        raise ValueError(joined)
    return cells


def _text(cells: Sequence[str]) -> NDArray[np.object_]:
    return np.array(cells, dtype=object)


_CSV_ARRAYS: Mapping[str, Callable[[Sequence[str]], NDArray[Any]]] = {
    "int": lambda cells: np.array(list(map(int, cells)), np.int64),
    "float": lambda cells: np.array(list(map(float, cells)), np.float64),
    "bytes": _text,
}


class _Lines:
    """The lines of a UTF-8 file, decoded one by one, so that an error can name its line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.bytes_read = 0
        self._number = 0
        try:
            self._file = open(path, "rb")  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}.") from error

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self._number += 1
            self.bytes_read += len(line)
            try:
                yield line.decode("utf-8-sig" if self._number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self._path}: line {self._number}: expected UTF-8; got the byte "
                    f"0x{line[error.start]:02x} at position {error.start + 1} of the line. Save "
                    "the file as UTF-8."
                ) from error

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Member:
    """One array in an NPZ file, its rows not read yet."""

    file: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    whole: NDArray[Any] | None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """The next `count` rows, which begin at row `start`."""
        if self.whole is not None:
            return self.whole[start : start + count]
        shape = (count, *self.shape[1:])
        size = count * self.row_bytes
        if not size:
            return np.zeros(shape, self.dtype)
        block = self.file.read(size)
        if len(block) != size:
            raise EOFError(f"{size} bytes of an array expected, {len(block)} there")
        return np.frombuffer(block, self.dtype).reshape(shape)


class _Npz:
    """Arrays with as many rows each, read side by side."""

    def __init__(self, path: str, options: Options, stack: contextlib.ExitStack) -> None:
        self._path = path
        with self._readable("the file"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            there = [name.removesuffix(".npy") for name in archive.namelist()]
        names = _chosen(path, there, options.columns)
        self._members = {name: self._member(archive, name, stack) for name in names}
        rows = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name}: {count}" for name, count in rows.items())
            raise UserError(
                f"{path}: expected arrays with as many rows each; got {counts}. Choose some with "
                "--columns."
            )
        self.rows = next(iter(rows.values()), 0)
        self.types: Mapping[str, str] = {
            name: examples.column_type(member.dtype) or "" for name, member in self._members.items()
        }
        self._shuffle_seed = options.shuffle_seed

    def batches(self) -> Iterator[Columns]:
        """Columns [k, ...] of each batch of rows."""
        widest = max(member.row_bytes for member in self._members.values())
        step = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(widest, 1)))
        if self._shuffle_seed is not None:
            arrays = self._read(0, self.rows)
            order = np.random.default_rng(self._shuffle_seed).permutation(self.rows)
            for start in range(0, self.rows, step):
                rows = order[start : start + step]
                yield {name: array[rows] for name, array in arrays.items()}
            return
        for start in range(0, self.rows, step):
            yield self._read(start, min(step, self.rows - start))

    def _read(self, start: int, count: int) -> Columns:
        found: Columns = {}
        for name, member in self._members.items():
            with self._readable(f"array {name!r}"):
                found[name] = member.rows(start, count)
        return found

    def _member(self, archive: zipfile.ZipFile, name: str, stack: contextlib.ExitStack) -> _Member:
        where = f"{self._path}: array {name!r}"
        with self._readable(f"array {name!r}"):
            stored = name + ".npy"
            if stored not in archive.namelist():
                raise UserError(f"{where}: expected an array as NumPy saves it; got another file.")
            file = stack.enter_context(archive.open(stored))
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise UserError(f"{where}: expected NumPy's format 1.0 or 2.0; got {version}.")
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
            if dtype.hasobject:
                raise UserError(
                    f"{where}: expected numbers or strings; got pickled Python objects, which are "
                    "never loaded. Save it with a dtype such as float32 or str."
                )
            if examples.column_type(dtype) is None:
                raise UserError(
                    f"{where}: expected numbers or strings; got dtype {dtype}. Convert it, or "
                    "choose others with --columns."
                )
            if not shape:
                raise UserError(
                    f"{where}: expected an array of rows; got a single value. Choose others with "
                    "--columns."
                )
            whole = None
            if fortran and len(shape) > 1:
                block = file.read(dtype.itemsize * math.prod(shape))
                whole = np.frombuffer(block, dtype).reshape(shape[::-1]).transpose()
            return _Member(file, dtype, shape, whole)

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            ValueError,
            NotImplementedError,
            RuntimeError,
            OSError,
        ) as error:
            raise UserError(
                f"{self._path}: expected an NPZ file as numpy.savez writes it; got one in which "
                f"{what} cannot be read: {error}."
            ) from error
