"""A zoo in a Git repository becomes a directory."""

import os
import subprocess

import pytest

from elasticdl.cluster.gitzoo import Address, address, fetched, local
from elasticdl.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.com/me/models", Address("https://example.com/me/models")),
        ("https://example.com/me/models@v1.2", Address("https://example.com/me/models", "v1.2")),
        ("https://me@example.com/models@main", Address("https://me@example.com/models", "main")),
        ("git@example.com:me/models.git", Address("git@example.com:me/models.git")),
        ("git@example.com:me/models.git@v1", Address("git@example.com:me/models.git", "v1")),
        ("ssh://git@example.com/models", Address("ssh://git@example.com/models")),
        ("git+https://example.com/models@a/b", Address("https://example.com/models", "a/b")),
        ("/home/me/models", None),
        ("models", None),
        ("gs://bucket/models", None),
    ],
)
def test_what_is_an_address(text, expected):
    assert address(text) == expected


@pytest.fixture
def repository(tmp_path):
    """One with two commits, the first of which has the tag v1; and what runs git in it."""
    path = tmp_path / "repository"
    path.mkdir()
    identity = ("-c", "user.name=me", "-c", "user.email=me@example.com")

    def git(*arguments):
        run = ["git", "-C", str(path), *identity, *arguments]
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    for content, tag in (("one", "v1"), ("two", "")):
        (path / "model.py").write_text(content)
        git("add", ".")
        git("commit", "--quiet", "-m", content)
        if tag:
            git("tag", "-m", "the first", tag)
    return f"file://{path}", git


@pytest.fixture
def environ(tmp_path):
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


def test_its_default_a_branch_a_tag_and_a_commit(repository, environ):
    url, git = repository
    first = git("rev-parse", "v1^{commit}")
    for ref, content in (("", "two"), ("main", "two"), ("v1", "one"), (first, "one")):
        found = fetched(Address(url, ref), environ)
        assert (found / "model.py").read_text() == content
        assert not (found / ".git").exists()


def test_what_was_fetched_is_used_again(repository, environ):
    url, _ = repository
    found = fetched(Address(url), environ)
    (found / "mark").touch()
    assert (fetched(Address(url, "main"), environ) / "mark").exists()


def test_a_ref_that_is_not_there_names_those_that_are(repository, environ):
    with pytest.raises(UserError, match=r"got 'v2'. There are main, v1\."):
        fetched(Address(repository[0], "v2"), environ)


def test_a_repository_that_is_not_there(tmp_path, environ):
    with pytest.raises(UserError, match=r"cannot be fetched: .*Is the address right"):
        fetched(Address(f"file://{tmp_path}/nowhere"), environ)


def test_without_git(repository, environ):
    with pytest.raises(UserError, match="expected git installed"):
        fetched(Address(repository[0]), {**environ, "PATH": "/nowhere"})


def test_a_directory_stays_what_it_is(environ):
    assert local("/home/me/models", environ) == "/home/me/models"
