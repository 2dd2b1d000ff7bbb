"""RecordIO: what is written is read, by others too; what is damaged is never read as less."""

import concurrent.futures
import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cramjam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elasticdl.data import recordio
from elasticdl.errors import CorruptData, UserError

SAMPLES = Path(__file__).parent / "samples"
MANIFEST = json.loads((SAMPLES / "manifest.json").read_text())
MAGIC = 0x01020304

# Examples share the directory of the test; each writes its files anew.
anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path: Path, records: Iterable[bytes], **options: object) -> Path:
    with recordio.Writer(path, **options) as writer:  # type: ignore[arg-type]
        writer.extend(records)
    return path


def chunk(payload: bytes, records: int, compressor: int = 0, checksum: int | None = None) -> bytes:
    """A chunk as the original lays it out."""
    crc = zlib.crc32(payload) if checksum is None else checksum
    return struct.pack("<5I", MAGIC, crc, compressor, len(payload), records) + payload


def payload(*records: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(record)) + record for record in records)


def as_the_original_reads(data: bytes) -> Iterator[bytes]:
    """The original's reader: headers one after the other, no notion of an index."""
    stream = io.BytesIO(data)
    while header := stream.read(20):
        magic, checksum, compressor, size, count = struct.unpack("<5I", header)
        stored = stream.read(size)
        assert magic == MAGIC
        assert checksum == zlib.crc32(stored)
        match compressor:
            case 1:
                stored = bytes(cramjam.snappy.decompress(stored))
            case 2:
                stored = zlib.decompress(stored, wbits=31)
        content = io.BytesIO(stored)
        for _ in range(count):
            (length,) = struct.unpack("<I", content.read(4))
            yield content.read(length)


# ---- compatibility ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_reads_what_the_original_wrote(name: str) -> None:
    found = list(recordio.read(SAMPLES / name))
    digest = hashlib.sha256(payload(*found)).hexdigest()
    assert len(found) == MANIFEST[name]["records"]
    assert digest == MANIFEST[name]["sha256_of_length_prefixed_records"]
    assert recordio.check(SAMPLES / name).records == len(found)


@pytest.mark.parametrize("compressor", recordio.COMPRESSORS)
def test_the_original_reads_what_is_written(tmp_path: Path, compressor: str) -> None:
    records = [b"%d" % number * (number % 50) for number in range(2000)]
    path = write(tmp_path / "a.recordio", records, compressor=compressor, chunk_bytes=5000)
    assert list(as_the_original_reads(path.read_bytes())) == records


def test_files_concatenated_are_a_file(tmp_path: Path) -> None:
    sample = SAMPLES / "gowangkuiyi_gzip_tiny_5000_mc1000.recordio"
    ours = write(tmp_path / "a", [b"x" * 100, b"y"] * 30, chunk_bytes=500)
    both = tmp_path / "both"
    both.write_bytes(ours.read_bytes() + sample.read_bytes() + ours.read_bytes())
    expected = [*recordio.read(ours), *recordio.read(sample), *recordio.read(ours)]
    assert list(recordio.read(both)) == expected
    assert list(as_the_original_reads(both.read_bytes())) == expected
    reader = recordio.Reader(both)
    assert len(reader) == len(expected)
    assert reader.read_range(50, 5080) == expected[50:5080]
    assert recordio.check(both).records == len(expected)


def test_an_empty_file_has_no_bytes_and_no_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [])
    assert path.read_bytes() == b""
    assert list(recordio.read(path)) == []
    assert len(recordio.Reader(path)) == 0
    assert recordio.check(path).records == 0


@pytest.mark.parametrize(
    ("compressor", "stored"),
    [(0, b""), (1, bytes(cramjam.snappy.compress(b""))), (2, zlib.compress(b"", wbits=31))],
)
def test_a_chunk_with_0_records_is_valid(tmp_path: Path, compressor: int, stored: bytes) -> None:
    path = tmp_path / "a"
    empty = chunk(stored, 0, compressor)
    path.write_bytes(empty + chunk(payload(b"x", b""), 2) + empty)
    assert list(recordio.read(path)) == [b"x", b""]
    assert recordio.check(path).chunks == 1


# ---- round trips ------------------------------------------------------------------------------


