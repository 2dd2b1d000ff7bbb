"""`elasticdl job …`: jobs that run on this machine are listed, shown, scaled and stopped."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from elasticdl import config
from elasticdl.cli import display, main
from elasticdl.errors import UserError


@dataclass(frozen=True)
class Worker:
    worker: str
    phase: str
    rank: int = -1
    streams: tuple[int, ...] = ()


@dataclass(frozen=True)
class Status:
    phase: str = "running"
    reason: str = "2 workers at work."
    version: int = 1200
    epoch: int = 1
    epochs: int = 4
    epoch_fraction: float = 0.5
    records: int = 300
    records_total: int = 1200
    records_per_s: float = 0.0
    loss: float = float("nan")
    metrics: dict[str, float] = field(default_factory=dict)
    eval_metrics: dict[str, float] = field(default_factory=dict)
    eval_version: int = 0
    workers: tuple[Worker, ...] = (
        Worker("worker-0", "member", 0, (0, 1)),
        Worker("worker-3", "standby"),
    )
    seconds_left: float = float("nan")
    notices: tuple[str, ...] = ("worker-1 is lost (killed by SIGKILL); that is no failure.",)
    output: str = "/abs/out"
    num_workers: int = 2
    generation: int = 3
    checkpoint_version: int = 0
    checkpoint_problem: str = ""


@dataclass(frozen=True)
class Listed:
    job_name: str
    phase: str = "running"
    workers: int = 2
    status: Status | None = Status()
    kind: str = "train"
    output: str = "/abs/out"


@dataclass
class Job:
    """A job that does what it is told and remembers it."""

    now: Status
    config: config.JobConfig
    problem: str = ""
    told: list[Any] = field(default_factory=list)

    def status(self) -> Status:
        return self.now

    def poll(self, timeout_s: float) -> Status:
        return self.now

    def wait(self) -> None:
        self.told.append("wait")

    def scale(self, num_workers: int) -> None:
        if self.problem:
            raise UserError(f"num_workers: {self.problem}.")
        self.told.append(num_workers)

    def cancel(self) -> None:
        self.told.append("cancel")
        self.now = replace(self.now, phase="cancelled", workers=())


@dataclass
class Api:
    """The jobs that there are; `digits` can be attached to."""

    found: Sequence[Listed] = (Listed("digits"),)
    now: Status = Status()
    problem: str = ""
    attached: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.job = Job(self.now, config.JobConfig(kind="train", job_name="digits"), self.problem)

    def start(self, config: config.JobConfig) -> Job:
        raise AssertionError("no job is to be started")

    def describe(self, config: config.JobConfig) -> str:
        raise AssertionError("no model is to be built")

    def run_in_process(
        self, config: config.JobConfig, watch: Callable[[display.Status], None]
    ) -> Job:
        raise AssertionError("no job is to be started")

    def jobs(self) -> list[Listed]:
        return list(self.found)

    def attach(self, job_name: str) -> Job:
        if job_name != "digits":
            raise UserError(f"job_name: got {job_name!r}. Did you mean digits?")
        self.attached.append(job_name)
        return self.job


@dataclass
class Ran:
    status: int
    out: str
    err: str


def run(api: Api, *argv: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    session = main.Session({"HOME": "/nowhere"}, out, err, lambda: api, lambda: 0.0)
    return Ran(main.run(["job", *argv], session), out.getvalue(), err.getvalue())


ORPHANED = Listed("digits", phase="orphaned", workers=3, status=None)


def test_jobs_are_listed_in_columns() -> None:
    waiting = Listed("a-longer-name", "starting", 0, Status(records=0, records_total=0))
    ran = run(Api([Listed("digits"), waiting, replace(ORPHANED, job_name="left-alone")]), "list")
    assert ran.out.splitlines() == [
        "job            kind   phase     workers  done  output",
        "digits         train  running   2        25%   /abs/out",
        "a-longer-name  train  starting  0        0%    /abs/out",
        "left-alone     train  orphaned  3              /abs/out",
    ]
    assert (ran.status, ran.err) == (0, "")


def test_no_jobs_are_said_to_be_none_on_stderr() -> None:
    assert run(Api([]), "list") == Ran(0, "", "No jobs run on this machine.\n")


def test_a_list_is_one_json_document() -> None:
    ran = run(Api([Listed("digits"), ORPHANED]), "list", "--json")
    common = {"job_name": "digits", "kind": "train", "output": "/abs/out"}
    assert json.loads(ran.out) == [
        {**common, "phase": "running", "workers": 2},
        {**common, "phase": "orphaned", "workers": 3},
    ]
    assert json.loads(run(Api([]), "list", "--json").out) == []


def test_a_status_shows_the_job_in_full() -> None:
    ran = run(Api(), "status", "digits")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "Job digits: running. 2 workers at work.",
        "epoch 2/4  step 1,200  25%  loss nan  1 of 2 workers",
        "worker    phase    streams",
        "worker-0  member   0,1",
        "worker-3  standby",
        "note: worker-1 is lost (killed by SIGKILL); that is no failure.",
        "output: /abs/out",
    ]


def test_a_status_is_one_json_document() -> None:
    ran = run(Api(), "status", "digits", "--json")
    shown = json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (shown["phase"], shown["version"], shown["loss"]) == ("running", 1200, None)
    assert shown["workers"][0] == {
        "worker": "worker-0",
        "phase": "member",
        "rank": 0,
        "streams": [0, 1],
    }
    assert shown["checkpoint_problem"] == ""


@pytest.mark.parametrize("flags", [["--num_workers=4"], ["--num-workers", "4"]])
def test_a_job_is_scaled(flags: list[str]) -> None:
    api = Api()
    assert run(api, "scale", "digits", *flags) == Ran(0, "Job digits goes on with 4 workers.\n", "")
    assert api.job.told == [4]


def test_a_scale_that_cannot_be_is_refused_with_the_reason() -> None:
    api = Api(problem="expected at most one worker a stream, streams = 16; got 17")
    ran = run(api, "scale", "digits", "--num_workers=17")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "error: num_workers: expected at most one worker a stream, streams = 16; got 17.\n"
    )


@pytest.mark.parametrize("version", [0, 1200])
def test_a_job_is_stopped_and_says_what_it_leaves(version: int) -> None:
    api = Api(now=Status(checkpoint_version=version))
    ran = run(api, "stop", "digits")
    saved = " Its last checkpoint is of step 1,200." if version else ""
    assert ran == Ran(0, f"Job digits is cancelled.{saved}\n", "")
    assert api.job.told == ["cancel"]


@pytest.mark.parametrize(
    "argv", [["status", "digit"], ["stop", "digit"], ["scale", "digit", "--num_workers=2"]]
)
def test_an_unknown_name_is_one_line_with_the_nearest(argv: list[str]) -> None:
    ran = run(Api(), *argv)
    assert ran == Ran(2, "", "error: job_name: got 'digit'. Did you mean digits?\n")


def test_an_unknown_name_is_json_where_all_else_is() -> None:
    said = json.loads(run(Api(), "status", "digit", "--json").out)
    assert (said["event"], said["kind"], said["exit_status"]) == ("error", "user", 2)


@pytest.mark.parametrize("argv", [["status", "digits"], ["scale", "digits", "--num_workers=2"]])
def test_looking_at_orphans_does_not_take_them_over(argv: list[str]) -> None:
    api = Api([ORPHANED])
    ran = run(api, *argv)
    assert (ran.status, ran.out, api.attached) == (2, "", [])
    assert ran.err == (
        "error: job_name: expected a job that has a master; got digits, whose 3 workers run "
        "without one. Give the job's own command again to take them over, or end them with "
        "`elasticdl job stop digits`.\n"
    )


def test_orphans_can_be_stopped() -> None:
    api = Api([ORPHANED])
    assert run(api, "stop", "digits").status == 0
    assert api.job.told == ["cancel"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scale", "digits"], "Missing option '--num_workers'"),
        (["scale", "digits", "--num_workers=many"], "Invalid value for '--num_workers'"),
        (["stop"], "Missing argument 'NAME'"),
        (["lsit"], "No such command 'lsit'. Did you mean 'list'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(argv: list[str], message: str) -> None:
    ran = run(Api(), *argv)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "status", "scale", "stop"):
        assert run(Api(), command, "--help").status == 0
        shown = capsys.readouterr().out
        assert f"Usage: elasticdl job {command}" in shown
        assert "Example" in shown
