"""RecordIO reads and writes against the original pyrecordio, as ratios taken in one run."""

import argparse
import importlib
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticdl.data import recordio

WITHOUT_PEER = """\
pyrecordio is not importable, so only our own compressors are compared. To have it, on Python 3.11:

  1. install Go and a C compiler;
  2. pip download --no-deps --no-binary :all: pyrecordio==0.0.6, and unpack it;
  3. in it: go mod init pyrecordio
     go get github.com/wangkuiyi/recordio@0a2a4cb1b5210abfcb75f23d230a02d377c0f84d
     go build -buildmode=c-shared -o recordio/librecordio$(python3-config --extension-suffix) .
  4. python -m benchmarks.recordio --peer THAT_DIRECTORY

(Its own setup.py takes the library's latest version, in the GOPATH mode that Go no longer has.)
"""


@dataclass(frozen=True)
class Case:
    """Two ways of doing one thing; `ours` has to do it in less time than `theirs`."""

    name: str
    ours: Callable[[], int]
    theirs: Callable[[], int]


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition."""

    case: Case
    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def least_ratio(self) -> float:
        """Of the pairs that ran one after the other, the one that is worst for us."""
        return min(them / us for us, them in zip(self.ours, self.theirs, strict=True))


def small_records(count: int) -> list[bytes]:
    """Lines of numbers, 85 bytes each, of which snappy saves about a half."""
    dice = random.Random(85)
    return [b"%020d;%-63d;" % (n, dice.randrange(10**20)) for n in range(count)]


def large_records(count: int) -> list[bytes]:
    """50 kB each, of which snappy saves about a third."""
    dice = random.Random(50)
    return [b"".join(dice.randbytes(20) + b"0123456789" for _ in range(1667)) for _ in range(count)]


def write(path: Path, records: Sequence[bytes], compressor: str = "snappy") -> str:
    with recordio.Writer(path, compressor) as writer:
        writer.extend(records)
    return str(path)


def read(path: str) -> int:
    count = 0
    for _ in recordio.read(path):
        count += 1
    return count


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> int:
    count = 0
    with recordio.Reader(path) as reader:
        for start, end in ranges:
            count += len(reader.read_range(start, end))
    return count


class Peer:
    """pyrecordio, called as its README does."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def write(self, path: Path, records: Sequence[bytes]) -> str:
        writer = self._module.Writer(str(path))
        for record in records:
            writer.write(record)
        writer.close()
        return str(path)

    def read(self, path: str) -> int:
        return self._scan(self._module.Scanner(path))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> int:
        index = self._module.Index(path)
        count = 0
        for start, end in ranges:
            count += self._scan(self._module.Scanner(path, start, end - start, index))
        index.close()
        return count

    def _scan(self, scanner: Any) -> int:
        count = 0
        while scanner.record() is not None:
            count += 1
        scanner.close()
        return count


def peer_in(directory: str | None) -> Peer | None:
    """pyrecordio, from a directory if one is given; None if it cannot be imported."""
    if directory is not None:
        sys.path.insert(0, directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports distutils
        try:
            return Peer(importlib.import_module("recordio"))
        except (ImportError, OSError):
            return None


def cases_with_peer(
    peer: Peer, directory: Path, small: Sequence[bytes], large: Sequence[bytes]
) -> list[Case]:
    ours, theirs = write(directory / "ours", small), peer.write(directory / "theirs", small)
    our_large = write(directory / "our_large", large)
    their_large = peer.write(directory / "their_large", large)
    dice = random.Random(1)
    starts = [dice.randrange(len(small) - 100) for _ in range(10)]
    ranges = [(start, start + 100) for start in starts]
    assert peer.read(ours) == read(theirs) == len(small)
    return [
        Case("read 85-byte records", lambda: read(ours), lambda: peer.read(theirs)),
        Case("the same, both its file", lambda: read(theirs), lambda: peer.read(theirs)),
        Case("the same, both our file", lambda: read(ours), lambda: peer.read(ours)),
        Case("read 50 kB records", lambda: read(our_large), lambda: peer.read(their_large)),
        Case(
            "100 records, random places",
            lambda: read_ranges(ours, ranges),
            lambda: peer.read_ranges(theirs, ranges),
        ),
        Case(
            "the same, both its file",
            lambda: read_ranges(theirs, ranges),
            lambda: peer.read_ranges(theirs, ranges),
        ),
        Case(
            "write 85-byte records",
            lambda: len(write(directory / "w", small)),
            lambda: len(peer.write(directory / "w", small)),
        ),
    ]


def cases_of_compressors(directory: Path, small: Sequence[bytes]) -> list[Case]:
    snappy, none, gzip = (
        write(directory / name, small, name) for name in ("snappy", "none", "gzip")
    )
    return [
        Case("snappy against none", lambda: read(snappy), lambda: read(none)),
        Case("snappy against gzip", lambda: read(snappy), lambda: read(gzip)),
    ]


def timed(case: Case, repetitions: int) -> Timing:
    """Both ways in turn, so that what else the machine does meets both."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repetitions):
        for way, seconds in ((case.ours, ours), (case.theirs, theirs)):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
    return Timing(case, ours, theirs)


def print_table(title: str, timings: Sequence[Timing]) -> None:
    print(f"{title:<28} {'ours min':>9} {'median':>9} {'its min':>9} {'median':>9} "
          f"{'ratio min':>9} {'median':>9}")  # fmt: skip
    for timing in timings:
        ours, theirs = (
            f"{1e3 * min(times):6.0f} ms {1e3 * statistics.median(times):6.0f} ms"
            for times in (timing.ours, timing.theirs)
        )
        print(f"{timing.case.name:<28} {ours} {theirs} "
              f"{timing.least_ratio:8.1f}x {timing.median_ratio:8.1f}x")  # fmt: skip
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="the directory that holds pyrecordio's package recordio")
    parser.add_argument("--records", type=int, default=500_000, help="of 85 bytes")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()

    small, large = small_records(options.records), large_records(max(1, options.records // 500))
    peer = peer_in(options.peer)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if peer is None:
            print(WITHOUT_PEER)
        else:
            cases = cases_with_peer(peer, directory, small, large)
            timings = [timed(case, options.repetitions) for case in cases]
            print_table("against pyrecordio 0.0.6", timings)
        cases = cases_of_compressors(directory, small)
        print_table("compressors", [timed(case, options.repetitions) for case in cases])


if __name__ == "__main__":
    main()
