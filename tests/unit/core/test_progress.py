"""Which elements a step uses follows from its number; the tail carries it without loss."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core.progress import (
    Cursor,
    Progress,
    Used,
    advanced,
    beginning,
    decode,
    encode,
    shares,
    tail_length,
)


def standing(version, epochs):
    """Progress with streams in these epochs."""
    return Progress(version, tuple(Cursor(epoch) for epoch in epochs))


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 200))
@settings(deadline=None)
def test_a_step_asks_for_the_whole_batch_evenly(version, streams, batch_size):
    given_ = shares(standing(version, [0] * streams), batch_size)
    assert sum(given_) == batch_size
    assert set(given_) <= {batch_size // streams, math.ceil(batch_size / streams)}


@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 100))
@settings(deadline=None)
def test_the_odd_elements_go_round(version, streams, batch_size):
    total = np.zeros(streams, dtype=int)
    for step in range(version, version + streams):
        total += shares(standing(step, [0] * streams), batch_size)
    assert total.tolist() == [batch_size] * streams


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
    st.integers(1, 100),
)
@settings(deadline=None)
def test_every_step_asks_for_something_and_never_of_who_has_ended(version, epochs, batch_size):
    given_ = shares(standing(version, epochs), batch_size)
    least = batch_size // len(epochs)
    assert 1 <= sum(given_) <= batch_size
    for epoch, share in zip(epochs, given_, strict=True):
        if epoch > min(epochs):
            assert share == 0
        else:
            assert least <= share <= math.ceil(batch_size / len(epochs))


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
    st.integers(1, 30),
    st.integers(1, 3),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_steps_use_every_element_once_an_epoch(counts, batch_size, epochs, data):
    """Streams of any lengths, also such as filters make, of which nobody knows where they end."""
    empty = data.draw(st.sampled_from([[False] * len(counts), [not count for count in counts]]))
    at = beginning(empty, epochs)
    used = Counter()
    # An end is found where less comes than was asked for, and that may take a step of its own.
    most_steps = epochs * (sum(counts) + 2 * len(counts)) + 1
    while not at.finished(epochs, 0):
        assert at.version < most_steps
        asked = shares(at, batch_size)
        assert sum(asked) > 0
        took = {}
        for stream, share in enumerate(asked):
            cursor = at.cursors[stream]
            if cursor.epoch > at.epoch or not share:
                took[stream] = Used(0, cursor)
                continue
            elements = min(share, counts[stream] - cursor.element)
            for element in range(cursor.element, cursor.element + elements):
                used[cursor.epoch, stream, element] += 1
            over = elements < share
            after = (
                Cursor(cursor.epoch + 1)
                if over
                else Cursor(cursor.epoch, 0, cursor.element + elements)
            )
            took[stream] = Used(elements, after)
        at = advanced(at, took)
    expected = {
        (epoch, stream, element)
        for epoch in range(epochs)
        for stream, count in enumerate(counts)
        for element in range(count)
    }
    assert used == Counter(expected)


def test_a_job_is_finished_when_all_streams_are_or_at_its_last_step():
    assert standing(7, [2, 2]).finished(2, 0)
    assert not standing(7, [2, 1]).finished(2, 0)
    assert standing(7, [0, 1]).finished(2, 7)
    assert not standing(6, [0, 1]).finished(2, 7)


def test_a_job_without_records_is_finished_when_it_begins():
    assert beginning([True, True], 3).finished(3, 0)
    assert beginning([True, False], 3).cursors == (Cursor(3), Cursor(0))


def test_streams_that_a_step_did_not_touch_stay_where_they_are():
    at = Progress(4, (Cursor(0, 1, 2), Cursor(0, 3, 4)))
    after = advanced(at, {1: Used(5, Cursor(1))})
    assert after == Progress(5, (Cursor(0, 1, 2), Cursor(1)))


NUMBERS = st.integers(0, (1 << 44) - 1) | st.sampled_from([0, 1, (1 << 24) + 1, (1 << 44) - 1])
USED = st.builds(Used, NUMBERS, st.builds(Cursor, NUMBERS, NUMBERS, NUMBERS))


@given(st.lists(USED, min_size=1, max_size=12), st.integers(1, 6), st.data())
@settings(deadline=None)
def test_tails_survive_a_sum_of_float32_exactly(entries, members, data):
    hosts = [data.draw(st.integers(0, members - 1)) for _ in entries]
    flags = [data.draw(st.booleans()) for _ in range(members)]
    total = np.zeros(tail_length(len(entries)), dtype=np.float32)
    for member in range(members):
        hosted = {s: used for s, used in enumerate(entries) if hosts[s] == member}
        total += np.asarray(encode(hosted, flags[member], len(entries)), dtype=np.float32)
    tail = decode(total.tolist())
    assert tail.used == dict(enumerate(entries))
    assert tail.regroup == sum(flags)


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_stream_has_exactly_one_host(hosts):
    one = np.asarray(encode({1: Used(3, Cursor(0, 0, 3))}, False, 2))
    other = np.asarray(encode({0: Used(1, Cursor(1))}, False, 2))
    with pytest.raises(ValueError, match=f"stream 1: expected one host; {hosts} members"):
        decode((hosts * one + other).tolist())
