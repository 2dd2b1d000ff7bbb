"""In every epoch each record stands in one stream, once, and the streams are equally long."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core import streams

FILES = st.lists(st.integers(0, 40), max_size=8)


def walk(plan, epoch, stream):
    """The stream's slices in this epoch, in order."""
    slices = (plan.slice_of(epoch, stream, index) for index in itertools.count())
    return list(itertools.takewhile(lambda slice_: slice_ is not None, slices))


def records(slices):
    return [(each.file, record) for each in slices for record in range(each.start, each.end)]


def everything(files):
    return [(file, record) for file, count in enumerate(files) for record in range(count)]


def test_the_order_of_a_job_is_what_it_always_was():
    plan = streams.Plan([10, 0, 7, 5], slice_records=4, streams=3, seed=1)
    # Whoever changes this makes jobs that are under way train on some records twice.
    assert [walk(plan, 0, stream) for stream in range(3)] == [
        [streams.Slice(3, 4, 5), streams.Slice(0, 8, 10), streams.Slice(3, 0, 4)],
        [streams.Slice(2, 4, 7), streams.Slice(0, 4, 8)],
        [streams.Slice(0, 0, 4), streams.Slice(2, 0, 4)],
    ]
    assert [walk(plan, 1, stream) for stream in range(3)] == [
        [
            streams.Slice(2, 4, 7),
            streams.Slice(0, 8, 10),
            streams.Slice(3, 4, 5),
            streams.Slice(0, 4, 5),
        ],
        [streams.Slice(0, 5, 8), streams.Slice(2, 0, 4)],
        [streams.Slice(3, 0, 4), streams.Slice(0, 0, 4)],
    ]


@given(FILES, st.integers(1, 50), st.integers(1, 20), st.integers(0, 99), st.booleans(), st.data())
@settings(deadline=None)
def test_the_streams_hold_each_record_once(files, slice_records, count, seed, shuffle, data):
    plan = streams.Plan(
        files, slice_records=slice_records, streams=count, seed=seed, shuffle=shuffle
    )
    epoch = data.draw(st.integers(0, 3))
    parts = [records(walk(plan, epoch, stream)) for stream in range(count)]
    assert sorted(itertools.chain(*parts)) == everything(files)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(FILES, st.integers(1, 50), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None)
def test_no_slice_is_empty_or_longer_than_asked_or_spans_files(files, slice_records, count, seed):
    plan = streams.Plan(files, slice_records=slice_records, streams=count, seed=seed)
    for stream in range(count):
        for each in walk(plan, 0, stream):
            assert 0 < each.records <= slice_records
            assert 0 <= each.start < each.end <= files[each.file]


@given(FILES, st.integers(1, 50), st.integers(1, 20))
@settings(deadline=None)
def test_without_shuffling_the_streams_follow_the_files(files, slice_records, count):
    plan = streams.Plan(files, slice_records=slice_records, streams=count, shuffle=False)
    for epoch in range(2):
        parts = [records(walk(plan, epoch, stream)) for stream in range(count)]
        assert list(itertools.chain(*parts)) == everything(files)


@given(FILES, st.integers(1, 50))
@settings(deadline=None)
def test_slices_are_numbered_through_the_files(files, slice_records):
    plan = streams.Plan(files, slice_records=slice_records, streams=1)
    slices = [plan.slice(number) for number in range(plan.slices)]
    assert records(slices) == everything(files)


@pytest.mark.parametrize("files", [[], [0], [0, 0, 0]])
def test_without_records_all_streams_are_empty(files):
    plan = streams.Plan(files, slice_records=4, streams=3)
    assert [walk(plan, 0, stream) for stream in range(3)] == [[], [], []]


def test_one_record_is_in_one_stream():
    plan = streams.Plan([0, 1, 0], slice_records=4, streams=16)
    parts = [walk(plan, 0, stream) for stream in range(16)]
    assert [part for part in parts if part] == [[streams.Slice(1, 0, 1)]]


def test_streams_that_are_empty_are_so_in_every_epoch():
    plan = streams.Plan([2, 3], slice_records=2, streams=8, seed=5)
    empty = [[not walk(plan, epoch, stream) for stream in range(8)] for epoch in range(5)]
    assert empty == [empty[0]] * 5


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(epoch, seed):
        plan = streams.Plan([1000], slice_records=10, streams=1, seed=seed)
        return tuple(walk(plan, epoch, 0))

    assert len({order(epoch, seed) for epoch in range(3) for seed in range(3)}) == 9


def test_a_billion_records_take_no_time_and_no_memory():
    plan = streams.Plan([1_000_000_007] * 4, slice_records=4096, streams=7, seed=3)
    first = [plan.slice_of(2, stream, 0) for stream in range(7)]
    assert all(each is not None and 0 < each.records <= 4096 for each in first)
    assert plan.slices == 4 * 244141


@pytest.mark.parametrize(
    ("records", "streams_", "asked", "expected"),
    [
        (10**9, 16, 0, 4096),
        (100, 16, 0, 128),
        (64_000, 16, 0, 1000),
        (100, 16, 7, 7),
    ],
)
def test_slices_suit_the_data_unless_asked_otherwise(records, streams_, asked, expected):
    assert streams.slice_records(records, streams_, asked) == expected
