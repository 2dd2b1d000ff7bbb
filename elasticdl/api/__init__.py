"""One JobConfig → one Job."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from elasticdl import config as configs
from elasticdl.api import local
from elasticdl.api.running import Job, Listed, Status, Worker

__all__ = [
    "Job",
    "Listed",
    "Status",
    "Worker",
    "attach",
    "delete",
    "describe",
    "evaluate",
    "forward",
    "jobs",
    "logs",
    "manifests",
    "predict",
    "run_in_process",
    "start",
    "train",
]

describe = local.describe
run_in_process = local.run_in_process


def train(**settings: Any) -> Job:
    """Starts a training; the keywords are the settings of `elasticdl train`.

    Values may be text, as on the command line, or Python values; `params` may be a dict.

    Raises:
        UserError: a setting, the data or the output is not as it must be.
    """
    return start(_resolved("train", settings))


def evaluate(**settings: Any) -> Job:
    """Starts an evaluation; the keywords are the settings of `elasticdl evaluate`."""
    return start(_resolved("evaluate", settings))


def predict(**settings: Any) -> Job:
    """Starts a prediction; the keywords are the settings of `elasticdl predict`."""
    return start(_resolved("predict", settings))


def start(config: configs.JobConfig, progress: Callable[[str], None] = lambda line: None) -> Job:
    """Starts a job, on this machine or in a cluster.

    Args:
        progress: is told, a line at a time, what takes its time beforehand: an image is built.

    Raises:
        UserError: something is not as it must be; nothing is left behind.
    """
    started: Job = _cluster(config.cluster).start(config, progress)
    return started


def manifests(config: configs.JobConfig) -> str:
    """The objects that a job on Kubernetes would consist of, as YAML; nothing is built or created.

    Raises:
        UserError: something is not as it must be.
    """
    text: str = _cluster("kubernetes").manifests_of(config)
    return text


def jobs(where: configs.Where = configs.HERE) -> list[Listed]:
    """The jobs that run there: on this machine those of this user, in a cluster those of the
    namespace, also those that are over and still kept.

    Raises:
        UserError: the cluster cannot be asked.
    """
    found: list[Listed] = _cluster(where.cluster).jobs(where)
    return found


def attach(job_name: str, where: configs.Where = configs.HERE) -> Job:
    """The job of this name; one on this machine that has lost its master and its command gets them
    back.

    Raises:
        UserError: there is none.
    """
    found: Job = _cluster(where.cluster).attach(job_name, where)
    return found


def logs(
    job_name: str,
    where: configs.Where,
    worker: str,
    *,
    follow: bool,
    say: Callable[[str, str], None],
) -> None:
    """Passes on the lines that a job's workers and master print, each with who it is from.

    Args:
        worker: of this one alone, or of `master`; empty: of all that there are.

    Raises:
        UserError
    """
    _cluster(where.cluster).logs(job_name, where, worker, follow=follow, say=say)


def delete(job_name: str, where: configs.Where) -> None:
    """Removes a job with all that belongs to it but its output.

    Raises:
        UserError
    """
    _cluster(where.cluster).delete(job_name, where)


def forward(job_name: str, where: configs.Where) -> Any:
    """The way to a job's page, whose `address` (host:port) is open until its `close`.

    Raises:
        UserError
    """
    return _cluster(where.cluster).forward(job_name, where)


def _cluster(name: str) -> Any:
    # That of Kubernetes brings its client, which jobs on this machine do without.
    return importlib.import_module(f"elasticdl.api.{name}")


def _resolved(kind: str, settings: Mapping[str, Any]) -> configs.JobConfig:
    given = {name: value for name, value in settings.items() if value is not None}
    return configs.resolve(kind, given, os.environ, source="argument").config
