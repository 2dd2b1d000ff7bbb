"""argv → one call of the data package: write, show or check record files."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # NumPy and protobuf are loaded only by the command that runs.
    from elasticdl.data import conversion, inspection

# done, of how much
Advance = Callable[[str, int, int], None]

_FILES_SHOWN = 20

WRITE_EXAMPLES = """
Examples:

  elasticdl data write train.csv train/

  elasticdl data write digits.npz train/ --shards=8 --columns=image,label --shuffle-seed=1
"""

SHOW_EXAMPLES = """
Examples:

  elasticdl data show train/

  elasticdl data show "train/*.recordio" --limit=10
"""

CHECK_EXAMPLES = """
Examples:

  elasticdl data check train/

  elasticdl data check "train/*.recordio,test/*.recordio" --json
"""

app = typer.Typer(help="Write, show and check record files.", no_args_is_help=True)

_PATTERNS = typer.Argument(
    ..., metavar="FILES", help="A file, directory or glob, or several with commas between them."
)
_JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command(epilog=WRITE_EXAMPLES)
def write(
    source: str = typer.Argument(
        ...,
        help="A .csv file with a header line, or an .npz file whose arrays have as many rows each.",
    ),
    output: str = typer.Argument(..., help="The directory that the files go to."),
    shards: int = typer.Option(1, "--shards", help="Files to write."),
    name: str = typer.Option(
        "", "--name", help="What file names begin with. Default: the source's name."
    ),
    columns: str = typer.Option(
        "", "--columns", help="Columns to write, with commas between them. Default: all."
    ),
    compressor: str = typer.Option("snappy", "--compressor", help="none, snappy or gzip."),
    shuffle_seed: int | None = typer.Option(
        None, "--shuffle-seed", help="Shuffle the rows of an .npz file with this seed."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace files that an earlier write to the same name left."
    ),
) -> None:
    """Write a CSV or NPZ file as RecordIO files of tf.Example."""
    from elasticdl.data import conversion

    options = conversion.Options(
        name=name,
        shards=shards,
        columns=tuple(column.strip() for column in columns.split(",") if column.strip()),
        compressor=compressor,
        shuffle_seed=shuffle_seed,
        overwrite=overwrite,
    )
    with _progress() as advance:
        written = conversion.convert(source, output, options, advance)
    typer.echo("\n".join(_written_lines(written)))


@app.command(epilog=SHOW_EXAMPLES)
def show(
    files: str = _PATTERNS,
    limit: int = typer.Option(3, "--limit", help="Records to print."),
    as_json: bool = _JSON,
) -> None:
    """Show how many records files hold, their features, and the first records."""
    from elasticdl.data import inspection

    contents = inspection.show(files, limit)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(contents)))
    else:
        typer.echo("\n".join(_contents_lines(contents)))


@app.command(epilog=CHECK_EXAMPLES)
def check(files: str = _PATTERNS, as_json: bool = _JSON) -> None:
    """Read files from end to end and verify everything in them; status 2 if one is damaged."""
    from elasticdl.data import inspection

    with _progress() as advance:

        def verified(number: int, count: int, done: int, total: int) -> None:
            advance(f"checking {min(number + 1, count)}/{count}", done, total)

        checked = inspection.check(files, verified)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in checked]))
    else:
        typer.echo("\n".join(_checked_lines(checked)))
    if any(each.problem is not None for each in checked):
        raise typer.Exit(2)


@contextlib.contextmanager
def _progress() -> Iterator[Advance]:
    """Draws a bar on the terminal that stderr is; elsewhere, nothing: what follows says it all."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    import rich.console
    import rich.progress

    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("")

        def advance(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        yield advance


def _written_lines(written: "conversion.Written") -> Iterator[str]:
    count = len(written.files)
    last = f" to {written.files[-1]}" if count > 1 else ""
    yield f"{_counted(written.records, 'record')} in {_counted(count, 'file')}: " + (
        f"{written.files[0]}{last}"
    )
    yield from _table([[f"  {name}", type] for name, type in written.types.items()])


def _contents_lines(contents: "inspection.Contents") -> Iterator[str]:
    size = sum(file.stored_bytes for file in contents.files)
    yield ", ".join(
        (
            _counted(contents.records, "record"),
            _counted(len(contents.files), "file"),
            _counted(size, "byte"),
        )
    )
    rows = [
        [
            f"  {file.path}",
            _counted(file.records, "record"),
            _counted(file.chunks, "chunk"),
            _counted(file.stored_bytes, "byte"),
        ]
        for file in contents.files[:_FILES_SHOWN]
    ]
    yield from _table(rows)
    if len(contents.files) > _FILES_SHOWN:
        yield f"  and {_counted(len(contents.files) - _FILES_SHOWN, 'more file')}"
    if contents.features is not None:
        yield ""
        yield f"features of the first {_counted(contents.sampled, 'record')}"
        yield from _table(
            [
                [
                    f"  {feature.name}",
                    feature.type,
                    "length varies" if feature.length is None else f"length {feature.length}",
                    f"missing in {feature.missing:,}" if feature.missing else "",
                ]
                for feature in contents.features
            ]
        )
    elif contents.sampled:
        yield ""
        yield "not all records are tf.Example"
    for record in contents.first:
        yield ""
        yield f"record {record.number}, {_counted(record.stored_bytes, 'byte')}"
        if record.features is None:
            yield f"  {record.start}"
        else:
            yield from _table([[f"  {name}", text] for name, text in record.features.items()])


def _checked_lines(checked: "tuple[inspection.Checked, ...]") -> Iterator[str]:
    for each in checked:
        if each.problem is None:
            yield f"whole    {each.path}: {_counted(each.records, 'record')}"
        else:
            where = "" if each.offset is None else f"at byte {each.offset}: "
            yield f"DAMAGED  {each.path}: {where}{each.problem}"
    damaged = sum(each.problem is not None for each in checked)
    records = sum(each.records for each in checked)
    yield f"{_counted(len(checked), 'file')}, {damaged or 'none'} damaged, " + (
        f"{_counted(records, 'record')} in the others" if damaged else _counted(records, "record")
    )


def _table(rows: list[list[str]]) -> Iterator[str]:
    """Rows of cells, as lines in which columns begin at one place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
