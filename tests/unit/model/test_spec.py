"""What users write is taken as the contract says, and everything else is refused by name."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from elasticdl.errors import UserCodeError, UserError
from elasticdl.model import spec
from elasticdl.model.mode import Mode

ZOO = str(pathlib.Path(__file__).parent / "zoos" / "contract")
RECORDS = [b"1 2 3", b"4 5 6", b"7 8 9"]


def load(model_def, context=None, **fields):
    return spec.load(spec.ModelSource(ZOO, model_def, **fields), context)


def given(**parts):
    """A definition whose spec has these functions, and that spec's class."""
    definition = load("specs.Given")
    kind = type(definition._dataset.given.__self__)
    for name, part in parts.items():
        setattr(kind, name, staticmethod(part))
    return definition


def records():
    return tf.data.Dataset.from_tensor_slices(RECORDS)


def column(*numbers):
    return tf.constant([[number] for number in numbers], tf.float32)


def refused(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- forms ------------------------------------------------------------------------------------


def test_a_spec_gives_model_optimizer_loss_and_dataset():
    definition = load("specs.Line", params={"units": 1, "scale": 2.0})
    assert isinstance(definition.model, keras.Model)
    assert float(definition.optimizer.learning_rate) == pytest.approx(0.1)
    loss = definition.loss(column(1, 2), column(3, 5), None, 2)
    assert loss.dtype == tf.float32
    assert float(loss) == 2 * (4 + 9)
    dataset = definition.create_dataset(records(), Mode.TRAINING)
    features, label = next(iter(dataset))
    assert features["x"].numpy().tolist() == [1, 2]
    assert label.numpy().tolist() == [3]
    assert definition.notices == []


def test_mode_has_the_documents_import_path():
    from elasticdl.python.common import constants

    assert constants.Mode is Mode


def test_the_context_reaches_constructors_that_take_it():
    context = {"worker_id": 1, "master_ip": "localhost", "mode": "training", "job_name": "j"}
    assert load("specs.Line", context)._dataset.given.__self__.context == context
    assert (
        load(
            "specs.Everything", context, params={"learning_rate": 1.0}
        )._dataset.given.__self__.context
        == context
    )
    assert load("specs.Line")._dataset.given.__self__.context is None
    load("models.Names", context)


def test_a_learning_rate_goes_to_the_optimizer_under_either_name():
    for rate in ("lr", "learning_rate"):
        optimizer = load("specs.Line", params={rate: 0.5}).optimizer
        assert float(optimizer.learning_rate) == 0.5
    assert float(load("models.Methods", params={"lr": 0.75}).optimizer.learning_rate) == 0.75
    assert float(load("models.Names", params={"lr": 0.75}).optimizer.learning_rate) == 0.75
    assert float(load("models.Objects", params={"lr": 0.75}).optimizer.learning_rate) == 0.75
    assert float(load("models.compiled", params={"lr": 0.75}).optimizer.learning_rate) == 0.75


def test_a_constructor_that_names_the_learning_rate_keeps_it():
    definition = load("specs.Everything", params={"learning_rate": 0.5})
    assert float(definition.optimizer.learning_rate) == 0.5


def test_keyword_arguments_do_not_count_as_naming_it():
    definition = load("specs.Free", params={"lr": 0.5, "anything": 1})
    assert isinstance(definition.optimizer, tf.compat.v1.train.Optimizer)
    assert definition._dataset.given.__self__.params == {"anything": 1, "context": None}


def test_methods_with_keyword_arguments_receive_everything():
    definition = load("specs.Everything", params={"learning_rate": 0.5})
    assert float(definition.loss(column(1), column(3), None, 1)) == 4
    assert definition.metric_states(Mode.TRAINING, column(1), column(3), None, None, 1) == {}
    assert not definition.wants_predictions


def test_unknown_and_missing_parameters_are_named():
    text = refused(load, "specs.Line", params={"unit": 1})
    assert "specs.Line has no parameter 'unit'; it has units, scale, learning_rate." in text
    assert text.endswith("Did you mean units?")
    assert "'context'" in refused(load, "specs.Line", params={"context": 1})
    assert "requires learning_rate" in refused(load, "specs.Everything")
    assert "expected learning_rate or lr; got both" in refused(
        load, "specs.Line", params={"lr": 1, "learning_rate": 2}
    )
    assert "requires a learning rate" in refused(load, "specs.Free")
    assert "no parameter lr" in refused(load, "specs.BadOptimizer", params={"lr": 1.0})
    assert "no parameter 'unit'" in refused(load, "models.Names", params={"unit": 1})
    assert "no parameter 'x'; it has learning_rate" in refused(
        load, "models.two_outputs", params={"x": 1}
    )


def test_what_is_missing_or_of_another_form_is_named():
    assert "create_loss, create_optimizer are missing" in refused(load, "specs.Unfinished")
    assert "expected a keras.Model; got 'a model' of type str" in refused(load, "specs.NoModel")
    assert "got 0.1 of type float" in refused(load, "specs.BadOptimizer")
    assert "Derive it from elasticdl.ElasticDLSpec" in refused(load, "models.LooksLikeASpec")
    assert "expected a keras.Model; got 3" in refused(load, "models.no_model")
    assert "got 3 of type int" in refused(load, "models.not_callable")
    assert "Define default_input, or give --input_fn" in refused(load, "models.NoInput")
    assert "--loss=mse" in refused(load, "models.NoLoss")
    assert "--optimizer=adam" in refused(load, "models.NoOptimizer")
    assert "expected parameters among outputs, labels, sample_weight; got one named 'targets'" in (
        refused(load("specs.Renamed").loss, column(1), column(1), None, 1)
    )


@pytest.mark.parametrize("form", ["Methods", "Names", "Objects", "Functions", "KerassFunction"])
def test_a_models_defaults_may_be_of_any_kind(form):
    definition = load(f"models.{form}", params={"units": 1})
    loss = float(definition.loss(column(1, 2), column(2, 5), None, 2))
    assert loss == (10 if form in ("Methods", "Names") else 4)
    assert isinstance(definition.optimizer, keras.optimizers.Optimizer)
    assert definition.create_dataset(records(), Mode.TRAINING).element_spec[0]["x"].shape == [2]
    states = definition.metric_states(Mode.EVALUATION, column(1, 2), column(2, 5), None, None, 2)
    names = {"Methods": ["largest"], "Names": ["mae", "mse"], "Objects": ["error"]}
    assert list(states) == names.get(form, ["mean_absolute_error"])


def test_defaults_without_arguments_are_asked_once():
    definition = load("models.AskedOnce")
    assert float(definition.loss(column(0), column(3), None, 1)) == 2.5
    assert type(definition.optimizer) is keras.optimizers.SGD


def test_each_load_has_an_optimizer_of_its_own():
    assert load("models.Objects").optimizer is not load("models.Objects").optimizer


def test_without_a_loss_the_compiled_one_is_used():
    definition = load("models.compiled")
    assert float(definition.loss(column(1, 2), column(2, 5), None, 2)) == 10
    assert float(definition.optimizer.learning_rate) == 0.125
    states = definition.metric_states(
        Mode.TRAINING, column(1, 2), column(2, 5), None, tf.constant([0.0, 1.0]), 2
    )
    values = definition.metric_values(
        Mode.TRAINING, {name: [s.numpy() for s in parts] for name, parts in states.items()}
    )
    # As with compile(): weights count in weighted_metrics alone.
    assert values == {"mae": 2.0, "mse": 9.0}


def test_flags_override_specs_and_models():
    for model in ("specs.Line", "models.Names"):
        definition = load(
            model,
            input_fn="specs.elsewhere",
            loss="specs.absolute",
            optimizer="specs.slow",
            params={"lr": 1.0},
        )
        assert float(definition.loss(column(1), column(3), None, 1)) == 2
        assert float(definition.optimizer.learning_rate) == pytest.approx(0.1)
        assert definition.create_dataset(records(), Mode.TRAINING).element_spec[1].shape == [1]
        definition = load(model, loss="mae", optimizer="rmsprop")
        assert float(definition.loss(column(1), column(3), None, 1)) == 2
        assert type(definition.optimizer) is keras.optimizers.RMSprop
    assert "Did you mean adam?" in refused(load, "specs.Line", optimizer="adm")
    assert "Did you mean mean_squared_error?" in refused(
        load, "specs.Line", loss="mean_square_error"
    )
    assert "no.such: expected no.py" in refused(load, "specs.Line", loss="no.such")


def test_an_own_train_step_is_said_to_be_unused():
    assert load("models.Functions").notices == []
    assert "train_step is not used" in load("models.OwnStep").notices[0]


def test_mixed_precision_scales_the_loss_as_compile_does():
    definition = load("models.half")
    assert isinstance(definition.optimizer, keras.optimizers.LossScaleOptimizer)
    outputs = definition.model(np.ones([2, 2], np.float32))
    assert outputs.dtype == tf.float16
    assert definition.loss(outputs, column(1, 2), None, 2).dtype == tf.float32


def test_variables_have_the_same_names_in_every_load():
    inputs = '{"dict": {"x": {"tensor": {"dtype": "float32", "shape": [null, 2]}}}}'
    names = []
    for _ in range(2):
        keras.layers.Dense(1)
        definition = load("models.BuiltLate")
        keras.layers.Dense(1)
        definition.build(inputs)
        names.append(sorted(definition.values()))
    assert names[0] == names[1] == [
        "built_late/dense/bias", "built_late/dense/kernel",
        "built_late/dense_1/bias", "built_late/dense_1/kernel",
    ]  # fmt: skip


# ---- losses -----------------------------------------------------------------------------------


def test_a_scalar_loss_is_the_mean_over_the_elements():
    assert float(load("specs.ScalarLoss").loss(column(1, 2), column(3, 5), None, 2)) == 13


def test_a_loss_of_more_dimensions_is_averaged_within_each_element():
    definition = given(loss=lambda outputs, labels: tf.abs(outputs - labels))
    assert float(definition.loss(tf.ones([2, 4]), tf.zeros([2, 4]), None, 2)) == 2


def test_sample_weights_multiply_the_loss_of_their_element():
    weights = tf.constant([0.0, 3.0])
    for definition in (load("specs.Line"), load("models.Names"), load("models.Functions")):
        plain = [float(definition.loss(column(x), column(5), None, 1)) for x in (1, 2)]
        both = float(definition.loss(column(1, 2), column(5, 5), weights, 2))
        assert both == 3 * plain[1]
        in_column = definition.loss(column(1, 2), column(5, 5), weights[:, None], 2)
        assert float(in_column) == both
    assert float(load("specs.Weighed").loss(column(1, 2), column(5, 5), weights, 2)) == 27


def test_sample_weights_with_a_scalar_loss_are_refused():
    text = refused(load("specs.ScalarLoss").loss, column(1), column(1), tf.constant([1.0]), 1)
    assert "declare a parameter sample_weight" in text


@pytest.mark.parametrize(
    "loss",
    ["mse", "mae", keras.losses.Huber(), keras.losses.MeanSquaredError, "cosine_similarity"],
)
def test_a_keras_loss_is_the_mean_that_keras_has(loss):
    from elasticdl.model import losses

    outputs, labels = tf.random.normal([5, 3, 2], seed=1), tf.random.normal([5, 3, 2], seed=2)
    kerass = keras.losses.get(loss)
    expected = tf.reduce_mean(kerass(labels, outputs))
    assert float(losses.Loss("loss", loss)(outputs, labels, None, 5)) == pytest.approx(
        5 * float(expected), rel=1e-5
    )


def test_reduction_sum_adds_up_what_belongs_to_an_element():
    from elasticdl.model import losses

    loss = losses.Loss("loss", keras.losses.MeanSquaredError(reduction="sum"))
    assert float(loss(tf.ones([2, 3, 4]), tf.zeros([2, 3, 4]), None, 2)) == 6


def test_crossentropy_is_chosen_by_shapes_as_compile_does():
    from elasticdl.model import losses

    loss = losses.Loss("loss", "crossentropy")
    chances = tf.constant([[0.25, 0.75]])
    assert float(loss(chances, tf.constant([1]), None, 1)) == pytest.approx(-np.log(0.75))
    assert float(loss(chances, tf.constant([[0.0, 1.0]]), None, 1)) == pytest.approx(-np.log(0.75))
    assert float(loss(column(0.75), column(1), None, 1)) == pytest.approx(-np.log(0.75), rel=1e-4)


def test_several_outputs_have_losses_labels_and_weights_of_their_own():
    definition = load("models.two_outputs")
    outputs = {"a": column(1, 2), "b": tf.zeros([2, 3])}
    labels = {"a": column(2, 4), "b": tf.constant([0, 1])}
    expected = 0.5 * (1 + 4) + 2 * 2 * np.log(3)
    assert float(definition.loss(outputs, labels, None, 2)) == pytest.approx(expected)
    weights = {"a": tf.constant([1.0, 0.0]), "b": tf.constant([0.0, 0.0])}
    assert float(definition.loss(outputs, labels, weights, 2)) == pytest.approx(0.5)
    definition = load("models.outputs_in_order")
    outputs = [column(1, 2), tf.zeros([2, 3])]
    assert float(definition.loss(outputs, (column(2, 4), tf.ones([2, 3])), None, 2)) == 5 + 2
    by_name = {"a": column(2, 4), "b": tf.ones([2, 3])}
    assert float(definition.loss(outputs, by_name, None, 2)) == 7
    assert "none for output 'b'" in refused(definition.loss, outputs, (column(2, 4),), None, 2)
    assert "expected labels for b" in refused(
        definition.loss, outputs, {"a": column(2, 4)}, None, 2
    )


def test_losses_of_another_shape_are_refused_with_the_shapes():
    definition = given(loss=lambda outputs, labels: tf.zeros([7]))
    text = refused(definition.loss, column(1, 2), column(1, 2), None, 2)
    assert "got shape (7,) for outputs of shape (2, 1)" in text
    definition = given(loss=lambda outputs, labels: tf.reshape(tf.tile(outputs, [1, 3]), [-1]))

    @tf.function(input_signature=[tf.TensorSpec([None, 1])])
    def unknown(outputs):
        return definition.loss(outputs, outputs, None, tf.shape(outputs)[0])

    with pytest.raises(tf.errors.InvalidArgumentError, match="one value an element"):
        unknown(column(1, 2))
    assert "expected a tensor" in refused(
        given(loss=lambda outputs, labels: "mse").loss, column(1), column(1), None, 1
    )


def test_a_loss_in_a_function_of_any_batch_size():
    definition = load("specs.Line")

    @tf.function(input_signature=[tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])])
    def of(outputs, labels):
        return definition.loss(outputs, labels, None, tf.shape(outputs)[0])

    assert float(of(column(1, 2), column(3, 5))) == 13
    assert float(of(column(1), column(3))) == 4


