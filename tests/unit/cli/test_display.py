"""Statuses become lines, panels and JSON; time is an argument."""

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import rich.console

from elasticdl.cli import display
from elasticdl.config import JobConfig

TRAINING = JobConfig(
    kind="train", job_name="digits-1", output="out/model", epochs=10, num_workers=2
)


@dataclass(frozen=True)
class Worker:
    worker: str
    phase: str = "member"
    rank: int = -1
    streams: tuple[int, ...] = ()


@dataclass(frozen=True)
class Status:
    phase: str = "running"
    reason: str = ""
    version: int = 0
    epoch: int = 0
    epochs: int = 10
    epoch_fraction: float = 0.0
    records: int = 0
    records_total: int = 0
    records_per_s: float = 0.0
    loss: float = float("nan")
    metrics: Mapping[str, float | Sequence[float]] = dataclasses.field(default_factory=dict)
    eval_metrics: Mapping[str, float | Sequence[float]] = dataclasses.field(default_factory=dict)
    eval_version: int = 0
    workers: tuple[Worker, ...] = (Worker("w0"), Worker("w1"))
    seconds_left: float = 0.0
    notices: tuple[str, ...] = ()
    output: str = ""
    num_workers: int = 2
    generation: int = 0
    checkpoint_version: int = 0
    checkpoint_problem: str = ""


STARTING = Status(phase="starting", reason="waiting for 2 workers")
RUNNING = Status(
    version=1234,
    epoch=1,
    epoch_fraction=0.5,
    records=1500,
    records_total=10000,
    records_per_s=12345.6,
    loss=0.123456,
    metrics={"accuracy": 0.98765},
    seconds_left=80,
)
SUCCEEDED = dataclasses.replace(
    RUNNING,
    phase="succeeded",
    version=9000,
    records=10000,
    epoch=10,
    epoch_fraction=0,
    eval_metrics={"accuracy": 0.97},
    output="/abs/out/model",
    seconds_left=0,
)