@anew
@given(
    records=st.lists(st.binary(max_size=40) | st.just(b"\x00" * 300), max_size=40),
    compressor=st.sampled_from(recordio.COMPRESSORS),
    chunk_bytes=st.integers(1, 600),
)
def test_every_range_reads_what_was_written(
    tmp_path: Path, records: list[bytes], compressor: str, chunk_bytes: int
) -> None:
    path = write(tmp_path / "a", records, compressor=compressor, chunk_bytes=chunk_bytes)
    with recordio.Reader(path) as reader:
        assert len(reader) == len(records)
        assert list(reader) == records
        for start in range(len(records) + 1):
            for end in range(start, len(records) + 1):
                assert reader.read_range(start, end) == records[start:end]
        assert [c.first for c in reader.chunks[1:]] == [
            c.first + c.records for c in reader.chunks[:-1]
        ]
    assert list(as_the_original_reads(path.read_bytes())) == records
    assert recordio.check(path).records == len(records)


@pytest.mark.parametrize("length", [0, 1, 85])
def test_many_records_of_one_length(tmp_path: Path, length: int) -> None:
    records = [(b"%d" % number * length)[:length] for number in range(1000)]
    reader = recordio.Reader(write(tmp_path / "a", records))
    assert len(reader.chunks) == 1
    for start, end in ((0, 1000), (0, 256), (1, 257), (255, 768), (300, 310), (999, 1000), (5, 5)):
        assert reader.read_range(start, end) == records[start:end]


def test_a_range_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    reader = recordio.Reader(write(tmp_path / "a", [b"x"] * 3))
    for start, end in ((-1, 2), (2, 1), (0, 4), (4, 4)):
        with pytest.raises(IndexError):
            reader.read_range(start, end)


def test_a_range_reads_only_the_chunks_that_it_touches(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"%4d" % number for number in range(100)], chunk_bytes=80)
    damaged = bytearray(path.read_bytes())
    first, *_, last = recordio.Reader(path).chunks
    damaged[first.offset + 30] ^= 1
    damaged[last.offset + 30] ^= 1
    path.write_bytes(damaged)
    reader = recordio.Reader(path)
    assert reader.read_range(10, 90) == [b"%4d" % number for number in range(10, 90)]
    with pytest.raises(CorruptData):
        reader.read_range(9, 90)
    with pytest.raises(CorruptData):
        reader.read_range(10, 91)


def test_incompressible_chunks_are_stored_as_they_are(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(1000)
    path = write(tmp_path / "a", [noise, b"a" * 1000], chunk_bytes=1000)
    stored = [(c.compressor, c.stored_bytes < 500) for c in recordio.Reader(path).chunks]
    assert stored == [(0, False), (1, True)]


def test_equal_records_make_equal_files(tmp_path: Path) -> None:
    for compressor in recordio.COMPRESSORS:
        one, two = (
            write(tmp_path / name, [b"abc" * 50] * 99, compressor=compressor) for name in "ab"
        )
        assert one.read_bytes() == two.read_bytes()


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    records = [b"%d" % number * (number % 7) for number in range(5000)]
    reader = recordio.Reader(write(tmp_path / "a", records, chunk_bytes=1000))

    def reads_right(seed: int) -> bool:
        dice = random.Random(seed)
        ranges = [sorted(dice.choices(range(5001), k=2)) for _ in range(20)]
        return all(reader.read_range(a, b) == records[a:b] for a, b in ranges)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(reads_right, range(32)))


def test_a_closed_reader_reads_nothing(tmp_path: Path) -> None:
    with recordio.Reader(write(tmp_path / "a", [b"x"])) as reader:
        pass
    with pytest.raises(ValueError, match="closed"):
        reader.read_range(0, 1)


# ---- the index --------------------------------------------------------------------------------


def test_the_index_and_the_headers_say_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"x" * size for size in range(300)], chunk_bytes=700)
    indexed = recordio.Reader(path)
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[: indexed.chunks[-1].end])
    walked = recordio.Reader(bare)
    assert indexed.indexed
    assert not walked.indexed
    assert len(indexed.chunks) > 10
    assert indexed.chunks == walked.chunks


def test_an_index_longer_than_the_tail_that_is_read_first(tmp_path: Path) -> None:
    records = [b"%d" % number for number in range(6000)]
    reader = recordio.Reader(write(tmp_path / "a", records, chunk_bytes=1))
    assert reader.indexed
    assert len(reader.chunks) == 6000
    assert reader.read_range(5990, 6000) == records[5990:]


