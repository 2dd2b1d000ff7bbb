"""The contract between users' models and a job: what a model consists of, and its forms."""

import abc
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elasticdl import config as configs
from elasticdl.errors import UserError
from elasticdl.model import usercode, zoo
from elasticdl.model.mode import Mode
from elasticdl.model.source import ModelSource

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from elasticdl.model import losses, metrics, names, saving

__all__ = ["Definition", "ElasticDLSpec", "Mode", "ModelSource", "load"]

FORMS = (
    "an elasticdl.ElasticDLSpec subclass, a keras.Model subclass, or a function that returns a "
    "keras.Model"
)
RATES = ("learning_rate", "lr")


class ElasticDLSpec(abc.ABC):
    """What a job needs to know of a model; users derive from it.

    Methods may declare fewer of the arguments; they are passed by name. A parameter
    `sample_weight` of `create_loss` and `create_metrics` receives the dataset's sample weights.

    Args:
        context: `worker_id`, `master_ip`, `mode` and `job_name`; None outside a job.
        params: the job's `params`; a subclass names those that it has.
    """

    def __init__(self, context: dict[str, Any] | None = None, **params: Any) -> None:
        self._context = context
        self._params = params

    @abc.abstractmethod
    def create_model(self) -> Any:
        """A `keras.Model`: functional, sequential or subclassed."""

    @abc.abstractmethod
    def create_optimizer(self, lr: float = 0.1) -> Any:
        """A Keras optimizer, or one of tf.compat.v1.train."""

    @abc.abstractmethod
    def create_loss(self, outputs: Any = None, labels: Any = None) -> Any:
        """One loss an element, of shape [batch], or the mean over the batch, a scalar."""

    @abc.abstractmethod
    def create_dataset(self, dataset: Any, mode: Mode) -> Any:
        """A `tf.data.Dataset` of (features, labels) from a `tf.data.Dataset` of records.

        Elements may have sample weights third; in `Mode.PREDICTION` they are features alone.
        """

    def create_metrics(
        self,
        mode: Mode = Mode.TRAINING,
        outputs: Any = None,
        labels: Any = None,
        predictions: Any = None,
    ) -> dict[str, Any]:
        """Scalar tensors, averaged over elements, or Keras metrics, by name.

        `predictions` are the outputs with `training=False`, for methods that declare them.
        """
        del mode, outputs, labels, predictions
        return {}


@dataclass(frozen=True)
class _Part:
    """What the user gave for one purpose, and how messages name it."""

    what: str
    given: Any


@dataclass(frozen=True)
class _Parts:
    """A user's model in the one form that the rest of this package knows."""

    model: Any
    dataset: _Part
    loss: _Part
    optimizer: _Part
    metrics: Sequence["metrics.Metrics"]
    learning_rate: float | None
    loss_weights: Any = None


