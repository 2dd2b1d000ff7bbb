"""Where records are: paths and globs to files, files to their records."""

import concurrent.futures
import functools
import glob
import os
from collections.abc import Iterator, Sequence

from elasticdl.data import recordio
from elasticdl.errors import UserError

SUFFIX = ".recordio"

_COUNTING_THREADS = 8
# Each keeps the last chunk it read; as many as a job has streams by default, and as many again.
_OPEN_READERS = 32
_NAMES_SHOWN = 5


def files(patterns: str, setting: str = "data") -> tuple[str, ...]:
    """The distinct files that patterns name, sorted.

    Args:
        patterns: one or several, comma-separated. Each is a file; a directory, which stands for
            the *.recordio in it; or a glob with `*`, `?`, `[...]`, `{a,b}` and `**`, where a
            last `**` stands for the *.recordio at any depth. Names that begin with a dot are
            never matched.
        setting: where they come from, for messages.

    Raises:
        UserError: one of the patterns matches no file.
    """
    named = [pattern for pattern in _split(patterns) if pattern]
    if not named:
        raise UserError(
            f"{setting}: expected a file, directory or glob of *{SUFFIX} files; got {patterns!r}."
        )
    found: set[str] = set()
    for pattern in named:
        matches = _matches(pattern)
        if not matches:
            raise UserError(
                f"{setting}: expected a file, a directory with *{SUFFIX} files, or a glob; got "
                f"{pattern!r}, which matches no file: {_what_there_is(pattern)}."
            )
        found.update(matches)
    return tuple(sorted(found))


def record_counts(paths: Sequence[str]) -> tuple[int, ...]:
    """How many records each file has, by its chunk table.

    Raises:
        UserError: a file cannot be opened.
        CorruptData: a file's chunk table cannot be made out.
    """
    with concurrent.futures.ThreadPoolExecutor(_COUNTING_THREADS) as pool:
        return tuple(pool.map(_record_count, paths))


def require_records(patterns: str, counts: Sequence[int], setting: str = "data") -> None:
    """Raises `UserError` if files that patterns name have no record between them."""
    if not sum(counts):
        raise UserError(
            f"{setting}: expected at least one record; got none in the {len(counts)} "
            f"file{'s' if len(counts) != 1 else ''} of {patterns!r}. "
            "`elasticdl data show` says what a file holds."
        )


def read(path: str, start: int, end: int) -> list[bytes]:
    """The records of a file from `start` up to, not including, `end`; from any thread.

    Raises:
        UserError: the file cannot be opened, or is shorter than that.
        CorruptData: something in it is damaged.
    """
    reader = _reader(path)
    if end > len(reader):
        raise UserError(
            f"{path}: expected at least {end} records, as the file had when the job began; got "
            f"{len(reader)}. Do not change data while a job reads it."
        )
    return reader.read_range(start, end)


def _reader(path: str) -> recordio.Reader:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}.") from error
    return _open_reader(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=_OPEN_READERS)
def _open_reader(path: str, *identity: int) -> recordio.Reader:
    """A reader of the file that a path names now; `identity` tells it from an earlier one.

    One that is dropped from the cache closes its file once the last thread is done with it.
    """
    return recordio.Reader(path)


def _record_count(path: str) -> int:
    with recordio.Reader(path) as reader:
        return len(reader)


def _matches(pattern: str) -> list[str]:
    """The files of one pattern, normalized. What exists literally is not taken as a glob."""
    if "://" in pattern:
        raise UserError(
            f"data: expected a path on this machine; got {pattern!r}. Copy the files here first."
        )
    found: list[str] = []
    for name in [pattern] if os.path.exists(pattern) else _alternatives(pattern):
        if os.path.isfile(name):
            found.append(name)
        elif os.path.isdir(name):
            found += glob.glob(os.path.join(glob.escape(name), "*" + SUFFIX))
        else:
            deep = os.path.basename(name) == "**"
            wanted = os.path.join(name, "*" + SUFFIX) if deep else name
            found += glob.glob(wanted, recursive=True)
    return [os.path.normpath(name) for name in found if os.path.isfile(name)]


def _split(patterns: str) -> list[str]:
    """The parts between commas, except commas in braces; all of it where that is a file's name."""
    if os.path.exists(patterns):
        return [patterns]
    return [part.strip() for part in _top_level_parts(patterns)]


def _top_level_parts(text: str) -> Iterator[str]:
    depth = begin = 0
    for position, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}":
            depth = max(depth - 1, 0)
        elif character == "," and not depth:
            yield text[begin:position]
            begin = position + 1
    yield text[begin:]


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with `{a,b}` stands for; braces without a comma are literal."""
    opening = pattern.find("{")
    while opening >= 0:
        closing = _closing(pattern, opening)
        if closing is None:
            break
        choices = list(_top_level_parts(pattern[opening + 1 : closing]))
        if len(choices) > 1:
            before, after = pattern[:opening], pattern[closing + 1 :]
            return [name for choice in choices for name in _alternatives(before + choice + after)]
        opening = pattern.find("{", opening + 1)
    return [pattern]


def _closing(pattern: str, opening: int) -> int | None:
    """Where the brace that opens at `opening` closes; None if nowhere."""
    depth = 0
    for position in range(opening, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[position], 0)
        if not depth:
            return position
    return None


def _what_there_is(pattern: str) -> str:
    """What the nearest directory of a pattern holds, for an error message."""
    path = pattern
    while not os.path.isdir(path):
        parent = os.path.dirname(path.rstrip("/")) if path != "/" else path
        path = parent or "."
    shown = "this directory" if path == "." else path
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        return f"{shown} cannot be listed ({error.strerror})"
    if not names:
        return f"{shown} is empty"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{shown} holds {', '.join(names[:_NAMES_SHOWN])}{more}"
