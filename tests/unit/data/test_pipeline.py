"""Slices through users' input functions: the same elements each time, from any place on."""

import concurrent.futures
import json
import pathlib
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core import streams
from elasticdl.core.progress import Cursor
from elasticdl.data import pipeline, recordio
from elasticdl.errors import CorruptData, UserCodeError, UserError

RECORDS = 90
PLAN = streams.Plan([60, RECORDS - 60], slice_records=25, streams=3, seed=4)

# Functions that are traced must say themselves that AutoGraph is not for them: lambdas of one line
# are nothing that it can read.
plain = tf.autograph.experimental.do_not_convert


def number(record):
    return tf.strings.to_number(record, tf.float32)


def numbers(dataset):
    return dataset.map(number)


def interleaved(dataset):
    def twice(x):
        return tf.data.Dataset.from_tensors(x).repeat(2)

    return numbers(dataset).interleave(twice, cycle_length=3, num_parallel_calls=2)


def flat_mapped(dataset):
    def counted(x):
        return tf.data.Dataset.range(tf.cast(x, tf.int64) % 3)

    return numbers(dataset).flat_map(counted)


def third(x):
    return x % 3 == 0


def structured(dataset):
    def parse(record):
        x = number(record)
        features = {"text": record, "pair": (x, [x, -x])}
        return features, tf.cast(x, tf.int64) % 2, tf.exp(-x)

    return dataset.map(parse).shuffle(8)


def ragged(dataset):
    def parse(record):
        count = tf.cast(number(record), tf.int32) % 4
        return tf.RaggedTensor.from_row_lengths(tf.range(count), [count])

    return dataset.map(parse)


def sparse(dataset):
    def parse(record):
        at = tf.cast(number(record), tf.int64) % 5
        return {"one": tf.sparse.SparseTensor([[at]], [1.0], [5])}

    return dataset.map(parse)


def looked_up(dataset):
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["7", "77"]), tf.constant([1, 2])), 0
    )
    return dataset.map(table.lookup)


def summed(dataset):
    def add(total, x):
        return total + x, total + x

    return numbers(dataset).scan(0.0, add)


def in_python(dataset):
    def double(record):
        return np.float32(2 * float(record))

    return dataset.map(plain(lambda r: tf.numpy_function(double, [r], tf.float32)))


TRACED = {
    "map": numbers,
    "parallel map": lambda d: d.map(number, num_parallel_calls=tf.data.AUTOTUNE),
    "shuffle": lambda d: numbers(d).shuffle(10),
    "two shuffles": lambda d: numbers(d.shuffle(7)).shuffle(10),
    "shuffle once": lambda d: numbers(d).shuffle(10, reshuffle_each_iteration=False),
    "explicit seed": lambda d: numbers(d).shuffle(10, seed=3),
    "filter": lambda d: numbers(d).filter(third),
    "flat_map": flat_mapped,
    "batch and unbatch": lambda d: numbers(d).batch(7).shuffle(3).unbatch(),
    "interleave": interleaved,
    "take": lambda d: numbers(d).take(5),
    "cache": lambda d: numbers(d).shuffle(100).cache().prefetch(2),
    "scan": summed,
    "sampled": lambda d: tf.data.Dataset.sample_from_datasets([numbers(d), numbers(d.skip(3))]),
    "structure": structured,
    "ragged": ragged,
    "sparse": sparse,
    "table": looked_up,
    "python": in_python,
}


def noisy(x):
    return number(x) + tf.random.uniform([])


def coin(x):
    del x
    return tf.random.uniform([]) < 0.5


def with_generator(dataset):
    generator = tf.random.Generator.from_seed(1)

    def parse(record):
        return number(record) + generator.uniform([])

    return dataset.map(parse)


def with_numpy(dataset):
    shift = np.random.uniform() + random.random()

    def parse(record):
        return number(record) + shift

    return dataset.map(parse)


def iterated(dataset):
    return tf.data.Dataset.from_tensor_slices([float(record.numpy()) for record in dataset])


def generated(dataset):
    def values():
        for record in dataset.as_numpy_iterator():
            yield float(record)

    return tf.data.Dataset.from_generator(
        values, output_signature=tf.TensorSpec([], tf.float32)
    ).shuffle(9)


