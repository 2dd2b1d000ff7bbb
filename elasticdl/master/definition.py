"""What a job is, as its work directory keeps it: the settings, the data, the masters' term."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticdl import config as configs
from elasticdl.core import streams
from elasticdl.data import sources
from elasticdl.errors import UserError
from elasticdl.wire import elasticdl_pb2 as pb

FILE = "job.json"

# What a training that goes on from a checkpoint must agree in with the one that wrote it: with
# other values its cursors would stand at other elements, or its weights be another model's.
_SAME = (
    "model_def",
    "input_fn",
    "loss",
    "optimizer",
    "params",
    "batch_size",
    "streams",
    "seed",
    "reproducible",
)
# What may differ between a command and the same command given once more.
_FREE = frozenset(
    {
        *("job_name", "num_workers", "min_workers", "restart", "overwrite"),
        *(setting.name for setting in configs.SETTINGS if setting.group == "Kubernetes"),
    }
)


@dataclass(frozen=True)
class Data:
    """The files of one data set, their records and bytes."""

    files: tuple[str, ...]
    records: tuple[int, ...]
    sizes: tuple[int, ...]
    slice_records: int

    @classmethod
    def of(cls, name: str, patterns: str, config: configs.JobConfig) -> "Data":
        """Raises UserError: no such files, or no records in them."""
        files = sources.files(patterns, name)
        records = sources.record_counts(files)
        sources.require_records(patterns, records, name)
        total = sum(records)
        if config.kind == "predict":
            # A lease is also the unit of what is done again and of the parts.
            size = config.slice_records or max(1, min(4096, -(-total // (4 * config.num_workers))))
        else:
            size = streams.slice_records(total, config.streams, config.slice_records)
        return cls(files, records, tuple(os.stat(path).st_size for path in files), size)

    @property
    def total(self) -> int:
        return sum(self.records)

    @property
    def slices(self) -> int:
        return sum(-(-count // self.slice_records) for count in self.records)

    @property
    def lengths(self) -> list[int]:
        """The records of each slice, in the order of the slices' numbers."""
        size = self.slice_records
        return [
            min(size, count - begin) for count in self.records for begin in range(0, count, size)
        ]

    def message(self) -> pb.Dataset:
        return pb.Dataset(
            files=[
                pb.File(path=path, records=count)
                for path, count in zip(self.files, self.records, strict=True)
            ],
            slice_records=self.slice_records,
        )


@dataclass(frozen=True)
class Definition:
    """A job, decided once; whichever master there is, it is the same.

    `term` is the number of the master that wrote it; it rises from one to the next. `submission`
    is as in `Loop`.
    """

    config: configs.JobConfig
    data: Data
    eval_data: Data | None
    term: int
    submission: str = ""

    @classmethod
    def of(cls, config: configs.JobConfig, term: int) -> "Definition":
        """Raises UserError: the data are not as they must be."""
        data = Data.of("data", config.data, config)
        eval_data = Data.of("eval_data", config.eval_data, config) if config.eval_data else None
        return cls(config, data, eval_data, term)

    def write(self, directory: Path) -> None:
        """Puts it into the work directory, in place of an older one."""
        content = {
            "config": dataclasses.asdict(self.config),
            "data": dataclasses.asdict(self.data),
            "eval_data": dataclasses.asdict(self.eval_data) if self.eval_data else None,
            "term": self.term,
            "submission": self.submission,
        }
        aside = directory / f".{FILE}"
        aside.write_text(json.dumps(content), encoding="utf-8")
        os.replace(aside, directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> "Definition | None":
        """The one in a work directory; None: there is none that this elasticdl can make out."""
        try:
            content = json.loads((directory / FILE).read_text(encoding="utf-8"))
            return cls(
                configs.JobConfig(**content["config"]),
                _data(content["data"]),
                _data(content["eval_data"]) if content["eval_data"] else None,
                int(content["term"]),
                str(content["submission"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
            return None


def other_command(before: configs.JobConfig, now: configs.JobConfig) -> str:
    """What makes this another command than the one before, in words; empty: it is the same."""
    if before.kind != now.kind:
        return f"elasticdl {before.kind}, not {now.kind}"
    for setting in configs.settings(now.kind):
        old, new = (getattr(each, setting.name) for each in (before, now))
        if setting.name not in _FREE and old != new:
            return f"{setting.name} = {old!r}, not {new!r}"
    return ""


def other_training(before: Definition, now: Definition) -> str:
    """What has changed so that a checkpoint of the one says nothing to the other, in words; empty:
    nothing has.
    """
    for name in _SAME:
        old, new = (getattr(each.config, name) for each in (before, now))
        if old != new:
            return f"{name}: expected {old!r}, as in the checkpoint; got {new!r}"
    return _other_data(before.data, now.data)


def _other_data(before: Data, now: Data) -> str:
    old, new = (
        dict(zip(d.files, zip(d.records, d.sizes, strict=True), strict=True)) for d in (before, now)
    )
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            return f"data: expected {path}, as in the checkpoint; it is not there"
        if path not in old:
            return f"data: expected the files of the checkpoint; got {path} besides"
        if old[path] != new[path]:
            return (
                f"data: expected {path} with {old[path][0]} records in {old[path][1]} bytes, as in "
                f"the checkpoint; got {new[path][0]} records in {new[path][1]} bytes"
            )
    if before.slice_records != now.slice_records:
        return (
            f"slice_records: expected {before.slice_records}, as in the checkpoint; got "
            f"{now.slice_records}"
        )
    return ""


def _data(content: Mapping[str, Any]) -> Data:
    return Data(
        tuple(content["files"]),
        tuple(content["records"]),
        tuple(content["sizes"]),
        content["slice_records"],
    )
