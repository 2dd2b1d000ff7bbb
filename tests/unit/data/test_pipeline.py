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

from elasticdl.core import streams
from elasticdl.data import pipeline
from elasticdl.errors import CorruptData, UserCodeError, UserError
from elasticdl.model import datasets
from elasticdl.model.mode import Mode
from tests.unit.data import support
from tests.unit.data.support import (
    PLAN,
    elements_of,
    number,
    numbers,
    opened,
    plain,
    rows,
    untraced,
)


def interleaved(dataset):
    def twice(x):
        return tf.data.Dataset.from_tensors(x).repeat(2)

    return numbers(dataset).interleave(twice, cycle_length=3, num_parallel_calls=2)


def flat_mapped(dataset):
    def counted(x):
        return tf.data.Dataset.range(tf.cast(x, tf.int64) % 3)

    return numbers(dataset).flat_map(counted)


def halved(x):
    return x / 2


def with_the_count(dataset):
    count = tf.cast(dataset.cardinality(), tf.float32)

    def parse(record):
        return number(record) / count

    return dataset.map(parse)


def third(x):
    return x % 3 == 0


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


PERMUTED = {
    "map": numbers,
    "nothing": lambda d: d,
    "parallel map": lambda d: d.map(number, num_parallel_calls=tf.data.AUTOTUNE),
    "map in two threads": lambda d: d.map(number, num_parallel_calls=2).shuffle(10),
    "shuffle": lambda d: numbers(d).shuffle(10),
    "shuffle first": lambda d: numbers(d.shuffle(10)),
    "two shuffles": lambda d: numbers(d.shuffle(7)).shuffle(10),
    "maps around a shuffle": lambda d: numbers(d).shuffle(10).map(halved, tf.data.AUTOTUNE),
    "shuffle once": lambda d: numbers(d).shuffle(10, reshuffle_each_iteration=False),
    "explicit seed": lambda d: numbers(d).shuffle(10, seed=3),
    "cache": lambda d: numbers(d).shuffle(100).cache().prefetch(2),
    "structure": support.structured,
    "ragged": support.ragged,
    "sparse": support.sparse,
    "table": looked_up,
    "python": in_python,
    "options": lambda d: numbers(d).with_options(tf.data.Options()),
    "through the contract": lambda d: datasets.checked("it", numbers(d), Mode.PREDICTION, None)[0],
}
TRACED = {
    "filter": lambda d: numbers(d).filter(third),
    "flat_map": flat_mapped,
    "batch and unbatch": lambda d: numbers(d).batch(7).shuffle(3).unbatch(),
    "interleave": interleaved,
    "take": lambda d: numbers(d).take(5),
    "scan": summed,
    "sampled": lambda d: tf.data.Dataset.sample_from_datasets([numbers(d), numbers(d.skip(3))]),
    "shuffle of as many as there are": lambda d: numbers(d).shuffle(d.cardinality()),
    "map with their number": with_the_count,
    "enumerated": lambda d: numbers(d).enumerate(),
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
FUNCTIONS = {**PERMUTED, **TRACED, **CALLED}


def slice_elements(opener, number, epoch=0, skip=0):
    return elements_of(opener.blocks(PLAN.slice(number), epoch, skip))


# ---- one slice --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", {**PERMUTED, **TRACED})
def test_the_traced_pipeline_gives_what_the_function_gives(name, files):
    opener = opened(files, FUNCTIONS[name])
    assert (opener._permuted is not None) == (name in PERMUTED)
    assert (opener._traced is not None) == (name in TRACED)
    for place, epoch in [(0, 0), (2, 1), (3, 0)]:
        expected = slice_elements(untraced(opener), place, epoch)
        assert slice_elements(opener, place, epoch) == expected
        assert slice_elements(opener, place, epoch, 4) == expected[4:]


@pytest.mark.parametrize("name", CALLED)
def test_what_cannot_be_traced_is_called_and_still_the_same_each_time(name, files):
    opener = opened(files, CALLED[name])
    assert opener._traced is opener._permuted is None
    for place, epoch in [(0, 0), (3, 1)]:
        expected = slice_elements(opener, place, epoch)
        assert expected
        for skip in (0, 1, 7, len(expected)):
            assert slice_elements(opener, place, epoch, skip) == expected[skip:]


def test_another_process_gives_the_same_elements(files, tmp_path):
    """Names of operations, hashes and memory addresses are others there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, json, sys\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parents[3])!r})\n"
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
    opener, other = (opened(files, PERMUTED["explicit seed"], seed) for seed in (5, 6))
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
    pipeline.Opener(files, PERMUTED["shuffle"], 5).sample(PLAN)
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
    for place in range(4):
        found.append(float(draw()))
        slice_elements(opener, place)
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


@pytest.mark.parametrize("name", ["map", "random map"])
def test_a_damaged_file_is_told_by_whoever_reads_it(name, files, tmp_path):
    opener = pipeline.Opener(support.damaged(files, tmp_path), plain(FUNCTIONS[name]), 0)
    opener.sample(PLAN)
    with pytest.raises(CorruptData, match=r"damaged\.recordio: at byte") as caught:
        list(opener.blocks(PLAN.slice(3), 0))
    assert caught.value.path.endswith("damaged.recordio")


def test_a_sample_of_a_damaged_file_says_so(files, tmp_path):
    opener = pipeline.Opener(support.damaged(files, tmp_path)[1:], numbers, 0)
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
