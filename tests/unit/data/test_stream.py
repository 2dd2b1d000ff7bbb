"""Streams give the elements of one undisturbed walk, whatever happens to those who host them."""

import concurrent.futures
import contextlib
import itertools
import threading

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core import streams
from elasticdl.core.progress import Cursor
from elasticdl.data import pipeline
from elasticdl.data.stream import Streams
from elasticdl.errors import Cancelled, CorruptData, UserError
from tests.unit.data import support
from tests.unit.data.support import PLAN, elements_of, numbers, opened, plain, rows, untraced

START = dict.fromkeys(range(PLAN.streams), Cursor())


def hosting(opener, pool, cursors, *, epochs=2, share=4):
    host = Streams(PLAN, opener, pool, epochs=epochs, share=share)
    host.host(cursors)
    return host


def given_by(batch):
    """Elements, counts and what was used."""
    found = rows(batch.components, batch.elements)
    assert batch.elements == len(found)
    return found, batch.counts, batch.used


def walked(opener, pool, cursors, takes, **settings):
    """What each of `takes`, (epoch, shares), gives."""
    host = hosting(opener, pool, cursors, **settings)
    found = [given_by(host.take(epoch, shares)) for epoch, shares in takes]
    host.close()
    return found


def from_30_on(dataset):
    """Slices of the first 30 records have no elements."""
    return numbers(dataset).filter(lambda x: x >= 30).shuffle(6)


def shuffled(dataset):
    return numbers(dataset).shuffle(10)


def noted(passed, goes_on=None):
    """An input function that notes the records which pass, and waits for `goes_on`."""

    def note(record):
        passed.append(int(record))
        if goes_on is not None:
            goes_on.wait()
        return np.float32(float(record))

    return lambda d: d.map(plain(lambda r: tf.numpy_function(note, [r], tf.float32)))


def sequences(opener, epoch):
    """By definition: the elements of each stream, with the cursor at each."""
    found = {}
    for stream in range(PLAN.streams):
        index, sequence = 0, []
        while (slice_ := PLAN.slice_of(epoch, stream, index)) is not None:
            elements = elements_of(untraced(opener).blocks(slice_, epoch))
            sequence += [(Cursor(epoch, index, n), row) for n, row in enumerate(elements)]
            index += 1
        found[stream] = sequence
    return found


@pytest.fixture(scope="module")
def filtering(files):
    opener = opened(files, from_30_on)
    return opener, [sequences(opener, epoch) for epoch in range(3)]


@pytest.fixture(scope="module", params=[from_30_on, shuffled], ids=["filter", "shuffle"])
def either(request, files):
    """Read from where a slice begins, or from any place in it."""
    opener = opened(files, request.param)
    assert (opener._permuted is not None) == (request.param is shuffled)
    return opener, [sequences(opener, epoch) for epoch in range(3)]


