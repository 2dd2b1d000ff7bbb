"""A zoo → an image in a registry, with the zoo, what it requires, and this very elasticdl."""

import base64
import contextlib
import hashlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
from docker.utils.socket import frames_iter

from elasticdl.cluster import context, manifests
from elasticdl.errors import UserCodeError, UserError

BUILTIN = Path(__file__).resolve().parents[1] / "zoo"  # that comes with elasticdl

_SCHEME = "docker-pullable://"
_CONTENT_LABEL = "org.elasticdl.content"  # of the elasticdl in an image
_STEP_LABEL = "org.elasticdl.step"
_CACHE = "elasticdl-cache"
_SECRETS = "/run/elasticdl"  # in memory: of no layer
_USER = "1000:1000"
_ENVIRONMENT = {
    "HOME": "/tmp",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/elasticdl",
}
# By which NVIDIA's container runtime knows what to put in; CUDA itself comes with the packages.
_GPU = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
# Settings of pip that say where packages come from; those in files of the client, too.
_INDEX = ("index-url", "extra-index-url", "trusted-host", "proxy")
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_LAST_LINES = 200


@dataclass(frozen=True)
class Built:
    """An image in its registry.

    Args:
        tag: REPOSITORY:TAG.
        reference: REPOSITORY@sha256:…, which always means this image.
        fresh: whether anything was built; otherwise the registry had it.
    """

    tag: str
    reference: str
    fresh: bool


@dataclass(frozen=True)
class Options:
    """How images are made.

    Args:
        repository: that they are pushed to.
        base_image: with Python; empty: the official one of this Python's version.
        platform: such as linux/arm64; empty: the engine's.
        progress: is told what is done, a line at a time.
        gpu: whether workers train on NVIDIA's GPUs.
    """

    repository: str
    base_image: str = ""
    platform: str = ""
    progress: Callable[[str], None] = field(default=lambda line: None, compare=False)
    gpu: bool = False


# ---- names ------------------------------------------------------------------------------------


def pullable(reference: str) -> str:
    """What trained models name the image by; empty where `reference` has no digest."""
    return _SCHEME + reference if "@sha256:" in reference else ""


def reference(docker_commit_id: str) -> str:
    """REPOSITORY@sha256:…, of what a trained model has."""
    return docker_commit_id.removeprefix(_SCHEME)


def required_repository(given: str) -> str:
    """Raises UserError: none is given, or it is none."""
    if not given:
        raise UserError(
            "image_repository: expected the repository that images are pushed to, e.g. "
            "registry.example.com/me/elasticdl; got none. Set it once and for all with a line "
            'image_repository = "…" in ~/.config/elasticdl/config.toml, or give '
            "--image_repository; --image names a prebuilt image."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", given):
        raise UserError(
            "image_repository: expected a name such as registry.example.com/me/elasticdl, in small "
            f"letters and without a tag; got {given!r}."
        )
    return given


def default_base_image() -> str:
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"


# ---- what goes into an image --------------------------------------------------------------------


def requirements(extra: str = "worker") -> list[str]:
    """What elasticdl and its workers need: as it is installed here, or, what is not, as elasticdl
    asks for it. Of TensorFlow the minor version decides.

    Args:
        extra: of elasticdl; worker or gpu.
    """
    found = []
    for text in importlib.metadata.requires("elasticdl") or ():
        requirement, _, marker = text.partition(";")
        if marker.strip() and not re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker):
            continue
        name = re.split(r"[^\w.-]", requirement.strip())[0]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(requirement.strip())
            continue
        if name.startswith("tensorflow"):
            version = f"{'.'.join(version.split('.')[:2])}.*"
        extras = re.match(r"[\w.-]+(\[[^\]]*\])?", requirement.strip())
        found.append(f"{name}{(extras and extras[1]) or ''}=={version.partition('+')[0]}")
    return sorted(found)