class Definition:
    """A loaded model with everything that a job does with it.

    Args:
        model: a `keras.Model`, which may be unbuilt.
        optimizer: a Keras optimizer, or one of tf.compat.v1.train.
        notices: messages for the user, once each; may grow in `create_dataset`.
        layer_names: the scope in which the model's layers get their names, to be built in.
    """

    def __init__(
        self,
        name: str,
        parts: _Parts,
        optimizer: Any,
        loss: "losses.Loss",
        layer_names: "names.Scope",
    ) -> None:
        import tensorflow as tf

        self.name = name
        self.model = parts.model
        self.optimizer = optimizer
        self.notices: list[str] = []
        self._dataset = parts.dataset
        self._metrics = parts.metrics
        self.layer_names = layer_names
        # AutoGraph has nothing to rewrite here, and would put its frames into users' tracebacks.
        unconverted = tf.autograph.experimental.do_not_convert
        self.loss: Callable[..., Any] = unconverted(usercode.unrewritten(loss.__call__))
        self.metric_states: Callable[..., dict[str, tuple[Any, ...]]] = unconverted(
            usercode.unrewritten(self._metric_states)
        )

    def create_dataset(self, records: Any, mode: Mode) -> Any:
        """The user's dataset over `records`, as single elements in a fixed order.

        Args:
            records: a `tf.data.Dataset` of scalar strings.

        Raises:
            UserError: the user's function returns something else, or what does not fit the model.
        """
        from elasticdl.model import datasets

        offered = {"dataset": records, "mode": mode}
        made = usercode.call(self._dataset.what, self._dataset.given, offered)
        dataset, had_batches = datasets.checked(self._dataset.what, made, mode, self.model)
        if had_batches:
            self._notice(
                f"{self._dataset.what}: its batches are taken apart again; --batch_size says how "
                "many elements a step has."
            )
        return dataset

    def unpack(self, element: Any, mode: Mode) -> tuple[Any, Any, Any]:
        """Features, labels and sample weights; None where absent, features only in prediction.

        Args:
            element: an element of the dataset, a batch of them, or their element_spec.
        """
        from elasticdl.model import datasets

        return datasets.unpack(element, mode, self.model)

    def inputs(self, sample_spec: Any) -> str:
        """JSON of names, shapes and dtypes of the model's inputs, for `build`.

        Args:
            sample_spec: type specs of a batch of training elements of any size.
        """
        from elasticdl.model import datasets, elements

        features = self.unpack(sample_spec, Mode.TRAINING)[0]
        names = datasets.input_names(self.model) or ["inputs"]
        return elements.to_json(elements.named(features, names))

    def build(self, inputs: str) -> None:
        """Creates the model's variables, under the same names in every process.

        Args:
            inputs: what `inputs` gave.
        """
        from elasticdl.model import elements

        if not (self.model.built and self.model.weights):
            given = elements.from_json(inputs)
            with (
                self.layer_names,
                usercode.running(f"model {self.name}, called with {elements.shown(given)}"),
                warnings.catch_warnings(),
            ):
                # Keras warns where it cannot build layers ahead of the call; the call does.
                warnings.filterwarnings("ignore", message=".*unbuilt state", category=UserWarning)
                self.model(elements.to_build_with(given), training=False)

    def values(self) -> dict[str, "np.ndarray[Any, Any]"]:
        """The model's variables, trainable and not, by their names in a trained model."""
        from elasticdl.model import saving

        return saving.values(self.model)

    def assign(self, values: dict[str, "np.ndarray[Any, Any]"], where: str) -> None:
        """Gives the variables of the built model their values.

        Args:
            where: what messages call the place that the values come from.

        Raises:
            UserError: names, shapes or dtypes differ; nothing is assigned.
        """
        from elasticdl.model import saving

        saving.assign(self.model, values, where)

    def export(self, saved_model: "Path", keras_file: "Path", inputs: str) -> "saving.Exported":
        """Writes the model as a SavedModel and a Keras file, as far as it can be written."""
        from elasticdl.model import elements, saving

        return saving.export(self.model, saved_model, keras_file, elements.from_json(inputs))

    @property
    def wants_predictions(self) -> bool:
        """Whether the metrics ask for the outputs with `training=False`."""
        return any(metrics.wants_predictions for metrics in self._metrics)

    def _metric_states(
        self,
        mode: Mode,
        outputs: Any,
        labels: Any,
        predictions: Any,
        weights: Any,
        count: Any,
    ) -> dict[str, tuple[Any, ...]]:
        """The metrics' states of this batch: float32 tensors that add up over batches, by name."""
        found: dict[str, tuple[Any, ...]] = {}
        for some in self._metrics:
            found.update(some.states(mode, outputs, labels, predictions, weights, count))
        return found

    def metric_values(
        self, mode: Mode, sums: Mapping[str, Sequence["np.ndarray[Any, Any]"]]
    ) -> dict[str, float | list[float]]:
        """The metrics that summed states come to, where `metric_states` was called before."""
        values: dict[str, float | list[float]] = {}
        for some in self._metrics:
            values.update(
                some.values(mode, {name: sums[name] for name in sums if some.has(mode, name)})
            )
        return values

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)


def load(source: ModelSource, context: dict[str, Any] | None = None) -> Definition:
    """The model that `source` names, made anew: its layers have the names of a fresh process.

    Args:
        context: passed to constructors that take it; None outside a job.

    Raises:
        UserError: something is missing, unknown or of another form than the contract has.
        UserCodeError: the user's code raised.
    """
    from elasticdl.model import losses, names, optimizers

    files = zoo.Zoo(source.zoo)
    layer_names = names.Scope()
    with layer_names:
        parts = _parts(files, source, context)
        given = parts.optimizer.given
        if isinstance(given, str) and "." in given:
            given = files.load(given)
        optimizer = optimizers.made(parts.optimizer.what, given, parts.learning_rate)
        loss = losses.Loss(
            parts.loss.what,
            parts.loss.given,
            output_names=_output_names(parts.model),
            output_weights=parts.loss_weights,
        )
    definition = Definition(
        source.model_def,
        parts,
        optimizers.loss_scaled(optimizer, parts.model),
        loss,
        layer_names,
    )
    if _overrides_training(parts.model):
        definition._notice(
            f"{source.model_def}: its train_step is not used; the loss, optimizer and metrics are."
        )
    return definition