# ---- one host ---------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    stream=st.integers(0, PLAN.streams - 1),
    first=st.lists(st.integers(0, 12), max_size=5),
    rest=st.integers(1, 12),
    share=st.integers(1, 20),
)
def test_a_stream_goes_on_from_any_cursor(either, stream, first, rest, share):
    opener, expected = either
    sequence = [row for _, row in expected[0][stream]]
    places = [cursor for cursor, _ in expected[0][stream]]
    places.append(next(cursor for cursor, _ in expected[1][stream]))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        cursor, done = Cursor(), 0
        for count in first:  # opened anew each time
            ((found, (taken,), used),) = walked(
                opener, pool, {stream: cursor}, [(0, {stream: count})], share=share
            )
            assert found == sequence[done : done + count]
            assert taken == len(found)
            done += taken
            cursor = used[stream].cursor
            assert cursor == places[done]
        takes = [(0, {stream: rest})] * (len(sequence) // rest + 2)
        for found, (taken,), used in walked(opener, pool, {stream: cursor}, takes, share=share + 3):
            assert found == sequence[done : done + rest]
            done += taken
            assert used[stream].cursor == places[done]
        assert done == len(sequence)


def test_epochs_follow_one_another_and_end(filtering, pool):
    opener, expected = filtering
    stream = 1
    takes = [(epoch, {stream: 40}) for epoch in (0, 0, 1, 1, 2, 2)]
    found = walked(opener, pool, {stream: Cursor()}, takes, epochs=3)
    for epoch in range(3):
        (elements, _, _), (nothing, _, used) = found[2 * epoch : 2 * epoch + 2]
        assert elements == [row for _, row in expected[epoch][stream]]
        assert nothing == []
        after = expected[epoch + 1][stream][0][0] if epoch < 2 else Cursor(3)
        assert used[stream].cursor == after


def test_a_stream_that_is_ahead_by_an_epoch_waits(filtering, pool):
    opener, _ = filtering
    host = hosting(opener, pool, {0: Cursor(1), 1: Cursor()}, share=2)
    batch = host.take(0, [5, 5, 5])
    assert batch.counts == (0, 5)
    assert batch.used[0].elements == 0
    assert batch.used[0].cursor.epoch == 1
    assert batch.slices[0] == ()
    assert all(isinstance(slice_, streams.Slice) for slice_ in batch.slices[1])
    host.close()


def test_streams_without_elements_are_at_their_end(files, pool):
    opener = opened(files, lambda d: numbers(d).filter(lambda x: x >= 89))
    ((elements, counts, used),) = walked(opener, pool, START, [(0, [3, 3, 3])], epochs=1)
    assert elements == [(89.0,)]
    assert sorted(counts) == [0, 0, 1]
    assert all(each.cursor == Cursor(1) for each in used.values())


def test_who_hosts_nothing_takes_nothing(files, pool):
    ((elements, counts, used),) = walked(opened(files, shuffled), pool, {}, [(0, [3, 3, 3])])
    assert (elements, counts, used) == ([], (), {})


STRUCTURES = [support.structured, support.ragged, support.sparse]


@pytest.mark.parametrize("function", STRUCTURES)
def test_a_batch_joins_structures_of_all_streams(function, files, pool):
    opener = opened(files, function)
    expected = sequences(opener, 0)
    ((elements, counts, _),) = walked(opener, pool, START, [(0, [28, 1, 3])])
    assert counts == (28, 1, 3)
    assert elements == [row for stream, n in enumerate(counts) for _, row in expected[stream][:n]]


@pytest.mark.parametrize("function", STRUCTURES)
def test_parts_of_a_batch_are_its_rows(function, files, pool):
    host = hosting(opened(files, function), pool, {0: Cursor()})
    batch = host.take(0, [10])
    host.close()
    whole = rows(batch.components, 10)
    assert rows(pipeline.part_of(batch, 3, 7), 4) == whole[3:7]
    assert all(
        tf.is_tensor(t)
        for t in tf.nest.flatten(pipeline.tensors(batch.components), expand_composites=True)
    )


def test_no_more_is_read_than_asked_for_ahead(files):
    passed = []
    opener = untraced(opened(files, noted(passed)))
    opener.block = 1
    del passed[:]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        host = hosting(opener, pool, {0: Cursor()}, epochs=50, share=2)
        host.take(0, [1])
        host.close()
    assert len(passed) < 25 + 20


def test_what_was_put_together_ahead_is_what_is_taken(filtering, pool):
    """Whether it was guessed right, or asked for otherwise."""
    opener, _ = filtering
    takes = [(0, [3, 2, 4]), (0, [1, 0, 9]), (0, [2, 2, 2]), (0, [20, 20, 20]), (1, [3, 3, 3])]
    expected = walked(opener, pool, START, takes)
    for guesses in (takes, [(0, [3, 2, 5]), (0, [1, 0, 9]), (1, [7, 7, 7]), *takes[3:]]):
        host = hosting(opener, pool, START)
        found = []
        for guess, take in zip(guesses, takes, strict=True):
            host.expect(*guess)
            found.append(given_by(host.take(*take)))
        host.close()
        assert found == expected


# ---- one host after another -------------------------------------------------------------------


class AtOnce:
    """A pool that is never behind: all that can be read ahead or put together is so already."""

    def submit(self, call):
        call()


@pytest.mark.parametrize("at_once", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), share=st.integers(0, 12))
def test_whatever_happens_the_elements_are_those_of_one_walk(either, at_once, data, share):
    """Streams come and go, steps fail or are committed by others, and guesses are wrong."""
    opener, sequence = either
    epochs = 2
    draw = data.draw
    cursors, done = dict(START), {stream: [] for stream in START}
    for stream in START:  # an epoch's end may be near
        for _ in range(draw(st.integers(0, 2))):
            advance(cursors, done, stream, draw(st.integers(18, 30)), sequence, epochs)
    with (
        concurrent.futures.ThreadPoolExecutor(2) as threads,
        contextlib.closing(
            Streams(PLAN, opener, AtOnce() if at_once else threads, epochs=epochs, share=share)
        ) as host,
    ):
        hosted: set[int] = set()
        for event in draw(st.lists(st.sampled_from(["host", "step", "fail", "lost"]), max_size=25)):
            if event == "host":
                # Others have trained on some, also on what was hosted here until now.
                for stream in draw(st.sets(st.sampled_from(sorted(START)))):
                    advance(cursors, done, stream, draw(st.integers(0, 9)), sequence, epochs)
                hosted = draw(st.sets(st.sampled_from(sorted(START))))
                host.host({stream: cursors[stream] for stream in hosted})
                continue
            epoch = min(cursors.values()).epoch
            if epoch == epochs:
                break
            shares = {stream: draw(st.integers(0, share)) for stream in START}
            if draw(st.booleans()):
                host.expect(draw(st.integers(0, 1)), draw(st.sampled_from([shares, [share] * 3])))
            elements, counts, used = given_by(host.take(epoch, shares))
            if draw(st.booleans()):
                host.expect(epoch, [share] * 3)
            before = dict(cursors), {stream: list(some) for stream, some in done.items()}
            beginning = 0
            for stream, count in zip(sorted(hosted), counts, strict=True):
                advance(cursors, done, stream, shares[stream], sequence, epochs, epoch)
                assert (
                    elements[beginning : beginning + count]
                    == done[stream][len(before[1][stream]) :]
                )
                beginning += count
                assert used[stream].elements == count
                assert used[stream].cursor == cursors[stream]
            if event == "step":
                host.commit()
                continue
            if event == "fail":
                cursors, done = before
            hosted = draw(st.one_of(st.just(hosted), st.sets(st.sampled_from(sorted(START)))))
            host.host({stream: cursors[stream] for stream in hosted})