def secrets(environ: Mapping[str, str], pip_settings: Mapping[str, str]) -> dict[str, str]:
    """The environment by which pip finds packages as it does on this machine.

    Args:
        pip_settings: of its files, by their names there.

    Places that are files of this machine are left out: they are not there where images are made.
    """
    found = {}
    for name in _INDEX:
        variable = f"PIP_{name.upper().replace('-', '_')}"
        value = environ.get(variable) or pip_settings.get(name, "")
        places = [each for each in value.split() if not each.startswith(("file:", "/"))]
        if places:
            found[variable] = " ".join(places)
    return found


def certificates(environ: Mapping[str, str], pip_settings: Mapping[str, str]) -> bytes:
    """The authorities that this machine's pip believes besides the usual ones; empty: none."""
    for path in (*(environ.get(name) for name in _CERTIFICATES), pip_settings.get("cert")):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    return b""


def _pip_settings() -> dict[str, str]:
    """What pip's files and environment say on this machine, by the settings' names."""
    import subprocess

    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'\"")
    return found


@dataclass(frozen=True)
class Step:
    """One layer: files are put in, a command is run.

    Args:
        says: what it does, for who waits.
        entries: below `prefix`.
        command: of a shell; empty: none.
        key: what else decides what comes out.
    """

    says: str
    entries: tuple[context.Entry, ...] = ()
    prefix: str = ""
    command: str = ""
    key: str = ""

    @property
    def content(self) -> str:
        text = f"{context.digest(self.entries)} {self.prefix} {self.command} {self.key}"
        return hashlib.sha256(text.encode()).hexdigest()


def steps(zoo: Sequence[context.Entry] | None, *, gpu: bool = False) -> list[Step]:
    """How an image is made of a base image; what changes most often comes last.

    Args:
        zoo: its entries; None: the image gets none.
        gpu: whether workers train on NVIDIA's GPUs.
    """
    names = " ".join(f"'{each}'" for each in requirements("gpu" if gpu else "worker"))
    found = [
        Step(
            "installing what elasticdl needs (this takes minutes, once)",
            command=f"pip install --no-cache-dir {names}",
        )
    ]
    if zoo is not None:
        needed = tuple(each for each in zoo if each.name == context.REQUIREMENTS)
        if any(each.content.strip() for each in needed):
            found.append(
                Step(
                    "installing what the zoo requires",
                    needed,
                    "model_zoo",
                    "pip install --no-cache-dir -r /model_zoo/requirements.txt",
                )
            )
    found.append(package_step())
    if zoo is not None:
        entries = list(zoo)
        if not any(each.name.split("/")[0] == "custom" for each in zoo):
            # Models name it by both paths.
            entries.append(context.Entry("custom", None, 0o777, "."))
        found.append(Step("adding the zoo", tuple(entries), manifests.MODEL_ZOO.strip("/")))
    return found


def package_step() -> Step:
    return Step(
        "adding elasticdl",
        tuple(context.package_entries()),
        "elasticdl",
        "python -m compileall -q /elasticdl",
    )


# ---- making them --------------------------------------------------------------------------------


def build(zoo: Path | None, options: Options, *, push: bool = True) -> Built:
    """Makes the image of a zoo and pushes it, unless its registry has it.

    Args:
        zoo: directory; None: without one.
        push: False: it stays here, and has no reference.

    Raises:
        UserError
    """
    entries = None if zoo is None else context.zoo_entries(zoo)
    base = options.base_image or default_base_image()
    return _made(base, steps(entries, gpu=options.gpu), options, check_python=True, push=push)


def derived(docker_commit_id: str, options: Options) -> str:
    """The image of a trained model with this very elasticdl, as a reference: the one that the model
    names, where that has it, or where there is no Docker here.

    Raises:
        UserError
    """
    original = reference(docker_commit_id)
    try:
        with _engine() as engine:
            options.progress(f"pulling {original}")
            _pull(engine, original, options.platform)
            labels = engine.images.get(original).labels or {}
    except NoDocker:
        return original
    if labels.get(_CONTENT_LABEL) == context.digest(context.package_entries()):
        return original
    return _made(original, [package_step()], options, check_python=False).reference


class NoDocker(UserError):
    """There is no Docker engine to be reached."""