# ---- datasets ---------------------------------------------------------------------------------


def test_datasets_are_checked_inside_a_function_too():
    @tf.function(autograph=False)
    def elements_of(definition, records):
        return definition.create_dataset(tf.data.Dataset.from_tensor_slices(records), Mode.TRAINING)

    graph = elements_of.get_concrete_function
    graph(load("specs.Line"), tf.TensorSpec([None], tf.string))
    with pytest.raises(UserError, match="expected a dataset that ends"):
        graph(given(dataset=lambda d, mode: d.repeat()), tf.TensorSpec([None], tf.string))


def features_only(dataset, mode):
    return dataset.map(lambda record: {"x": tf.zeros([2])})


ENDLESS = {
    "repeat": lambda d: d.repeat(),
    "repeat under map": lambda d: d.repeat().map(lambda x: x),
    "repeat under filter": lambda d: d.repeat().filter(lambda x: True),
    "repeat under filter and prefetch": lambda d: d.repeat().filter(lambda x: True).prefetch(1),
    "take of -1": lambda d: d.repeat().take(-1),
    "random": lambda d: tf.data.Dataset.random(1).map(lambda x: {"x": tf.zeros([2])}),
    "concatenated": lambda d: d.concatenate(d.repeat().filter(lambda x: True)),
}
ENDING = {
    "repeat of 2": lambda d: d.repeat(2),
    "take": lambda d: d.repeat().take(4),
    "take under filter": lambda d: d.repeat().filter(lambda x: True).take(4),
    "take_while": lambda d: d.repeat().take_while(lambda x: True),
    "zipped": lambda d: tf.data.Dataset.zip((d, d.repeat())).map(lambda a, b: a),
}