def _parts(files: zoo.Zoo, source: ModelSource, context: dict[str, Any] | None) -> _Parts:
    import keras

    found = files.load(source.model_def)
    if inspect.isclass(found) and issubclass(found, ElasticDLSpec):
        return _parts_of_spec(files, source, found, context)
    if inspect.isclass(found) and issubclass(found, keras.Model):
        return _parts_of_model(files, source, found, context)
    if callable(found) and not inspect.isclass(found) and not isinstance(found, keras.Model):
        return _parts_of_model(files, source, found, context)
    hint = " Derive it from elasticdl.ElasticDLSpec." if hasattr(found, "create_model") else ""
    raise UserError(f"{source.model_def}: expected {FORMS}; got {_kind(found)}.{hint}")


def _parts_of_spec(
    files: zoo.Zoo, source: ModelSource, kind: type[ElasticDLSpec], context: dict[str, Any] | None
) -> _Parts:
    from elasticdl.model import metrics

    name = source.model_def
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise UserError(
            f"{name}: expected an ElasticDLSpec with create_model, create_optimizer, create_loss "
            f"and create_dataset; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Define it."
        )
    spec, learning_rate = _constructed(name, kind, source.params, context)
    model = _checked_model(
        f"create_model of {name}", usercode.call(f"create_model of {name}", spec.create_model, {})
    )
    own_metrics = (
        None if kind.create_metrics is ElasticDLSpec.create_metrics else spec.create_metrics
    )
    return _Parts(
        model=model,
        dataset=_overridden(files, "input_fn", source.input_fn)
        or _Part(f"create_dataset of {name}", spec.create_dataset),
        loss=_overridden(files, "loss", source.loss)
        or _Part(f"create_loss of {name}", spec.create_loss),
        optimizer=_overridden(files, "optimizer", source.optimizer)
        or _Part(f"create_optimizer of {name}", spec.create_optimizer),
        metrics=[metrics.Metrics(f"create_metrics of {name}", own_metrics)],
        learning_rate=learning_rate,
    )


def _parts_of_model(
    files: zoo.Zoo,
    source: ModelSource,
    maker: Callable[..., Any],
    context: dict[str, Any] | None,
) -> _Parts:
    name = source.model_def
    made, learning_rate = _constructed(name, maker, source.params, context)
    model = _checked_model(name, made)
    compiled = bool(getattr(model, "compiled", False))

    def default(purpose: str, offered: Sequence[str]) -> _Part | None:
        given = _default(maker, model, f"default_{purpose}", offered)
        if given is None:
            return None
        if isinstance(given, str) and "." in given:
            given = files.load(given)
        return _Part(f"default_{purpose} of {name}", given)

    dataset = _overridden(files, "input_fn", source.input_fn) or default(
        "input", ("dataset", "mode")
    )
    if dataset is None or not callable(dataset.given):
        got = "none" if dataset is None else f"{dataset.given!r}"
        raise UserError(
            f"{name}: expected an input function (dataset, mode); got {got}. Define "
            "default_input, or give --input_fn=module.name."
        )
    loss = _overridden(files, "loss", source.loss) or default("loss", ("outputs", "labels"))
    loss_weights = None
    if loss is None and compiled and model.loss is not None:
        loss = _Part(f"compiled loss of {name}", model.loss)
        loss_weights = model._compile_loss._user_loss_weights
    if loss is None:
        raise UserError(
            f"{name}: expected a loss; got none. Define default_loss, compile the model with one, "
            "or give --loss, for example --loss=mse."
        )
    optimizer = _overridden(files, "optimizer", source.optimizer) or default("optimizer", ("lr",))
    if optimizer is None and compiled and model.optimizer is not None:
        optimizer = _Part(f"compiled optimizer of {name}", _unwrapped(model.optimizer))
    if optimizer is None:
        raise UserError(
            f"{name}: expected an optimizer; got none. Define default_optimizer, compile the model "
            "with one, or give --optimizer, for example --optimizer=adam."
        )
    return _Parts(
        model=model,
        dataset=dataset,
        loss=loss,
        optimizer=optimizer,
        metrics=_model_metrics(
            name, model, default("metrics", ("mode", "outputs", "labels", "predictions"))
        ),
        learning_rate=learning_rate,
        loss_weights=loss_weights,
    )