def _made(
    base: str,
    steps: Sequence[Step],
    options: Options,
    *,
    check_python: bool,
    push: bool = True,
) -> Built:
    repository = required_repository(options.repository)
    with _engine() as engine:
        _pull(engine, base, options.platform, unless_there=True)
        parent = engine.images.get(base)
        key = f"{parent.id} {options.platform}"
        keys = [
            key := hashlib.sha256(f"{key} {each.content}".encode()).hexdigest() for each in steps
        ]
        tag = f"{repository}:{keys[-1][:20]}"
        there = _registered(engine, tag) if push else ""
        if there:
            return Built(tag, f"{repository}@{there}", fresh=False)
        if check_python:
            _check_python(engine, base)
        for step, key in zip(steps, keys, strict=True):
            parent = _stepped(engine, parent, step, key, options)
        parent.tag(tag)
        if not push:
            return Built(tag, "", fresh=True)
        _push(engine, tag, options.progress)
        return Built(tag, f"{repository}@{_registered(engine, tag)}", fresh=True)


@contextlib.contextmanager
def _engine() -> Iterator[Any]:
    """Raises NoDocker, UserError."""
    try:
        client = docker.from_env(timeout=3600)
        client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        where = os.environ.get("DOCKER_HOST", "the default socket")
        reason = str(error).split("\n")[0]
        raise NoDocker(
            f"docker: expected a running Docker engine at {where}; got: {reason}. Start it, or "
            "name a prebuilt image with --image."
        ) from error
    with contextlib.closing(client):
        try:
            yield client
        except docker.errors.APIError as error:
            raise UserError(f"docker: {error.explanation or error}.") from error


def _pull(engine: Any, name: str, platform: str, *, unless_there: bool = False) -> None:
    if unless_there:
        with contextlib.suppress(docker.errors.ImageNotFound):
            if _serves(engine.images.get(name), platform):
                return
    try:
        if "@" in name:
            engine.images.pull(name, platform=platform or None)
        else:
            repository, tag = _split(name)
            engine.images.pull(repository, tag=tag, platform=platform or None)
    except docker.errors.APIError as error:
        raise UserError(
            f"base_image: {name} cannot be pulled: {error.explanation or error}. Name another one "
            "with --base_image, or log in with `docker login`."
        ) from error
    there = engine.images.get(name)
    if not _serves(there, platform):
        found = f"{there.attrs['Os']}/{there.attrs['Architecture']}"
        raise UserError(
            f"platform: expected an image for {platform}; {name} is for {found}. Choose another "
            "--base_image, or --platform."
        )


def _serves(there: Any, platform: str) -> bool:
    """Whether an image is for a platform, as far as its name goes: a variant may follow."""
    found = (there.attrs["Os"], there.attrs["Architecture"])
    return not platform or tuple(platform.split("/")[:2]) == found


def _split(name: str) -> tuple[str, str]:
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


def _check_python(engine: Any, base: str) -> None:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        said = engine.containers.run(base, ["python", "-c", program], remove=True, user="root")
    except docker.errors.DockerException as error:
        raise UserError(
            f"base_image: expected an image with python; {base} has none that runs."
        ) from error
    found = said.decode().strip()
    if found != own:
        raise UserError(
            f"base_image: expected one with Python {own}, which runs here; {base} has {found}. "
            "Choose another --base_image, or run elasticdl with that version."
        )


def _registered(engine: Any, tag: str) -> str:
    """The digest under which the registry has the image; empty: it has none."""
    try:
        return str(engine.images.get_registry_data(tag).id)
    except docker.errors.NotFound:
        return ""
    except docker.errors.APIError as error:
        text = str(error.explanation or error)
        if _denied(text) or error.status_code in (401, 403):
            # A repository that does not exist yet looks the same to some registries.
            return ""
        raise UserError(
            f"image_repository: {tag.rpartition(':')[0]} cannot be reached: {text}."
        ) from error