def _with_index(data: bytes, *entries: tuple[int, int, int, int]) -> bytes:
    packed = b"".join(struct.pack("<4I", *entry) for entry in entries)
    tag = b"RECINDEX"
    return data + chunk(tag + packed + struct.pack("<I", len(entries)) + tag, 0)


def test_an_index_that_lies_changes_no_record(tmp_path: Path) -> None:
    stored = payload(b"one", b"two")
    crc = zlib.crc32(stored)
    honest = tmp_path / "honest"
    honest.write_bytes(_with_index(chunk(stored, 2), (crc, 0, len(stored), 2)))
    assert recordio.Reader(honest).indexed
    assert list(recordio.read(honest)) == [b"one", b"two"]
    lies = [(crc, 0, len(stored), 1), (crc ^ 1, 0, len(stored), 2), (crc, 1, len(stored), 2)]
    for entry in lies:
        path = tmp_path / "lying"
        path.write_bytes(_with_index(chunk(stored, 2), entry))
        with pytest.raises(CorruptData, match="at byte 0: "):
            list(recordio.read(path))
        with pytest.raises(CorruptData, match="index"):
            recordio.check(path)
    # One whose sizes do not add up to the file is not followed.
    for entries in ([(crc, 0, len(stored) - 1, 2)], [], [(crc, 0, len(stored), 2)] * 2):
        path.write_bytes(_with_index(chunk(stored, 2), *entries))
        assert list(recordio.read(path)) == [b"one", b"two"]
    path.write_bytes(_with_index(chunk(stored, 2), (crc, 0, len(stored), 2), (crc, 0, 0, 2)))
    with pytest.raises(CorruptData, match="index"):
        recordio.check(path)


