"""Checkpoints: replica and progress as one value in one file, written while training goes on."""

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from elasticdl import config
from elasticdl.core.progress import Cursor, Progress
from elasticdl.errors import ElasticDLError, UserError
from elasticdl.model import artifact

if TYPE_CHECKING:
    from elasticdl.worker import replica

# What is summed and written at once: long enough to do it without Python's lock, short enough that
# training, which wants the processor, hardly notices.
_PIECE = 1 << 20
# After so many bytes the disk is waited for: else a system that holds them back writes all at once.
_UNSYNCED = 32 << 20
# How much longer than it has used a processor the writer leaves it to others.
_RESTS = 7.0
_LOWEST_PRIORITY = 19
_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0
_SHOWN = 3  # of variables that differ

_NAME = re.compile(r"checkpoint-t(\d{8,})-g(\d{8,})-v(\d{12,})\.safetensors")
_PARTIAL = re.compile(rf"\.({_NAME.pattern})\.[0-9a-f]+\.partial")

Arrays = dict[str, NDArray[Any]]


# ---- when -------------------------------------------------------------------------------------


def due(every: config.Every, version: int, now: float, last_version: int, last_time: float) -> bool:
    """Whether to write `version`, where the last one was `last_version` at `last_time`."""
    if version <= last_version:
        return False
    # Steps are counted from the job's beginning, whoever wrote the last one.
    return bool(
        (every.steps and version // every.steps > last_version // every.steps)
        or (every.seconds and now - last_time >= every.seconds)
    )


# ---- what it holds, and which is the newest ---------------------------------------------------


@dataclass(frozen=True, order=True)
class Number:
    """What orders checkpoints: one of an older generation never takes a newer one's place."""

    term: int
    generation: int
    version: int

    @property
    def file(self) -> str:
        return f"checkpoint-t{self.term:08}-g{self.generation:08}-v{self.version:012}.safetensors"


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of its variables' values.

    Args:
        term: of the master that formed the generation.
        epoch_version: the version at which the present epoch began.
        elements, epoch_elements: trained in total, and in the present epoch.
        fingerprint: the text of each setting that must not change on the way.
    """

    term: int
    generation: int
    progress: Progress
    epoch_version: int = 0
    elements: int = 0
    epoch_elements: int = 0
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def number(self) -> Number:
        return Number(self.term, self.generation, self.progress.version)


@dataclass(frozen=True)
class Listed:
    """A checkpoint's file; whether it is whole, only reading it shows."""

    number: Number
    path: Path


def listed(directory: str | os.PathLike[str]) -> list[Listed]:
    """The checkpoints in a directory, the newest first; none where there is no directory.

    Raises:
        OSError: the system refuses to say.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [
        Listed(_number(match), Path(directory, name))
        for name in names
        if (match := _NAME.fullmatch(name))
    ]
    return sorted(found, key=lambda each: each.number, reverse=True)


def _number(match: re.Match[str]) -> Number:
    term, generation, version = (int(digits) for digits in match.groups()[-3:])
    return Number(term, generation, version)


# ---- the file ---------------------------------------------------------------------------------
# A safetensors file: the length of a header, the header as JSON, the variables' bytes. The checksum
# is that of the whole file with the checksum's own digits as zeros.

_FORMAT = 1
_ALIGNMENT = 64
_LONGEST_HEADER = 1 << 30
_NO_CHECKSUM = "00000000"
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}


class Damaged(ElasticDLError):
    """A checkpoint that cannot be read, or that is not as it was written.

    Args:
        path: of the file.
        reason: what was expected, and what came.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Loaded:
    """A whole checkpoint.

    Args:
        arrays: the variables' values by name; read-only.
    """

    path: Path
    meta: Meta
    arrays: Arrays


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """What a checkpoint says of itself; its variables are not read.

    Raises:
        Damaged: it is not complete, or no checkpoint.
    """
    with _reading(Path(path)) as file:
        return _Header.read(file).meta


def load(path: str | os.PathLike[str]) -> Loaded:
    """The checkpoint in a file, just as it was written.

    Raises:
        Damaged: it is not.
    """
    with _reading(Path(path)) as file:
        header = _Header.read(file)
        content = np.empty(header.payload, np.uint8)
        checksum = isal_zlib.crc32(header.encoded(_NO_CHECKSUM))
        for begin in range(0, header.payload, _PIECE):
            piece = content.data[begin : begin + _PIECE]
            if file.readinto(piece) != len(piece):
                raise ValueError("expected more bytes; the file became shorter")
            checksum = isal_zlib.crc32(piece, checksum)
        if f"{checksum:08x}" != header.checksum:
            raise ValueError(
                f"expected content with the checksum {header.checksum}; it has {checksum:08x}"
            )
    content.flags.writeable = False
    arrays = {
        name: content[begin : begin + field.bytes].view(_dtype(field.dtype)).reshape(field.shape)
        for name, field, begin in header.places()
    }
    return Loaded(Path(path), header.meta, arrays)


@dataclass(frozen=True)
class Newest:
    """What was found in a directory.

    Args:
        loaded: the newest checkpoint that is whole; None: there is none.
        passed_over: newer ones, and what is wrong with them.
    """

    loaded: Loaded | None
    passed_over: tuple[Damaged, ...] = ()


def newest(directory: str | os.PathLike[str]) -> Newest:
    """The newest checkpoint that is whole.

    Raises:
        OSError: the system refuses to list the directory.
    """
    passed_over: list[Damaged] = []
    for each in listed(directory):
        try:
            return Newest(load(each.path), tuple(passed_over))
        except Damaged as problem:
            passed_over.append(problem)
    return Newest(None, tuple(passed_over))


def found_at(where: str | os.PathLike[str]) -> Loaded | None:
    """The checkpoint that a user means by a file, or the newest one in a directory or in the output
    of a training that is not finished; None: there is none, or the training is finished.

    Raises:
        UserError: what is there is damaged.
    """
    path = Path(where)
    passed_over: tuple[Damaged, ...] = ()
    if path.is_file() and path.name != artifact.TRAINED_MODEL:
        try:
            return load(path)
        except Damaged as problem:
            passed_over = (problem,)
    elif path.is_dir() and not (path / artifact.TRAINED_MODEL).exists():
        for directory in (path, path / "checkpoints", path / ".elasticdl" / "checkpoints"):
            found = newest(directory)
            if found.loaded is not None:
                return found.loaded
            passed_over += found.passed_over
    if passed_over:
        raise UserError(f"from_checkpoint: {passed_over[0]}. Choose another one.")
    return None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise Damaged(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # A damaged header has any form, or any dtype.
        raise Damaged(path, f"is damaged: {error}") from error


@dataclass(frozen=True)
class _Field:
    """A variable's type."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(_dtype(self.dtype).itemsize)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class _Header:
    """What stands before the variables' bytes.

    Args:
        fields: in the order of their bytes.
    """

    meta: Meta
    fields: Mapping[str, _Field]
    checksum: str = _NO_CHECKSUM

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], meta: Meta) -> "_Header":
        # Wide ones first: then each begins at a multiple of its width.
        names = sorted(arrays, key=lambda name: -arrays[name].itemsize)
        return cls(
            meta, {name: _Field(arrays[name].dtype.name, arrays[name].shape) for name in names}
        )

    @property
    def payload(self) -> int:
        return sum(field.bytes for field in self.fields.values())

    def places(self) -> Iterator[tuple[str, _Field, int]]:
        """Each variable's name, type, and first byte in the payload."""
        begin = 0
        for name, field in self.fields.items():
            yield name, field, begin
            begin += field.bytes

    def encoded(self, checksum: str) -> bytes:
        meta = self.meta
        said = {
            "format": _FORMAT,
            "term": meta.term,
            "generation": meta.generation,
            "version": meta.progress.version,
            "cursors": [[c.epoch, c.slice, c.element] for c in meta.progress.cursors],
            "epoch_version": meta.epoch_version,
            "elements": meta.elements,
            "epoch_elements": meta.epoch_elements,
            "fingerprint": dict(meta.fingerprint),
            "variables": {
                name: [field.dtype, list(field.shape)] for name, field in self.fields.items()
            },
        }
        header: dict[str, Any] = {
            "__metadata__": {"checksum": checksum, "checkpoint": json.dumps(said)}
        }
        for name, field, begin in self.places():
            # A dtype that the format does not know is stored as bytes.
            known = _DTYPES.get(field.dtype)
            header[name] = {
                "dtype": known or "U8",
                "shape": field.shape if known else [field.bytes],
                "data_offsets": [begin, begin + field.bytes],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @classmethod
    def read(cls, file: Any) -> "_Header":
        """The header of a file that is as long as it says.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is damaged.
        """
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"expected a header of {length} bytes; the file has {size} bytes")
        text = file.read(length)
        metadata = json.loads(text)["__metadata__"]
        said = json.loads(metadata["checkpoint"])
        if said["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}; got {said['format']}")
        fields = {
            name: _Field(dtype, tuple(shape)) for name, (dtype, shape) in said["variables"].items()
        }
        meta = Meta(
            term=said["term"],
            generation=said["generation"],
            progress=Progress(said["version"], tuple(Cursor(*c) for c in said["cursors"])),
            epoch_version=said["epoch_version"],
            elements=said["elements"],
            epoch_elements=said["epoch_elements"],
            fingerprint=said["fingerprint"],
        )
        found = cls(meta, fields, metadata["checksum"])
        if found.encoded(found.checksum) != length.to_bytes(8, "little") + text:
            raise ValueError("expected a header as it was written; got another one")
        expected = 8 + length + found.payload
        if size != expected:
            raise ValueError(f"expected {expected} bytes; the file has {size}")
        return found


def _dtype(name: str) -> Any:
    if name in np.sctypeDict:
        return np.dtype(name)
    # Comes with TensorFlow; it has those that NumPy has not.
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))


