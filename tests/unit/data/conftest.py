"""What tests of pipelines and streams share."""

import concurrent.futures

import pytest

from tests.unit.data import support


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    support.written(directory)
    return [str(directory / "0.recordio"), str(directory / "1.recordio")]


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool
