"""Local jobs by name: where each one's masters are found."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elasticdl import config as configs


@dataclass(frozen=True)
class Entry:
    """A local job that was started and has not come to its end, as far as is known.

    `locator` is the path of the file that says where its master is, in its work directory.
    """

    job_name: str
    kind: str
    output: str
    locator: str

    @property
    def work(self) -> str:
        return os.path.dirname(self.locator)


def add(job_name: str, locator: str, config: configs.JobConfig, environ: Mapping[str, str]) -> None:
    """Notes the job, in place of an older one of that name. That it cannot be noted ends no job."""
    directory = _directory(environ)
    output = os.path.abspath(config.output) if config.output else ""
    content = {"kind": config.kind, "output": output, "locator": locator}
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        aside = directory / f".{job_name}.{os.getpid()}"
        aside.write_text(json.dumps(content), encoding="utf-8")
        os.replace(aside, directory / f"{job_name}.json")


def remove(job_name: str, locator: str, environ: Mapping[str, str]) -> None:
    """Forgets the job, unless another one has taken its name."""
    entry = find(job_name, environ)
    if entry is not None and entry.locator == locator:
        with contextlib.suppress(OSError):
            (_directory(environ) / f"{job_name}.json").unlink(missing_ok=True)


def find(job_name: str, environ: Mapping[str, str]) -> Entry | None:
    """The job of this name; None: there is none."""
    return _entry(_directory(environ) / f"{job_name}.json")


def entries(environ: Mapping[str, str]) -> list[Entry]:
    """All jobs, in the order of their names."""
    found = (_entry(path) for path in sorted(_directory(environ).glob("[!.]*.json")))
    return [entry for entry in found if entry is not None]


def _entry(path: Path) -> Entry | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Entry(path.stem, content["kind"], content["output"], content["locator"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _directory(environ: Mapping[str, str]) -> Path:
    return Path(configs.state_directory(environ)) / "jobs"