CALLED = {
    "random map": lambda d: d.map(noisy),
    "random map in parallel": lambda d: d.map(noisy, num_parallel_calls=4),
    "random filter": lambda d: d.map(noisy, num_parallel_calls=tf.data.AUTOTUNE).filter(coin),
    "random generator": with_generator,
    "random in numpy": with_numpy,
    "any order": lambda d: d.map(number, num_parallel_calls=4, deterministic=False),
    "iteration": iterated,
    "python generator": generated,
}
FUNCTIONS = {**TRACED, **CALLED}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    written(directory)
    return [str(directory / "0.recordio"), str(directory / "1.recordio")]


def written(directory: pathlib.Path) -> None:
    """60 records in one file, 30 in another: the numbers from 0 on."""
    for file, (begin, end) in enumerate([(0, 60), (60, RECORDS)]):
        with recordio.Writer(str(directory / f"{file}.recordio")) as writer:
            for n in range(begin, end):
                writer.write(str(n).encode())


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool


_openers = {}


def opened(files, function, seed=5):
    """An opener, the same one for the same function: none keeps anything from slice to slice."""
    key = function, seed
    if key not in _openers:
        opener = pipeline.Opener(files, plain(function), seed)
        opener.sample(PLAN)
        _openers[key] = opener
    return _openers[key]


def untraced(opener):
    """The same opener, which calls the user's function for each slice."""
    other = pipeline.Opener(opener.files, opener._create_dataset, opener._seed)
    other.block = opener.block
    return other


def rows(components, elements):
    """Each element's leaves as plain Python values."""

    def values(component):
        if isinstance(component, tf.SparseTensor):
            component = tf.sparse.to_dense(component)
        if isinstance(component, tf.RaggedTensor):
            return component.to_list()
        return np.asarray(component).tolist()

    columns = [values(component) for component in components]
    return [tuple(column[n] for column in columns) for n in range(elements)]


def elements_of(blocks):
    return [row for block in blocks for row in rows(block.components, block.elements)]


def slice_elements(opener, number, epoch=0, skip=0):
    return elements_of(opener.blocks(PLAN.slice(number), epoch, skip))


# ---- one slice --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACED)
def test_the_traced_pipeline_gives_what_the_function_gives(name, files):
    opener = opened(files, TRACED[name])
    assert opener._traced is not None
    for number, epoch in [(0, 0), (2, 1), (3, 0)]:
        expected = slice_elements(untraced(opener), number, epoch)
        assert slice_elements(opener, number, epoch) == expected
        assert slice_elements(opener, number, epoch, 4) == expected[4:]


@pytest.mark.parametrize("name", CALLED)
def test_what_cannot_be_traced_is_called_and_still_the_same_each_time(name, files):
    opener = opened(files, CALLED[name])
    assert opener._traced is None
    for number, epoch in [(0, 0), (3, 1)]:
        expected = slice_elements(opener, number, epoch)
        assert expected
        for skip in (0, 1, 7, len(expected)):
            assert slice_elements(opener, number, epoch, skip) == expected[skip:]