@pytest.mark.parametrize("how", ENDLESS)
def test_an_endless_dataset_is_refused(how):
    definition = given(
        dataset=lambda d, mode: ENDLESS[how](d.map(lambda record: {"x": tf.zeros([2])}))
    )
    text = refused(definition.create_dataset, records(), Mode.TRAINING)
    assert "create_dataset of specs.Given: expected a dataset that ends" in text


@pytest.mark.parametrize("how", ENDING)
def test_a_repeat_that_something_ends_is_fine(how):
    definition = given(
        dataset=lambda d, mode: ENDING[how](d.map(lambda record: {"x": tf.zeros([2])}))
    )
    definition.create_dataset(records(), Mode.TRAINING)


@pytest.mark.parametrize("model", ["specs.Line", "models.Names"])
@pytest.mark.parametrize(
    "batching",
    [
        lambda d: d.map(lambda r: ({"x": tf.zeros([2])}, tf.zeros([1]))).batch(2),
        lambda d: d.map(lambda r: ({"x": tf.zeros([2])}, tf.zeros([1]))).padded_batch(2),
        lambda d: d.batch(2).map(
            lambda r: ({"x": tf.zeros([tf.size(r), 2])}, tf.zeros([tf.size(r), 1]))
        ),
    ],
)
def test_batches_are_taken_apart_with_one_notice(model, batching):
    definition = load(model)
    definition._dataset = spec._Part("create_dataset of X", lambda dataset: batching(dataset))
    for _ in range(2):
        dataset = definition.create_dataset(records(), Mode.TRAINING)
        assert len(list(dataset)) == 3
        assert dataset.element_spec[0]["x"].shape == [2]
    assert len(definition.notices) == 1
    assert "batches are taken apart" in definition.notices[0]


