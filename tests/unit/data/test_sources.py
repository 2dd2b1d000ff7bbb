"""Patterns name files, files have records, and whoever names nothing is told what there is."""

import concurrent.futures
import os
import random
from pathlib import Path

import pytest

from elasticdl.data import recordio, sources
from elasticdl.errors import CorruptData, UserError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some files in some directories; the first is the working directory."""
    names = (
        "a.recordio b.recordio notes.txt .hidden.recordio deep/c.recordio deep/er/d.recordio "
        "odd[1].recordio empty/.keep with,comma.recordio"
    )
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("a.recordio", "a.recordio"),
        ("notes.txt", "notes.txt"),
        (".", "a.recordio b.recordio odd[1].recordio with,comma.recordio"),
        ("deep", "deep/c.recordio"),
        ("deep/", "deep/c.recordio"),
        ("deep/**", "deep/c.recordio deep/er/d.recordio"),
        ("deep/**/d.recordio", "deep/er/d.recordio"),
        ("**/?.recordio", "a.recordio b.recordio deep/c.recordio deep/er/d.recordio"),
        ("?.recordio", "a.recordio b.recordio"),
        ("[!a].recordio", "b.recordio"),
        ("*", "a.recordio b.recordio notes.txt odd[1].recordio with,comma.recordio"),
        ("{b,a}.recordio", "a.recordio b.recordio"),
        ("{deep/{c,er/d},a}.recordio", "a.recordio deep/c.recordio deep/er/d.recordio"),
        ("b.recordio, a.recordio", "a.recordio b.recordio"),
        ("a.recordio,./a.recordio,deep/../a.recordio,?.recordio", "a.recordio b.recordio"),
        ("odd[1].recordio", "odd[1].recordio"),
        ("with,comma.recordio", "with,comma.recordio"),
        ("deep,{a,b}.recordio,", "a.recordio b.recordio deep/c.recordio"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_patterns_name_files(patterns: str, expected: str) -> None:
    assert sources.files(patterns) == tuple(expected.split())


@pytest.mark.usefixtures("tree")
def test_absolute_patterns_name_absolute_paths(tree: Path) -> None:
    assert sources.files(f"{tree}/deep/*") == (f"{tree}/deep/c.recordio",)


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ("", "expected a file, directory or glob of .* got ''"),
        (" , ", "expected a file, directory or glob of"),
        ("none/of/*.recordio", "this directory holds a.recordio, .* and 2 more"),
        ("deep/x*", "'deep/x\\*', which matches no file: deep holds c.recordio, er"),
        ("empty", "'empty', which matches no file: empty is empty"),
        ("a.recordio,none", "'none', which matches no file"),
        ("{a,b.recordio", "which matches no file"),
        ("gs://bucket/x", "expected a path on this machine; got 'gs://bucket/x'"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_a_pattern_that_matches_nothing_says_what_there_is(patterns: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        sources.files(patterns)


def _written(path: Path, count: int) -> str:
    with recordio.Writer(path, chunk_bytes=50) as writer:
        writer.extend(b"%s %d" % (path.name.encode(), number) for number in range(count))
    return str(path)


def test_records_are_counted_in_the_files_order(tmp_path: Path) -> None:
    paths = [_written(tmp_path / f"{count}", count) for count in (3, 0, 40, 7)]
    assert sources.record_counts(paths) == (3, 0, 40, 7)
    assert sources.record_counts([]) == ()


def test_a_damaged_file_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"no records at all, but text")
    with pytest.raises(CorruptData, match="expected the magic number"):
        sources.record_counts([_written(tmp_path / "a", 3), str(tmp_path / "b")])


def test_no_records_at_all_are_an_error() -> None:
    sources.require_records("data", (0, 1))
    with pytest.raises(UserError, match="at least one record; got none in the 2 files of 'data'"):
        sources.require_records("data", (0, 0))


def test_ranges_are_read_from_many_files_by_many_threads(tmp_path: Path) -> None:
    paths = [_written(tmp_path / f"{number}", 100) for number in range(70)]

    def reads_right(seed: int) -> bool:
        dice = random.Random(seed)
        for _ in range(50):
            number, start = dice.randrange(70), dice.randrange(100)
            expected = [b"%d %d" % (number, n) for n in range(start, 100)]
            if sources.read(paths[number], start, 100) != expected:
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(reads_right, range(16)))


def test_files_that_are_not_needed_any_more_are_closed(tmp_path: Path) -> None:
    paths = [_written(tmp_path / f"{number}", 1) for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    for path in paths:
        sources.read(path, 0, 1)
    assert len(os.listdir("/proc/self/fd")) - before < 50


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = _written(tmp_path / "a", 3)
    assert len(sources.read(path, 0, 3)) == 3
    with recordio.Writer(path) as writer:
        writer.write(b"new")
    assert sources.read(path, 0, 1) == [b"new"]
    with pytest.raises(UserError, match=r"expected at least 3 records, .* got 1"):
        sources.read(path, 0, 3)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: cannot be opened: No such file"):
        sources.read(str(tmp_path / "gone"), 0, 1)