# ---- into a replica ---------------------------------------------------------------------------


def restore(replica: "replica.Replica", loaded: Loaded) -> None:
    """Replaces the training state by that of the checkpoint, whole.

    Raises:
        UserError: names, shapes or dtypes differ; nothing is replaced.
    """
    _assign(replica.variables_by_name(), loaded.arrays, loaded.path)


def warm_start(replica: "replica.Replica", loaded: Loaded) -> None:
    """Takes the model's variables over; optimizer, progress and seeds stay as new.

    Raises:
        UserError: names, shapes or dtypes differ; nothing is replaced.
    """
    own = {n: v for n, v in replica.variables_by_name().items() if _is_weight(n)}
    _assign(own, {n: a for n, a in loaded.arrays.items() if _is_weight(n)}, loaded.path)


def _is_weight(name: str) -> bool:
    kind, _, path = name.partition("/")
    return kind == "model" and path.split("/")[-1].split(":")[0] != "seed_generator_state"


def _assign(variables: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    own = {
        name: _Field(getattr(v.dtype, "name", v.dtype), tuple(v.shape))
        for name, v in variables.items()
    }
    stored = {name: _Field(a.dtype.name, a.shape) for name, a in arrays.items()}
    problems = differences(stored, own)
    if problems:
        more = len(problems) - _SHOWN
        raise UserError(
            f"checkpoint: {'; '.join(problems[:_SHOWN])}{f'; and {more} more' if more > 0 else ''} "
            f"({path}). Use the model and optimizer that wrote it; --restart begins anew."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def differences(stored: Mapping[str, object], own: Mapping[str, object]) -> list[str]:
    """What a checkpoint's variables and a model's do not agree in, one text a variable."""
    return [
        *(
            f"expected variable {name} {field}; the model has "
            + (str(own[name]) if name in own else "none of that name")
            for name, field in stored.items()
            if own.get(name) != field
        ),
        *(
            f"expected no variable {name}; the model has {field}"
            for name, field in own.items()
            if name not in stored
        ),
    ]


# ---- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A checkpoint that is in its place."""

    path: Path
    version: int
    bytes: int
    seconds: float


class Stopped(ElasticDLError):
    """Writing was given up on request."""


def write(
    directory: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    meta: Meta,
    stopped: Callable[[], bool] = lambda: False,
    rest: Callable[[float], object] = lambda used_s: None,
) -> Published:
    """Puts a checkpoint in its place; until it is whole and on the disk, nobody sees it there.

    Args:
        stopped: asked now and then.
        rest: called now and then with the seconds of a processor that were used since.

    Raises:
        OSError: the system refuses.
        Stopped
    """
    began = time.perf_counter()
    os.makedirs(directory, exist_ok=True)
    path = Path(directory, meta.number.file)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            size = _write_content(descriptor, arrays, meta, stopped, rest)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    _sync(directory)
    return Published(path, meta.progress.version, size, time.perf_counter() - began)


def _write_content(
    descriptor: int,
    arrays: Mapping[str, NDArray[Any]],
    meta: Meta,
    stopped: Callable[[], bool],
    rest: Callable[[float], object],
) -> int:
    header = _Header.of(arrays, meta)
    head = header.encoded(_NO_CHECKSUM)
    _write_all(descriptor, memoryview(head))
    checksum = isal_zlib.crc32(head)
    unsynced = 0
    for name in header.fields:
        content = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data
        for begin in range(0, len(content), _PIECE):
            if stopped():
                raise Stopped(f"the checkpoint of version {meta.progress.version} is not written")
            used_s = time.thread_time()
            piece = content[begin : begin + _PIECE]
            checksum = isal_zlib.crc32(piece, checksum)
            _write_all(descriptor, piece)
            unsynced += len(piece)
            if unsynced >= _UNSYNCED:
                os.fsync(descriptor)
                unsynced = 0
            rest(time.thread_time() - used_s)
    os.pwrite(descriptor, header.encoded(f"{checksum:08x}"), 0)
    return len(head) + header.payload


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _sync(directory: str | os.PathLike[str]) -> None:
    """Makes the names in a directory last through a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(directory: str | os.PathLike[str], keep: int, published: Number) -> None:
    """Removes all checkpoints but the newest `keep`, and what was left half-written before.

    Raises:
        OSError
    """
    for each in listed(directory)[keep:]:
        each.path.unlink(missing_ok=True)
    for name in os.listdir(directory):
        match = _PARTIAL.fullmatch(name)
        # A newer one is being written by somebody else.
        if match and _number(match) <= published:
            Path(directory, name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Job:
    """What is to be written."""

    arrays: Mapping[str, NDArray[Any]]
    meta: Meta


class Writer:
    """Writes checkpoints in the background, with what the training threads leave of the machine.

    It rests most of the time, so that no step takes much longer; but not while a newer one, or
    somebody, waits. Where storage fails, the newest one is tried again until it succeeds.

    Args:
        directory: made where there is none.
        keep: how many of the newest stay.
        changed: called, in any thread, after `problem` or `last` changed.
        retry_s: seconds until the first new attempt; each further one takes twice as long, up to
            ten seconds.
        rests: how many seconds it rests for each one in which it uses a processor.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 2,
        *,
        changed: Callable[[], None] = lambda: None,
        retry_s: float = _FIRST_RETRY_S,
        rests: float = _RESTS,
    ) -> None:
        self._directory = Path(directory)
        self._keep = keep
        self._changed = changed
        self._retry_s = retry_s
        self._rests = rests
        self._turn = threading.Condition()
        self._pending: _Job | None = None
        self._busy = False
        self._awaited = 0
        self._closed = False
        self._stop = False
        self._failed_since: int | None = None
        self._attempting = threading.Lock()
        self._problem = ""
        self._last: Published | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why checkpoints are delayed, in one line; empty while they are not."""
        return self._problem

    @property
    def last(self) -> Published | None:
        """The last one that this writer published."""
        return self._last

    def begin(self, snapshot: Mapping[str, NDArray[Any]], meta: Meta) -> None:
        """Has a snapshot written; takes the place of one that still waits."""
        with self._turn:
            if not self._closed:
                self._pending = _Job(snapshot, meta)
                self._turn.notify_all()

    def save_now(self, snapshot: Mapping[str, NDArray[Any]], meta: Meta) -> bool:
        """Writes a snapshot, once, before it returns; whether it was published."""
        with self._turn:
            if self._pending and self._pending.meta.number <= meta.number:
                self._pending = None
            self._awaited += 1
            self._turn.notify_all()
        try:
            return self._attempt(_Job(snapshot, meta))
        finally:
            with self._turn:
                self._awaited -= 1

    def idle(self) -> bool:
        """Whether nothing is left to write."""
        with self._turn:
            return not self._pending and not self._busy

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing is left to write; whether that is so."""
        with self._turn:
            self._awaited += 1
            self._turn.notify_all()
            try:
                return self._turn.wait_for(lambda: not self._pending and not self._busy, timeout_s)
            finally:
                self._awaited -= 1

    def close(self, wait: bool) -> None:
        """Ends the writing: once all is tried, or, without `wait`, at once."""
        with self._turn:
            self._closed = True
            self._stop = self._stop or not wait
            self._turn.notify_all()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        _lower_priority()
        failures = 0
        while (job := self._taken()) is not None:
            published = self._attempt(job)
            failures = 0 if published else failures + 1
            with self._turn:
                self._busy = False
                if not published and not self._pending and not self._closed:
                    self._pending = job
                # What is held keeps its memory, and training must copy what it changes.
                del job
                self._turn.notify_all()
                if not published:
                    delay_s = retry_delay(self._retry_s, failures)
                    self._turn.wait_for(lambda: self._closed, delay_s)

    def _taken(self) -> _Job | None:
        """The next one to write, when there is one; None: all is over."""
        with self._turn:
            self._turn.wait_for(lambda: self._pending or self._closed)
            job, self._pending = self._pending, None
            self._busy = job is not None and not self._stop
            return job if self._busy else None

    def _attempt(self, job: _Job) -> bool:
        number = job.meta.number
        with self._attempting:
            try:
                last = write(self._directory, job.arrays, job.meta, lambda: self._stop, self._rest)
            except Stopped:
                return False
            except OSError as error:
                if self._failed_since is None:
                    self._failed_since = number.version
                self._problem = (
                    f"checkpoint: {self._directory}: {error.strerror or error}, since version "
                    f"{self._failed_since}. It is tried again; training goes on."
                )
                published = False
            else:
                self._last, self._failed_since, self._problem = last, None, self._tidied(number)
                published = True
        self._changed()
        return published

    def _rest(self, used_s: float) -> None:
        with self._turn:
            self._turn.wait_for(
                lambda: self._closed or self._awaited or self._pending, used_s * self._rests
            )

    def _tidied(self, number: Number) -> str:
        try:
            tidy(self._directory, self._keep, number)
        except OSError as error:
            return (
                f"checkpoint: {self._directory}: {error.strerror or error} while older ones were "
                "removed. It is tried again with the next one; training goes on."
            )
        return ""


def retry_delay(first_s: float, failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return float(min(first_s * 2 ** min(failures - 1, 30), _LONGEST_RETRY_S))


def _lower_priority() -> None:
    """Leaves the processors to the other threads of this process."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            # On Linux, priorities are those of threads.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
