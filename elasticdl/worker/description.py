"""What a model and its data look like to each other: shapes, before any job."""

from typing import Any

import tensorflow as tf

from elasticdl.config import JobConfig
from elasticdl.core import streams
from elasticdl.data import pipeline, sources
from elasticdl.model import mode as modes
from elasticdl.model import source as model_sources
from elasticdl.model import spec
from elasticdl.worker import loop, replica, session


def describe(config: JobConfig) -> str:
    """Builds the model, takes a batch, and computes its loss, gradients and metrics once.

    Raises:
        UserError, UserCodeError
    """
    session.configure(config, threads=1, worker="worker-0")
    files = sources.files(config.data)
    records = sources.record_counts(files)
    sources.require_records(config.data, records)
    definition = spec.load(model_sources.ModelSource.from_config(config), None)
    plan = streams.Plan(
        records,
        slice_records=streams.slice_records(sum(records), config.streams, config.slice_records),
        streams=config.streams,
        seed=config.seed,
    )
    opener = pipeline.Opener(
        files,
        lambda dataset: definition.create_dataset(dataset, modes.Mode.TRAINING),
        config.seed,
    )
    sample = session.sample_of(loop.DataSet(plan, opener))
    copy = replica.Replica(definition, sample, seed=config.seed, reproducible=config.reproducible)
    copy.prepare_training()
    features, labels, weights = definition.unpack(sample.element, modes.Mode.TRAINING)
    outputs = definition.model(features, training=False)
    trained = sum(variable.shape.num_elements() or 0 for variable in copy.model.trainable_variables)
    rest = sum(
        variable.shape.num_elements() or 0 for variable in copy.model.non_trainable_variables
    )
    lines = [
        f"records    {sum(records):,} in {len(files):,} file{'s' if len(files) > 1 else ''}, "
        f"{plan.slices:,} slices of up to {plan.slice_records:,}",
        f"features   {_shapes(features)}",
        f"labels     {_shapes(labels)}",
        *([f"weights    {_shapes(weights)}"] if weights is not None else []),
        f"outputs    {_shapes(outputs)}",
        f"model      {type(definition.model).__name__} {definition.model.name}: "
        f"{trained:,} trainable numbers, {rest:,} others",
        f"optimizer  {type(definition.optimizer).__name__}, learning rate {copy.learning_rate():g}",
        f"metrics    {', '.join(['loss', *copy.layout.metrics])}",
        *(f"note       {notice}" for notice in definition.notices),
    ]
    return "\n".join(lines)


def _shapes(structure: Any) -> str:
    """Types and shapes with the batch's dimension left open."""

    def shape(leaf: Any) -> str:
        dimensions = ["batch", *(str(d) for d in leaf.shape[1:])]
        return f"{leaf.dtype.name if hasattr(leaf.dtype, 'name') else leaf.dtype}" + (
            f"[{', '.join(dimensions)}]"
        )

    if structure is None:
        return "none"
    return str(tf.nest.map_structure(shape, structure)).replace("'", "")