def test_batches_that_are_the_users_own_business_stay():
    windows = lambda d: (  # noqa: E731
        d.window(2, drop_remainder=True)
        .flat_map(lambda w: w.batch(2, drop_remainder=True))
        .map(lambda w: {"x": tf.zeros([2])})
    )
    definition = load("models.Names")
    definition._dataset = spec._Part("X", lambda dataset: windows(dataset))
    assert definition.create_dataset(records(), Mode.PREDICTION).element_spec["x"].shape == [2]
    # Sequences of any length are single elements.
    definition._dataset = spec._Part(
        "X", lambda dataset: dataset.map(lambda r: {"x": tf.strings.length(tf.strings.split(r))})
    )
    assert definition.create_dataset(records(), Mode.PREDICTION).element_spec["x"].shape == [None]
    assert definition.notices == []


def test_a_fixed_drop_remainder_batch_shows_against_a_functional_model():
    definition = given(
        dataset=lambda d, mode: d.map(lambda r: {"x": tf.zeros([2])}).batch(3, drop_remainder=True)
    )
    assert definition.create_dataset(records(), Mode.PREDICTION).element_spec["x"].shape == [2]


def test_datasets_that_do_not_fit_are_refused():
    for made, expected in (
        (lambda d, mode: [1, 2], "expected a tf.data.Dataset; got [1, 2] of type list"),
        (
            lambda d, mode: d.map(lambda r: {"x": tf.zeros([3])}),
            "expected elements of shape [2] for the model's input 'x'; got [3]",
        ),
        (
            lambda d, mode: d.map(lambda r: {"y": tf.zeros([2]), "z": tf.zeros([2])}),
            "expected features for the model's 1 inputs (x); got 2: y, z",
        ),
        (
            lambda d, mode: d.map(lambda r: (r, r, r, r)),
            "got tuples of 4",
        ),
        (
            lambda d, mode: d.map(lambda r: r, num_parallel_calls=2, deterministic=False),
            "got an operation with deterministic=False",
        ),
    ):
        text = refused(given(dataset=made).create_dataset, records(), Mode.TRAINING)
        assert expected in text
        assert text.startswith("create_dataset of specs.Given: ")


