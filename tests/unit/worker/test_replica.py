"""What a replica does to a model is what Keras does, however a step's elements are dealt out."""

import dataclasses
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from elasticdl.core.progress import Cursor, Used
from elasticdl.data import pipeline
from elasticdl.errors import UserError
from elasticdl.model import mode as modes
from elasticdl.model import spec
from elasticdl.worker import replica

ZOO = str(pathlib.Path(__file__).parent / "zoo")
STEPS = 3
N = 6


# ---- what is trained --------------------------------------------------------------------------


def squares(outputs, labels):
    return tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32) - labels), -1)


def column(n=N, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def line_data(seed=0, n=N):
    return column(n, 3, seed), column(n, 1, seed + 100)


def dense():
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )


def line():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def normalized():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(1),
        ]
    )


def embedded():
    return keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(10, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )


def regularized():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer="l2"),
            keras.layers.Dense(1),
        ]
    )


def frozen():
    model = dense()
    model.layers[0].trainable = False
    return model


def scheduled():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))


class Subclassed(keras.Model):
    """Layers inside that nobody tells of training, an unused weight and a counter."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4)
        self.norm = keras.layers.BatchNormalization()
        self.last = keras.layers.Dense(1)
        self.unused = self.add_weight(shape=(2,), name="unused")
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs, training=None):
        if training:
            self.calls.assign_add(1)
        return self.last(self.norm(self.first(inputs)))


def several():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    both = keras.layers.Concatenate()([a, b])
    return keras.Model(
        {"a": a, "b": b},
        {"one": keras.layers.Dense(1)(both), "two": keras.layers.Dense(2)(both)},
    )


def two_losses(outputs, labels):
    return squares(outputs["one"], labels[0]) + 2 * squares(outputs["two"], labels[1])


def several_data(seed=0, n=N):
    features = {"a": column(n, 3, seed), "b": column(n, 3, seed + 1)}
    return features, (column(n, 1, seed + 2), column(n, 2, seed + 3))


def embedded_data(seed=0, n=N):
    ids = np.random.default_rng(seed).integers(0, 4, (n, 2)).astype(np.int32)
    return ids, column(n, 1, seed)


def weighed_data(seed=0, n=N):
    return *line_data(seed, n), np.abs(column(n, 1, seed + 7))[:, 0]


def adam():
    return keras.optimizers.Adam(0.05)


def sgd():
    return keras.optimizers.SGD(0.05)


v1 = tf.compat.v1.train
# model, optimizer, data, loss
CASES = {
    "dense": (dense, adam, line_data, squares),
    "batch normalization": (normalized, sgd, line_data, squares),
    "embedding": (embedded, adam, embedded_data, squares),
    "regularizers": (regularized, sgd, line_data, squares),
    "sample weights": (line, adam, weighed_data, squares),
    "clipnorm": (dense, lambda: keras.optimizers.SGD(0.1, clipnorm=0.1), line_data, squares),
    "clipvalue": (dense, lambda: keras.optimizers.SGD(0.1, clipvalue=0.1), line_data, squares),
    "global_clipnorm": (
        dense,
        lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.1),
        line_data,
        squares,
    ),
    "schedule": (line, scheduled, line_data, squares),
    "frozen layer": (frozen, adam, line_data, squares),
    "subclassed": (Subclassed, sgd, line_data, squares),
    "dicts and tuples": (several, adam, several_data, two_losses),
    "v1 gradient descent": (dense, lambda: v1.GradientDescentOptimizer(0.1), line_data, squares),
    "v1 adam": (dense, lambda: v1.AdamOptimizer(0.1), line_data, squares),
    "v1 momentum": (dense, lambda: v1.MomentumOptimizer(0.1, 0.9), line_data, squares),
    "v1 adagrad": (dense, lambda: v1.AdagradOptimizer(0.1), line_data, squares),
}


def definition(model=dense, optimizer=adam, loss=squares, metrics=None):
    parts = {"model": model, "optimizer": optimizer, "loss": loss, "metrics": metrics}
    return spec.load(spec.ModelSource(ZOO, "given.Given", params=parts))


def sample(data):
    specs = tf.nest.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), data)
    return replica.Sample(tf.nest.map_structure(lambda a: tf.constant(a[:2]), data), specs)


def made(model=dense, optimizer=adam, data=line_data, loss=squares, metrics=None, **options):
    copy = replica.Replica(
        definition(model, optimizer, loss, metrics), sample(data()), seed=3, **options
    )
    copy.prepare_training()
    return copy


def batch(data, counts=(N,), streams=None):
    """A batch whose first counts[0] elements are of the first stream, and so on."""
    numbers = range(len(counts)) if streams is None else streams
    used = {s: Used(n, Cursor(0, 0, n)) for s, n in zip(numbers, counts, strict=True)}
    return pipeline.Batch(tuple(tf.nest.flatten(data)), tuple(counts), used, {})


def in_halves(data, at):
    parts = (tf.nest.map_structure(lambda a: a[:at], data), lambda a: a[at:])
    return parts[0], tf.nest.map_structure(parts[1], data)


def by_keras(model, optimizer, loss, data):
    """One step as Keras makes it, eagerly."""
    features, labels, *rest = data
    with tf.GradientTape() as tape:
        losses = loss(model(tf.nest.map_structure(tf.constant, features), training=True), labels)
        if rest:
            losses *= rest[0]
        goal = tf.reduce_mean(losses)
        goal += sum(tf.cast(extra, tf.float32) for extra in model.losses)
        if isinstance(optimizer, keras.optimizers.Optimizer):
            goal = optimizer.scale_loss(goal)
    variables = [v.value for v in model.trainable_variables]
    # Rows that a batch has twice are added up first: Keras's Adam squares each by itself.
    gradients = [
        None if g is None else tf.convert_to_tensor(g) for g in tape.gradient(goal, variables)
    ]
    pairs = [(g, n) for n, g in enumerate(gradients) if g is not None]
    if isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer.build(model.trainable_variables)
        optimizer.apply([g for g, _ in pairs], [model.trainable_variables[n] for _, n in pairs])
    else:
        optimizer.apply_gradients([(g, variables[n]) for g, n in pairs])


def weights_of(model):
    return [np.asarray(v) for v in model.variables if v.name != "seed_generator_state"]


def slots_of(optimizer):
    variables = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    return {getattr(v, "path", v.name): np.asarray(tf.convert_to_tensor(v)) for v in variables}


def close(found, expected, rtol=1e-5, atol=2e-6):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol, atol)


def stepped(copy, data, version):
    """Gradients and update as two, as members do that have peers."""
    flat = copy.gradients(batch(data), version)
    return copy.apply(flat, flat.numpy()[copy.layout.rest :], N)


@pytest.fixture(autouse=True)
def _same_initial_weights_in_each_run():
    keras.utils.set_random_seed(7)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_steps_are_those_of_keras(case):
    model, optimizer, data, loss = case
    copy = made(model, optimizer, data, loss)
    beginning = copy.dump()
    other = definition(model, optimizer, loss)
    other.model(tf.nest.map_structure(tf.constant, data()[0]))
    other.model.set_weights(copy.model.get_weights())

    for step in range(STEPS):
        by_keras(other.model, other.optimizer, loss, data(step))
    for step in range(STEPS):
        outcome = copy.alone(batch(data(step)), step)
        assert outcome.applied
        assert outcome.elements == N
    alone = copy.dump()
    close(weights_of(copy.model), weights_of(other.model))
    slots, expected = slots_of(copy.optimizer), slots_of(other.optimizer)
    close(slots.values(), expected.values())

    copy.restore(beginning)
    for step in range(STEPS):
        again = stepped(copy, data(step), step)
    close(weights_of(copy.model), weights_of(other.model))
    close(slots_of(copy.optimizer).values(), expected.values())
    assert_allclose(again.loss_sum, outcome.loss_sum, 1e-5)
    copy.restore(alone)
    assert copy.dump() == alone


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_rehearsal_makes_ready_and_changes_nothing(case, reproducible):
    model, optimizer, data, loss = case
    copy = made(model, optimizer, data, loss, reproducible=reproducible, shares=(N,))
    before = copy.dump()
    copy.rehearse({1, 3})
    assert copy.dump() == before


class Ragged(keras.Model):
    """Takes lists of lists of numbers."""

    def __init__(self):
        super().__init__()
        self.last = keras.layers.Dense(1)

    def call(self, lists):
        sums = tf.reduce_sum(tf.reduce_sum(lists, 2), 1)
        return self.last(tf.reshape(sums, [-1, 1]))


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_rehearsal_takes_no_elements_of_any_structure(reproducible):
    lists = tf.ragged.constant([[[1.0, 2.0], [3.0]], [[4.0]]], dtype=tf.float32)
    element = lists, tf.constant([[1.0], [2.0]])
    specs = (
        tf.RaggedTensorSpec([None, None, None], tf.float32, ragged_rank=2),
        tf.TensorSpec([None, 1], tf.float32),
    )
    copy = replica.Replica(
        definition(Ragged, sgd), replica.Sample(element, specs), reproducible=reproducible
    )
    copy.prepare_training()
    before = copy.dump()
    copy.rehearse({2})
    assert copy.dump() == before


def test_a_rehearsal_goes_on_where_the_model_wants_elements():
    def wants(outputs, labels):
        tf.debugging.assert_positive(tf.size(labels))
        return squares(outputs, labels)

    copy = made(line, sgd, loss=wants)
    copy.rehearse()
    assert stepped(copy, line_data(), 0).applied


def test_the_learning_rate_is_the_present_one():
    copy = made(line, scheduled)
    assert copy.learning_rate() == pytest.approx(0.1)
    copy.alone(batch(line_data()), 0)
    assert copy.learning_rate() == pytest.approx(0.05)
    assert made(line, lambda: v1.AdamOptimizer(0.25)).learning_rate() == 0.25
    assert made(line, lambda: v1.MomentumOptimizer(0.5, 0.9)).learning_rate() == 0.5


# ---- half precision ---------------------------------------------------------------------------


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def half(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def test_half_precision_is_that_of_keras(half):
    def small(outputs, labels):  # gradients far from float16's end
        return 0.1 * squares(outputs, labels)

    copy = made(optimizer=sgd, loss=small)
    scaling = isinstance(copy.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaling is (half == "mixed_float16")
    other = definition(optimizer=sgd, loss=small)
    other.model.set_weights(copy.model.get_weights())
    for step in range(STEPS):
        by_keras(other.model, other.optimizer, small, line_data(step))
        copy.alone(batch(line_data(step)), step)
    close(weights_of(copy.model), weights_of(other.model), 2e-3, 1e-3)
    beginning = copy.dump()
    stepped(copy, line_data(9), 9)
    two = weights_of(copy.model)
    copy.restore(beginning)
    copy.alone(batch(line_data(9)), 9)
    close(weights_of(copy.model), two, 2e-3, 1e-3)


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        copy = made(loss=lambda outputs, labels: 1e6 * squares(outputs, labels))
    finally:
        keras.config.set_dtype_policy("float32")
    before = weights_of(copy.model)
    for step in (copy.alone, lambda one, version: stepped(copy, line_data(), version)):
        scale = float(copy.optimizer.dynamic_scale)
        outcome = step(batch(line_data()), 0)
        assert math.isfinite(outcome.loss_sum)
        assert float(copy.optimizer.dynamic_scale) == scale / 2
        for one, other in zip(weights_of(copy.model), before, strict=True):
            assert_array_equal(one, other)


def test_the_loss_scale_leaves_room_whatever_the_batch():
    """As Keras scales the mean, not the sum."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        copy = made(loss=lambda outputs, labels: 1e-2 * squares(outputs, labels))
    finally:
        keras.config.set_dtype_policy("float32")
    many = line_data(0, 4096)
    scale = float(copy.optimizer.dynamic_scale)
    copy.alone(batch(many, (4096,)), 0)
    assert float(copy.optimizer.dynamic_scale) == scale


