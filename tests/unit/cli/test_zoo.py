"""A zoo begins with a template, and images are asked for in whole."""

import io
import re

import pytest

from elasticdl.cli import main


def run(*argv, environ):
    out, err = io.StringIO(), io.StringIO()
    status = main.run(argv, main.Session(environ, out, err, lambda: None, lambda: 0.0))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def environ(tmp_path):
    return {"HOME": str(tmp_path / "home"), "TERM": "dumb"}


def test_a_zoo_is_begun_where_nothing_is(tmp_path, environ):
    zoo = tmp_path / "some" / "zoo"
    status, out, _ = run("zoo", "init", str(zoo), environ=environ)
    assert status == 0
    assert sorted(path.name for path in zoo.iterdir()) == [
        ".dockerignore",
        "README.md",
        "requirements.txt",
        "test_wine.py",
        "wine.py",
    ]
    assert out.startswith(f"{zoo}: wine.py")
    for name in ("wine.py", "test_wine.py"):
        compile((zoo / name).read_text(), name, "exec")


def test_what_is_there_is_left_alone(tmp_path, environ):
    (tmp_path / "mine").touch()
    status, out, err = run("zoo", "init", str(tmp_path), environ=environ)
    assert (status, out) == (2, "")
    assert "expected a directory that is empty or not there" in err
    status, _, err = run("zoo", "init", str(tmp_path / "mine"), environ=environ)
    assert status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("more", [[], ["zoo", "--builtin"]])
@pytest.mark.parametrize("command", ["build", "push"])
def test_an_image_is_of_one_zoo(command, more, environ):
    status, _, err = run("zoo", command, *more, environ=environ)
    assert status == 2
    assert "expected a directory, the URL of a Git repository, or --builtin" in err


def test_without_a_repository_nothing_is_built(environ):
    status, _, err = run("zoo", "build", "--builtin", environ=environ)
    assert status == 2
    assert re.match("error: image_repository: expected the repository", err)