def advance(cursors, done, stream, share, sequence, epochs, epoch=None):
    """Takes a stream's next elements by definition."""
    epoch = cursors[stream].epoch if epoch is None else epoch
    if epoch >= epochs:
        return
    places = [place for e in range(epochs) for place in sequence[e][stream]]
    places.append((Cursor(epochs), None))
    at = next(n for n, (cursor, _) in enumerate(places) if cursor >= cursors[stream])
    some = [
        row for cursor, row in places[at : at + share] if cursor.epoch == epoch and row is not None
    ]
    done[stream] += some
    cursors[stream] = places[at + len(some)][0]


class Counting:
    """An opener's walks, counted."""

    def __init__(self, opener):
        self._opener = opener
        self.block, self.joined = opener.block, opener.joined
        self.opened = []

    def walk(self, steps, **settings):
        steps, seen = itertools.tee(steps)
        first = next(seen, None)
        self.opened.append(first and Cursor(first.epoch, first.index, first.skip))
        return self._opener.walk(steps, **settings)


def test_streams_that_stay_are_not_read_again(either, pool):
    opener, _ = either
    counting = Counting(opener)
    host = hosting(counting, pool, START)
    assert counting.opened == [Cursor()] * 3
    first = host.take(0, [3, 3, 3])
    host.expect(0, [3, 3, 3])
    after = {stream: used.cursor for stream, used in first.used.items()}
    host.host(START)  # the step has failed
    again = host.take(0, [3, 3, 3])
    assert given_by(again) == given_by(first)
    host.expect(0, [2, 2, 2])
    host.host(after)  # it failed here only
    host.commit()
    second = host.take(0, [3, 3, 3])
    host.commit()
    after = {stream: used.cursor for stream, used in second.used.items()}
    host.expect(1, [2, 2, 2])
    host.host({0: after[0], 2: after[2]})
    host.host({0: after[0]})
    assert counting.opened == [Cursor()] * 3
    host.host(after)
    assert counting.opened == [*[Cursor()] * 3, after[1], after[2]]
    host.host({0: Cursor()})  # it stands elsewhere by now
    assert counting.opened[5:] == [Cursor()]
    host.close()


