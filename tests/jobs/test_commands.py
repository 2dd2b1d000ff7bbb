"""What a person sees and does: signals, a terminal, JSON, dry runs, a debugger, Python."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios

import psutil
import pytest

import elasticdl
from elasticdl.api import local
from elasticdl.cluster import forkserver
from tests.jobs import support

# What TensorFlow, gRPC and Gloo say of themselves.
NOISE = re.compile(r"tensorflow|cuda|oneDNN|rebuild|absl|gloo|grpc|WARNING|^[IWE]\d{4}", re.I)


@pytest.fixture(scope="module")
def settings(numbered):
    return (
        f"--model_zoo={support.ZOO}",
        "--model_def=broken.Fine",
        f"--data={numbered(64)}",
        "--batch_size=16",
    )


@pytest.fixture
def endless(start, settings, tmp_path):
    """Starts a training that goes on until it is stopped."""

    def endless(*arguments, **options):
        return start(
            "train",
            *settings,
            "--epochs=100000000",
            "--checkpoint_every=0",
            f"--output={tmp_path / 'output'}",
            *arguments,
            **options,
        )

    return endless


# ---- the end before the end -------------------------------------------------------------------


def test_ctrl_c_on_a_terminal_stops_the_job_cleanly(endless, tmp_path):
    keyboard, terminal = pty.openpty()
    command = endless(
        "--num_workers=2",
        environ={"TERM": "xterm", "COLUMNS": "120"},
        stdin=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    shown = read_until(keyboard, b"records/s")
    assert "epoch 1/100000000" in shown
    assert "2 workers" in shown
    os.write(keyboard, b"\x03")
    shown += read_until(keyboard, b"error: stopped by Ctrl-C.")
    ended = command.end()
    os.close(keyboard)
    assert ended.status == 130
    assert ended.running == []
    assert list(tmp_path.iterdir()) == []
    assert NOISE.search(shown) is None


def read_until(terminal, wanted):
    """What a terminal shows up to `wanted`."""
    shown = b""
    while wanted not in shown:
        with contextlib.suppress(OSError):  # the last process at the other end is gone
            if more := os.read(terminal, 1 << 16):
                shown += more
                continue
        raise AssertionError(f"{wanted!r} was not shown: {shown.decode()}")
    return shown.decode()


def test_sigint_and_what_came_before_it_as_json(endless, tmp_path):
    command = endless("--json")
    event = command.until_running()
    assert event["phase"] == "running"
    assert event["workers"] == [{"worker": "worker-0", "phase": "member"}]
    command.process.send_signal(signal.SIGINT)
    ended = command.end()
    assert ended.status == 130
    assert ended.running == []
    assert ended.err == ""
    last = ended.events[-1]
    assert last == {
        "event": "error",
        "kind": "cancelled",
        "message": "stopped by Ctrl-C.",
        "trace": "",
        "exit_status": 130,
    }
    assert list(tmp_path.iterdir()) == []


def test_a_job_ends_orphan_s_after_the_command_that_started_it(endless, tmp_path):
    command = endless("--json", "--num_workers=2", "--standby_workers=0", "--orphan_s=1")
    command.until_running()
    everybody = command.processes()
    # The command, the master, the workers, and what they are forked from.
    assert len(everybody) == 4 + forkserver.SUPPORTED
    command.process.kill()
    command.process.wait()
    _, alive = psutil.wait_procs(everybody, timeout=60)
    assert alive == []
    assert not (tmp_path / "output" / "trained_model.pb").exists()


def test_a_master_that_is_killed_while_workers_start_is_replaced(start, settings, tmp_path):
    command = start("train", *settings, "--epochs=2", f"--output={tmp_path / 'output'}", "--json")
    for event in command.events():
        if event["event"] == "progress":
            break
    for process in command.processes():
        if "elasticdl.master" in process.cmdline():
            process.kill()
    ended = command.end()
    assert ended.status == 0, ended.err
    assert ended.events[-1]["event"] == "result"
    assert ended.running == []


# ---- what commands print ----------------------------------------------------------------------


def test_a_training_prints_plain_lines_where_there_is_no_terminal(run, settings, tmp_path):
    ended = run("train", *settings, f"--output={tmp_path / 'output'}", "--epochs=2")
    assert ended.status == 0
    assert ended.out.splitlines()[-1] == f"trained model: {tmp_path / 'output'}"
    assert re.match(r"training:   step 8  loss ", ended.out)
    assert re.match(r"Job broken-fine-\w{6} runs locally with 1 worker\.\n", ended.err)
    assert NOISE.search(ended.err) is None
    assert "\x1b" not in ended.err
    lines = ended.err.splitlines()
    assert len(lines) == len(set(lines))


def test_json_has_one_object_a_line_and_the_result_last(run, settings, numbered, tmp_path):
    ended = run(
        "train",
        *settings,
        f"--output={tmp_path / 'output'}",
        f"--eval_data={numbered(10)}",
        "--epochs=2",
        "--json",
    )
    assert ended.status == 0
    assert ended.err == ""
    kinds = [event["event"] for event in ended.events]
    assert kinds[0] == "started"
    assert kinds[-1] == "result"
    assert {"progress", "evaluation"} <= set(kinds)
    result = ended.events[-1]
    assert result["phase"] == "succeeded"
    assert result["version"] == 8
    assert result["records"] == result["records_total"] == 128
    assert result["output"] == str(tmp_path / "output")
    assert result["eval_metrics"].keys() == {"loss"}


def test_a_dry_run_shows_the_shapes_and_starts_nothing(run, settings, tmp_path):
    ended = run("train", *settings, "--params=units=3", "--dry_run", cwd=tmp_path)
    assert ended.status == 0
    assert ended.err == ""
    assert ended.running == []
    assert list(tmp_path.iterdir()) == []
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert shown["features"] == "float32[batch, 1]"
    assert shown["labels"] == "float32[batch]"
    assert shown["outputs"] == "float32[batch, 3]"
    assert shown["model"].endswith("6 trainable numbers, 0 others")
    assert shown["optimizer"] == "SGD, learning rate 1e-05"


def test_in_process_the_users_code_runs_in_the_command_itself(run, settings, tmp_path):
    ended = run(
        "train",
        *settings,
        "--model_def=processes.Noted",
        f"--params=path={str(tmp_path / 'pid')!r}",
        f"--output={tmp_path / 'output'}",
        "--in_process",
    )
    assert ended.status == 0, ended.err
    assert ended.running == []
    assert (tmp_path / "output" / "trained_model.pb").exists()
    assert NOISE.search(ended.err) is None
    worker, command = (tmp_path / "pid").read_text().split()
    assert worker == command


# ---- Python -----------------------------------------------------------------------------------


def test_jobs_from_python_with_the_documents_keywords(digits, tmp_path):
    job = elasticdl.train(
        model_zoo=support.ZOO,
        model_def="digits.Dense",
        params={"learning_rate": 0.01},
        data=digits.train,
        output=tmp_path / "model",
        eval_data=digits.test,
        epochs=5,
    )
    assert job.status().phase in ("starting", "running")
    status = job.wait()
    assert status.phase == "succeeded"
    assert status == job.status()
    assert status.version == 5 * 5
    assert status.records == 5 * 300
    assert job.metrics.keys() == {"loss", "accuracy", "top"}
    assert job.metrics["accuracy"] > 0.7

    evaluation = elasticdl.evaluate(data=digits.test, trained_model=tmp_path / "model")
    evaluation.wait()
    assert evaluation.metrics == {
        name: pytest.approx(value, rel=1e-5) for name, value in job.metrics.items()
    }

    prediction = elasticdl.predict(
        data=digits.test, trained_model=tmp_path / "model", output=tmp_path / "all.recordio"
    )
    assert prediction.wait().records == 200
    assert (tmp_path / "all.recordio").is_file()


def test_a_job_from_python_is_cancelled(numbered, tmp_path):
    job = elasticdl.train(
        model_zoo=support.ZOO,
        model_def="broken.Fine",
        model_params="units=1",
        data=numbered(64),
        output=tmp_path / "model",
        epochs=100_000_000,
        checkpoint_every=0,
    )
    while not job.poll(1.0).version:
        assert not job.status().over
    job.cancel()
    assert job.status().phase == "cancelled"
    with pytest.raises(elasticdl.Cancelled):
        job.wait()
    job.cancel()
    assert list(tmp_path.iterdir()) == []


def test_masters_that_others_kill_are_replaced_as_often_as_that_happens(
    numbered, tmp_path, monkeypatch
):
    monkeypatch.setattr(local, "_SOON_S", 0.0)
    job = elasticdl.train(
        model_zoo=support.ZOO,
        model_def="broken.Fine",
        data=numbered(64),
        output=tmp_path / "model",
        epochs=100_000_000,
        checkpoint_every=0,
    )
    killed = set()
    while len(killed) < local._MOST_DEATHS + 2:
        job.status()
        claim = json.loads((tmp_path / "model" / ".elasticdl" / "claim").read_text() or "{}")
        if claim and claim["pid"] not in killed:
            killed.add(claim["pid"])
            os.kill(claim["pid"], signal.SIGKILL)
    assert not job.status().over
    job.cancel()


def test_errors_in_python_are_exceptions(numbered, tmp_path):
    job = elasticdl.train(
        model_zoo=support.ZOO,
        model_def="broken.LossRaises",
        data=numbered(64),
        output=tmp_path / "model",
    )
    with pytest.raises(elasticdl.UserCodeError, match="create_loss") as caught:
        job.wait()
    assert "in distance" not in caught.value.trace
    assert "in create_loss" in caught.value.trace
    with pytest.raises(elasticdl.UserError, match=r"Did you mean num_workers\?"):
        elasticdl.train(num_worker=2)


def test_a_script_that_submits_imports_no_tensorflow(settings, tmp_path, numbered):
    script = (
        "import sys, elasticdl\n"
        f"job = elasticdl.train(model_zoo={str(support.ZOO)!r}, model_def='broken.Fine',\n"
        f"    data={str(numbered(64))!r}, output='model')\n"
        "print(job.wait().phase, 'tensorflow' in sys.modules, 'torch' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env=support.clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    assert ended.stdout == "succeeded False False\n"


def test_help_and_version(run):
    assert run("--version").out == f"elasticdl {elasticdl.__version__}\n"
    ended = run("train", "--help")
    assert ended.status == 0
    assert "--model_zoo" in ended.out


# ---- where the command is given ---------------------------------------------------------------


def test_files_beside_the_user_are_no_modules_of_ours(run, numbered, tmp_path):
    shutil.copy(support.ZOO / "broken.py", tmp_path)
    for name in ("random", "queue", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    ended = run(
        "train",
        "--model_zoo=.",
        "--model_def=broken.Fine",
        f"--data={numbered(64)}",
        "--output=output",
        "--max_steps=1",
        "--quiet",
        # Larger than what Keras takes.
        f"--seed={1 << 40}",
        cwd=tmp_path,
    )
    assert ended.err == ""
    assert ended.status == 0
    assert (tmp_path / "output" / "trained_model.pb").exists()
