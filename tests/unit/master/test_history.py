"""Reports of workers, whoever sends them and however often, become one history."""

import json
import math

import pytest
import tensorflow as tf

from elasticdl.master.history import History, plain
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages

BEGAN = 1_700_000_000.0


def step(version, elements=64, loss=0.5, total=0, epoch=0, **metrics):
    """A report of ten steps; by itself a version's commit came as many seconds after BEGAN."""
    return pb.StepReport(
        version=version,
        elements=elements,
        loss_sum=loss * elements,
        steps=10,
        time=BEGAN + version,
        total_elements=total or version * 10,
        epoch_elements=epoch,
        metrics=messages.metric_messages(metrics),
    )


def evaluation(version, **metrics):
    return pb.EvaluationReport(
        version=version, elements=100, metrics=messages.metric_messages(metrics)
    )


def beat(*steps, evaluations=(), **fields):
    return pb.HeartbeatRequest(
        worker="worker-0", steps=steps, evaluations=evaluations, learning_rate=0.125, **fields
    )


def lines(directory, name="metrics.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def test_reports_count_once_whoever_sends_them(tmp_path):
    history = History(tmp_path)
    history.heartbeat(beat(step(10, loss=0.75)), now=1.0)
    twice = step(20, loss=0.25, total=200, epoch=40, accuracy=0.5)
    history.heartbeat(beat(step(10), twice), now=2.0)
    history.heartbeat(beat(step(10), step(20)), now=3.0)
    history.close()
    assert history.version == 20
    assert (history.elements, history.epoch_elements) == (200, 40)
    assert history.loss == 0.25
    assert history.metrics == {"accuracy": 0.5}
    assert [line["version"] for line in lines(tmp_path)] == [10, 20]


def test_a_line_says_what_was_trained_and_when_it_was_committed(tmp_path):
    history = History(tmp_path)
    history.heartbeat(beat(step(10, accuracy=0.5)), now=1.0)
    history.close()
    assert lines(tmp_path) == [
        {
            "kind": "train",
            "version": 10,
            "time": BEGAN + 10,
            "elements": 64,
            "steps": 10,
            "learning_rate": 0.125,
            "loss": 0.5,
            "accuracy": 0.5,
        }
    ]


def test_evaluations_of_a_version_count_once(tmp_path):
    history = History(tmp_path)
    history.heartbeat(beat(evaluations=[evaluation(0, accuracy=0.1)]), now=1.0)
    history.heartbeat(beat(evaluations=[evaluation(0, accuracy=0.9)]), now=1.0)
    history.heartbeat(beat(evaluations=[evaluation(5, accuracy=0.5, f=[1.0, math.nan])]), now=1.0)
    history.close()
    assert history.evaluation["accuracy"] == 0.5
    assert [(line["kind"], line["accuracy"]) for line in lines(tmp_path)] == [
        ("eval", 0.1),
        ("eval", 0.5),
    ]
    assert lines(tmp_path)[1]["f"] == [1.0, None]


def test_curves_are_for_tensorboard(tmp_path):
    history = History(tmp_path)
    history.heartbeat(
        beat(step(10, per_class=[0.0, 1.0]), evaluations=[evaluation(10, accuracy=0.5)]), now=1.0
    )
    history.close()
    curves = {}
    for path in (tmp_path / "logs").rglob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                curves[path.parent.name, value.tag] = (event.step, value.simple_value)
    assert curves == {
        ("train", "loss"): (10, 0.5),
        ("train", "learning_rate"): (10, 0.125),
        ("eval", "accuracy"): (10, 0.5),
    }


def test_a_loss_that_is_no_number_is_null(tmp_path):
    history = History(tmp_path)
    history.heartbeat(beat(step(10, loss=math.nan)), now=1.0)
    history.heartbeat(beat(step(20, elements=0)), now=1.0)
    history.close()
    assert math.isnan(history.loss)
    assert [line["loss"] for line in lines(tmp_path)] == [None, None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_gets_null_for_what_it_does_not_have(value):
    assert plain({"a": value, "b": [value, 1.5], "c": "text", "d": 1}) == {
        "a": None,
        "b": [None, 1.5],
        "c": "text",
        "d": 1,
    }


def test_progress_only_advances():
    history = History(None)

    def at(version):
        return pb.Progress(version=version, cursors=[pb.Cursor(element=version)])

    history.heartbeat(beat(progress=at(7)), now=1.0)
    history.heartbeat(beat(progress=at(5)), now=1.0)
    history.heartbeat(beat(), now=1.0)
    assert history.progress == messages.progress_value(at(7))


def test_a_notice_is_shown_once():
    history = History(None)
    history.heartbeat(beat(notices=["a", "b"]), now=1.0)
    history.heartbeat(beat(notices=["b", "c", "a"]), now=1.0)
    assert history.notices == ["a", "b", "c"]


def test_what_one_note_says_is_a_line_of_its_own(tmp_path):
    history = History(tmp_path)
    history.note("worker-1 is lost.", generation=3, version=7)
    history.note("worker-1 is lost.", generation=4, version=9)
    history.heartbeat(beat(notices=["The dataset batches."]), now=1.0)
    history.event("checkpoint", version=9, seconds=math.nan)
    history.close()
    said = lines(tmp_path, "events.jsonl")
    assert all(line.pop("time") > BEGAN for line in said)
    assert said == [
        {"event": "note", "text": "worker-1 is lost.", "generation": 3, "version": 7},
        {"event": "note", "text": "The dataset batches.", "worker": "worker-0"},
        {"event": "checkpoint", "version": 9, "seconds": None},
    ]


# ---- one master after the other ---------------------------------------------------------------


def one_after_the_other(directory, *, notices=True):
    """The history of a master that goes on from the files of the one before."""
    history = History(directory)
    history.go_on(notices=notices)
    return history


def test_the_next_master_goes_on_where_the_last_one_stood(tmp_path):
    first = History(tmp_path)
    first.heartbeat(beat(step(10), step(20), evaluations=[evaluation(15, accuracy=0.5)]), now=1.0)
    first.note("A standby takes over.")
    first.close()
    second = one_after_the_other(tmp_path)
    assert (second.version, second.evaluated_version) == (20, 15)
    assert second.evaluation == {"accuracy": 0.5}
    assert second.notices == ["A standby takes over."]
    # Workers report again what may not have come; it is there already.
    second.heartbeat(beat(step(20), step(30), evaluations=[evaluation(15, accuracy=0.9)]), now=2.0)
    second.note("A standby takes over.")
    second.close()
    assert [line["version"] for line in lines(tmp_path)] == [10, 20, 15, 30]
    assert len(lines(tmp_path, "events.jsonl")) == 1


def test_a_line_that_a_death_has_cut_off_is_written_again(tmp_path):
    first = History(tmp_path)
    first.heartbeat(beat(step(10)), now=1.0)
    first.heartbeat(beat(step(20)), now=1.0)
    first.note("One.")
    first.note("Two.")
    first.close()
    for name in ("metrics.jsonl", "events.jsonl"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-7])
    second = one_after_the_other(tmp_path)
    assert (second.version, second.notices) == (10, ["One."])
    second.heartbeat(beat(step(10), step(20)), now=2.0)
    second.note("Two.")
    second.close()
    assert [line["version"] for line in lines(tmp_path)] == [10, 20]
    assert [line["text"] for line in lines(tmp_path, "events.jsonl")] == ["One.", "Two."]


def test_a_training_that_is_resumed_says_nothing_of_an_earlier_runs_notices(tmp_path):
    first = History(tmp_path)
    first.note("worker-1 is lost.")
    first.close()
    second = one_after_the_other(tmp_path, notices=False)
    assert second.notices == []
    second.note("worker-1 is lost.")
    second.close()
    assert len(lines(tmp_path, "events.jsonl")) == 2


def test_metrics_that_were_no_numbers_are_none_afterwards(tmp_path):
    first = History(tmp_path)
    report = evaluation(5, recall=math.nan, f=[0.5, math.nan])
    first.heartbeat(beat(evaluations=[report]), now=1.0)
    first.close()
    second = one_after_the_other(tmp_path)
    assert math.isnan(second.evaluation["recall"])
    assert second.evaluation["f"] == [0.5, pytest.approx(math.nan, nan_ok=True)]
    # It can be told on.
    assert messages.metric_messages(second.evaluation)["f"].numbers[0] == 0.5


@pytest.mark.parametrize("content", [None, b"", b'{"kind": "train", "vers'])
def test_where_nothing_whole_was_written_there_is_nothing_to_go_on_from(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    history = one_after_the_other(tmp_path)
    assert (history.version, history.evaluated_version, history.notices) == (0, -1, [])
    history.heartbeat(beat(step(10)), now=1.0)
    history.close()
    assert [line["version"] for line in lines(tmp_path)] == [10]


# ---- rates ------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_ten_seconds():
    history = History(None)
    assert history.records_per_s(now=0.0) == 0.0
    history.heartbeat(beat(step(1, total=1000)), now=100.0)
    assert history.records_per_s(now=100.0) == 0.0  # when it began is not known
    history.heartbeat(beat(step(2, total=1050)), now=105.0)
    assert history.records_per_s(now=105.0) == 10.0
    history.heartbeat(beat(step(3, total=1500)), now=109.0)
    assert history.records_per_s(now=109.0) == pytest.approx(500 / 9)
    # The first report is older than that now.
    assert history.records_per_s(now=110.5) == pytest.approx(450 / 4)


def test_a_job_that_has_gone_back_to_a_checkpoint_has_no_negative_rate():
    history = History(None)
    history.heartbeat(beat(step(10, total=1000)), now=1.0)
    history.heartbeat(beat(step(11, total=400)), now=2.0)
    assert history.records_per_s(now=2.0) == 0.0
    history.heartbeat(beat(step(12, total=500)), now=3.0)
    assert (history.elements, history.records_per_s(now=3.0)) == (500, 100.0)


def test_reports_that_come_together_make_no_rate():
    history = History(None)
    history.counted(5, now=1.0)
    history.counted(9, now=1.0)
    assert history.records_per_s(now=1.0) == 0.0
    history.counted(15, now=3.0)
    assert history.records_per_s(now=3.0) == 5.0


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = History(None)
    history.heartbeat(beat(step(10)), now=1.0)
    history.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    history = History(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        history.heartbeat(beat(step(10)), now=1.0)
    history.close()  # and told once


def test_a_metric_named_like_a_column_keeps_both(tmp_path):
    history = History(tmp_path)
    history.heartbeat(beat(evaluations=[evaluation(5, elements=0.25)]), now=1.0)
    history.close()
    (line,) = lines(tmp_path)
    assert (line["elements"], line["metric_elements"]) == (100, 0.25)