def test_a_record_that_holds_a_record_file_is_only_a_record(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner", [b"x" * 9] * 5).read_bytes()
    outer = tmp_path / "outer"
    outer.write_bytes(chunk(payload(b"first", inner), 2))
    assert list(recordio.read(outer)) == [b"first", inner]
    assert list(recordio.read(write(tmp_path / "a", [inner], compressor="none"))) == [inner]


# ---- damage -----------------------------------------------------------------------------------

WRITTEN: dict[str, Callable[[Path], bytes]] = {
    "several chunks": lambda d: write(d / "w", [b"abcabcabc" * 4] * 6, chunk_bytes=70).read_bytes(),
    "uncompressed": lambda d: write(
        d / "w", [b"a", b"", b"bcd", b"\x00\x00\x00\x00"], compressor="none"
    ).read_bytes(),
    "gzip": lambda d: write(d / "w", [b"abc" * 40] * 3, compressor="gzip").read_bytes(),
    "empty records": lambda d: write(d / "w", [b""] * 3).read_bytes(),
    "one empty record": lambda d: write(d / "w", [b""]).read_bytes(),
    "joined": lambda d: b"".join(
        write(d / "w", [record * 5], compressor=c).read_bytes()
        for record, c in ((b"abab", "snappy"), (b"cd", "none"))
    ),
    "without records": lambda d: chunk(b"", 0) + chunk(payload(b"x"), 1) + chunk(b"", 0),
    "the original's": lambda d: (SAMPLES / "py006_three_upstream_test.recordio").read_bytes(),
    "the original's gzip": lambda d: _first_chunks(
        SAMPLES / "gowangkuiyi_gzip_tiny_5000_mc1000.recordio", 1
    ),
}


def _first_chunks(path: Path, count: int) -> bytes:
    return path.read_bytes()[: recordio.Reader(path).chunks[count - 1].end]


def _read_all(path: Path) -> list[bytes]:
    return list(recordio.read(path))


def _read_one_by_one(path: Path) -> list[bytes]:
    with recordio.Reader(path) as reader:
        return [reader.read_range(number, number + 1)[0] for number in range(len(reader))]


def _or_corrupt(reading: Callable[[Path], object], path: Path) -> object:
    """What comes of reading; the class `CorruptData` if that is raised."""
    try:
        return reading(path)
    except CorruptData:
        return CorruptData


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_flipped_bit_is_an_error_or_changes_no_record(tmp_path: Path, kind: str) -> None:
    data = WRITTEN[kind](tmp_path)
    path = tmp_path / "flipped"
    path.write_bytes(data)
    records = _read_all(path)
    assert records
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        for reading in (_read_all, _read_one_by_one):
            assert _or_corrupt(reading, path) in (records, CorruptData), f"bit {bit}"
        # An empty payload is the same whatever it is said to be compressed with.
        harmless = kind == "without records" and bit // 8 in (8, 53)
        assert harmless or _or_corrupt(recordio.check, path) is CorruptData, f"bit {bit}"


@anew
@given(
    records=st.lists(st.binary(max_size=200), min_size=1, max_size=30),
    compressor=st.sampled_from(recordio.COMPRESSORS),
    chunk_bytes=st.sampled_from([1, 100, 1 << 20]),
    where=st.floats(0, 1, exclude_max=True),
    indexed=st.booleans(),
)
def test_a_flipped_bit_anywhere_is_an_error_or_changes_no_record(
    tmp_path: Path,
    records: list[bytes],
    compressor: str,
    chunk_bytes: int,
    where: float,
    indexed: bool,
) -> None:
    path = write(tmp_path / "a", records, compressor=compressor, chunk_bytes=chunk_bytes)
    if not indexed:
        path.write_bytes(_first_chunks(path, len(recordio.Reader(path).chunks)))
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << int(where * len(data) * 8) % 8
    path.write_bytes(data)
    assert _or_corrupt(recordio.check, path) is CorruptData
    assert _or_corrupt(_read_all, path) in (records, CorruptData)


@pytest.mark.parametrize("flip", [(1, 0), (0, 1), (2, 0), (0, 2)])
def test_a_payload_that_two_compressors_can_read_is_refused(
    tmp_path: Path, flip: tuple[int, int]
) -> None:
    """The checksum does not cover the compressor, so nothing else would tell."""
    pack = {1: lambda b: bytes(cramjam.snappy.compress(b)), 2: lambda b: zlib.compress(b, wbits=31)}
    start = {1: b"\xff\x06\x00\x00sNaPpY", 2: b"\x1f\x8b"}
    compressed, noise = max(flip), random.Random(3)
    # A compressed payload of exactly the size that its own first bytes, as a length, ask for.
    wanted = {1: 0x6FF + 4, 2: 0x88B1F + 4}[compressed]
    size = wanted - 60 if compressed == 1 else wanted - 300
    while len(stored := pack[compressed](payload(noise.randbytes(size)))) != wanted:
        size += (wanted - len(stored)) or 1
    assert stored.startswith(start[compressed])
    assert len(payload(stored[4:])) == len(stored)
    path = tmp_path / "a"
    path.write_bytes(chunk(stored, 1, flip[1]))
    with pytest.raises(CorruptData, match="as good with"):
        list(recordio.read(path))
    # Where an index confirms the compressor, there is no doubt.
    path.write_bytes(_with_index(chunk(stored, 1, 0), (zlib.crc32(stored), 0, len(stored), 1)))
    assert list(recordio.read(path)) == [stored[4:]]


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_cut_inside_a_chunk_is_an_error(tmp_path: Path, kind: str) -> None:
    data = WRITTEN[kind](tmp_path)
    path = tmp_path / "cut"
    path.write_bytes(data)
    records = _read_all(path)
    boundaries = {0}
    while max(boundaries) < len(data):
        at = max(boundaries)
        boundaries.add(at + 20 + struct.unpack_from("<I", data, at + 12)[0])
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size in boundaries:
            found = _read_all(path)
            assert found == records[: len(found)]
        else:
            with pytest.raises(CorruptData, match="cut short"):
                _read_all(path)


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (b"id,label\n1,2\n3,4\n5,6\n", 0, "expected the magic number 0x01020304"),
        (chunk(payload(b"x"), 1) + b"\x04\x03", 25, "expected a chunk header of 20 bytes"),
        (chunk(payload(b"x"), 1, compressor=3), 0, r"expected compressor .* got 3\."),
        (chunk(payload(b"x"), 1, checksum=7), 0, "expected a payload with the checksum 0x00000007"),
        (chunk(payload(b"x", b"y"), 1), 0, "exactly 1 records; .* go on behind"),
        (chunk(payload(b"x"), 0), 0, "exactly 0 records; .* go on behind"),
        (chunk(payload(b"x"), 2), 0, "exactly 2 records; .* end before"),
        (chunk(b"\x05\x00\x00\x00abcd", 1), 0, "exactly 1 records; .* end before"),
        (chunk(b"\xff\xff\xff\xff", 1), 0, "exactly 1 records; .* end before"),
        (chunk(b"\x00\x00", 1), 0, "exactly 1 records; .* end before"),
        (chunk(payload(b"x"), 0xFFFFFFFF), 0, "exactly 4294967295 records; .* end before"),
        (chunk(b"nonsense", 1, compressor=1), 0, "compressed with snappy; .* not decompress"),
        (chunk(b"nonsense", 1, compressor=2), 0, "compressed with gzip; .* not decompress"),
        (
            chunk(zlib.compress(payload(b"x"), wbits=31)[:-3], 1, compressor=2),
            0,
            "compressed with gzip; .* not decompress",
        ),
        (struct.pack("<5I", MAGIC, 0, 0, 0xFFFFFFFF, 1) + b"x" * 9, 0, "cut short, or the size"),
        (
            struct.pack("<5I", MAGIC, 1, 0x89ABCDEF, 0, 5) + payload(b"x"),
            0,
            "the older RecordIO layout",
        ),
    ],
)
def test_damage_is_named_with_file_and_offset(
    tmp_path: Path, data: bytes, offset: int, problem: str
) -> None:
    path = tmp_path / "a.recordio"
    for before in (b"", chunk(payload(b"good", b"ones"), 2)):
        path.write_bytes(before + data)
        for reading in (_read_all, recordio.check):
            with pytest.raises(CorruptData, match=problem) as caught:
                reading(path)
            assert (caught.value.path, caught.value.offset) == (str(path), len(before) + offset)