def _stepped(engine: Any, parent: Any, step: Step, key: str, options: Options) -> Any:
    """The image after this step; one that was made before is used again."""
    cached = f"{_CACHE}:{key[:40]}"
    with contextlib.suppress(docker.errors.ImageNotFound):
        return engine.images.get(cached)
    options.progress(step.says)
    container = engine.containers.create(
        parent.id,
        command=["sleep", "infinity"],
        user="root",
        tmpfs={_SECRETS: ""},
        platform=options.platform or None,
    )
    try:
        container.start()
        if step.entries:
            container.put_archive("/", context.archive(step.entries, step.prefix))
        if step.command:
            _execute(container, step, options.progress)
        labels = {_STEP_LABEL: key}
        if step.prefix == "elasticdl":
            labels[_CONTENT_LABEL] = context.digest(step.entries)
        made = container.commit(
            conf={
                "Env": [
                    *_kept_environment(parent),
                    *(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
                    *(f"{name}={value}" for name, value in _GPU.items() if options.gpu),
                ],
                "User": _USER,
                "Cmd": ["python"],
                "Labels": {**(parent.labels or {}), **labels},
            }
        )
        made.tag(*cached.split(":"))
        return made
    finally:
        container.remove(force=True)


def _kept_environment(image: Any) -> list[str]:
    given = image.attrs["Config"].get("Env") or []
    return [each for each in given if each.partition("=")[0] not in _ENVIRONMENT | _GPU]


def _execute(container: Any, step: Step, progress: Callable[[str], None]) -> None:
    """Runs the step's command. What pip must know to find packages is given to this one process,
    in its environment and in memory: BuildKit's secrets would do the same where there is BuildKit.
    """
    settings = _pip_settings()
    environment = secrets(os.environ, settings)
    command = step.command
    authorities = certificates(os.environ, settings)
    if authorities and step.command.startswith("pip"):
        # By way of files: an environment is limited in length.
        path = f"{_SECRETS}/ca.crt"
        encoded = base64.b64encode(authorities).decode()
        for begin in range(0, len(encoded), 60_000):
            piece = encoded[begin : begin + 60_000]
            container.exec_run(["sh", "-c", f"printf %s '{piece}' >> {path}.b64"])
        container.exec_run(["sh", "-c", f"base64 -d < {path}.b64 > {path}"])
        environment["PIP_CERT"] = path
    engine = container.client.api
    run = engine.exec_create(
        container.id,
        ["sh", "-c", command],
        environment={**environment, "PIP_ROOT_USER_ACTION": "ignore"},
        user="root",
    )
    lines: list[str] = []
    stream = engine.exec_start(run["Id"], socket=True)
    with contextlib.closing(stream), contextlib.closing(stream._response):
        for _, piece in frames_iter(stream, tty=False):  # type: ignore[no-untyped-call]
            for line in piece.decode(errors="replace").splitlines():
                lines.append(line)
                if line.strip():
                    progress(f"{step.says}: {line.strip()[:100]}")
    status = engine.exec_inspect(run["Id"])["ExitCode"]
    if status:
        last = next((line for line in reversed(lines) if "ERROR" in line), (lines or [""])[-1])
        raise UserCodeError(
            f"image: {step.says} failed with status {status}: {last.strip()}",
            "\n".join(lines[-_LAST_LINES:]),
        )


def _push(engine: Any, tag: str, progress: Callable[[str], None]) -> None:
    repository, name = _split(tag)
    progress(f"pushing {tag}")
    for said in engine.images.push(repository, tag=name, stream=True, decode=True):
        problem = said.get("error")
        if problem:
            hint = (
                "Log in with `docker login`, or ask for the right to push."
                if _denied(problem)
                else ("Is the registry up?")
            )
            raise UserError(
                f"image_repository: expected to push to {repository}; got: {problem.strip()}. "
                f"{hint}"
            )
        if said.get("status") == "Pushing" and said.get("progress"):
            progress(f"pushing {tag}: {said['progress'][:60]}")


def _denied(text: str) -> bool:
    return any(
        word in text.lower() for word in ("denied", "unauthorized", "authentication", "forbidden")
    )