# ---- several members --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "embedding", "regularizers", "sample weights"])
def test_members_buffers_add_up_to_one_batch(name):
    model, optimizer, data, loss = CASES[name]
    copy = made(model, optimizer, data, loss)
    whole = copy.gradients(batch(data()), 0).numpy()
    one, other = in_halves(data(), 2)
    parts = copy.gradients(batch(one, (2,)), 0).numpy()
    parts = parts + copy.gradients(batch(other, (N - 2,)), 0).numpy()
    assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    nothing = copy.gradients(pipeline.Batch((), (0,), {}, {}), 0)
    assert_array_equal(nothing, np.zeros_like(whole))


def test_moving_statistics_are_averaged_by_elements():
    copy = made(normalized, sgd)
    inputs = copy.model.layers[0](tf.constant(line_data()[0])).numpy()
    flat = 0
    for data, count in zip(in_halves(line_data(), 2), (2, N - 2), strict=True):
        flat = flat + copy.gradients(batch(data, (count,)), 0)
    copy.apply(flat, flat.numpy()[copy.layout.rest :], N)
    mean = copy.model.layers[1].moving_mean.numpy()
    assert_allclose(mean, 0.1 * inputs.mean(0), rtol=1e-5, atol=1e-6)


def test_there_is_room_for_the_tail():
    copy = made(tail=5)
    flat = copy.gradients(batch(line_data()), 0)
    assert flat.shape == (copy.layout.length + 5,)
    assert_array_equal(flat[-5:], np.zeros(5))
    copy.apply(flat, flat.numpy()[copy.layout.rest :], N)


