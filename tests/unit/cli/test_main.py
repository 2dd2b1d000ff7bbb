"""Command lines become calls of the API; their outcomes, text and an exit status."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from elasticdl import config
from elasticdl.cli import display, main
from elasticdl.errors import Cancelled, UserCodeError, UserError

TRAIN = ["train", "--model_def=digits.Conv", "--data=train", "--output=out"]


@dataclass(frozen=True)
class Status:
    phase: str = "running"
    reason: str = ""
    version: int = 5
    epoch: int = 0
    epochs: int = 1
    epoch_fraction: float = 0.0
    records: int = 10
    records_total: int = 20
    records_per_s: float = 0.0
    loss: float = 0.5
    metrics: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    eval_metrics: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    eval_version: int = 0
    workers: tuple[display.Worker, ...] = ()
    seconds_left: float = 0.0
    notices: tuple[str, ...] = ()
    output: str = "/abs/out"
    num_workers: int = 1
    generation: int = 1
    checkpoint_version: int = 0
    checkpoint_problem: str = ""


RUNNING, SUCCEEDED = Status(), Status(phase="succeeded", version=9)


@dataclass
class Job:
    """Plays a script: a status, an error, or a signal to this process, one at a time."""

    script: list[Status | BaseException | int]
    calls: list[str] = field(default_factory=list)
    config: Any = None

    def _next(self) -> Status:
        match self.script:
            case [int(number), *rest]:
                self.script[:] = rest
                signal.raise_signal(number)
                return self._next()
            case [Status() as status, *rest]:
                if rest:
                    self.script[:] = rest
                return status
            case _:
                return Status(phase="failed")

    def status(self) -> Status:
        return self._next()

    def poll(self, timeout_s: float) -> Status:
        return self._next()

    def wait(self) -> None:
        self.calls.append("wait")
        match self.script:
            case [int(number), *rest]:
                self.script[:] = rest
                signal.raise_signal(number)
            case [BaseException() as error]:
                raise error

    def cancel(self) -> None:
        self.calls.append("cancel")


@dataclass
class Api:
    """Takes every job that it is given, and plays the same script for it."""

    script: list[Status | BaseException | int] = field(default_factory=lambda: [SUCCEEDED])
    problem: BaseException | None = None
    started: list[config.JobConfig] = field(default_factory=list)
    in_process: bool = False
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        self.job = Job(self.script)

    def start(self, config: config.JobConfig) -> Job:
        if self.problem:
            raise self.problem
        self.started.append(config)
        self.job.config = config
        return self.job

    def describe(self, config: config.JobConfig) -> str:
        return f"{config.model_def}: image (64, 28, 28)"

    def run_in_process(
        self, config: config.JobConfig, watch: Callable[[display.Status], None]
    ) -> Job:
        self.in_process = True
        watch(RUNNING)
        return self.start(config)


@dataclass
class Ran:
    status: int
    out: str
    err: str


def run(argv: Sequence[str], api: Api | None = None, **environ: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    ticks: Iterator[int] = iter(range(1_000_000))
    session = main.Session(
        {"HOME": "/nowhere", **environ}, out, err, lambda: api or Api(), lambda: next(ticks)
    )
    status = main.run(argv, session)
    return Ran(status, out.getvalue(), err.getvalue())


# ---- command lines ----------------------------------------------------------------------------


def test_the_documents_command_starts_the_documents_job() -> None:
    api = Api()
    ran = run(
        [
            "train",
            "--model_zoo=$HOME/work",
            "--model_def=fintech.MyKerasModel",
            "--input_fn=fintech.credit_data_processor",
            "--params=hidden_units=[10, 100, 20, 5], learning_rate=0.01",
            "--data=gs://bucket-name/tony/imagenet/train/*.recordio",
            "--output=gs://bucket-name/tony/my_trained_model",
        ],
        api,
    )
    assert ran.status == 0
    [job] = api.started
    assert job.model_zoo == "/nowhere/work"
    assert job.model_params == {"hidden_units": [10, 100, 20, 5], "learning_rate": 0.01}
    assert job.data == "gs://bucket-name/tony/imagenet/train/*.recordio"


@pytest.mark.parametrize(
    "flags",
    [["--num_workers=3"], ["--num-workers=3"], ["--num_workers", "3"], ["--num-workers", "3"]],
)
def test_underscores_and_dashes_are_the_same(flags: list[str]) -> None:
    api = Api()
    assert run([*TRAIN, *flags], api).status == 0
    assert api.started[0].num_workers == 3


@pytest.mark.parametrize("kind", config.KINDS)
def test_every_setting_of_a_kind_has_an_option(kind: str) -> None:
    api = Api()
    given: dict[str, Any] = {}
    for setting in config.settings(kind):
        given[setting.name] = {str: "a", int: 2, float: 0.5, bool: True}[setting.type]
    given |= {"cluster": "local"}
    if kind == "train":
        given |= {"nan_loss": "skip", "params_format": "proto", "params": "a=1"}
        given |= {"checkpoint_every": "5min"}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    assert run([kind, *flags], api).status == 0
    assert api.started == [config.JobConfig(kind=kind, **given)]


def test_a_switch_can_be_taken_back() -> None:
    api = Api()
    run([*TRAIN, "--no-reproducible"], api, ELASTICDL_REPRODUCIBLE="true")
    assert api.started[0].reproducible is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--epoch=3"], "No such option: --epoch. Did you mean --detach or --epochs?"),
        (["predict", "--epochs=3"], "No such option: --epochs."),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "--epochs"], "Option '--epochs' requires an argument."),
        ([*TRAIN, "b.recordio"], "Quote patterns, so that the shell leaves them"),
        (["train", "--epochs=x"], "--epochs: expected a whole number; got 'x'."),
        (["train", "--output=a"], "model_def, data: expected by elasticdl train; got nothing."),
        ([*TRAIN, "--params=a=1", "--model-params=a=2"], "both params and model_params"),
        (["config", "tarin"], "kind: expected one of train, evaluate, predict; got 'tarin'."),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(argv: list[str], message: str) -> None:
    ran = run(argv)
    assert ran.status == 2
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_help_and_version_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"], ["train", "--help"], ["config", "-h"]):
        assert run(argv).status == 0
        shown = capsys.readouterr().out
        assert "Usage: elasticdl" in shown
        assert "Example" in shown
    ran = run(["--version"])
    assert (ran.status, ran.out.split()[0]) == (0, "elasticdl")


def test_data_commands_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(["data"])
    assert (ran.status, ran.err) == (2, "")
    assert "Usage: elasticdl data" in capsys.readouterr().out
    ran = run(["data", "show", "/no/such/file"])
    assert (ran.status, ran.err.count("\n")) == (2, 1)


def test_help_shows_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run(["train", "--help"])
    shown = capsys.readouterr().out
    assert "Elements in a step, over all workers together. (default: 64)" in shown
    assert 'hidden_units=[10, 5], learning_rate=0.01"' in shown


def test_starting_loads_no_engine() -> None:
    code = (
        "import sys, elasticdl.cli.main; "
        "print(sorted({'grpc', 'numpy', 'keras', 'tensorflow', 'torch', 'rich.live'} "
        "& set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---- what runs, and how it ends ---------------------------------------------------------------


def test_progress_goes_to_stderr_and_the_result_to_stdout() -> None:
    ran = run([*TRAIN, "--job_name=digits", "--num_workers=2"], Api([RUNNING, RUNNING, SUCCEEDED]))
    assert ran.status == 0
    assert ran.err.splitlines()[0] == "Job digits runs locally with 2 workers."
    assert ran.err.splitlines()[1].startswith("epoch 1/1  step 5  50%")
    assert ran.out.splitlines() == ["training:   step 9  loss 0.5", "trained model: /abs/out"]


def test_quiet_prints_the_outputs_place() -> None:
    ran = run([*TRAIN, "--quiet"], Api([RUNNING, SUCCEEDED]))
    assert (ran.status, ran.out, ran.err) == (0, "/abs/out\n", "")


def test_json_prints_events() -> None:
    ran = run([*TRAIN, "--json"], Api([RUNNING, SUCCEEDED]))
    events = [json.loads(line)["event"] for line in ran.out.splitlines()]
    assert (ran.status, events, ran.err) == (0, ["started", "progress", "result"], "")


def test_a_dry_run_describes_and_needs_no_output() -> None:
    api = Api()
    ran = run(["train", "--model_def=digits.Conv", "--data=train", "--dry-run"], api)
    assert (ran.status, ran.out) == (0, "digits.Conv: image (64, 28, 28)\n")
    assert api.started == []


def test_in_process_is_watched_too() -> None:
    api = Api()
    ran = run([*TRAIN, "--in-process", "--job_name=digits"], api)
    assert ran.status == 0
    assert api.in_process
    assert ran.err.splitlines()[0] == "Job digits runs in this process."
    assert ran.err.splitlines()[1].startswith("epoch 1/1  step 5")


def test_a_misspelled_variable_is_noted() -> None:
    ran = run(TRAIN, ELASTICDL_BATCHSIZE="3")
    assert "note: ELASTICDL_BATCHSIZE is set but is no setting" in ran.err


@pytest.mark.parametrize("early", [True, False])
def test_a_users_error_is_one_line_and_status_2(early: bool) -> None:
    error = UserError("data: expected files; got none that match 'train'.")
    ran = run(TRAIN, Api(problem=error) if early else Api([RUNNING, error]))
    assert ran.status == 2
    assert ran.err.splitlines()[-1] == f"error: {error}"
    assert ran.out == ""


def test_the_users_own_traceback_comes_first() -> None:
    error = UserCodeError("create_model raised ValueError: no.", "Traceback\n  digits.py\n")
    ran = run(TRAIN, Api([RUNNING, error]))
    assert ran.status == 2
    assert ran.err.splitlines()[-3:] == [
        "Traceback",
        "  digits.py",
        "error: create_model raised ValueError: no.",
    ]


def test_our_fault_asks_for_a_report_and_shows_its_trace_on_demand() -> None:
    ran = run(TRAIN, Api([RUNNING, RuntimeError("a wheel came off\nits trace")]))
    assert ran.status == 1
    assert "a fault in elasticdl: RuntimeError: a wheel came off. Please report it" in ran.err
    assert "trace" not in ran.err
    debugged = run(TRAIN, Api([RUNNING, RuntimeError("off")]), ELASTICDL_DEBUG="1")
    assert "Traceback" in debugged.err


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (UserError("bad"), "user", 2),
        (UserCodeError("bad", "trace"), "user_code", 2),
        (Cancelled("bad"), "cancelled", 130),
        (RuntimeError("bad"), "bug", 1),
    ],
)
def test_errors_are_json_where_all_else_is(error: Exception, kind: str, status: int) -> None:
    ran = run([*TRAIN, "--json"], Api([RUNNING, error]))
    said = json.loads(ran.out.splitlines()[-1])
    assert (ran.status, said["event"], said["kind"], said["exit_status"]) == (
        status,
        "error",
        kind,
        status,
    )
    assert ran.err == ""


def test_wrong_options_are_json_where_all_else_is() -> None:
    ran = run(["train", "--json", "--epoch=3"])
    assert (ran.status, json.loads(ran.out)["kind"], ran.err) == (2, "user", "")


# ---- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_job_and_waits_for_it(number: int, status: int) -> None:
    api = Api([RUNNING, number, Cancelled("stopped")])
    ran = run(TRAIN, api)
    assert ran.status == status
    assert api.job.calls == ["cancel", "wait"]
    assert ran.err.splitlines()[-1].startswith("error: stopped by ")


def test_a_second_signal_leaves_at_once() -> None:
    api = Api([RUNNING, signal.SIGINT, signal.SIGTERM, SUCCEEDED])
    assert run(TRAIN, api).status == 143
    assert api.job.calls == ["cancel", "wait"]


def test_a_signal_that_comes_too_late_loses_no_result() -> None:
    ran = run(TRAIN, Api([RUNNING, signal.SIGINT, SUCCEEDED]))
    assert ran.status == 130
    assert "trained model: /abs/out" in ran.out


def test_a_failure_while_ending_is_still_told() -> None:
    ran = run(TRAIN, Api([RUNNING, signal.SIGINT, UserError("output: disk full.")]))
    assert ran.status == 2
    assert ran.err.splitlines()[-1] == "error: output: disk full."


def test_signals_are_the_callers_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(TRAIN)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run(TRAIN, Api([RUNNING, signal.SIGTERM, SUCCEEDED])).status == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_terminal_does_not_cancel_the_job() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    api = Api([RUNNING, signal.SIGHUP, SUCCEEDED])
    try:
        assert run(TRAIN, api).status == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    # What SIGHUP does is not the command's affair: by itself it ends it, and not its job.
    assert heard == [signal.SIGHUP]
    assert api.job.calls == ["wait"]


# ---- elasticdl config -------------------------------------------------------------------------


def test_config_shows_each_setting_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "elasticdl.toml").write_text("[train]\nepochs = 7")
    ran = run(["config", f"--model_zoo={tmp_path}", "--overwrite"], ELASTICDL_BATCH_SIZE="32")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in ran.out.splitlines()}
    assert ran.status == 0
    assert rows["epochs"] == ["7", f"{tmp_path}/elasticdl.toml [train]"]
    assert rows["batch_size"] == ["32", "ELASTICDL_BATCH_SIZE"]
    assert rows["overwrite"] == ["true", "flag"]
    assert rows["seed"] == ["0", "default"]
    assert rows["data"] == ["-", "missing"]
    assert set(rows) - {"setting"} == {setting.name for setting in config.settings("train")}


def test_config_as_json() -> None:
    ran = run(["config", "predict", "--json", "--num-workers=2"])
    shown = json.loads(ran.out)
    assert shown["kind"] == "predict"
    assert shown["settings"]["num_workers"] == {"value": 2, "origin": "flag"}
    assert "epochs" not in shown["settings"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        os.close(reader)
        session = main.Session({"HOME": "/nowhere"}, out, io.StringIO(), Api, lambda: 0.0)
        assert main.run(["config"], session) == 0
        assert main.run(TRAIN, dataclasses.replace(session, api=Api)) == 0
