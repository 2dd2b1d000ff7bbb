"""What holds for all tests, and jobs in processes of their own."""

import os
import signal

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from tests.jobs import support

# A kubeconfig is no reason to run a test's job in a cluster; those of tests/cluster ask for it.
os.environ["ELASTICDL_CLUSTER"] = "local"

# A shell that starts the tests in the background has them ignore what Ctrl-C sends.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts `elasticdl` with these arguments, in a directory of its own."""
    home = tmp_path_factory.mktemp("home")
    commands = []

    def start(*arguments, cwd=None, environ=(), **popen):
        commands.append(support.Started(arguments, cwd or home, home, dict(environ), **popen))
        return commands[-1]

    yield start
    for command in commands:
        for process in command.processes():
            process.kill()
        command.process.wait()
        for stream in (command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="session")
def run(start):
    """Runs `elasticdl` with these arguments to its end."""

    def run(*arguments, **options):
        return start(*arguments, **options).end()

    return run


@pytest.fixture(scope="session")
def train(run):
    """Trains a model of the tests' zoo; the output, once it is there."""

    def train(model_def, data, output, *arguments, model_zoo=support.ZOO, **options):
        ended = run(
            "train",
            f"--model_zoo={model_zoo}",
            f"--model_def={model_def}",
            f"--data={data}",
            f"--output={output}",
            "--quiet",
            *arguments,
            **options,
        )
        assert ended.status == 0, ended.err
        assert ended.err == ""
        assert ended.out == f"{output}\n"
        assert ended.running == []
        return output

    return train


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    bunch = sklearn_datasets.load_digits()
    images, labels = bunch.images.astype(np.float32), bunch.target.astype(np.int64)
    # Files of very different sizes, one after the other.
    for name, begin, end in (
        ("train-0", 0, 7),
        ("train-1", 7, 187),
        ("train-2", 187, 300),
        ("test-0", 300, 470),
        ("test-1", 470, 500),
    ):
        columns = {
            "id": np.arange(begin, end),
            "image": images[begin:end],
            "label": labels[begin:end],
        }
        support.write(directory / f"{name}.recordio", columns)
    return support.Digits(
        train=f"{directory}/train-*.recordio",
        test=f"{directory}/test-*.recordio",
        images=images,
        labels=labels,
        train_ids=range(300),
        test_ids=range(300, 500),
    )
