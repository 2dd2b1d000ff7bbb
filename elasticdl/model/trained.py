"""A trained model as a Keras model, in any Python process."""

import os
from typing import Any

from elasticdl.model import artifact, spec


def load(path: str | os.PathLike[str]) -> Any:
    """The `keras.Model` of a trained model, with its weights.

    Args:
        path: the output of `elasticdl train`.

    Raises:
        UserError: there is no complete trained model.
        UserCodeError: the model's own code raised.
    """
    definition = spec.load(artifact.source_of(path))
    artifact.restore(definition, path)
    return definition.model
