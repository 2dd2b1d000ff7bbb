"""A zoo in a Git repository → a directory of this machine."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elasticdl import config
from elasticdl.errors import UserError

_URL = re.compile(r"(git\+)?(https?|ssh|git|file)://.+|[\w.-]+@[\w.-]+:.+")
_DEADLINE_S = 600


@dataclass(frozen=True)
class Address:
    """A repository, and what of it is meant: a branch, a tag or a commit; empty: its default."""

    url: str
    ref: str = ""


def address(model_zoo: str) -> Address | None:
    """What `URL` or `URL@REF` means; None: it is no address of a repository."""
    if not _URL.fullmatch(model_zoo):
        return None
    text = model_zoo.removeprefix("git+")
    # An @ before the path is that of a user.
    begin = text.find("/", text.find("://") + 3) if "://" in text else text.find(":")
    head, path = text[: max(begin, 0)], text[max(begin, 0) :]
    path, _, ref = path.partition("@")
    return Address(head + path, ref)


def fetched(where: Address, environ: Mapping[str, str]) -> Path:
    """A directory with the repository's files at that ref, without its history.

    It is kept, and used again as long as the ref stands for the same commit.

    Raises:
        UserError: there is no git, no such repository or ref, or no access.
    """
    cache = Path(config.state_directory(environ), "zoos")
    name = hashlib.sha256(where.url.encode()).hexdigest()[:16]
    commit = _commit(where, environ)
    target = cache / f"{name}-{commit}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        clone = Path(aside, "zoo")
        _git(where, environ, "init", "--quiet", str(clone))
        inside = ("-C", str(clone))
        try:
            # Where the server lets it, that one commit alone.
            _git(where, environ, *inside, "fetch", "--quiet", "--depth=1", where.url, commit)
        except UserError:
            _git(where, environ, *inside, "fetch", "--quiet", "--tags", where.url, "+refs/*:refs/*")
        _git(where, environ, *inside, "checkout", "--quiet", "--detach", commit)
        shutil.rmtree(clone / ".git")
        try:
            os.rename(clone, target)
        except OSError:
            # Another command was faster.
            if not target.is_dir():
                raise
    return target


def local(model_zoo: str, environ: Mapping[str, str]) -> str:
    """The directory that is meant by the setting: itself, or what was fetched.

    Raises:
        UserError
    """
    where = address(model_zoo)
    return model_zoo if where is None else str(fetched(where, environ))


def _commit(where: Address, environ: Mapping[str, str]) -> str:
    """The commit that the ref stands for now."""
    if re.fullmatch(r"[0-9a-f]{40}", where.ref):
        return where.ref
    ref = where.ref or "HEAD"
    listed = _git(where, environ, "ls-remote", where.url)
    refs = {name: commit for commit, name in (line.split("\t") for line in listed.splitlines())}
    # What a tag with a message stands for is listed with ^{}.
    for name in (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref):
        if name in refs:
            return refs[name]
    there = sorted(
        name.split("/", 2)[2]
        for name in refs
        if name.startswith(("refs/heads/", "refs/tags/")) and not name.endswith("^{}")
    )
    raise UserError(
        f"model_zoo: expected a branch, a tag or a whole commit of {where.url}; got {ref!r}. There "
        f"are {', '.join(there[:20]) or 'none'}."
    )


def _git(where: Address, environ: Mapping[str, str], *arguments: str) -> str:
    try:
        ran = subprocess.run(
            ["git", *arguments],
            # Nobody is there to answer a question.
            env={**environ, "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"model_zoo: expected git installed, to fetch {where.url}; it is not. Install it, or "
            "clone the repository elsewhere."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"model_zoo: {where.url} did not come within {_DEADLINE_S} s.") from error
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith(("fatal:", "ERROR:"))]
        reason = (fatal or lines or ["git failed"])[-1].removeprefix("fatal:").strip()
        raise UserError(
            f"model_zoo: {where.url} cannot be fetched: {reason}. Is the address right, and does "
            "`git ls-remote` get there?"
        )
    return ran.stdout