def _model_metrics(name: str, model: Any, part: _Part | None) -> list["metrics.Metrics"]:
    from elasticdl.model import metrics

    outputs = _output_names(model)
    if part is not None:
        return [metrics.Metrics(part.what, part.given, output_names=outputs, as_compiled=True)]
    compiled = getattr(model, "_compile_metrics", None)
    if compiled is None:
        return []
    return [
        metrics.Metrics(
            f"compiled metrics of {name}",
            given,
            output_names=outputs,
            as_compiled=True,
            weighted=weighted,
        )
        for given, weighted in (
            (compiled._user_metrics, False),
            (compiled._user_weighted_metrics, True),
        )
        if given is not None
    ]


def _overridden(files: zoo.Zoo, flag: str, name: str) -> _Part | None:
    """What a flag names: an object in the zoo, or a name of Keras as it is."""
    if not name:
        return None
    if "." in name or flag == "input_fn":
        return _Part(f"{flag} {name}", files.load(name))
    return _Part(f"--{flag}={name}", name)


def _default(maker: Any, model: Any, name: str, offered: Sequence[str]) -> Any:
    """The attribute `name` of a model, its class, or the function that made it; None if absent."""
    if not inspect.isclass(maker) and hasattr(maker, name):
        return getattr(maker, name)
    raw = inspect.getattr_static(type(model), name, None)
    if inspect.isfunction(raw) and name not in vars(model):
        first = next(iter(usercode.parameters(raw)), None)
        # A function of Keras or of the user that was put into the class, not written as a method.
        if first is not None and (usercode.ALIASES.get(first.name, first.name) in offered):
            return raw
    return getattr(model, name, None)


def _constructed(
    name: str,
    maker: Callable[..., Any],
    params: Mapping[str, Any],
    context: dict[str, Any] | None,
) -> tuple[Any, float | None]:
    """What `maker` makes of the params, and the learning rate if it is none of its own."""
    is_spec = inspect.isclass(maker) and issubclass(maker, ElasticDLSpec)
    declared = _constructor_parameters(maker)
    named = [
        parameter.name
        for parameter in declared
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in declared)
    arguments = dict(params)
    rates = {rate: arguments.pop(rate) for rate in RATES if rate in params and rate not in named}
    if len(rates) > 1:
        raise UserError("params: expected learning_rate or lr; got both. Leave one out.")
    known = [parameter for parameter in named if parameter != "context"]
    for unknown in arguments:
        if unknown == "context" or (unknown not in known and not takes_any):
            there = [*known, *(rate for rate in RATES[:1] if rate not in known)]
            raise UserError(
                f"params: {name} has no parameter {unknown!r}; it has {', '.join(there)}."
                f"{usercode.nearest(unknown, there) or ' Use one of these.'}"
            )
    missing = [
        parameter.name
        for parameter in declared
        if parameter.name in known
        and parameter.default is parameter.empty
        and parameter.name not in arguments
    ]
    if missing:
        raise UserError(
            f"params: {name} requires {', '.join(missing)}; got "
            f"{configs.format_params(params) or 'none'}. Example: --params='{missing[0]}=…'"
        )
    if "context" in named or (is_spec and takes_any):
        arguments["context"] = context
    with usercode.running(f"constructor of {name}" if inspect.isclass(maker) else name):
        made = maker(**arguments)
    return made, next(iter(rates.values()), None)


def _constructor_parameters(maker: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that the user gave a class or function; not those of Keras's constructors."""
    if not inspect.isclass(maker):
        return usercode.parameters(maker)
    init = maker.__init__
    if init is ElasticDLSpec.__init__:
        context = inspect.signature(init).parameters["context"]
        return [context]
    if getattr(init, "__module__", "").split(".")[0] == "keras":
        return []
    return usercode.parameters(init)[1:]


def _checked_model(what: str, made: Any) -> Any:
    import keras

    if isinstance(made, keras.Model):
        return made
    hint = ""
    if type(made).__module__.split(".")[0] == "tf_keras":
        hint = " It is one of tf_keras; use keras."
    raise UserError(f"{what}: expected a keras.Model; got {_kind(made)}.{hint}")


def _kind(found: Any) -> str:
    if inspect.isclass(found):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        return f"the class {found.__name__}({bases})"
    return f"{found!r} of type {type(found).__name__}"


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer that `compile` was given: it wraps it for mixed precision."""
    import keras

    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _output_names(model: Any) -> list[str]:
    return list(getattr(model, "output_names", None) or [])


def _overrides_training(model: Any) -> bool:
    return (type(model).train_step.__module__ or "").split(".")[0] != "keras"