def test_another_process_gives_the_same_elements(files, tmp_path):
    """Names of operations, hashes and memory addresses are others there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('test_pipeline', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['test_pipeline'] = module\n"
        "spec.loader.exec_module(module)\n"
        "json.dump(module.everything(json.loads(sys.argv[1])), sys.stdout)\n"
    )
    other = subprocess.run(
        [sys.executable, str(script), json.dumps(files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    assert json.loads(other.stdout) == everything(files)


def everything(files):
    """Some elements of each slice under functions that are hard to repeat."""
    names = ("explicit seed", "random filter", "random in numpy")
    found = {}
    for name in names:
        opener = opened(files, FUNCTIONS[name])
        found[name] = [
            json.loads(json.dumps(slice_elements(opener, number, 1, 2))) for number in (0, 3)
        ]
    return found


def test_slices_epochs_and_jobs_are_shuffled_differently(files):
    opener, other = (opened(files, TRACED["explicit seed"], seed) for seed in (5, 6))
    first = slice_elements(opener, 0, 0)
    assert sorted(first) == [(float(n),) for n in range(25)]
    orders = {tuple(first), tuple(slice_elements(opener, 0, 1)), tuple(slice_elements(other, 0, 0))}
    assert len(orders) == 3
    second = [(x - 25,) for (x,) in slice_elements(opener, 1, 0)]
    assert sorted(second) == sorted(first)
    assert second != first


def test_random_numbers_outside_are_left_as_they_were(files):
    before = random.getstate(), np.random.get_state()
    tf.random.set_seed(11)
    random.seed(11)
    np.random.seed(11)
    try:
        expected = [float(tf.random.uniform([])) for _ in range(3)]
        expected += [random.random(), np.random.uniform()]
        tf.random.set_seed(11)
        random.seed(11)
        np.random.seed(11)
        found = [float(tf.random.uniform([]))]
        opener = pipeline.Opener(files, plain(with_numpy), 5)
        opener.sample(PLAN)
        found.append(float(tf.random.uniform([])))
        with pytest.raises(ZeroDivisionError):
            opened(files, fails_at_once)
        list(opener.blocks(PLAN.slice(1), 0))
        found.append(float(tf.random.uniform([])))
        assert [*found, random.random(), np.random.uniform()] == expected
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def fails_at_once(dataset):
    raise ZeroDivisionError


def test_shuffles_outside_have_the_seeds_that_tensorflow_gives_them(files):
    tf.random.set_seed(3)
    expected = list(tf.data.Dataset.range(20).shuffle(20).as_numpy_iterator())
    pipeline.Opener(files, TRACED["shuffle"], 5).sample(PLAN)
    tf.random.set_seed(3)
    assert list(tf.data.Dataset.range(20).shuffle(20).as_numpy_iterator()) == expected


def test_opening_slices_keeps_what_tensorflow_has_compiled(files):
    """`tf.random.set_seed` would drop it, with the state of each kernel: a function's random
    numbers would begin anew.
    """

    @tf.function
    def draw():
        return tf.random.uniform([], seed=1)

    opener = opened(files, CALLED["random map"])
    tf.random.set_seed(1)
    expected = [float(draw()) for _ in range(4)]
    tf.random.set_seed(1)
    found = []
    for number in range(4):
        found.append(float(draw()))
        slice_elements(opener, number)
    assert found == expected


def test_openers_in_several_threads_do_not_disturb_each_other(files):
    names = ["shuffle", "random map", "explicit seed", "random in numpy"]
    openers = [opened(files, FUNCTIONS[name]) for name in names]
    alone = [[slice_elements(opener, n) for n in range(4)] for opener in openers]
    begin = threading.Barrier(len(openers))

    def work(opener):
        begin.wait()
        return [slice_elements(opener, n) for n in range(4)]

    with concurrent.futures.ThreadPoolExecutor(len(openers)) as pool:
        assert list(pool.map(work, openers)) == alone


def test_blocks_are_about_a_mebibyte(files):
    def large(dataset):
        def parse(record):
            return tf.fill([512, 512], number(record))

        return dataset.map(parse)

    opener = opened(files, large)
    assert opener.block == 1
    blocks = list(opener.blocks(PLAN.slice(0), 0, 20))
    assert [block.elements for block in blocks] == [1] * 5
    assert [block.first for block in blocks] == [20, 21, 22, 23, 24]


def test_block_sizes_come_from_what_is_known_of_shapes():
    def spec(*shape, dtype=tf.float32):
        return tf.TensorSpec(shape, dtype)

    assert pipeline.block_elements(spec()) == 256
    assert pipeline.block_elements(spec(1024)) == 256
    assert pipeline.block_elements((spec(1024, 64), {"a": spec(dtype=tf.int64)})) == 3
    assert pipeline.block_elements(spec(None, 1024)) == 4
    assert pipeline.block_elements(tf.TensorSpec(None)) == 64
    assert pipeline.block_elements(tf.RaggedTensorSpec([None, None], tf.int32)) == 64
    assert pipeline.block_elements(spec(10_000, 10_000)) == 1


# ---- what is wrong in a slice -----------------------------------------------------------------


def taken_all(opener, pool):
    found = []
    stream = pipeline.Stream(PLAN, 0, Cursor(), opener, pool, epochs=1, ahead=1)
    while True:
        pieces, used = stream.take(0, 1)
        if not used.elements:
            return found
        found += pieces


def damaged(files, tmp_path):
    """The same files, the last chunk of the second one damaged."""
    content = bytearray(pathlib.Path(files[1]).read_bytes())
    content[-5] ^= 0x55
    path = tmp_path / "damaged.recordio"
    path.write_bytes(content)
    return [files[0], str(path)]


@pytest.mark.parametrize("name", ["map", "random map"])
def test_a_damaged_file_is_told_by_whoever_takes_its_elements(name, files, tmp_path, pool):
    opener = pipeline.Opener(damaged(files, tmp_path), plain(FUNCTIONS[name]), 0)
    opener.sample(PLAN)
    with pytest.raises(CorruptData, match=r"damaged\.recordio: at byte") as caught:
        list(opener.blocks(PLAN.slice(3), 0))
    assert caught.value.path.endswith("damaged.recordio")
    stream = pipeline.Streams(
        PLAN, dict.fromkeys(range(3), Cursor()), opener, pool, epochs=1, share=30
    )
    with pytest.raises(CorruptData):
        stream.take(0, [30, 30, 30])
    stream.close()


def test_a_sample_of_a_damaged_file_says_so(files, tmp_path):
    opener = pipeline.Opener(damaged(files, tmp_path)[1:], numbers, 0)
    with pytest.raises(CorruptData):
        opener.sample(streams.Plan([30], slice_records=30, streams=1))


@pytest.mark.parametrize("traced", [True, False])
def test_what_cannot_be_parsed_names_file_and_records(files, traced):
    def parse(record):
        return tf.strings.to_number(tf.where(record == "70", "seventy", record))

    opener = opened(files, lambda d: d.map(parse))
    opener = opener if traced else untraced(opener)
    with pytest.raises(UserCodeError) as caught:
        list(opener.blocks(PLAN.slice(3), 0))
    message = str(caught.value)
    assert message.startswith("create_dataset: StringToNumberOp could not correctly convert string")
    assert f"({files[1]}, records 0 to 24)" in message
    assert "\n" not in message
    assert caught.value.trace == ""  # a graph has no lines of Python


def test_elements_of_different_shapes_are_refused(files):
    def parse(record):
        return tf.fill([tf.strings.length(record)], 1.0)

    with pytest.raises(UserError, match=r"expected elements of one shape; .*Pad them") as caught:
        opened(files, lambda d: d.map(parse))
    assert f"({files[0]}, records 0 to 24)" in str(caught.value)
    assert not isinstance(caught.value, UserCodeError)


def test_elements_whose_shapes_differ_between_slices_are_refused(files, pool):
    """Each block for itself is in order."""

    def parse(record):
        return {"x": tf.fill([tf.where(number(record) < 60, 2, 3)], 1.0)}

    opener = opened(files, lambda d: d.map(parse))
    stream = pipeline.Streams(
        PLAN, dict.fromkeys(range(3), Cursor()), opener, pool, epochs=1, share=10
    )
    with pytest.raises(UserError) as caught:
        stream.take(0, [30, 30, 30])
    stream.close()
    message = str(caught.value)
    assert "expected elements of one shape; got " in message
    assert "[2]" in message
    assert "[3]" in message
    assert files[0] in message


@pytest.mark.parametrize("traced", [True, False])
def test_endless_functions_are_detected(files, traced):
    def endless(dataset):
        def many(x):
            return tf.data.Dataset.range(1 << 40)

        return numbers(dataset).flat_map(many)

    opener = opened(files, endless)
    opener = opener if traced else untraced(opener)
    with pytest.raises(UserError, match=r"expected an end; got more than .* from 25 records"):
        for _ in opener.blocks(PLAN.slice(0), 0, 1_020_000):
            pass


def test_functions_that_leave_nothing_are_refused(files):
    with pytest.raises(UserError, match="expected elements; got none from all records"):
        opened(files, lambda d: numbers(d).filter(lambda x: x < 0))


def test_the_sample_comes_from_the_first_slice_that_has_elements(files):
    opener = pipeline.Opener(files, lambda d: numbers(d).filter(lambda x: x >= 60), 0)
    specs, block = opener.sample(PLAN)
    assert specs == tf.TensorSpec([None], tf.float32)
    assert rows(block.components, block.elements)[0] == (60.0,)


# ---- streams ----------------------------------------------------------------------------------


def walked(opener, pool, cursors, takes, *, epochs=2, share=4):
    """What each of `takes`, (epoch, shares), gives: elements, counts and what was used."""
    host = pipeline.Streams(PLAN, cursors, opener, pool, epochs=epochs, share=share)
    found = []
    for epoch, shares in takes:
        batch = host.take(epoch, shares)
        assert batch.elements == len(rows(batch.components, batch.elements))
        found.append((rows(batch.components, batch.elements), batch.counts, batch.used))
    host.close()
    return found


def every_third(dataset):
    """Slices of the first 30 records have no elements."""
    return numbers(dataset).filter(lambda x: x >= 30).shuffle(6)


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
    opener = opened(files, every_third)
    return opener, [sequences(opener, epoch) for epoch in range(3)]


@settings(max_examples=10, deadline=None)
@given(
    stream=st.integers(0, PLAN.streams - 1),
    first=st.lists(st.integers(0, 12), max_size=5),
    rest=st.integers(1, 12),
    share=st.integers(1, 20),
)
def test_a_stream_goes_on_from_any_cursor(filtering, stream, first, rest, share):
    opener, expected = filtering
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
    host = pipeline.Streams(PLAN, {0: Cursor(1), 1: Cursor()}, opener, pool, epochs=2, share=2)
    batch = host.take(0, [5, 5, 5])
    assert batch.counts == (0, 5)
    assert batch.used[0].elements == 0
    assert batch.used[0].cursor.epoch == 1
    assert batch.slices[0] == ()
    assert all(isinstance(slice_, streams.Slice) for slice_ in batch.slices[1])
    host.close()


def test_streams_without_elements_are_at_their_end(files, pool):
    opener = opened(files, lambda d: numbers(d).filter(lambda x: x >= 89))
    found = walked(opener, pool, dict.fromkeys(range(3), Cursor()), [(0, [3, 3, 3])], epochs=1)
    ((elements, counts, used),) = found
    assert elements == [(89.0,)]
    assert sorted(counts) == [0, 0, 1]
    assert all(each.cursor == Cursor(1) for each in used.values())


def test_a_batch_joins_structures_of_all_streams(files, pool):
    for name in ("structure", "ragged", "sparse"):
        opener = opened(files, TRACED[name])
        expected = sequences(opener, 0)
        ((elements, counts, _),) = walked(
            opener, pool, dict.fromkeys(range(3), Cursor()), [(0, [28, 1, 3])]
        )
        assert counts == (28, 1, 3)
        assert elements == [
            row for stream, n in enumerate(counts) for _, row in expected[stream][:n]
        ]


def test_parts_of_a_batch_are_its_rows(files, pool):
    for name in ("structure", "ragged", "sparse"):
        opener = opened(files, TRACED[name])
        host = pipeline.Streams(PLAN, {0: Cursor()}, opener, pool, epochs=1, share=4)
        batch = host.take(0, [10])
        host.close()
        whole = rows(batch.components, 10)
        assert rows(pipeline.part_of(batch, 3, 7), 4) == whole[3:7]
        assert all(
            tf.is_tensor(t)
            for t in tf.nest.flatten(pipeline.tensors(batch.components), expand_composites=True)
        )


def test_no_more_is_read_than_asked_for_ahead(files, pool):
    passed = []

    def noted(dataset):
        def note(record):
            passed.append(record)
            return np.float32(float(record))

        return dataset.map(plain(lambda r: tf.numpy_function(note, [r], tf.float32)))

    opener = opened(files, noted)
    opener.block = 1
    opener = untraced(opener)
    del passed[:]
    stream = pipeline.Stream(PLAN, 0, Cursor(), opener, pool, epochs=50, ahead=5)
    stream.take(0, 1)
    stream.close()
    pool.shutdown()
    assert len(passed) < 25 + 20


def test_closing_ends_the_pipeline_behind_a_stream(files, pool):
    opener = opened(files, numbers)
    stream = pipeline.Stream(PLAN, 0, Cursor(), opener, pool, epochs=1000, ahead=5)
    stream.take(0, 1)
    stream.close()
    pool.shutdown()
    assert stream._source.gi_frame is None


def test_what_was_put_together_ahead_is_what_is_taken(filtering, pool):
    """Whether it was guessed right, or asked for otherwise."""
    opener, _ = filtering
    cursors = dict.fromkeys(range(3), Cursor())
    takes = [(0, [3, 2, 4]), (0, [1, 0, 9]), (0, [2, 2, 2]), (0, [20, 20, 20]), (1, [3, 3, 3])]
    expected = walked(opener, pool, cursors, takes)
    for guesses in (takes, [(0, [3, 2, 5]), (0, [1, 0, 9]), (1, [7, 7, 7]), *takes[3:]]):
        host = pipeline.Streams(PLAN, cursors, opener, pool, epochs=2, share=4)
        for guess, take, (elements, counts, used) in zip(guesses, takes, expected, strict=True):
            host.expect(*guess)
            batch = host.take(*take)
            assert rows(batch.components, batch.elements) == elements
            assert (batch.counts, batch.used) == (counts, used)
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
        host = pipeline.Streams(PLAN, {0: Cursor()}, opener, pool, epochs=1, share=4)
        host.expect(0, [4])
        waits.wait()
        host.close()
        goes_on.set()
