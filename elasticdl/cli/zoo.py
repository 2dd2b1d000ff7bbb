"""argv → a zoo: a working template, and images of it."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import typer

from elasticdl import config
from elasticdl.cli import display
from elasticdl.errors import UserError

INIT_EXAMPLES = """
Example:

  elasticdl zoo init my-zoo && cd my-zoo && python -m pytest
"""

BUILD_EXAMPLES = """
Examples:

  elasticdl zoo build my-zoo --image_repository=registry.example.com/me/elasticdl

  elasticdl zoo build --builtin
"""

PUSH_EXAMPLES = """
The reference that is printed is what --image takes, also where there is no Docker.

Example:

  elasticdl zoo push my-zoo --image_repository=registry.example.com/me/elasticdl
"""

# What the template's files are called in the package → in a zoo.
_FILES = {
    "wine.py.txt": "wine.py",
    "test_wine.py.txt": "test_wine.py",
    "requirements.txt.txt": "requirements.txt",
    "dockerignore.txt": ".dockerignore",
    "README.md.txt": "README.md",
}

app = typer.Typer(help="Begin a zoo, make and push its image.", no_args_is_help=True)

_ZOO = typer.Argument(None, metavar="ZOO", help="A directory, or the URL of a Git repository.")
_BUILTIN = typer.Option(False, "--builtin", help="The zoo that comes with elasticdl.")
_REPOSITORY = typer.Option(None, "--image_repository", help=config.BY_NAME["image_repository"].help)
_BASE = typer.Option(None, "--base_image", help=config.BY_NAME["base_image"].help)
_PLATFORM = typer.Option(None, "--platform", help="Of the image, e.g. linux/arm64.")


class Session(Protocol):
    """The part of `main.Session` that is used here."""

    @property
    def out(self) -> Any: ...
    @property
    def err(self) -> Any: ...
    @property
    def environ(self) -> Mapping[str, str]: ...


@app.command(epilog=INIT_EXAMPLES)
def init(
    ctx: typer.Context,
    directory: str = typer.Argument(..., metavar="DIRECTORY", help="It is made, or is empty."),
) -> None:
    """Begin a zoo: a model, a test that trains it, and what else belongs to it."""
    session: Session = ctx.obj
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"zoo: expected a directory that is empty or not there; {directory} has something in "
            "it. Choose another one."
        )
    template = resources.files("elasticdl.cli") / "template"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source, name in _FILES.items():
            content = (template / source).read_text(encoding="utf-8")
            (target / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"zoo: {directory}: {error.strerror or error}.") from error
    display.Lines(session.out).write(f"{directory}: {', '.join(_FILES.values())}")


@app.command(epilog=BUILD_EXAMPLES)
def build(
    ctx: typer.Context,
    zoo: str | None = _ZOO,
    builtin: bool = _BUILTIN,
    image_repository: str | None = _REPOSITORY,
    base_image: str | None = _BASE,
    platform: str | None = _PLATFORM,
) -> None:
    """Make the image of a zoo; print its name."""
    given = {
        "image_repository": image_repository,
        "base_image": base_image,
        "platform": platform,
    }
    display.Lines(ctx.obj.out).write(_made(ctx.obj, zoo, builtin, given, push=False))


@app.command(epilog=PUSH_EXAMPLES)
def push(
    ctx: typer.Context,
    zoo: str | None = _ZOO,
    builtin: bool = _BUILTIN,
    image_repository: str | None = _REPOSITORY,
    base_image: str | None = _BASE,
    platform: str | None = _PLATFORM,
) -> None:
    """Make the image of a zoo and push it, unless its registry has it; print its reference."""
    given = {
        "image_repository": image_repository,
        "base_image": base_image,
        "platform": platform,
    }
    display.Lines(ctx.obj.out).write(_made(ctx.obj, zoo, builtin, given, push=True))


def _made(
    session: Session, zoo: str | None, builtin: bool, given: Mapping[str, str | None], *, push: bool
) -> str:
    if builtin == (zoo is not None):
        raise UserError(
            f"zoo: expected a directory, the URL of a Git repository, or --builtin; got "
            f"{'both' if builtin else 'none of them'}."
        )
    # With it comes Docker's client, which other commands do without.
    from elasticdl.api import kubernetes

    everything = [setting.name for setting in config.SETTINGS]
    resolved = config.resolve("train", given, session.environ, optional=everything).config
    err = display.Lines(session.err)
    shown: set[str] = set()

    def progress(line: str) -> None:
        what = line.split(": ")[0]
        if what not in shown:
            shown.add(what)
            err.write(what[:1].upper() + what[1:])

    return kubernetes.zoo_image(zoo or "", resolved, progress, push=push)