def test_elements_come_in_a_fixed_order():
    definition = given(dataset=features_only)
    assert definition.create_dataset(records(), Mode.TRAINING).options().deterministic is True


def test_elements_are_unpacked_as_keras_does():
    definition = load("specs.Line")
    x, y, w = tf.zeros([1, 2]), tf.zeros([1, 1]), tf.ones([1])
    assert definition.unpack((x, y), Mode.TRAINING) == (x, y, None)
    assert definition.unpack((x, y, w), Mode.EVALUATION) == (x, y, w)
    assert definition.unpack(x, Mode.TRAINING) == (x, None, None)
    assert definition.unpack((x, y), Mode.PREDICTION) == (x, None, None)
    assert definition.unpack(({"x": x, "id": y}, y), Mode.TRAINING) == (x, y, None)


def test_a_tuple_in_prediction_may_be_all_the_inputs():
    definition = load("specs.Line")
    inputs = [keras.Input((1,)), keras.Input((1,))]
    definition.model = keras.Model(inputs, keras.layers.Add()(inputs))
    pair = (column(1), column(2))
    assert definition.unpack(pair, Mode.PREDICTION) == (pair, None, None)
    assert definition.unpack((pair, column(3)), Mode.PREDICTION) == (pair, None, None)


# ---- metrics ----------------------------------------------------------------------------------


