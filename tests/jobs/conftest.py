"""Jobs in processes of their own, and data for them."""

import functools

import numpy as np
import pytest

from elasticdl.data import recordio
from tests.jobs import faults, support


@pytest.fixture
def plan(tmp_path):
    """What is to go wrong in this test's job."""
    return faults.Plan(tmp_path / "plan")


@pytest.fixture
def disturbed(train, digits, plan, tmp_path):
    """Trains the convolutional model under the plan's faults."""

    def disturbed(*arguments):
        return train(
            "faulty.Conv",
            digits.train,
            tmp_path / "output",
            f"--params={plan.param}",
            *support.CONV,
            *arguments,
        )

    return disturbed


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """Makes a file of records that are numbered from 0."""

    @functools.cache
    def numbered(count):
        path = tmp_path_factory.mktemp("numbered") / f"{count}.recordio"
        if count:
            return support.write(path, {"id": np.arange(count)})
        with recordio.Writer(path):
            return path

    return numbered
