"""Calls into users' code: arguments by name, and exceptions that show the user's own frames."""

import contextlib
import difflib
import functools
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from elasticdl.errors import ElasticDLError, UserCodeError, UserError

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHIPPED_ZOO = os.path.join(PACKAGE, "zoo")
FRAMEWORKS = ("keras", "tensorflow", "tf_keras", "importlib", "contextlib")

_AUTOGRAPH = "in user code:"
_EMBEDDED_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>\S+)')
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What Keras and TensorFlow put around what was said: layers, graph nodes, operations.
_WRAPPING = re.compile(
    r"Exception encountered when calling .*?\(\)\.\s*|\{\{.*?\}\}\s*|\s*\[Op:\w+\]( name:[^\n]*)?"
)


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Turns exceptions raised inside into `UserCodeError`, with `what` in front of the message.

    Errors of this package pass unchanged.
    """
    try:
        yield
    except ElasticDLError:
        raise
    # What user code raises is not for us to choose, and a model file may call sys.exit().
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{what}: {headline(error)}", trace(error)) from error


def unrewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose errors of this package pass through a `tf.function` as they are.

    TensorFlow would replace them by errors of its own, with its frames in the message.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except ElasticDLError as error:
            error.ag_pass_through = True  # type: ignore[attr-defined]
            raise

    return called


def call(what: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """`function` with those of the `offered` arguments that it declares, by name.

    A function with `**kwargs` receives all of them.

    Raises:
        UserError: it requires an argument that is not offered.
        UserCodeError: it raised.
    """
    arguments = accepted(what, function, offered)
    with running(what):
        return function(**arguments)


def accepted(what: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the `offered` arguments that `function` declares, under its own names for them."""
    arguments: dict[str, Any] = {}
    for parameter in parameters(function):
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            taken = {ALIASES.get(used, used) for used in arguments}
            arguments.update({k: v for k, v in offered.items() if k not in taken})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif ALIASES.get(name, name) in offered and parameter.kind is not (
            parameter.POSITIONAL_ONLY
        ):
            arguments[name] = offered[ALIASES.get(name, name)]
        elif parameter.default is parameter.empty:
            raise UserError(
                f"{what}: expected parameters among {', '.join(offered)}; got one named {name!r} "
                "without a default. Arguments are passed by name: rename it."
            )
    return arguments


# Other names under which an argument may be declared: those of Keras.
ALIASES = {
    "y_true": "labels",
    "y_pred": "outputs",
    "weights": "sample_weight",
    "learning_rate": "lr",
}


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """What `function` declares; nothing where Python cannot tell."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return []


def declares(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter for the argument `name`; `**kwargs` does not count."""
    return any(
        ALIASES.get(parameter.name, parameter.name) == name
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        for parameter in parameters(function)
    )


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether `function` has `**kwargs`."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters(function))


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean …?` where one of `names` is like `name`; otherwise nothing."""
    names = list(names)
    folded = {candidate.lower(): candidate for candidate in names}
    like = difflib.get_close_matches(name.lower(), folded, n=1)
    return f" Did you mean {folded[like[0]]}?" if like else ""


def headline(error: BaseException) -> str:
    """The error in one line, as the last line of a traceback says it."""
    text = str(error)
    if text.startswith(_AUTOGRAPH):
        _, text = _embedded(text)
    else:
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    text = _WRAPPING.sub("", _COLOURS.sub("", text)).split("Arguments received by")[0]
    return " ".join(text.split())


def trace(error: BaseException) -> str:
    """The traceback with the user's own frames only; empty if there are none."""
    frames = list(traceback.extract_tb(error.__traceback__))
    last = "".join(traceback.format_exception_only(error))
    if str(error).startswith(_AUTOGRAPH):
        # Functions that TensorFlow rewrote have their frames in the message.
        embedded, last = _embedded(str(error))
        frames += embedded
        last += "\n"
    own = _without_repeats(frame for frame in frames if _is_users(frame.filename))
    if not own and not isinstance(error, SyntaxError):
        return ""
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)] if own else []
    return "".join([*lines, _COLOURS.sub("", last)])


def _without_repeats(
    frames: Iterable[traceback.FrameSummary],
) -> list[traceback.FrameSummary]:
    kept: list[traceback.FrameSummary] = []
    for frame in frames:
        place = (frame.filename, frame.lineno, frame.name)
        if not kept or place != (kept[-1].filename, kept[-1].lineno, kept[-1].name):
            kept.append(frame)
    return kept


def _embedded(text: str) -> tuple[list[traceback.FrameSummary], str]:
    """The frames in a message of AutoGraph, and what stands behind them."""
    frames = []
    rest: list[str] = []
    skip = False
    for line in text[len(_AUTOGRAPH) :].splitlines():
        found = _EMBEDDED_FRAME.match(line)
        if found:
            frames.append(traceback.FrameSummary(found["file"], int(found["line"]), found["name"]))
            rest = []
            skip = True
        elif skip:
            skip = False
        else:
            rest.append(line.strip())
    return frames, "\n".join(rest).strip()


def _is_users(filename: str) -> bool:
    if filename.startswith("<frozen") or "__autograph_generated_file" in filename:
        return False
    path = os.path.abspath(filename)
    if path.startswith(SHIPPED_ZOO + os.sep):
        return True
    return not any(path == root or path.startswith(root + os.sep) for root in _framework_roots())


def _framework_roots() -> Iterator[str]:
    yield PACKAGE
    for name in FRAMEWORKS:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None)
        if origin:
            is_package = os.path.basename(origin).startswith("__init__.")
            yield os.path.abspath(os.path.dirname(origin) if is_package else origin)


def module_exists(name: str) -> bool:
    """Whether Python finds a module or package of that top-level name, with a file of its own."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None
