"""Trains a Keras model with one command, on one process or on several that come and go."""

import importlib
from typing import TYPE_CHECKING, Any

from elasticdl.version import VERSION as __version__

if TYPE_CHECKING:
    from elasticdl.api import Job, evaluate, predict, train
    from elasticdl.errors import Cancelled, ElasticDLError, UserCodeError, UserError
    from elasticdl.model.mode import Mode
    from elasticdl.model.spec import ElasticDLSpec
    from elasticdl.model.trained import load

__all__ = [
    "Cancelled",
    "ElasticDLError",
    "ElasticDLSpec",
    "Job",
    "Mode",
    "UserCodeError",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "predict",
    "train",
]

# Imported when first used: `import elasticdl` stays fast, and without TensorFlow.
_HOMES = {
    "Cancelled": "elasticdl.errors",
    "ElasticDLError": "elasticdl.errors",
    "ElasticDLSpec": "elasticdl.model.spec",
    "Job": "elasticdl.api",
    "Mode": "elasticdl.model.mode",
    "UserCodeError": "elasticdl.errors",
    "UserError": "elasticdl.errors",
    "evaluate": "elasticdl.api",
    "load": "elasticdl.model.trained",
    "predict": "elasticdl.api",
    "train": "elasticdl.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