def merged(definition, mode, batches):
    """The metrics over batches of (outputs, labels, weights), each computed by itself."""

    def of_any_size(tensor):
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    @tf.function(input_signature=[tf.nest.map_structure(of_any_size, batches[0])])
    def states_of(batch):
        outputs, labels, weights = (*batch, None)[:3]
        count = tf.shape(outputs)[0]
        return definition.metric_states(mode, outputs, labels, outputs, weights, count)

    sums = {}
    for batch in batches:
        for name, states in states_of(batch).items():
            assert all(state.dtype == tf.float32 for state in states)
            new = [state.numpy().astype(np.float64) for state in states]
            sums[name] = (
                [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
            )
    return definition.metric_values(mode, sums)


def batches(*sizes, classes=1):
    generator = np.random.default_rng(0)
    made = []
    for size in sizes:
        outputs = generator.random((size, classes), np.float32)
        labels = generator.integers(0, 2, (size, 1)).astype(np.float32)
        made.append((tf.constant(outputs), tf.constant(labels)))
    return made


def whole(parts):
    return [tf.concat([part[i] for part in parts], 0) for i in (0, 1)]


def test_scalars_are_averaged_over_elements_not_batches():
    parts = batches(3, 5, 1)
    outputs, labels = whole(parts)
    values = merged(load("specs.ScalarLoss"), Mode.EVALUATION, parts)
    assert values == {"error": pytest.approx(float(tf.reduce_mean(tf.abs(outputs - labels))))}


class Starting(keras.metrics.Metric):
    """Begins at 10 and not at 0."""

    def __init__(self):
        super().__init__(name="starting")
        self.total = self.add_weight(shape=(), initializer=keras.initializers.Constant(10.0))

    def reset_state(self):
        self.total.assign(10.0)

    def update_state(self, y_true, y_pred):
        self.total.assign_add(tf.reduce_sum(y_pred))

    def result(self):
        return self.total


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.metrics.AUC(),
        lambda: keras.metrics.Precision(),
        lambda: keras.metrics.BinaryAccuracy(),
        lambda: keras.metrics.RootMeanSquaredError(),
        lambda: keras.metrics.R2Score(),
        lambda: keras.metrics.MeanMetricWrapper(keras.metrics.mean_squared_error),
        Starting,
    ],
)
@pytest.mark.parametrize("anew", [False, True], ids=["one object", "new at each call"])
def test_states_of_keras_metrics_merge_exactly(make, anew):
    parts = batches(3, 5, 1)
    outputs, labels = whole(parts)
    metric = make()
    definition = given(
        metrics=lambda mode, outputs, labels, predictions: {"m": make() if anew else metric}
    )
    undisturbed = make()
    undisturbed.update_state(labels, outputs)
    values = merged(definition, Mode.EVALUATION, parts)
    assert values == {"m": pytest.approx(float(undisturbed.result()), rel=1e-5)}
    # The user's object is where it was.
    assert {float(np.sum(variable)) for variable in metric.variables} <= {0.0, 10.0}


