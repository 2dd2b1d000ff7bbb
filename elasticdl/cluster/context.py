"""A zoo's directory → the files of it that go into an image."""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from docker.utils.build import exclude_paths

from elasticdl.errors import UserError

REQUIREMENTS = "requirements.txt"

_LARGEST = 200 << 20
_SHOWN = 5  # of the largest files
_NEVER = frozenset((".git", "__pycache__", ".venv", ".elasticdl", ".DS_Store"))
_DATA = ".recordio"


@dataclass(frozen=True)
class Entry:
    """One file or link, under its name in the image.

    Args:
        link: what a symbolic link leads to; empty: it is a file, `source`.
    """

    name: str
    source: Path | None
    mode: int = 0o644
    link: str = ""

    @property
    def content(self) -> bytes:
        return b"" if self.source is None else self.source.read_bytes()


def zoo_entries(zoo: Path) -> list[Entry]:
    """The files of a zoo, by their names in it; what .dockerignore names stays out, and so do
    versions' histories, virtual environments, bytecode and data.

    Raises:
        UserError: it has no requirements.txt, or is too large.
    """
    if not zoo.is_dir():
        raise UserError(f"model_zoo: expected a directory; got {zoo}.")
    if not (zoo / REQUIREMENTS).is_file():
        raise UserError(
            f"model_zoo: expected {zoo / REQUIREMENTS}, which names the packages that the models "
            f"need; there is none. If they need no others, make an empty one: touch "
            f"{zoo / REQUIREMENTS}"
        )
    ignored = zoo / ".dockerignore"
    patterns = ignored.read_text(encoding="utf-8").splitlines() if ignored.is_file() else []
    environments = {found.parent.relative_to(zoo) for found in zoo.rglob("*/pyvenv.cfg")}
    entries = []
    for name in sorted(exclude_paths(str(zoo), patterns)):
        path = zoo / name
        # Not as patterns: one with an exclamation mark would let files below them in again.
        if _NEVER & set(Path(name).parts) or path.suffix == _DATA:
            continue
        if environments & {Path(name), *Path(name).parents}:
            continue
        # Links become what they lead to, as in the copy that a trained model has.
        if path.is_file():
            executable = path.stat().st_mode & stat.S_IXUSR
            entries.append(Entry(Path(name).as_posix(), path, 0o755 if executable else 0o644))
    _refuse_large(zoo, entries)
    return entries


def _refuse_large(zoo: Path, entries: Sequence[Entry]) -> None:
    sizes = {each.name: os.path.getsize(each.source) for each in entries if each.source}
    total = sum(sizes.values())
    if total > _LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
        named = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        raise UserError(
            f"model_zoo: expected files of at most {_LARGEST >> 20} MB altogether; {zoo} has "
            f"{total / 1e6:.0f} MB. The largest are {named}. Keep data elsewhere, or name what is "
            "to stay out in .dockerignore."
        )


def package_entries() -> list[Entry]:
    """The files of this very elasticdl."""
    root = Path(__file__).resolve().parents[1]
    return [
        Entry(f"elasticdl/{path.relative_to(root).as_posix()}", path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def digest(entries: Iterable[Entry]) -> str:
    """Equal for equal names, modes and contents."""
    total = hashlib.sha256()
    for each in entries:
        content = hashlib.sha256(each.content).hexdigest()
        total.update(f"{each.name}\0{each.mode:o}\0{each.link}\0{content}\n".encode())
    return total.hexdigest()


def archive(entries: Iterable[Entry], prefix: str) -> bytes:
    """A tar file with the entries below `prefix`; equal for equal entries."""
    target = io.BytesIO()
    directories: set[str] = set()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for each in entries:
            name = f"{prefix}/{each.name}" if prefix else each.name
            for parent in reversed(Path(name).parents[:-1]):
                if parent.as_posix() not in directories:
                    directories.add(parent.as_posix())
                    about = tarfile.TarInfo(parent.as_posix())
                    about.type, about.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(about)
            about = tarfile.TarInfo(name)
            about.mode = each.mode
            if each.link:
                about.type, about.linkname = tarfile.SYMTYPE, each.link
                tar.addfile(about)
            else:
                content = each.content
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return target.getvalue()
