"""Exact sums have the same bits whoever adds what up, and are as good as float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from elasticdl.worker import exact

SIZES = [5, 0, 1, 300, 2]
BAD = [np.nan, np.inf, -np.inf]


def numbers(rng, shape):
    """Of very different sizes, some of them 0, some halfway between others."""
    found = np.ldexp(rng.normal(size=shape), rng.integers(-40, 30, shape)).astype(np.float32)
    found[rng.random(shape) < 0.1] = 0
    halves = rng.random(shape) < 0.1
    found[halves] = np.ldexp(1.0, rng.integers(-30, 3, int(halves.sum())))
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums_have_the_same_bits_whoever_computes_what(data):
    tensors = exact.Tensors(SIZES, 16)
    streams = data.draw(st.integers(1, 16))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    rows = numbers(rng, (streams, tensors.length))
    for bad in data.draw(st.lists(st.sampled_from(BAD), max_size=2)):
        rows[rng.integers(streams), rng.integers(tensors.length)] = bad
    offsets = exact.offsets(tensors.maxima(rows), np.full(len(SIZES), float(streams)))
    expected = np.zeros(tensors.length)
    tensors.add(rows, offsets, expected)

    hosts = rng.integers(0, data.draw(st.integers(1, 4)), streams)
    members = [rows[rng.permutation(np.flatnonzero(hosts == h))] for h in range(4)]
    members = [some for some in members if len(some)]
    rng.shuffle(members)
    maxima = np.max([tensors.maxima(some) for some in members], axis=0)
    assert_array_equal(exact.offsets(maxima, np.full(len(SIZES), float(streams))), offsets)
    total = np.zeros(tensors.length)
    for some in members:
        part = np.zeros(tensors.length)
        tensors.add(some, offsets, part)
        total += part
    assert total.tobytes() == expected.tobytes() or np.isnan(expected).any()
    assert_array_equal(total, expected)

    # What is not finite spoils its own tensor, and nothing else; the rest is as exact as float64.
    with np.errstate(invalid="ignore"):
        plain = rows.astype(np.float64).sum(0)
    begin = 0
    for size in SIZES:
        tensor = slice(begin, begin + size)
        begin += size
        if np.isfinite(rows[:, tensor]).all():
            largest = np.abs(rows[:, tensor]).max(initial=0)
            assert_allclose(expected[tensor], plain[tensor], rtol=0, atol=largest * 2.0**-42)
        else:
            assert np.isnan(expected[tensor]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_long_rows_are_treated_a_part_at_a_time(threads):
    """To the same result, whatever the number of threads."""
    sizes = [7, 100_001, 3]
    rng = np.random.default_rng(threads)
    rows = numbers(rng, (3, sum(sizes)))
    with ThreadPoolExecutor(threads) as pool:
        tensors = exact.Tensors(sizes, 3, pool, threads)
        maxima = tensors.maxima(rows)
        parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        assert_array_equal(maxima, [np.abs(part).max() for part in parts])
        offsets = exact.offsets(maxima, np.full(3, 3.0))
        found = np.ones(tensors.length)
        tensors.add(rows, offsets, found)
    quanta = np.repeat(offsets / (1.5 * 2.0**52), sizes)
    assert_array_equal(found, 1.0 + (np.rint(rows / quanta) * quanta).sum(0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_entries_of_the_same_row_add_up_in_any_order(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    entries = data.draw(st.integers(1, 60))
    values, indices = numbers(rng, (entries, 2, 3)), rng.integers(0, 5, entries)
    bad = data.draw(st.sampled_from([None, *BAD]))
    if bad is not None:
        values[rng.integers(entries), 0, 0] = bad
    largest = exact.maximum(values)
    (offset,) = exact.offsets(np.asarray([largest]), np.asarray([float(entries)]))
    expected = np.zeros(30)
    exact.add_entries(values, indices, offset, expected)

    order = rng.permutation(entries)
    cut = data.draw(st.integers(0, entries))
    total = np.zeros(30)
    for some in (order[:cut], order[cut:]):
        part = np.zeros(30)
        exact.add_entries(values[some], indices[some], offset, part)
        total += part
    assert_array_equal(total, expected)
    if bad is not None:
        assert np.isnan(total).all()
        return
    plain = np.zeros((5, 2, 3))
    np.add.at(plain, indices, values.astype(np.float64))
    assert_allclose(total, plain.reshape(-1), rtol=0, atol=entries**2 * largest * 2.0**-50)


def test_nothing_has_the_maximum_0():
    assert exact.maximum(np.zeros((0, 3), np.float32)) == 0
    assert exact.Tensors([0, 2], 1).maxima(np.zeros((1, 2), np.float32)).tolist() == [0, 0]


def test_aligned_arrays_begin_where_tensorflow_wants_them():
    for length in range(1, 40):
        array = exact.aligned(length)
        assert len(array) == length
        assert array.ctypes.data % 64 == 0
        assert not array.any()