def test_metrics_that_the_user_updates_keep_that_update():
    mean = keras.metrics.Mean()

    def metrics(mode, outputs, labels, predictions):
        mean.update_state(outputs * 2)
        return {"twice": mean}

    parts = batches(3, 5)
    values = merged(given(metrics=metrics), Mode.TRAINING, parts)
    assert values == {"twice": pytest.approx(2 * float(tf.reduce_mean(whole(parts)[0])))}


def test_sample_weights_reach_keras_metrics():
    definition = given(
        metrics=lambda mode, outputs, labels, predictions: {
            "error": keras.metrics.MeanAbsoluteError()
        }
    )
    part = (column(1, 2), column(2, 5), tf.constant([1.0, 0.0]))
    assert merged(definition, Mode.EVALUATION, [part]) == {"error": 1.0}


def test_vectors_and_dicts_as_results():
    f1 = given(metrics=lambda mode, outputs, labels, predictions: {"f1": keras.metrics.F1Score()})
    part = (tf.constant([[0.9, 0.1], [0.2, 0.8]]), tf.constant([[1.0, 0.0], [0.0, 1.0]]))
    assert merged(f1, Mode.EVALUATION, [part]) == {"f1": pytest.approx([1.0, 1.0])}


def test_each_mode_has_metrics_of_its_own():
    definition = given(
        metrics=lambda mode, outputs, labels, predictions: {
            str(mode): tf.reduce_mean(outputs if predictions is None else predictions)
        }
    )
    assert definition.wants_predictions
    assert merged(definition, Mode.TRAINING, [(column(1), column(1))]) == {"training": 1.0}
    states = definition.metric_states(Mode.EVALUATION, column(3), column(1), None, None, 1)
    assert {name: float(parts[0]) for name, parts in states.items()} == {"evaluation": 3.0}


def test_no_metrics_are_fine():
    assert load("specs.Line").metric_states(Mode.TRAINING, column(1), None, None, None, 1) == {}
    assert not load("specs.Line").wants_predictions


