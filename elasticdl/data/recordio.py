"""RecordIO files: chunks of records, checked on every read and written whole or not at all."""

import bisect
import contextlib
import functools
import gzip
import io
import itertools
import os
import secrets
import stat
import struct
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cramjam
import numpy as np
from isal import igzip, isal_zlib

from elasticdl.errors import CorruptData, UserError

COMPRESSORS = ("none", "snappy", "gzip")
_NONE, _SNAPPY, _GZIP = range(3)

_MAGIC = 0x01020304
_HEADER = struct.Struct("<5I")  # magic, checksum, compressor, stored size, records
_LENGTH = struct.Struct("<I")

# The index: a last chunk of 0 records, which other readers skip. Its payload is the tag, the other
# chunks' headers without the magic, and how many those are, and the tag again. Read as a record's
# length, the tag's first four bytes exceed any index, so no payload is both an index and records.
_TAG = b"RECINDEX"
_INDEX_ENTRY = struct.Struct("<4I")
_INDEX_END = struct.Struct("<I8s")
_INDEX_LIMIT = 1 << 30
_TAIL_BYTES = 64 << 10

_BLOCK_RECORDS = 256

# What other implementations can hold in a signed 32-bit size.
_MAX_RECORD_BYTES = (1 << 31) - 5

_BAD_PAYLOAD: tuple[type[Exception], ...] = (
    cramjam.DecompressionError,
    isal_zlib.error,  # type: ignore[assignment]  # its stub declares an instance
    gzip.BadGzipFile,
    EOFError,
)

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where one chunk lies, and what its header says.

    Attributes:
        offset: byte offset of its header in the file.
        first: number, in the file, of its first record.
        records: how many records it has.
        stored_bytes: size of its payload in the file; the header is not counted.
        compressor: index into `COMPRESSORS`.
        checksum: CRC-32 of the payload as stored.
    """

    offset: int
    first: int
    records: int
    stored_bytes: int
    compressor: int
    checksum: int

    @property
    def end(self) -> int:
        """Byte offset right behind it."""
        return self.offset + _HEADER.size + self.stored_bytes

    @property
    def header(self) -> bytes:
        """Its header as stored."""
        return _HEADER.pack(_MAGIC, self.checksum, self.compressor, self.stored_bytes, self.records)


@dataclass(frozen=True)
class Verified:
    """A file in which everything was found to be as its format promises."""

    path: str
    records: int
    chunks: int
    stored_bytes: int
    indexed: bool


def read(path: Path) -> Iterator[bytes]:
    """All records of a file, in order.

    Raises:
        UserError: the file cannot be opened (at once).
        CorruptData: something in it is damaged (at once, or when the damaged chunk is reached).
    """
    return iter(Reader(path))


class Reader:
    """Random access to the records of one file; several threads may read at once.

    Takes the chunk table from the file's index if that covers exactly this file, and otherwise
    from the headers of all chunks. It remembers the last chunk that was read.

    Raises:
        UserError: the file cannot be opened.
        CorruptData: the chunk table cannot be made out.
    """

    def __init__(self, path: Path) -> None:
        self._file = _File(path)
        index = _stored_index(self._file)
        self.indexed = index is not None
        chunks = index if index is not None else list(_walk(self._file))
        self.chunks = tuple(chunk for chunk in chunks if chunk.records)
        self._firsts = [chunk.first for chunk in self.chunks]
        self._records = self.chunks[-1].first + self.chunks[-1].records if self.chunks else 0
        self._last: tuple[int, _Records] | None = None

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def stored_bytes(self) -> int:
        """Size of the file."""
        return self._file.size

    def __len__(self) -> int:
        return self._records

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(
            self._chunk_records(number)[0 : chunk.records]
            for number, chunk in enumerate(self.chunks)
        )

    def read_range(self, start: int, end: int) -> list[bytes]:
        """The records from `start` up to, not including, `end`.

        Raises:
            IndexError: not 0 <= start <= end <= len(reader).
            CorruptData: a chunk that holds some of them is damaged.
        """
        if not 0 <= start <= end <= self._records:
            raise IndexError(f"records {start} to {end} of {self._records} in {self.path}")
        found: list[bytes] = []
        number = bisect.bisect_right(self._firsts, start) - 1
        while len(found) < end - start:
            chunk = self.chunks[number]
            wanted = slice(max(start - chunk.first, 0), min(end - chunk.first, chunk.records))
            found += self._chunk_records(number)[wanted]
            number += 1
        return found

    def close(self) -> None:
        """Lets go of the file; nothing may be reading it."""
        self._last = None
        self._file.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunk_records(self, number: int) -> "_Records":
        # One tuple, replaced whole, so that threads see either chunk and never a mixture.
        last = self._last
        if last is None or last[0] != number:
            last = number, _records(self._file, self.chunks[number], confirmed=self.indexed)
            self._last = last
        return last[1]


def check(path: Path, progress: Callable[[int], None] | None = None) -> Verified:
    """Reads a file from end to end and verifies all there is: headers, payloads, index.

    Args:
        path: the file.
        progress: called with the number of bytes verified since its last call.

    Raises:
        UserError: the file cannot be opened.
        CorruptData: at the first thing that is not as it should be.
    """
    file = _File(path)
    with contextlib.closing(file):
        walked: list[Chunk] = []
        records = 0
        indexed = False
        for chunk in _walk(file):
            indexed = False
            if chunk.records:
                _records(file, chunk, confirmed=False)
            elif chunk.stored_bytes:
                entries = _index_entries(file.payload(chunk))
                if entries is not None:
                    described = [c.header[4:] for c in walked[len(walked) - len(entries) :]]
                    if described != [_INDEX_ENTRY.pack(*entry) for entry in entries]:
                        raise CorruptData(
                            file.path,
                            chunk.offset,
                            "expected an index of the chunks before it; got one that differs "
                            "from their headers.",
                        )
                    indexed = chunk.end == file.size and len(entries) == len(walked)
            walked.append(chunk)
            records += chunk.records
            if progress is not None:
                progress(chunk.end - chunk.offset)
    return Verified(
        path=file.path,
        records=records,
        chunks=sum(1 for chunk in walked if chunk.records),
        stored_bytes=file.size,
        indexed=indexed,
    )


class Writer:
    """A file that appears under its name complete, when this is closed, or not at all.

    As a context manager it is closed at the end of the block, and discarded if that raises.

    Args:
        path: the file; one that is there already is replaced.
        compressor: one of `COMPRESSORS`. Chunks on which it saves less than a tenth are stored
            uncompressed.
        chunk_bytes: a chunk ends with the record that brings it to this size before compression.

    Raises:
        UserError: from every method, where the file cannot be written.
    """

    def __init__(self, path: Path, compressor: str = "snappy", chunk_bytes: int = 1 << 20) -> None:
        if compressor not in COMPRESSORS:
            raise UserError(
                f"compressor: expected one of {', '.join(COMPRESSORS)}; got {compressor!r}."
            )
        if not 1 <= chunk_bytes <= _MAX_RECORD_BYTES:
            raise UserError(f"chunk_bytes: expected 1 to {_MAX_RECORD_BYTES}; got {chunk_bytes}.")
        self.path = os.fspath(path)
        self.records = 0
        self._compressor = COMPRESSORS.index(compressor)
        self._chunk_bytes = chunk_bytes
        self._chunks: list[Chunk] = []
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        directory, name = os.path.split(self.path)
        self._directory = directory or "."
        self._temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
        if os.path.isdir(self.path):
            raise UserError(f"{self.path}: cannot be written: it is a directory.")
        with _writing(self.path):
            self._file: io.FileIO | None = open(self._temporary, "xb", buffering=0)  # noqa: SIM115

    def write(self, record: bytes) -> None:
        """Appends one record."""
        size = len(record)
        if not isinstance(record, bytes):
            raise TypeError(f"a record is of type bytes, not {type(record).__name__}")
        if size > _MAX_RECORD_BYTES:
            raise UserError(
                f"{self.path}: expected records of at most {_MAX_RECORD_BYTES} bytes; got one of "
                f"{size}. Split it."
            )
        # Only a record that is about as large as the limit on chunks can make this true.
        if self._pending_bytes + size > _MAX_RECORD_BYTES:
            self._flush()
        self._pieces.append(_LENGTH.pack(size))
        self._pieces.append(record)
        self._pending_bytes += 4 + size
        self.records += 1
        if self._pending_bytes >= self._chunk_bytes:
            self._flush()

    def extend(self, records: Iterable[bytes]) -> None:
        """Appends several records."""
        for record in records:
            self.write(record)

    def close(self) -> None:
        """Writes what is pending and gives the file its name; does nothing the second time."""
        if self._file is None:
            return
        try:
            self._flush()
            self._write_index()
            with _writing(self.path):
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.path)
                _sync_directory(self._directory)
            self._file = None
        finally:
            self.discard()

    def discard(self) -> None:
        """Forgets everything that was written; does nothing once the file is closed."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _flush(self) -> None:
        if not self._pieces:
            return
        payload = b"".join(self._pieces)
        records = len(self._pieces) // 2
        compressor, stored = self._compressor, _compressed(payload, self._compressor)
        if len(stored) > 0.9 * len(payload):
            compressor, stored = _NONE, payload
        self._pieces.clear()
        self._pending_bytes = 0
        self._chunks.append(self._append(records, compressor, stored))

    def _write_index(self) -> None:
        if not self._chunks:
            return
        payload = _index_payload(self._chunks)
        if len(payload) < _INDEX_LIMIT:
            self._append(0, _NONE, payload)

    def _append(self, records: int, compressor: int, stored: bytes) -> Chunk:
        if self._file is None:
            raise ValueError(f"{self.path}: written to after it was closed")
        chunk = Chunk(
            offset=self._chunks[-1].end if self._chunks else 0,
            first=self._chunks[-1].first + self._chunks[-1].records if self._chunks else 0,
            records=records,
            stored_bytes=len(stored),
            compressor=compressor,
            checksum=isal_zlib.crc32(stored),
        )
        with _writing(self.path):
            for block in (chunk.header, stored):
                rest = memoryview(block)
                while rest:
                    rest = rest[self._file.write(rest) :]
        return chunk