def test_a_file_that_shrinks_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"x" * 99] * 9, compressor="none")
    reader = recordio.Reader(path)
    os.truncate(path, 100)
    with pytest.raises(CorruptData, match="cut short"):
        reader.read_range(0, 9)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.recordio: cannot be opened: No such file"):
        recordio.read(tmp_path / "none.recordio")
    with pytest.raises(UserError, match="got a directory"):
        recordio.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="got a pipe or device"):
        recordio.read(tmp_path / "pipe")


# ---- writing is all or nothing ----------------------------------------------------------------


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with recordio.Writer(path, chunk_bytes=1) as writer:
        writer.write(b"x")
        assert not path.exists()
    assert os.listdir(tmp_path) == ["a"]
    assert writer.records == 1
    writer.close()
    with pytest.raises(ValueError, match="after it was closed"):
        writer.write(b"x")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"old"])

    def interrupted() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted(), chunk_bytes=1)
    assert list(recordio.read(path)) == [b"old"]
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_replaces_the_old(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"old"])
    reader = recordio.Reader(path)
    write(path, [b"new"])
    assert list(recordio.read(path)) == [b"new"]
    assert list(reader) == [b"old"]


KILLED = """
import sys
from elasticdl.data import recordio
with recordio.Writer(sys.argv[1], chunk_bytes=1) as writer:
    for number in range(1000):
        writer.write(b"new")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    old = write(tmp_path / "old.recordio", [b"old"])
    for path in (old, tmp_path / "new.recordio"):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert list(recordio.read(old)) == [b"old"]
    assert [path.name for path in tmp_path.glob("*.recordio")] == ["old.recordio"]


FULL = """
import resource, sys
from elasticdl.data import recordio
from elasticdl.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    with recordio.Writer(sys.argv[1], compressor="none", chunk_bytes=500) as writer:
        for number in range(1000):
            writer.write(b"x" * 99)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes")
def test_a_file_that_cannot_grow_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the same call fails."""
    path = tmp_path / "a"
    command = [sys.executable, "-c", FULL, str(path)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith(f"{path}: cannot be written: File too large.")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "file", [])
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        recordio.Writer(tmp_path / "none" / "a")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        recordio.Writer(file / "a")
    with pytest.raises(UserError, match="it is a directory"):
        recordio.Writer(tmp_path)
    with pytest.raises(UserError, match="expected one of none, snappy, gzip; got 'zip'"):
        recordio.Writer(tmp_path / "a", compressor="zip")
    with pytest.raises(UserError, match="chunk_bytes: expected 1"):
        recordio.Writer(tmp_path / "a", chunk_bytes=0)
    with pytest.raises(TypeError, match="not str"), recordio.Writer(tmp_path / "a") as writer:
        writer.write("text")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["file"]
