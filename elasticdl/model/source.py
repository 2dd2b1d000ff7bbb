"""Where a model comes from: a zoo, names in it, and parameters."""

from dataclasses import dataclass, field
from typing import Any

from elasticdl.config import JobConfig


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Args:
        zoo: directory; empty for the zoo that comes with elasticdl.
        model_def: dotted name in the zoo.
        input_fn: dotted name in the zoo; empty for the model's own.
        loss: dotted name in the zoo, or a name of Keras; empty for the model's own.
        optimizer: the same.
        params: arguments of the model.
    """

    zoo: str
    model_def: str
    input_fn: str = ""
    loss: str = ""
    optimizer: str = ""
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: JobConfig) -> "ModelSource":
        return cls(
            zoo=config.model_zoo,
            model_def=config.model_def,
            input_fn=config.input_fn,
            loss=config.loss,
            optimizer=config.optimizer,
            params=config.model_params,
        )
