"""What files hold, as people read it; and which of them are damaged."""

from pathlib import Path

import numpy as np
import pytest

from elasticdl.data import examples, inspection, recordio
from elasticdl.errors import CorruptData, UserError


def write(path: Path, records: list[bytes]) -> str:
    with recordio.Writer(path, chunk_bytes=1000) as writer:
        writer.extend(records)
    return str(path)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    records = examples.encode(
        {
            "image": np.arange(50 * 64, dtype=np.float32).reshape(50, 64) / 3,
            "label": np.arange(50),
            "word": np.array([b"caf\xc3\xa9", b"\xff\x00"] * 25, object),
        }
    )
    write(tmp_path / "a.recordio", records[:20])
    write(tmp_path / "b.recordio", records[20:])
    return tmp_path


def test_files_are_counted_and_their_features_named(digits: Path) -> None:
    contents = inspection.show(str(digits))
    assert [(file.path, file.records) for file in contents.files] == [
        (str(digits / "a.recordio"), 20),
        (str(digits / "b.recordio"), 30),
    ]
    assert all(file.chunks > 1 for file in contents.files)
    assert [file.stored_bytes for file in contents.files] == [
        (digits / name).stat().st_size for name in ("a.recordio", "b.recordio")
    ]
    assert (contents.records, contents.sampled) == (50, 50)
    assert contents.features == (
        examples.Feature("image", "float", 64),
        examples.Feature("label", "int", 1),
        examples.Feature("word", "bytes", 1),
    )


def test_the_first_records_are_readable(digits: Path) -> None:
    first, second = inspection.show(str(digits), limit=2).first
    assert first.features == {
        "image": "[0, 0.333333, 0.666667, 1, 1.33333, 1.66667, 2, 2.33333, ... 64 in all]",
        "label": "0",
        "word": "'café'",
    }
    assert second.number == 1
    assert second.features is not None
    assert second.features["word"] == r"b'\xff\x00'"
    assert inspection.show(str(digits), limit=0).first == ()
    assert len(inspection.show(str(digits), limit=99).first) == 50


def test_records_of_another_kind_are_shown_by_their_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"0" * 70, b"\x00\xff", b""])
    contents = inspection.show(path)
    assert contents.features is None
    assert [record.start for record in contents.first] == [
        "'" + "0" * 60 + "'... 70 bytes",
        r"b'\x00\xff'",
        "''",
    ]
    assert [record.features for record in contents.first] == [None, None, {}]


def test_a_file_without_records_is_shown(tmp_path: Path) -> None:
    contents = inspection.show(write(tmp_path / "a", []))
    assert (contents.records, contents.features, contents.first) == (0, None, ())


def test_what_cannot_be_shown_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"not a record file, surely")
    with pytest.raises(CorruptData, match="expected the magic number"):
        inspection.show(str(tmp_path / "a"))
    with pytest.raises(UserError, match="matches no file"):
        inspection.show(str(tmp_path / "none"))
    with pytest.raises(UserError, match="limit: expected 0 or more; got -1"):
        inspection.show(str(tmp_path / "a"), limit=-1)


def test_every_file_is_checked_and_the_damaged_are_named(digits: Path) -> None:
    end = recordio.Reader(digits / "b.recordio").chunks[-1].end
    damaged = bytearray((digits / "b.recordio").read_bytes())
    damaged[-1] ^= 1
    (digits / "c.recordio").write_bytes(damaged)
    damaged[25] ^= 1
    (digits / "b.recordio").write_bytes(damaged)
    seen: list[tuple[int, int, int, int]] = []
    a, b, c = inspection.check(str(digits), lambda *progress: seen.append(progress))
    assert (a.records, a.problem, a.offset) == (20, None, None)
    assert b.problem is not None
    assert "checksum" in b.problem
    assert b.offset == 0
    # Damage in the index alone.
    assert c.problem is not None
    assert c.offset == end
    total = sum(path.stat().st_size for path in digits.iterdir())
    assert seen[-1] == (3, 3, total, total)
    assert [done for _, _, done, _ in seen] == sorted(done for _, _, done, _ in seen)


def test_a_file_that_cannot_be_opened_is_among_the_damaged(digits: Path) -> None:
    def remove(*progress: int) -> None:
        (digits / "b.recordio").unlink(missing_ok=True)

    whole, gone = inspection.check(str(digits), remove)
    assert whole.problem is None
    assert gone.problem is not None
    assert gone.problem.startswith("cannot be opened: No such file")
    assert gone.offset is None