def test_metrics_by_name_are_those_of_compile():
    definition = load("models.two_outputs")
    outputs = {"a": column(1, 2), "b": tf.constant([[1.0, 0, 0], [1.0, 0, 0]])}
    labels = {"a": column(2, 4), "b": tf.constant([0, 1])}
    states = definition.metric_states(Mode.TRAINING, outputs, labels, None, None, 2)
    values = definition.metric_values(
        Mode.TRAINING, {name: [s.numpy() for s in parts] for name, parts in states.items()}
    )
    assert values == {"a_mae": 1.5, "b_accuracy": 0.5}


class Merging(keras.metrics.Mean):
    def merge_state(self, metrics):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (lambda: 0.5, "expected a dict of scalar tensors or Keras metrics; got 0.5 of type float"),
        (lambda: None, "got None of type NoneType. Return {} for no metrics"),
        (lambda: [keras.metrics.Mean()], "expected a dict"),
        (lambda: {"m": tf.zeros([3])}, "metric 'm': expected a scalar tensor or a Keras metric; "
                                       "got a float32 tensor of shape (3,)"),
        (lambda: {"m": "accuracy"}, "metric 'm': expected a scalar tensor"),
        (lambda: {"m": None}, "metric 'm': expected a scalar tensor"),
        (lambda: {"m": tf.constant("x")}, "got a string tensor of shape ()"),
        (lambda: {"m": keras.metrics.MeanSquaredError}, "metric 'm': expected a scalar tensor"),
        (lambda: {"m": object()}, "metric 'm': expected a scalar tensor"),
        (lambda: {1: tf.zeros([])}, "expected names of metrics; got the key 1"),
        (lambda: {"m": keras.metrics.Mean()}, "got a Mean without an update"),
        (lambda: {"m": Merging()}, "expected metrics whose state adds up over batches"),
    ],
)  # fmt: skip
def test_what_is_no_metric_is_refused_by_name(metrics, expected):
    definition = given(metrics=lambda mode, outputs, labels, predictions: metrics())
    text = refused(definition.metric_states, Mode.TRAINING, column(1), column(1), None, None, 1)
    assert text.startswith("create_metrics of specs.Given")
    assert expected in text


# ---- users' exceptions ------------------------------------------------------------------------


def test_an_exception_in_a_loss_shows_the_users_frames_alone():
    definition = load("specs.Flawed")

    @tf.function
    def step(outputs):
        return definition.loss(outputs, outputs, None, 1)

    with pytest.raises(UserCodeError) as caught:
        step(column(1))
    assert str(caught.value) == "create_loss of specs.Flawed: ZeroDivisionError: too flat"
    files = set(re.findall(r'File "([^"]+)"', caught.value.trace))
    assert files == {f"{ZOO}/specs.py"}
    assert "in create_loss" in caught.value.trace
    assert "in difference" in caught.value.trace
    assert caught.value.trace.endswith("ZeroDivisionError: too flat\n")


def test_an_exception_that_tensorflow_rewrote_shows_the_users_frames_too():
    with pytest.raises(UserCodeError) as caught:
        load("specs.Flawed").create_dataset(records(), Mode.TRAINING)
    assert str(caught.value).startswith("create_dataset of specs.Flawed: ")
    assert "in user code" not in str(caught.value)
    assert "\n" not in str(caught.value)
    trace = caught.value.trace
    assert set(re.findall(r'File "([^"]+)"', trace)) == {f"{ZOO}/specs.py"}
    assert "in create_dataset" in trace
    assert "in parse" in trace
    assert "return tf.io.decode_raw(record, tf.float32) + record" in trace


def test_an_exception_in_a_constructor_is_the_users():
    with pytest.raises(UserCodeError, match=r"^constructor of models\.Names: "):
        load("models.Names", params={"units": -1})