def test_a_stream_that_failed_is_opened_anew(files, tmp_path, pool):
    opener = pipeline.Opener(support.damaged(files, tmp_path), plain(shuffled), 0)
    opener.sample(PLAN)
    counting = Counting(opener)
    host = hosting(counting, pool, START, epochs=1, share=30)
    for _ in range(2):
        with pytest.raises(CorruptData):
            host.take(0, [30, 30, 30])
        host.host(START)
    assert 3 < len(counting.opened) <= 9
    host.close()


def test_elements_whose_shapes_differ_between_slices_are_refused(files, pool):
    """Each block for itself is in order."""

    def parse(record):
        return {"x": tf.fill([tf.where(support.number(record) < 60, 2, 3)], 1.0)}

    host = hosting(opened(files, lambda d: d.map(parse)), pool, START, epochs=1, share=10)
    for ahead in (True, False):
        if ahead:
            host.expect(0, [30, 30, 30])
        with pytest.raises(UserError) as caught:
            host.take(0, [30, 30, 30])
        message = str(caught.value)
        assert "expected elements of one shape; got " in message
        assert "[2]" in message
        assert "[3]" in message
        assert files[0] in message
        host.host(START)
    host.close()


# ---- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [Streams.close, lambda host: host.host({})])
def test_closing_ends_the_pipeline_behind_a_stream(leave, filtering):
    opener, _ = filtering
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        host = hosting(opener, pool, {0: Cursor()}, epochs=1000)
        host.take(0, [1])
        source = host._streams[0].source
        leave(host)
    assert source.gi_frame is None


def test_nothing_can_be_taken_once_streams_are_closed(filtering, pool):
    host = hosting(filtering[0], pool, START)
    host.close()
    with pytest.raises(Cancelled):
        host.take(0, [1, 1, 1])


def test_threads_that_read_for_streams_closed_meanwhile_hold_nobody_up(files):
    """All threads of the pool wait in a slow read; streams that are hosted next do not."""
    begins, goes_on = threading.Barrier(3), threading.Event()
    opener = opened(files, shuffled)

    class Slow:
        """Whose slices' beginnings take long."""

        block, joined = opener.block, opener.joined

        def walk(self, steps, **settings):
            for step in steps:
                if step.skip == 0:
                    begins.wait()
                    goes_on.wait()
                yield from opener.walk(iter([step]), **settings)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        host = hosting(Slow(), pool, {0: Cursor(), 1: Cursor()}, epochs=1)
        begins.wait()  # both threads
        host.expect(0, [4, 4, 4])
        host.host({0: Cursor(0, 0, 1), 2: Cursor(0, 0, 1)})
        assert host.take(0, [3, 0, 3]).counts == (3, 3)
        host.host({})
        goes_on.set()
        host.close()


def test_nobody_waits_for_a_stream_that_was_closed(files):
    """Else the threads that put batches together would be used up by and by."""
    waits, goes_on = threading.Event(), threading.Event()

    def slow(dataset):
        def hold(record):
            waits.set()
            goes_on.wait()
            return np.float32(float(record))

        return dataset.map(plain(lambda r: tf.numpy_function(hold, [r], tf.float32)))

    opener = pipeline.Opener(files, slow, 0)
    opener.block = 4
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        host = hosting(opener, pool, {0: Cursor()}, epochs=1)
        host.expect(0, [4])
        waits.wait()
        host.close()
        goes_on.set()
