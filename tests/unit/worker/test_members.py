"""Members together do what one does alone."""

import concurrent.futures
import math
import pathlib
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from numpy.testing import assert_allclose

from elasticdl.core.progress import Cursor, Progress, Used, tail_length
from elasticdl.data import pipeline
from elasticdl.model import spec
from elasticdl.worker import group, loop, members, replica

ZOO = str(pathlib.Path(__file__).parent / "zoo")
STREAMS = 4


class Hub:
    """Where the threads that play members meet."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size)
        self._buffers = [None] * size

    def reduced(self, rank, buffer, operation):
        self._buffers[rank] = buffer.clone()
        self._barrier.wait()
        combine = torch.sum if operation == group.SUM else torch.amax
        total = combine(torch.stack(self._buffers), 0)
        self._barrier.wait()
        buffer.copy_(total)

    def leave(self):
        self._barrier.abort()


class Seat:
    """A member's place at a hub: what `group.Group` is between processes."""

    def __init__(self, hub, rank):
        self._hub = hub
        self._rank = rank

    def all_reduce(self, buffer, operation=group.SUM):
        try:
            self._hub.reduced(self._rank, buffer, operation)
        except threading.BrokenBarrierError as error:
            raise group.Broken("a member is gone") from error


def model():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )


def plain_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh")])


class Buckets(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.floormod(tf.cast(inputs * 100, tf.int32), 200)


def embedding_model():
    return keras.Sequential(
        [
            keras.Input((3,)),
            Buckets(),
            keras.layers.Embedding(200, 4),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )


def squares(outputs, labels):
    return tf.reduce_sum(tf.square(outputs - labels), -1)


def made(model, *, reproducible):
    parts = {"model": model, "optimizer": lambda: keras.optimizers.Adam(0.1), "loss": squares}
    keras.utils.set_random_seed(5)  # initial weights are the same in all members
    definition = spec.load(spec.ModelSource(ZOO, "given.Given", params=parts))
    specs = (tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None, 1], tf.float32))
    sample = replica.Sample((tf.zeros([2, 3]), tf.zeros([2, 1])), specs)
    copy = replica.Replica(
        definition,
        sample,
        seed=1,
        reproducible=reproducible,
        tail=tail_length(STREAMS),
        shares=(2,),
    )
    copy.prepare_training()
    return copy


def element_rows(stream, version, count):
    rng = np.random.default_rng((stream, version))
    return rng.normal(size=(count, 4)).astype(np.float32)


COUNTS = [(2, 1, 3, 2), (1, 0, 2, 2), (0, 0, 3, 0), (0, 0, 0, 0), (1, 1, 1, 1)]


def batch(hosted, version):
    """What a member that hosts these streams takes in the step after `version`."""
    counts = tuple(COUNTS[version][stream] for stream in hosted)
    rows = [element_rows(s, version, n) for s, n in zip(hosted, counts, strict=True) if n]
    used = {s: Used(n, at(version + 1)[s]) for s, n in zip(hosted, counts, strict=True)}
    if not rows:
        return pipeline.Batch((), counts, used, {})
    joined = np.concatenate(rows)
    return pipeline.Batch((joined[:, :3], joined[:, 3:]), counts, used, {})