# ---- random layers ----------------------------------------------------------------------------


def with_dropout():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8),
            keras.layers.Dropout(0.5),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )


def test_random_layers_draw_by_stream_and_version():
    copy = made(with_dropout, sgd)
    once = batch(line_data(), (N,), [2])
    first = copy.gradients(once, 7).numpy()
    assert_array_equal(copy.gradients(once, 7), first)
    assert not np.array_equal(copy.gradients(once, 8), first)
    assert not np.array_equal(copy.gradients(batch(line_data(), (N,), [3]), 7), first)
    before = copy.dump()
    copy.alone(once, 7)
    assert copy.dump() != before
    copy.restore(before)
    assert_array_equal(copy.gradients(once, 7), first)
    other = replica.Replica(definition(with_dropout, sgd), sample(line_data()), seed=4)
    other.prepare_training()
    other.restore(before)
    assert not np.array_equal(other.gradients(once, 7), first)


class Quiet(keras.Model):
    """Neither declares nor passes on `training`."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(8)
        self.dropout = keras.layers.Dropout(0.5)
        self.last = keras.layers.Dense(1)

    def call(self, inputs):
        return self.last(self.dropout(self.dense(inputs)))


def test_layers_of_a_subclassed_model_hear_of_training():
    copy = made(Quiet, sgd)
    first, second = (copy.gradients(batch(line_data()), version) for version in (0, 1))
    assert not np.array_equal(first, second)
    copy.prepare_evaluation(sample(line_data()).specs)
    ours = copy.evaluation_sums(batch(line_data()))
    assert_array_equal(copy.evaluation_sums(batch(line_data())), ours)


# ---- --reproducible ---------------------------------------------------------------------------


def wide():
    """Its embedding is large beside what a batch takes from it."""
    ids = keras.Input((2,), dtype="int32")
    taken = keras.layers.Embedding(500, 3)(ids)
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(taken)))


def deep():
    layers = [keras.layers.Dense(3, "tanh") for _ in range(12)]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])


# model, data
BY_STREAM = {
    "dropout": (with_dropout, line_data),
    "batch normalization": (normalized, line_data),
    "regularizers": (regularized, line_data),
    "embedding": (wide, embedded_data),
    "subclassed": (Subclassed, line_data),
    "large": (deep, line_data),
}


@pytest.fixture(scope="module", params=BY_STREAM)
def by_stream(request):
    model, data = BY_STREAM[request.param]
    keras.utils.set_random_seed(7)
    return made(model, adam, data, reproducible=True, tail=3, shares=(2, 3)), data


COUNTS = (3, 1, 2, 0, 2, 5, 2, 3)
STREAMS = (0, 5, 6, 7, 9, 11, 12, 15)


def parts(data, hosted):
    """The batch of a member that hosts these of STREAMS."""
    features = data(n=sum(COUNTS))
    ends = np.cumsum(COUNTS)
    rows = np.concatenate(
        [np.arange(ends[n] - COUNTS[n], ends[n]) for n in hosted] or [np.arange(0)]
    )
    some = tf.nest.map_structure(lambda a: a[rows], features)
    return batch(some, [COUNTS[n] for n in hosted], [STREAMS[n] for n in hosted])


def contents(summands):
    """What each stream gives, in some order."""
    found = []
    for some in summands:
        streams = len(some.rows)
        shares = [np.split(each, streams) for each in (*some.values, *some.indices)]
        found += [
            b"".join(each.tobytes() for each in (row, *sparse))
            for row, *sparse in zip(some.rows, *shares, strict=True)
        ]
    return sorted(found)


@pytest.mark.parametrize(
    "hosting",
    [
        [[n] for n in range(len(COUNTS))],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[6, 2], [7, 0, 5, 4, 1], [3]],
    ],
)
def test_sums_have_the_same_bits_whoever_hosts_what(by_stream, hosting):
    copy, data = by_stream
    whole = copy.summands(parts(data, range(len(COUNTS))), 4)
    members = [copy.summands(parts(data, hosted), 4) for hosted in hosting]
    if not any(each.values for each in whole):
        assert contents([each for some in members for each in some]) == contents(whole)
    maxima = copy.maxima(whole)
    assert_array_equal(np.max([copy.maxima(some) for some in members], 0), maxima)
    expected = copy.exact_sum(whole, maxima, 16)
    assert expected.shape == (copy.layout.length + 3,)
    assert expected.any()
    assert not expected[copy.layout.length :].any()
    total = sum(copy.exact_sum(some, maxima, 16) for some in members)
    assert total.tobytes() == expected.tobytes()


def test_only_large_embeddings_are_summed_by_rows():
    copy = made(wide, adam, embedded_data, reproducible=True, shares=(2,))
    assert [copy.layout.gradients[n].shape for n in copy.layout.sparse] == [(500, 3)]
    assert made(wide, adam, embedded_data, reproducible=True).layout.sparse == []
    small = made(embedded, adam, embedded_data, reproducible=True, shares=(64,))
    assert small.layout.sparse == []


@pytest.mark.parametrize(
    ("model", "data"), [(dense, line_data), (wide, embedded_data), (normalized, line_data)]
)
def test_a_reproducible_step_adds_up_what_streams_give(model, data):
    copy = made(model, sgd, data, reproducible=True, shares=(2,))
    plain = made(model, sgd, data)
    plain.restore(copy.dump())
    total, losses = 0.0, 0.0
    for begin, end in ((0, 2), (2, 6)):
        some = tf.nest.map_structure(lambda a, b=begin, e=end: a[b:e], data())
        flat = plain.gradients(batch(some, (end - begin,)), 0).numpy()
        total = total + flat
        losses += flat[-1]
    summands = copy.summands(batch(data(), (2, 4)), 0)
    found = copy.exact_sum(summands, copy.maxima(summands), 16)
    assert_allclose(found, total, rtol=1e-4, atol=1e-6)
    outcome = copy.apply(found, found[copy.layout.rest :], N)
    plain.apply(tf.constant(total), total[plain.layout.rest :], N)
    assert_allclose(outcome.loss_sum, losses, rtol=1e-5)
    close(weights_of(copy.model), weights_of(plain.model))


def test_a_gradient_that_is_not_finite_spoils_its_own_tensor():
    copy = made(wide, sgd, embedded_data, reproducible=True, shares=(3,))
    summands = copy.summands(batch(embedded_data(), (3, 3)), 0)
    (field,) = (copy.layout.gradients[n] for n in copy.layout.sparse)
    values = summands[0].values[0].copy()
    values[1, 0] = np.nan
    spoilt = [dataclasses.replace(summands[0], values=[values])]
    found = copy.exact_sum(spoilt, copy.maxima(spoilt), 16)
    assert np.isnan(found[field.begin : field.end]).all()
    rest = np.delete(found, range(field.begin, field.end))
    assert np.isfinite(rest).all()


def test_random_numbers_without_a_seed_generator_are_refused():
    class Raw(keras.layers.Layer):
        def call(self, inputs):
            return inputs + tf.random.normal(tf.shape(inputs))

    def noisy():
        return keras.Sequential([keras.Input((3,)), Raw(), keras.layers.Dense(1)])

    made(noisy)
    with pytest.raises(UserError, match=r"--reproducible expects .*RandomStandardNormal"):
        made(noisy, reproducible=True)


# ---- losses that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [adam, lambda: v1.AdamOptimizer(0.1)])
def test_nothing_is_applied_where_the_loss_is_not_finite(optimizer):
    copy = made(normalized, optimizer)
    copy.alone(batch(line_data()), 0)
    before = copy.dump()
    data = line_data()
    data[1][4, 0] = np.nan
    for outcome in (copy.alone(batch(data), 1), stepped(copy, data, 1)):
        assert not outcome.applied
        assert math.isnan(outcome.loss_sum)
        assert copy.dump() == before


@pytest.mark.parametrize("reproducible", [False, True])
def test_the_stream_of_a_bad_loss_is_found(reproducible):
    copy = made(line, sgd, reproducible=reproducible)
    data = line_data()
    data[1][4, 0] = np.inf
    losses = copy.losses_by_stream(batch(data, (3, 0, 2, 1), [1, 4, 6, 9]), 5)
    assert list(losses) == [1, 6, 9]
    assert [math.isfinite(loss) for loss in losses.values()] == [True, False, True]


# ---- the state as a value ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [adam, lambda: v1.AdamOptimizer(0.1)])
def test_a_replica_that_receives_the_state_of_another_goes_on_as_it_does(optimizer):
    keras.utils.set_random_seed(1)
    one = made(Subclassed, optimizer)
    keras.utils.set_random_seed(2)
    other = made(Subclassed, optimizer)
    for step in range(2):
        one.alone(batch(line_data(step)), step)
    assert other.dump() != one.dump()
    other.restore(one.dump())
    assert other.dump() == one.dump()
    assert int(other.model.calls) == 2
    for copy in (one, other):
        copy.alone(batch(line_data(5)), 2)
    assert other.dump() == one.dump()


def test_a_state_of_another_model_changes_nothing():
    copy, other = made(dense), made(line)
    before = copy.dump()
    with pytest.raises(ValueError, match="expected a state of"):
        copy.restore(other.dump())
    assert copy.dump() == before


# ---- evaluation and prediction ----------------------------------------------------------------


def test_evaluations_add_up_over_batches():
    def errors(mode, outputs, labels):
        del mode
        return {
            "positive": tf.reduce_mean(tf.cast(outputs > 0, tf.float32)),
            "bias": tf.reduce_mean(outputs - labels),
        }

    copy = made(regularized, sgd, metrics=errors)
    copy.prepare_evaluation(sample(line_data()).specs)
    before = copy.dump()
    features, labels = data = line_data()
    sums = sum(
        copy.evaluation_sums(batch(part, (count,)))
        for part, count in zip(in_halves(data, 2), (2, N - 2), strict=True)
    )
    assert sums.shape == (copy.evaluation_length,)
    found = copy.evaluation_metrics(sums, N)
    outputs = copy.model(features, training=False).numpy()
    assert_allclose(found["positive"], (outputs > 0).mean(), rtol=1e-6)
    assert_allclose(found["bias"], (outputs - labels).mean(), rtol=1e-5)
    kernel = copy.model.layers[0].kernel.numpy()
    activity = copy.model.layers[0](features).numpy()
    least = np.square(outputs - labels).mean() + 0.01 * np.square(kernel).sum()
    assert found["loss"] > least
    assert found["loss"] < least + 0.01 * np.square(activity).sum()
    assert copy.dump() == before


def test_training_metrics_are_means_over_elements():
    def size(mode, outputs, labels):
        assert mode is modes.Mode.TRAINING
        return {"size": tf.reduce_mean(labels)}

    copy = made(line, sgd, metrics=size)
    one, other = in_halves(line_data(), 1)
    outcomes = [copy.alone(batch(one, (1,)), 0), copy.alone(batch(other, (N - 1,)), 1)]
    sums = {
        name: [sum(parts) for parts in zip(*(o.metrics[name] for o in outcomes), strict=True)]
        for name in outcomes[0].metrics
    }
    assert_allclose(copy.training_metrics(sums)["size"], line_data()[1].mean(), rtol=1e-5)


def named():
    inputs = keras.Input((3,), name="x")
    return keras.Model(
        inputs,
        [keras.layers.Dense(1, name="left")(inputs), keras.layers.Dense(2, name="right")(inputs)],
    )


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        outputs = self.dense(inputs)
        return outputs, outputs[:, 0]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (several, {"one": (N, 1), "two": (N, 2)}),
        (named, {"left": (N, 1), "right": (N, 2)}),
        (lambda: keras.Sequential([keras.layers.Dense(2, name="last")]), {"last": (N, 2)}),
        (Pair, {"output": (N, 2), "output_1": (N,)}),
    ],
)
def test_predictions_have_the_models_names(model, names):
    data = several_data() if model is several else line_data()
    copy = replica.Replica(definition(model), sample(data))
    features = sample(data[0])
    copy.prepare_prediction(features.specs)
    found = copy.predict(tuple(tf.nest.flatten(data[0])))
    assert {name: values.shape for name, values in found.items()} == names
    again = copy.model(tf.nest.map_structure(tf.constant, data[0]), training=False)
    for values, expected in zip(found.values(), tf.nest.flatten(again), strict=True):
        assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


# ---- what does not fit together ---------------------------------------------------------------


def test_elements_that_the_model_does_not_take_are_told_in_one_line():
    with pytest.raises(UserError, match=r"model given.Given.*: .* expected min_ndim=2") as caught:
        made(Subclassed, data=lambda: (column()[:, 0], column(N, 1)))
    assert "\n" not in str(caught.value)


def test_a_loss_without_weights_in_it_is_refused():
    with pytest.raises(UserError, match="expected it to depend on the model's weights"):
        made(loss=lambda outputs, labels: tf.reduce_sum(labels, -1))


def test_a_model_without_weights_to_train_is_refused():
    def nothing():
        return keras.Sequential([keras.Input((3,)), keras.layers.Flatten()])

    with pytest.raises(UserError, match="expected weights to train"):
        made(nothing)
    model = dense()
    model.trainable = False
    with pytest.raises(UserError, match="expected weights to train"):
        made(lambda: model)


# ---- the state as a value ---------------------------------------------------------------------


def copied(snapshot):
    return {name: array.copy() for name, array in snapshot.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert_array_equal(one[name], other[name], err_msg=name)


def test_a_snapshot_stays_as_it_was_while_steps_follow(case):
    model, optimizer, data, loss = case
    copy = made(model, optimizer, data, loss)
    copy.alone(batch(data()), 0)
    for version, go_on in enumerate((copy.alone, lambda b, v: stepped(copy, b.components, v)), 1):
        snapshot = copy.snapshot()
        before = copied(snapshot)
        go_on(batch(data(version)), version)
        go_on(batch(data(version + 1)), version)
        same(snapshot, before)
        with pytest.raises(AssertionError):
            same(copy.snapshot(), before)


def test_a_snapshot_stays_as_it_was_whatever_changes_a_variable():
    copy = made(embedded, adam, embedded_data)
    snapshot = copy.snapshot()
    before = copied(snapshot)
    for variable in copy.variables_by_name().values():
        value = variable.value
        value.assign_add(tf.ones_like(value))
        value.assign_sub(tf.ones_like(value) + tf.ones_like(value))
        if value.shape.rank:
            row = tf.IndexedSlices(tf.ones_like(value[:1]), tf.constant([0]))
            value.scatter_add(row)
            value.scatter_update(row)
        value.assign(tf.zeros_like(value))
    same(snapshot, before)
    same(copy.snapshot(), {name: np.zeros_like(array) for name, array in before.items()})


def test_a_state_travels_through_one_buffer(case):
    model, optimizer, data, loss = case
    one, other = made(model, optimizer, data, loss), made(model, optimizer, data, loss)
    one.alone(batch(data()), 0)
    buffer = np.empty(one.state_bytes, np.uint8)
    one.dump_into(buffer)
    assert buffer.tobytes() == one.dump()
    for content in (buffer, memoryview(buffer), buffer.tobytes()):
        other.alone(batch(data(1)), 1)
        other.restore(content)
        same(other.snapshot(), one.snapshot())
    # The buffer belongs to its owner again.
    buffer[:] = 0
    same(other.snapshot(), one.snapshot())


def test_a_buffer_of_another_size_is_refused():
    copy = made()
    for size in (copy.state_bytes - 1, copy.state_bytes + 1):
        for use in (copy.dump_into, copy.restore):
            with pytest.raises(ValueError, match=f"expected a state of {copy.state_bytes} bytes"):
                use(np.empty(size, np.uint8))


class Namesakes(keras.Model):
    """Two layers of one name."""

    def __init__(self):
        super().__init__(name="model")
        self.one = keras.layers.Dense(1, name="d")
        self.other = keras.layers.Dense(1, name="d")

    def call(self, inputs):
        return self.one(inputs) + self.other(inputs)


@pytest.mark.parametrize("optimizer", [adam, lambda: v1.AdamOptimizer(0.1)])
def test_variables_have_the_same_unique_names_in_all_replicas(optimizer):
    one, other = made(Namesakes, optimizer), made(Namesakes, optimizer)
    names = [*one.variables_by_name()]
    assert names == [*other.variables_by_name()]
    assert len(names) == 4 + 8 + 2  # weights, moments of each, and what counts the steps
    assert names[:4] == [
        "model/model/d/kernel",
        "model/model/d/bias",
        "model/model/d/kernel:1",
        "model/model/d/bias:1",
    ]
    assert len([name for name in names if name.startswith("optimizer/") and ":1" in name]) == 4


def test_weights_of_several_dtypes_are_trained_together():
    def mixed():
        return keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16"), keras.layers.Dense(1)]
        )

    copy = made(mixed, sgd)
    before = copied(copy.snapshot())
    copy.alone(batch(line_data()), 0)
    stepped(copy, line_data(), 1)
    for name, array in copy.snapshot().items():
        assert array.dtype == before[name].dtype
        if name.startswith("model/"):
            assert not np.array_equal(array, before[name])


OPTIMIZERS = [
    *("SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "Adafactor", "Nadam"),
    *("Ftrl", "Lion", "Lamb", "Muon"),
]


def heavy(name):
    options = {"weight_decay": 0.01, "use_ema": True, "ema_momentum": 0.9}
    if name == "SGD":
        options |= {"momentum": 0.9, "nesterov": True}
    if name == "Adam":
        options |= {"amsgrad": True, "clipnorm": 0.5}
    return getattr(keras.optimizers, name)(0.05, **options)


def scaled():
    return keras.optimizers.LossScaleOptimizer(heavy("Adam"))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "LossScale"])
def test_a_step_after_a_snapshot_comes_to_the_same_bits(name):
    def optimizer():
        return scaled() if name == "LossScale" else heavy(name)

    one, other = made(dense, optimizer), made(dense, optimizer, large_state=0)
    other.restore(one.dump())
    for version in range(2 * STEPS):
        for copy in (one, other):
            snapshot = copy.snapshot() if version % 3 else {}
            before = copied(snapshot)
            if version % 2:
                copy.alone(batch(line_data(version)), version)
            else:
                stepped(copy, line_data(version), version)
            same(snapshot, before)
        same(other.snapshot(), one.snapshot())
    assert not {"assign_add", "assign_sub"} & vars(other.optimizer).keys()


def test_a_step_after_a_snapshot_changes_nothing_in_place():
    def operations(updates):
        graphs = [each.graph.as_graph_def() for each in (updates.apply, updates.step)]
        nodes = [n for g in graphs for f in g.library.function for n in f.node_def]
        return {node.op for node in [*nodes, *(n for g in graphs for n in g.node)]}

    in_place = {"AssignAddVariableOp", "AssignSubVariableOp"}
    copy = made(large_state=0)
    assert operations(copy._in_place) & in_place
    assert not operations(copy._in_new_memory) & in_place
    # A small state is copied in no time.
    small = made()
    assert small._in_new_memory is small._in_place