class Screen:
    """Both streams of a command, and its view's lines."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()

    @property
    def streams(self) -> tuple[display.Lines, display.Lines]:
        return display.Lines(self.out), display.Lines(self.err)

    @property
    def said(self) -> list[str]:
        return self.err.getvalue().splitlines()

    @property
    def results(self) -> list[str]:
        return self.out.getvalue().splitlines()


def rendered(status: Status, config: JobConfig = TRAINING, width: int = 100) -> list[str]:
    console = rich.console.Console(width=width, record=True, file=io.StringIO())
    console.print(display.panel(config, status))
    return [line.rstrip() for line in console.export_text().splitlines()]


# ---- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (80, "1 min 20 s"),
        (3600, "1 h 00 min"),
        (100000, "27 h 46 min"),
    ],
)
def test_durations_have_the_two_largest_units(seconds: float, words: str) -> None:
    assert display.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.123456, "0.1235"),
        (1234567.0, "1,234,567"),
        (0.00001234, "1.234e-05"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1, "1"),
        ([0.1, 0.25], "[0.1, 0.25]"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, …]"),
    ],
)
def test_numbers_are_short(value: float | Sequence[float], words: str) -> None:
    assert display.measured(value) == words


def test_the_first_line_says_where_the_job_runs() -> None:
    assert display.where(TRAINING) == "Job digits-1 runs locally with 2 workers."
    alone = dataclasses.replace(TRAINING, num_workers=1)
    assert display.where(alone) == "Job digits-1 runs locally with 1 worker."
    assert display.where(alone, in_process=True) == "Job digits-1 runs in this process."


def test_a_line_of_a_log_has_everything() -> None:
    assert display.progress_line(TRAINING, RUNNING) == (
        "epoch 2/10  step 1,234  15%  loss 0.1235  accuracy 0.9877  "
        "12,346 records/s  2 workers  1 min 20 s left"
    )


def test_workers_that_do_not_take_part_yet_are_told_apart() -> None:
    status = dataclasses.replace(RUNNING, workers=(Worker("w0"), Worker("w1", "warm")))
    assert "  1 of 2 workers  " in display.progress_line(TRAINING, status)


def test_standbys_are_not_counted() -> None:
    three = (Worker("w0"), Worker("w1"), Worker("w2", "standby"))
    status = dataclasses.replace(RUNNING, workers=three)
    assert "  2 workers  " in display.progress_line(TRAINING, status)


@pytest.mark.parametrize("phase", ["member", "evaluating", "exporting", "predicting"])
def test_a_worker_is_at_work_whatever_it_computes(phase: str) -> None:
    status = dataclasses.replace(RUNNING, workers=(Worker("w0", phase), Worker("w1", phase)))
    assert "  2 workers  " in display.progress_line(TRAINING, status)


def test_workers_that_are_wanted_and_not_there_are_counted() -> None:
    status = dataclasses.replace(RUNNING, num_workers=4)
    assert "  2 of 4 workers  " in display.progress_line(TRAINING, status)
    alone = dataclasses.replace(RUNNING, num_workers=1, workers=())
    assert "  0 of 1 worker  " in display.progress_line(TRAINING, alone)


def test_a_line_says_that_no_checkpoint_can_be_written() -> None:
    status = dataclasses.replace(RUNNING, checkpoint_problem="checkpoint: out: disk full.")
    assert "  2 workers  no checkpoint can be written  " in display.progress_line(TRAINING, status)


def test_prediction_counts_records() -> None:
    config = dataclasses.replace(TRAINING, kind="predict")
    status = Status(records=250, records_total=1000, epochs=0)
    assert display.progress_line(config, status) == "250 of 1,000 records  25%  2 workers"


@pytest.mark.parametrize(
    ("status", "max_steps", "done"),
    [
        (Status(), 0, 0.0),
        (Status(records=30, records_total=60), 0, 0.5),
        (Status(records=70, records_total=60), 0, 1.0),
        (Status(epoch=2, epoch_fraction=0.5), 0, 0.25),
        (Status(epochs=0), 0, 0.0),
        (Status(records=30, records_total=60, version=9), 10, 0.9),
    ],
)
def test_what_is_done_counts_from_records_epochs_or_steps(
    status: Status, max_steps: int, done: float
) -> None:
    config = dataclasses.replace(TRAINING, max_steps=max_steps)
    assert display.fraction(config, status) == pytest.approx(done)


# ---- a job in full ----------------------------------------------------------------------------


FULL = dataclasses.replace(
    RUNNING,
    reason="2 workers at work.",
    generation=3,
    eval_version=1200,
    eval_metrics={"accuracy": 0.9},
    workers=(
        Worker("worker-2", "member", 0, (0, 1)),
        Worker("worker-10", "member", 1, (2, 3)),
        Worker("worker-11", "standby"),
    ),
    notices=("worker-1 is lost (killed by SIGKILL); that is no failure.",),
    checkpoint_version=1200,
    output="/abs/out",
)


def test_a_status_has_the_workers_and_what_was_decided() -> None:
    assert display.status_lines(TRAINING, FULL) == [
        "Job digits-1: running. 2 workers at work.",
        display.progress_line(TRAINING, FULL),
        "evaluation: step 1,200  accuracy 0.9",
        "checkpoint: step 1,200",
        "worker     phase    streams",
        "worker-2   member   0,1",
        "worker-10  member   2,3",
        "worker-11  standby",
        "note: worker-1 is lost (killed by SIGKILL); that is no failure.",
        "output: /abs/out",
    ]


def test_a_status_says_why_there_is_no_newer_checkpoint() -> None:
    full_disk = dataclasses.replace(FULL, checkpoint_problem="checkpoint: out: no space left")
    lines = display.status_lines(TRAINING, full_disk)
    assert lines[3:5] == ["checkpoint: step 1,200", "checkpoint: out: no space left"]


def test_the_status_of_a_job_that_is_over_is_short() -> None:
    over = Status(phase="cancelled", reason="Stopped on request.", workers=())
    assert display.status_lines(TRAINING, over) == ["Job digits-1: cancelled. Stopped on request."]


def test_a_status_is_json_without_loss() -> None:
    fields = display.full_status_fields(FULL)
    assert json.loads(json.dumps(fields)) == {
        **json.loads(json.dumps(display.status_fields(FULL))),
        "generation": 3,
        "num_workers": 2,
        "checkpoint_version": 1200,
        "checkpoint_problem": "",
        "notices": ["worker-1 is lost (killed by SIGKILL); that is no failure."],
        "output": "/abs/out",
        "workers": [
            {"worker": "worker-2", "phase": "member", "rank": 0, "streams": [0, 1]},
            {"worker": "worker-10", "phase": "member", "rank": 1, "streams": [2, 3]},
            {"worker": "worker-11", "phase": "standby", "rank": -1, "streams": []},
        ],
    }


# ---- plain lines ------------------------------------------------------------------------------


def test_lines_come_every_ten_seconds_and_at_changes() -> None:
    screen = Screen()
    view = display.Plain(TRAINING, *screen.streams)
    view.started(TRAINING, display.where(TRAINING))
    for now in range(3):
        view.show(STARTING, now)
    for step in range(100):  # a status each fifth of a second, for 20 s
        view.show(dataclasses.replace(RUNNING, version=step + 1), 3 + step / 5)
    assert [line.split("  ")[:2] for line in screen.said] == [
        ["Job digits-1 runs locally with 2 workers."],
        ["starting: waiting for 2 workers"],
        ["epoch 2/10", "step 1"],
        ["epoch 2/10", "step 51"],
    ]


def test_evaluations_and_notices_are_said_once_and_at_once() -> None:
    screen = Screen()
    view = display.Plain(TRAINING, *screen.streams)
    evaluated = dataclasses.replace(
        RUNNING, eval_version=1200, eval_metrics={"accuracy": 0.9, "loss": 0.5}
    )
    view.show(RUNNING, 0)
    view.show(dataclasses.replace(RUNNING, notices=("the dataset batches.",)), 1)
    view.show(dataclasses.replace(evaluated, notices=("the dataset batches.",)), 2)
    view.show(dataclasses.replace(evaluated, notices=("the dataset batches.", "b")), 3)
    assert screen.said[1:] == [
        "note: the dataset batches.",
        "evaluation: step 1,200  accuracy 0.9  loss 0.5",
        "note: b",
    ]


def test_the_result_goes_to_stdout_and_progress_does_not() -> None:
    screen = Screen()
    view = display.Plain(TRAINING, *screen.streams)
    view.show(RUNNING, 0)
    view.show(SUCCEEDED, 1)
    view.result(SUCCEEDED)
    assert screen.results == [
        "training:   step 9,000  loss 0.1235  accuracy 0.9877",
        "evaluation: accuracy 0.97",
        "trained model: /abs/out/model",
    ]
    assert len(screen.said) == 2


@pytest.mark.parametrize(
    ("config", "status", "lines", "quiet"),
    [
        (
            JobConfig(kind="predict", output="p"),
            Status(records=1000),
            ["predictions: p (1,000 records)"],
            ["p"],
        ),
        (
            JobConfig(kind="evaluate"),
            Status(eval_metrics={"accuracy": 0.5, "loss": 2.0}),
            ["accuracy 0.5", "loss 2"],
            ["accuracy 0.5", "loss 2"],
        ),
        (
            JobConfig(kind="evaluate", output="e"),
            Status(metrics={"accuracy": 0.5}),
            ["accuracy 0.5", "metrics: e"],
            ["accuracy 0.5"],
        ),
        (TRAINING, Status(), ["trained model: out/model"], ["out/model"]),
    ],
)
def test_results_say_what_was_asked_for(
    config: JobConfig, status: Status, lines: list[str], quiet: list[str]
) -> None:
    assert display.result_lines(config, status) == lines
    assert display.result_lines(config, status, quiet=True) == quiet


def test_quiet_says_the_result_only() -> None:
    screen = Screen()
    view = display.Quiet(TRAINING, *screen.streams)
    view.started(TRAINING, "here")
    view.show(dataclasses.replace(RUNNING, notices=("a",)), 0)
    view.remark("b")
    view.result(SUCCEEDED)
    assert (screen.said, screen.results) == ([], ["/abs/out/model"])


def test_an_error_is_one_line_after_the_users_traceback() -> None:
    screen = Screen()
    _, err = screen.streams
    display.write_error(err, "create_model failed:\n  ValueError", "Traceback\n  zoo.py\n")
    assert screen.said == ["Traceback", "  zoo.py", "error: create_model failed: ValueError"]


def test_lines_end_silently_when_the_reader_is_gone() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        lines = display.Lines(stream)
        os.close(reader)
        lines.write("nobody reads this")
        lines.write("nor this")


# ---- a panel ----------------------------------------------------------------------------------


def test_the_panel_has_everything_in_three_lines() -> None:
    status = dataclasses.replace(RUNNING, eval_metrics={"accuracy": 0.97})
    top, middle, bottom = rendered(status)
    assert top.split() == ["digits-1", "epoch", "2/10", "step", "1,234", *top.split()[5:]]
    assert top.endswith("15%  1 min 20 s left")
    assert middle == "loss 0.1235  accuracy 0.9877  12,346 records/s  2 workers"
    assert bottom == "evaluation: accuracy 0.97"


def test_the_panel_of_a_start_says_what_it_waits_for() -> None:
    assert rendered(STARTING) == ["digits-1  starting: waiting for 2 workers"]


def test_the_bar_gives_way_to_the_words() -> None:
    for width in (70, 100, 200):
        top = rendered(RUNNING, width=width)[0]
        assert "digits-1  epoch 2/10  step 1,234  ━" in top
        assert top.endswith("15%  1 min 20 s left")
        assert len(top) <= 100


def test_an_unknown_time_left_is_not_shown() -> None:
    for unknown in (0.0, float("nan"), float("inf"), -1.0):
        assert "left" not in rendered(dataclasses.replace(RUNNING, seconds_left=unknown))[0]


def test_a_narrow_terminal_cuts_lines_and_wraps_none() -> None:
    metrics = {f"metric_{n}": 0.5 for n in range(20)}
    lines = rendered(dataclasses.replace(RUNNING, metrics=metrics), width=60)
    assert len(lines) == 2
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].endswith("…")


def test_names_are_never_read_as_markup() -> None:
    status = dataclasses.replace(RUNNING, metrics={"[red]acc[/red]": 1.0})
    assert "[red]acc[/red] 1" in rendered(status)[1]


def live(screen: Screen) -> display.Live:
    console = rich.console.Console(file=screen.err, force_terminal=True, width=100)
    return display.Live(TRAINING, *screen.streams, console)


def test_the_live_panel_is_drawn_at_most_ten_times_a_second() -> None:
    screen = Screen()
    view = live(screen)
    view.show(STARTING, 0.0)
    view.show(dataclasses.replace(RUNNING, version=1), 0.01)  # a new phase is always drawn
    view.show(dataclasses.replace(RUNNING, version=2), 0.05)
    view.show(dataclasses.replace(RUNNING, version=3), 0.2)
    view.close()
    drawn = screen.err.getvalue()
    assert "step 1" in drawn
    assert "step 2" not in drawn
    assert "step 3" in drawn


def test_the_cursor_is_shown_again_at_the_end() -> None:
    for end in (display.Live.close, lambda view: view.result(SUCCEEDED)):
        screen = Screen()
        view = live(screen)
        view.show(RUNNING, 0.0)
        assert "\x1b[?25h" not in screen.err.getvalue()
        end(view)
        view.close()
        assert screen.err.getvalue().count("\x1b[?25h") == 1


def test_notices_and_evaluations_scroll_above_the_live_panel() -> None:
    screen = Screen()
    view = live(screen)
    evaluated = dataclasses.replace(RUNNING, eval_metrics={"accuracy": 0.9}, notices=("n",))
    view.show(evaluated, 0.0)
    view.close()
    assert "note: n\n" in screen.err.getvalue()
    assert "evaluation: accuracy 0.9\n" in screen.err.getvalue()


# ---- JSON -------------------------------------------------------------------------------------


def events(screen: Screen) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in screen.results]


def test_json_is_one_object_a_line_on_stdout() -> None:
    screen = Screen()
    view = display.Json(TRAINING, screen.streams[0])
    view.started(TRAINING, display.where(TRAINING))
    view.show(STARTING, 0)
    view.show(dataclasses.replace(RUNNING, notices=("a\nb",)), 1)
    view.show(dataclasses.replace(RUNNING, version=1235), 1.5)
    view.show(dataclasses.replace(RUNNING, eval_metrics={"auc": 0.5}), 1.6)
    view.result(SUCCEEDED)
    said = events(screen)
    assert [event["event"] for event in said] == [
        "started",
        "progress",
        "notice",
        "progress",
        "evaluation",
        "result",
    ]
    assert said[0]["job_name"] == "digits-1"
    assert said[1]["loss"] is None
    assert said[3]["metrics"] == {"accuracy": 0.98765}
    assert said[5]["output"] == "/abs/out/model"
    assert said[5]["eval_metrics"] == {"accuracy": 0.97}
    assert screen.said == []


def test_quiet_json_is_the_result_alone() -> None:
    screen = Screen()
    view = display.Json(TRAINING, screen.streams[0], quiet=True)
    view.started(TRAINING, "here")
    view.show(dataclasses.replace(RUNNING, notices=("a",)), 0)
    view.remark("b")
    view.result(SUCCEEDED)
    assert [event["event"] for event in events(screen)] == ["result"]


def test_settings_stand_in_columns() -> None:
    rows = [("setting", "value", "origin"), ("seed", "1", "flag"), ("batch_size", "64", "default")]
    assert display.settings_lines(rows) == [
        "setting     value  origin",
        "seed        1      flag",
        "batch_size  64     default",
    ]
