"""Local jobs are found by their names, as long as they have not come to their end."""

import os

import pytest

from elasticdl.cluster import registry
from elasticdl.config import JobConfig


@pytest.fixture
def environ(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "state" / "elasticdl" / "jobs"


def config(output="/out", kind="train"):
    return JobConfig(kind=kind, output=output, job_name="a-job")


LOCATOR = "/out/.elasticdl/master.json"


def test_a_job_that_was_noted_is_found(environ):
    assert registry.find("a-job", environ) is None
    registry.add("a-job", LOCATOR, config(), environ)
    entry = registry.find("a-job", environ)
    assert entry == registry.Entry("a-job", "train", "/out", LOCATOR)
    assert entry.work == "/out/.elasticdl"


def test_an_output_is_noted_so_that_others_find_it(environ, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry.add("relative", LOCATOR, config("out"), environ)
    registry.add("none", LOCATOR, config("", "evaluate"), environ)
    outputs = [entry.output for entry in registry.entries(environ)]
    assert outputs == ["", str(tmp_path / "out")]


def test_jobs_are_listed_in_the_order_of_their_names(environ, directory):
    assert registry.entries(environ) == []
    for name in ("b", "c", "a"):
        registry.add(name, f"/{name}/master.json", config(), environ)
    (directory / "broken.json").write_text("{")
    (directory / "other.json").write_text("[1]")
    (directory / ".d.123").write_text("half")
    assert [entry.job_name for entry in registry.entries(environ)] == ["a", "b", "c"]
    assert registry.find("broken", environ) is None


def test_a_later_job_of_the_name_takes_its_place(environ, directory):
    registry.add("a-job", LOCATOR, config(), environ)
    registry.add("a-job", "/other/master.json", config(kind="predict"), environ)
    entry = registry.find("a-job", environ)
    assert (entry.kind, entry.locator) == ("predict", "/other/master.json")
    # The end of the earlier one is not the later one's.
    registry.remove("a-job", LOCATOR, environ)
    assert registry.find("a-job", environ) == entry
    registry.remove("a-job", "/other/master.json", environ)
    assert registry.find("a-job", environ) is None
    registry.remove("a-job", "/other/master.json", environ)
    assert os.listdir(directory) == []


def test_that_nothing_can_be_noted_ends_no_job(tmp_path):
    (tmp_path / "file").write_text("x")
    environ = {"XDG_STATE_HOME": str(tmp_path / "file")}
    registry.add("a-job", LOCATOR, config(), environ)
    assert registry.find("a-job", environ) is None
    assert registry.entries(environ) == []
    registry.remove("a-job", LOCATOR, environ)