class _File:
    """A file that is only read, at explicit offsets; closed at the latest when it is forgotten."""

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        try:
            # Opening a pipe would wait for its writer otherwise.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self.close = weakref.finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be opened: {error.strerror}. Check the path and its "
                "permissions."
            ) from error
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            raise UserError(f"{self.path}: expected a RecordIO file; got {kind}.")
        self.size = status.st_size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`.

        Raises:
            CorruptData: the file has fewer.
        """
        if not self.close.alive:
            raise ValueError(f"{self.path}: read after it was closed")
        block = os.pread(self._descriptor, size, offset)
        while len(block) < size:
            more = os.pread(self._descriptor, size - len(block), offset + len(block))
            if not more:
                raise CorruptData(
                    self.path,
                    offset,
                    f"expected {size} bytes; got {len(block)}: the file is cut short.",
                )
            block += more
        return block

    def chunk(self, offset: int, first: int) -> Chunk:
        """The chunk whose header is at `offset`, its payload not read yet."""
        if self.size - offset < _HEADER.size:
            raise CorruptData(
                self.path,
                offset,
                f"expected a chunk header of {_HEADER.size} bytes; got the last "
                f"{self.size - offset} bytes of the file: it is cut short.",
            )
        header = self.read(offset, _HEADER.size)
        magic, checksum, compressor, stored_bytes, records = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise CorruptData(
                self.path,
                offset,
                f"expected the magic number 0x{_MAGIC:08x} of a RecordIO chunk; got 0x{magic:08x}. "
                "Is this a RecordIO file?",
            )
        if compressor >= len(COMPRESSORS):
            # The older layout is: magic, records, CRC-32C, compressor, size.
            older = stored_bytes < len(COMPRESSORS) and offset + _HEADER.size + records <= self.size
            raise CorruptData(
                self.path,
                offset,
                "expected compressor 0 (none), 1 (snappy) or 2 (gzip); got "
                + (
                    "a chunk in the older RecordIO layout (magic, count, CRC32C, compressor, "
                    "size), which is not supported. Write the data anew."
                    if older
                    else f"{compressor}."
                ),
            )
        chunk = Chunk(offset, first, records, stored_bytes, compressor, checksum)
        if chunk.end > self.size:
            raise CorruptData(
                self.path,
                offset,
                f"expected a payload of {stored_bytes} bytes; got the last "
                f"{self.size - offset - _HEADER.size} bytes of the file: it is cut short, or the "
                "size is wrong.",
            )
        return chunk

    def payload(self, chunk: Chunk) -> memoryview:
        """A chunk's payload as stored, after its header was compared and its checksum verified."""
        block = self.read(chunk.offset, chunk.end - chunk.offset)
        if not block.startswith(chunk.header):
            raise CorruptData(
                self.path,
                chunk.offset,
                f"expected the chunk header {chunk.header.hex()} that the index has; got "
                f"{block[: _HEADER.size].hex()}.",
            )
        stored = memoryview(block)[_HEADER.size :]
        checksum = isal_zlib.crc32(stored)
        if checksum != chunk.checksum:
            raise CorruptData(
                self.path,
                chunk.offset,
                f"expected a payload with the checksum 0x{chunk.checksum:08x}; got one with "
                f"0x{checksum:08x}.",
            )
        return stored


class _Uniform:
    """The records of a payload in which all are of one length; cut out when they are asked for."""

    def __init__(self, payload: memoryview, length: int) -> None:
        self._payload = payload
        self._length = length

    def __getitem__(self, wanted: slice) -> list[bytes]:
        stride = 4 + self._length
        part = self._payload[wanted.start * stride : wanted.stop * stride]
        whole = len(part) - len(part) % (_BLOCK_RECORDS * stride)
        blocks = _block_format(self._length, _BLOCK_RECORDS).iter_unpack(part[:whole])
        single = _block_format(self._length, 1).iter_unpack(part[whole:])
        return list(itertools.chain.from_iterable(itertools.chain(blocks, single)))


@functools.lru_cache(maxsize=256)
def _block_format(length: int, records: int) -> struct.Struct:
    """The layout of several records of one length: cutting out many in one call is much faster."""
    return struct.Struct("<" + f"4x{length}s" * records)


_Records = list[bytes] | _Uniform


def _walk(file: _File) -> Iterator[Chunk]:
    """All chunks, by their headers. Of those with 0 records, the payload is verified too.

    A count that was damaged into 0 would otherwise drop a chunk without a word.
    """
    offset = first = 0
    while offset < file.size:
        chunk = file.chunk(offset, first)
        if chunk.records == 0:
            stored = file.payload(chunk)
            if chunk.compressor != _NONE or _index_entries(stored) is None:
                _split(file, chunk, _decompressed(file, chunk, stored))
        yield chunk
        offset, first = chunk.end, first + chunk.records


def _records(file: _File, chunk: Chunk, *, confirmed: bool) -> _Records:
    """A chunk's records, verified; `confirmed` says that the index confirms its header."""
    stored = file.payload(chunk)
    records = _split(file, chunk, _decompressed(file, chunk, stored))
    if not confirmed:
        _refuse_other_reading(file, chunk, stored)
    return records


def _compressed(payload: bytes, compressor: int) -> bytes:
    match compressor:
        case 1:
            return bytes(memoryview(cramjam.snappy.compress(payload)))
        case 2:
            return isal_zlib.compress(payload, isal_zlib.ISAL_DEFAULT_COMPRESSION, wbits=31)
        case _:
            return payload


def _decompressed(file: _File, chunk: Chunk, stored: memoryview) -> memoryview:
    try:
        return _decompress(stored, chunk.compressor)
    except _BAD_PAYLOAD as error:
        raise CorruptData(
            file.path,
            chunk.offset,
            f"expected a payload compressed with {COMPRESSORS[chunk.compressor]}; got one that "
            f"does not decompress ({error}).",
        ) from error


def _decompress(stored: memoryview, compressor: int) -> memoryview:
    match compressor:
        case 1:
            return memoryview(cramjam.snappy.decompress(stored))
        case 2:
            return memoryview(igzip.decompress(stored))  # type: ignore[no-untyped-call]
        case _:
            return stored


def _split(file: _File, chunk: Chunk, payload: memoryview) -> _Records:
    """The records in a decompressed payload, which they must fill exactly."""
    count = chunk.records
    uniform = _uniform(payload, count)
    if uniform is not None:
        return uniform
    if 4 * count <= len(payload):
        take, number = io.BytesIO(payload).read, int.from_bytes
        records = [take(number(take(4), "little")) for _ in range(count)]
        # What is short is followed by nothing: either the sum is off, or the last record is short.
        filled = 4 * count + sum(map(len, records)) == len(payload)
        if filled and (not count or _last_length(payload, records[-1]) == len(records[-1])):
            return records
    raise CorruptData(
        file.path,
        chunk.offset,
        f"expected a payload of exactly {count} records; got {len(payload)} bytes that "
        f"{'end before the last of them' if _too_short(payload, count) else 'go on behind them'}.",
    )


def _uniform(payload: memoryview, count: int) -> _Uniform | None:
    """The records, if there are several of them and all of one length."""
    if count < 2 or len(payload) % count or len(payload) < 4 * count:
        return None
    stride = len(payload) // count
    (length,) = _LENGTH.unpack_from(payload)
    if 4 + length != stride:
        return None
    lengths = np.frombuffer(payload, np.uint8).reshape(count, stride)[:, :4]
    if not (lengths == lengths[0]).all():
        return None
    return _Uniform(payload, length)


def _last_length(payload: memoryview, last: bytes) -> int:
    """The length that is stored in front of the last record."""
    (length,) = _LENGTH.unpack_from(payload, len(payload) - len(last) - 4)
    return int(length)


def _end_of(payload: memoryview, count: int) -> int | None:
    """Where `count` records end; None if that is behind the end of the payload."""
    position = 0
    for _ in range(count):
        if position + 4 > len(payload):
            return None
        position += 4 + _LENGTH.unpack_from(payload, position)[0]
    return position if position <= len(payload) else None


def _too_short(payload: memoryview, count: int) -> bool:
    return _end_of(payload, count) is None


def _refuse_other_reading(file: _File, chunk: Chunk, stored: memoryview) -> None:
    """Refuses a chunk of which the compressor's field may have been damaged.

    The checksum does not cover it. None and snappy, and none and gzip, are one bit apart; a
    payload that makes sense either way is rare, and would be other records without an error.
    """
    others = (_SNAPPY, _GZIP) if chunk.compressor == _NONE else (_NONE,)
    starts = {_SNAPPY: b"\xff\x06\x00\x00sNaPpY", _GZIP: b"\x1f\x8b"}
    for other in others:
        if other != _NONE and stored[: len(starts[other])] != starts[other]:
            continue
        try:
            payload = _decompress(stored, other)
        except _BAD_PAYLOAD:
            continue
        if _end_of(payload, chunk.records) == len(payload):
            raise CorruptData(
                file.path,
                chunk.offset,
                f"expected a payload that only {COMPRESSORS[chunk.compressor]} can read; got one "
                f"that is as good with {COMPRESSORS[other]}: the header may be damaged.",
            )


def _index_payload(chunks: list[Chunk]) -> bytes:
    headers = b"".join(
        _INDEX_ENTRY.pack(chunk.checksum, chunk.compressor, chunk.stored_bytes, chunk.records)
        for chunk in chunks
    )
    return _TAG + headers + _INDEX_END.pack(len(chunks), _TAG)


def _index_entries(payload: bytes | memoryview) -> list[tuple[int, int, int, int]] | None:
    """An index's entries: checksum, compressor, stored size, records; None if it is no index."""
    around = len(_TAG) + _INDEX_END.size
    count, uneven = divmod(len(payload) - around, _INDEX_ENTRY.size)
    if count < 0 or uneven or payload[: len(_TAG)] != _TAG:
        return None
    if payload[-_INDEX_END.size :] != _INDEX_END.pack(count, _TAG):
        return None
    return list(_INDEX_ENTRY.iter_unpack(payload[len(_TAG) : -_INDEX_END.size]))


def _stored_index(file: _File) -> list[Chunk] | None:
    """The chunk table from the file's last chunk; None unless it accounts for the whole file."""
    tail = file.read(max(file.size - _TAIL_BYTES, 0), min(file.size, _TAIL_BYTES))
    least = _HEADER.size + len(_TAG) + _INDEX_END.size
    if len(tail) < least or not tail.endswith(_TAG):
        return None
    count, _ = _INDEX_END.unpack(tail[-_INDEX_END.size :])
    size = least + count * _INDEX_ENTRY.size
    if size > file.size:
        return None
    block = tail[-size:] if size <= len(tail) else file.read(file.size - size, size)
    magic, checksum, compressor, stored_bytes, records = _HEADER.unpack(block[: _HEADER.size])
    if (magic, compressor, stored_bytes, records) != (_MAGIC, _NONE, size - _HEADER.size, 0):
        return None
    payload = block[_HEADER.size :]
    entries = _index_entries(payload)
    if entries is None or isal_zlib.crc32(payload) != checksum:
        return None
    chunks: list[Chunk] = []
    offset = first = 0
    for crc, codec, stored, contained in entries:
        if codec >= len(COMPRESSORS):
            return None
        chunks.append(Chunk(offset, first, contained, stored, codec, crc))
        offset, first = chunks[-1].end, first + contained
    return chunks if offset == file.size - size else None


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}. Free space there, correct the "
            "permissions, or choose another place."
        ) from error


def _sync_directory(directory: str) -> None:
    """Makes a rename in it survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
