"""`elasticdl data`: what each command prints, leaves and returns."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from elasticdl.cli import data
from elasticdl.data import recordio
from elasticdl.errors import UserError


def run(*argv: object) -> Result:
    return CliRunner().invoke(data.app, [str(word) for word in argv])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.csv"
    path.write_text("petal,kind\n1.5,rose\n2.5,\n3.5,tulip\n")
    return path


def test_a_csv_file_is_written_shown_and_checked(tmp_path: Path, table: Path) -> None:
    out = tmp_path / "out"
    written = run("write", table, out, "--shards=2")
    assert written.exit_code == 0
    first, second = (out / f"flowers-{n:05d}-of-00002.recordio" for n in range(2))
    assert written.stdout.splitlines() == [
        f"3 records in 2 files: {first} to {second}",
        "  petal  float",
        "  kind   bytes",
    ]
    assert written.stderr == ""

    shown = run("show", out, "--limit=1")
    assert shown.exit_code == 0
    sizes = [path.stat().st_size for path in (first, second)]
    assert shown.stdout.splitlines() == [
        f"3 records, 2 files, {sum(sizes)} bytes",
        f"  {first}  1 record   1 chunk  {sizes[0]} bytes",
        f"  {second}  2 records  1 chunk  {sizes[1]} bytes",
        "",
        "features of the first 3 records",
        "  kind   bytes  length 1",
        "  petal  float  length 1",
        "",
        "record 0, 39 bytes",
        "  kind   'rose'",
        "  petal  1.5",
    ]

    checked = run("check", out)
    assert checked.exit_code == 0
    assert checked.stdout.splitlines() == [
        f"whole    {first}: 1 record",
        f"whole    {second}: 2 records",
        "2 files, none damaged, 3 records",
    ]


def test_options_of_write_reach_the_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", a=np.arange(100), b=np.zeros(100), c=np.zeros(3))
    command = ["write", tmp_path / "t.npz", tmp_path / "out", "--columns=a, b", "--name=part"]
    assert run(*command, "--shuffle-seed=3", "--compressor=none").exit_code == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "part-00000-of-00001.recordio"
    assert recordio.Reader(path).chunks[0].compressor == 0
    contents = json.loads(run("show", path, "--json").stdout)
    assert [feature["name"] for feature in contents["features"]] == ["a", "b"]
    assert contents["first"][0]["features"]["a"] != "0"
    assert isinstance(run(*command).exception, UserError)
    assert run(*command, "--overwrite").exit_code == 0


def test_the_damaged_are_listed_and_the_status_says_so(tmp_path: Path, table: Path) -> None:
    run("write", table, tmp_path / "out", "--shards=3")
    first, second, third = sorted((tmp_path / "out").iterdir())
    damaged = bytearray(first.read_bytes())
    damaged[22] ^= 8
    first.write_bytes(damaged)
    third.write_text("something else altogether")
    checked = run("check", tmp_path / "out")
    assert checked.exit_code == 2
    one, two, three, total = checked.stdout.splitlines()
    assert one.startswith(f"DAMAGED  {first}: at byte 0: expected a payload with the checksum")
    assert two == f"whole    {second}: 1 record"
    assert three.startswith(f"DAMAGED  {third}: at byte 0: expected the magic number")
    assert total == "3 files, 2 damaged, 1 record in the others"

    as_json = run("check", tmp_path / "out", "--json")
    assert as_json.exit_code == 2
    found = json.loads(as_json.stdout)
    assert [each["offset"] for each in found] == [0, None, 0]
    assert [each["problem"] is None for each in found] == [False, True, False]


def test_records_of_another_kind_and_missing_features_are_shown(tmp_path: Path) -> None:
    with recordio.Writer(tmp_path / "a.recordio") as writer:
        writer.extend([b"text", b"\x00"])
    shown = run("show", tmp_path / "a.recordio").stdout
    assert "not all records are tf.Example" in shown
    assert "record 0, 4 bytes\n  'text'" in shown
    with recordio.Writer(tmp_path / "none.recordio"):
        pass
    shown = run("show", tmp_path / "none.recordio").stdout
    assert shown.splitlines()[0] == "0 records, 1 file, 0 bytes"


def test_many_files_are_not_all_listed(tmp_path: Path) -> None:
    for number in range(25):
        with recordio.Writer(tmp_path / f"{number:02d}.recordio") as writer:
            writer.write(b"")
    lines = run("show", tmp_path, "--limit=0").stdout.splitlines()
    assert lines[21] == "  and 5 more files"
    assert not any("24.recordio" in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["write", "none.csv", "out"], "none.csv: expected a .csv file; there is no such file."),
        (["show", "none/"], "'none/', which matches no file"),
        (["check", "none/*"], "'none/\\*', which matches no file"),
    ],
)
def test_bad_input_is_an_error_of_the_users(argv: list[str], problem: str) -> None:
    result = run(*argv)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=problem):
        raise result.exception


@pytest.mark.parametrize("command", ["write", "show", "check"])
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"elasticdl data {command} " in result.stdout