def at(version):
    return [Cursor(version // 3, stream, version * 1000 + stream) for stream in range(STREAMS)]


def trained(model, hosts, *, reproducible, asks=frozenset()):
    """Outcomes, tails and states of members that host `hosts`, one thread each, in rank order."""
    copies = [made(model, reproducible=reproducible) for _ in hosts]
    hub = Hub(len(hosts))

    def work(rank):
        copy = copies[rank]
        member = (
            members.Alone(copy, reproducible=reproducible)
            if len(hosts) == 1
            else members.Together(copy, Seat(hub, rank), reproducible=reproducible)
        )
        steps = []
        for version in range(len(COUNTS)):
            now = Progress(version, tuple(at(version)))
            steps.append(member.step(batch(hosts[rank], version), now, (rank, version) in asks))
        return steps, copy.dump()

    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(work, range(len(hosts))))


HOSTINGS = [[(0, 1), (2, 3)], [(3,), (0, 2), (1,)]]


@pytest.fixture(scope="module", params=[model, embedding_model])
def exactly_alone(request):
    ((steps, state),) = trained(request.param, [(0, 1, 2, 3)], reproducible=True)
    return request.param, steps, state


@pytest.mark.parametrize("hosts", HOSTINGS)
def test_reproducible_members_have_the_bits_of_one_alone(hosts, exactly_alone):
    model, expected, state = exactly_alone
    for steps, reached in trained(model, hosts, reproducible=True):
        assert reached == state
        for (outcome, tail), (alone, alone_tail) in zip(steps, expected, strict=True):
            assert outcome.elements == alone.elements
            assert outcome.loss_sum == alone.loss_sum
            assert tail == alone_tail


def test_members_agree_with_one_alone_to_rounding():
    ((expected, state),) = trained(plain_model, [(0, 1, 2, 3)], reproducible=False)
    found = trained(plain_model, HOSTINGS[1], reproducible=False)
    for steps, reached in found:
        assert reached == found[0][1]
        numbers = [
            np.frombuffer(some[: len(some) // 4 * 4], np.float32) for some in (reached, state)
        ]
        assert_allclose(*numbers, rtol=1e-4, atol=1e-5)
        for (outcome, tail), (alone, alone_tail) in zip(steps, expected, strict=True):
            assert_allclose(outcome.loss_sum, alone.loss_sum, rtol=1e-5)
            assert (outcome.elements, tail) == (alone.elements, alone_tail)


def test_a_step_without_elements_is_a_step(exactly_alone):
    _, steps, _ = exactly_alone
    outcome, tail = steps[3]
    assert outcome.elements == 0
    assert not outcome.applied
    assert [tail.used[stream].elements for stream in range(STREAMS)] == [0] * STREAMS
    assert [tail.used[stream].cursor for stream in range(STREAMS)] == at(4)


def test_all_hear_of_one_that_asks_to_regroup():
    found = trained(plain_model, HOSTINGS[0], reproducible=False, asks={(1, 2), (0, 4), (1, 4)})
    for steps, _ in found:
        assert [tail.regroup for _, tail in steps] == [0, 0, 1, 0, 2]


def test_totals_are_of_all_members():
    hub = Hub(3)
    copy = made(plain_model, reproducible=False)
    seats = [members.Together(copy, Seat(hub, rank), reproducible=False) for rank in range(3)]
    sums = [np.array([rank, 2.0**-60 * rank, 1e300]) for rank in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        totals = list(pool.map(lambda rank: seats[rank].total(sums[rank]), range(3)))
    for total in totals:
        assert total.dtype == np.float64
        assert total.tolist() == [3.0, 3 * 2.0**-60, 3e300]
    assert sums[2].tolist() == [2.0, 2 * 2.0**-60, 1e300]
    assert members.Alone(copy, reproducible=False).total(sums[1]) is sums[1]


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_broken_collective_changes_nothing(reproducible):
    copy = made(plain_model, reproducible=reproducible)
    hub = Hub(2)
    member = members.Together(copy, Seat(hub, 0), reproducible=reproducible)
    before = copy.dump()
    hub.leave()
    with pytest.raises(loop.GivenUp):
        member.step(batch((0, 1), 0), Progress(0, tuple(at(0))), False)
    with pytest.raises(loop.GivenUp):
        member.total(np.zeros(1))
    assert copy.dump() == before


@pytest.mark.parametrize("reproducible", [False, True])
def test_time_in_collectives_is_waited_and_time_before_is_computed(reproducible):
    hub = Hub(2)

    def work(rank):
        copy = made(plain_model, reproducible=reproducible)
        member = members.Together(copy, Seat(hub, rank), reproducible=reproducible)
        assert (member.waited_s, member.computed_s) == (0.0, 0.0)
        began = time.perf_counter()
        member.step(batch(HOSTINGS[0][rank], 0), Progress(0, tuple(at(0))), False)
        whole_s = time.perf_counter() - began
        assert member.waited_s > 0.0
        assert member.computed_s > 0.0
        assert member.waited_s + member.computed_s < whole_s
        computed_s, waited_s = member.computed_s, member.waited_s
        member.total(np.zeros(3))
        assert member.computed_s == computed_s
        assert member.waited_s > waited_s

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    alone = members.Alone(made(plain_model, reproducible=reproducible), reproducible=reproducible)
    alone.step(batch((0, 1, 2, 3), 0), Progress(0, tuple(at(0))), False)
    assert alone.waited_s == 0.0
    assert alone.computed_s > 0.0


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_loss_that_is_not_finite_is_applied_by_nobody(reproducible):
    copies = [made(plain_model, reproducible=reproducible) for _ in range(2)]
    before = copies[0].dump()
    hub = Hub(2)

    def work(rank):
        member = members.Together(copies[rank], Seat(hub, rank), reproducible=reproducible)
        taken = batch(HOSTINGS[0][rank], 0)
        if rank:
            taken.components[1][0] = math.nan
        return member.step(taken, Progress(0, tuple(at(0))), False)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for outcome, _ in pool.map(work, range(2)):
            assert not outcome.applied
            assert math.isnan(outcome.loss_sum)
    assert [copy.dump() for copy in copies] == [before] * 2
