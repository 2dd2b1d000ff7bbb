"""A checkpoint is the training state as it was between two steps, or it is not there."""

import dataclasses
import json
import os
import pathlib
import threading

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors
import tensorflow as tf
from numpy.testing import assert_array_equal

from elasticdl import config as configs
from elasticdl.core.progress import Cursor, Progress, Used
from elasticdl.data import pipeline
from elasticdl.errors import UserError
from elasticdl.model import spec
from elasticdl.worker import checkpoint, replica

ZOO = str(pathlib.Path(__file__).parent / "zoo")
WAIT_S = 60
N = 6


# ---- replicas and states ----------------------------------------------------------------------


def squares(outputs, labels):
    return tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32) - labels), -1)


def everything():
    """Batch statistics, rows, random layers and 16-bit weights."""
    ids = keras.Input((2,), dtype="int32")
    rows = keras.layers.Flatten()(keras.layers.Embedding(10, 3)(ids))
    half = keras.layers.Dense(4, dtype="bfloat16")(rows)
    normal = keras.layers.BatchNormalization()(keras.layers.Dense(4)(half))
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(normal)))


def small(width=4):
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(width, name="first"), keras.layers.Dense(1)]
    )


def dropping():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])


def adam():
    return keras.optimizers.Adam(0.05)


def made(model=small, optimizer=adam):
    definition = spec.load(
        spec.ModelSource(
            ZOO, "given.Given", params={"model": model, "optimizer": optimizer, "loss": squares}
        )
    )
    features = tf.constant([[1, 2], [3, 4]], tf.int32 if model is everything else tf.float32)
    specs = (tf.TensorSpec([None, 2], features.dtype), tf.TensorSpec([None, 1], tf.float32))
    copy = replica.Replica(definition, replica.Sample((features, tf.zeros([2, 1])), specs), seed=3)
    copy.prepare_training()
    return copy


def step(copy, version):
    random = np.random.default_rng(version)
    features = random.integers(0, 10, (N, 2)).astype(copy._specs[0].dtype.as_numpy_dtype)
    labels = random.normal(size=(N, 1)).astype(np.float32)
    copy.alone(pipeline.Batch((features, labels), (N,), {0: Used(N, Cursor(0, 0, N))}, {}), version)


def trained(*parts, steps=3):
    copy = made(*parts)
    for version in range(steps):
        step(copy, version)
    return copy


def meta(version=3, generation=1, term=1):
    return checkpoint.Meta(
        term=term,
        generation=generation,
        progress=Progress(version, (Cursor(0, 3, 17), Cursor(1, 0, 0))),
        epoch_version=2,
        elements=4 * version,
        epoch_elements=version,
        fingerprint={"model_def": "given.Given", "näme": "wert"},
    )


def arrays(fill=1.0):
    return {
        "model/a": np.full((3, 4), fill, np.float32),
        "model/flags": np.array([True, False, True]),
        "optimizer/iteration": np.array(7, np.int64),
    }


def bits(state):
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in state.items()}


@pytest.fixture(params=["keras", "v1 adam", "v1 momentum"])
def parts(request):
    v1 = tf.compat.v1.train
    return {
        "keras": (everything, adam),
        "v1 adam": (small, lambda: v1.AdamOptimizer(0.1)),
        "v1 momentum": (small, lambda: v1.MomentumOptimizer(1e-4, 0.9)),
    }[request.param]


# ---- there and back ---------------------------------------------------------------------------


def test_a_restored_replica_is_the_same_bit_for_bit_and_goes_on_so(tmp_path, parts):
    one, other = trained(*parts), made(*parts)
    written = checkpoint.write(tmp_path, one.snapshot(), meta())
    checkpoint.restore(other, checkpoint.load(written.path))
    assert bits(other.snapshot()) == bits(one.snapshot())
    for each in (one, other):
        step(each, 3)
    assert bits(other.snapshot()) == bits(one.snapshot())


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    dtypes = [
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    ]
    random = np.random.default_rng(0)
    given = {}
    for dtype in map(np.dtype, dtypes):
        most = 2 if dtype == np.bool_ else 256
        content = random.integers(0, most, 3 * 5 * dtype.itemsize, dtype=np.uint8)
        given[f"model/{dtype.name}"] = content.view(dtype).reshape(3, 5)
    given["model/none"] = np.zeros((0, 2), np.float32)
    given["model/scalar"] = np.array(1.5, np.float64)
    path = checkpoint.write(tmp_path, given, meta()).path
    assert bits(checkpoint.load(path).arrays) == bits(given)


def test_what_it_says_of_itself_comes_back(tmp_path):
    path = checkpoint.write(tmp_path, arrays(), meta(900, 12)).path
    assert path.name == "checkpoint-t00000001-g00000012-v000000000900.safetensors"
    assert checkpoint.read_meta(path) == checkpoint.load(path).meta == meta(900, 12)


def test_other_programs_read_it_as_safetensors(tmp_path):
    path = checkpoint.write(tmp_path, arrays(), meta()).path
    with safetensors.safe_open(path, "np") as file:
        assert bits({name: file.get_tensor(name) for name in file.keys()}) == bits(arrays())  # noqa: SIM118
        assert json.loads(file.metadata()["checkpoint"])["version"] == 3


def test_a_warm_start_takes_weights_and_leaves_optimizer_and_seeds(tmp_path):
    one = trained(dropping)
    path = checkpoint.write(tmp_path, one.snapshot(), meta()).path
    other = made(dropping, lambda: keras.optimizers.SGD(0.1))
    seeds = {n: a for n, a in bits(other.snapshot()).items() if "seed" in n or "optim" in n}
    assert len(seeds) > 1
    other.model.variables[0].assign_add(1 + other.model.variables[0])
    seeds = {n: a for n, a in bits(other.snapshot()).items() if n in seeds}
    checkpoint.warm_start(other, checkpoint.load(path))
    after = bits(other.snapshot())
    assert {n: after[n] for n in seeds} == seeds
    weights = {
        n: a for n, a in bits(one.snapshot()).items() if n.startswith("model/sequential/dense")
    }
    assert weights
    assert {n: after[n] for n in weights} == weights


@pytest.mark.parametrize("take", [checkpoint.restore, checkpoint.warm_start])
def test_another_models_state_is_refused_by_name_and_nothing_is_replaced(tmp_path, take):
    loaded = checkpoint.load(checkpoint.write(tmp_path, trained().snapshot(), meta()).path)
    other = made(lambda: small(5))
    before = bits(other.snapshot())
    with pytest.raises(
        UserError,
        match=r"checkpoint: expected variable model/sequential/first/kernel float32\[2, 4\]; "
        r"the model has float32\[2, 5\]; .*--restart begins anew",
    ):
        take(other, loaded)
    assert bits(other.snapshot()) == before


def test_another_optimizers_state_is_refused_by_name(tmp_path):
    loaded = checkpoint.load(checkpoint.write(tmp_path, trained().snapshot(), meta()).path)
    with pytest.raises(UserError, match=r"optimizer/adam/.*; the model has none of that name"):
        checkpoint.restore(made(small, lambda: keras.optimizers.SGD(0.1)), loaded)


def test_a_person_names_a_file_or_a_directory_or_an_output(tmp_path):
    for where in ("a", "b/checkpoints", "c/.elasticdl/checkpoints"):
        written = checkpoint.write(tmp_path / where, arrays(), meta()).path
        for given in (written, tmp_path / where, tmp_path / where[0]):
            found = checkpoint.found_at(str(given))
            assert found is not None
            assert found.path == written
    assert checkpoint.found_at(str(tmp_path)) is None
    assert checkpoint.found_at(str(tmp_path / "nowhere")) is None
    (tmp_path / "b" / "trained_model.pb").touch()
    assert checkpoint.found_at(str(tmp_path / "b")) is None
    written.write_bytes(b"?")
    with pytest.raises(UserError, match=r"from_checkpoint: .*is damaged: .*Choose another"):
        checkpoint.found_at(str(tmp_path / "c"))


# ---- half-written, damaged, old ---------------------------------------------------------------


def test_no_part_of_it_is_ever_read_as_a_whole(tmp_path):
    whole = checkpoint.write(tmp_path / "whole", arrays(), meta()).path
    content = whole.read_bytes()
    part = tmp_path / whole.name
    for length in range(len(content)):
        part.write_bytes(content[:length])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read_meta(part)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(part)
    part.write_bytes(content + b"0")
    with pytest.raises(checkpoint.Damaged, match="bytes; the file has"):
        checkpoint.load(part)


def test_any_changed_byte_is_found_out(tmp_path):
    path = checkpoint.write(tmp_path, arrays(), meta()).path
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)


def test_the_newest_whole_one_is_found_and_others_are_told(tmp_path):
    older = checkpoint.write(tmp_path, arrays(), meta(1)).path
    newer = checkpoint.write(tmp_path, arrays(), meta(2)).path
    newer.write_bytes(newer.read_bytes()[:-1])
    (tmp_path / meta(3).number.file).mkdir()
    found = checkpoint.newest(tmp_path)
    assert found.loaded is not None
    assert found.loaded.path == older
    assert [problem.path.name for problem in found.passed_over] == [
        meta(3).number.file,
        meta(2).number.file,
    ]
    assert "cannot be read: Is a directory" in found.passed_over[0].reason
    assert "is damaged: expected" in found.passed_over[1].reason


def test_where_there_is_none_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") == checkpoint.Newest(None)
    (tmp_path / f".{meta().number.file}.00.partial").touch()
    (tmp_path / "README").touch()
    assert checkpoint.listed(tmp_path) == []


def test_what_is_being_written_is_not_seen(tmp_path):
    seen = []

    def look():
        seen.append((checkpoint.listed(tmp_path), os.listdir(tmp_path)))
        return False

    checkpoint.write(tmp_path, arrays(), meta(), look)
    assert all(found == [] and len(files) == 1 for found, files in seen)
    assert len(checkpoint.listed(tmp_path)) == 1


def test_given_up_writing_leaves_nothing(tmp_path):
    with pytest.raises(checkpoint.Stopped):
        checkpoint.write(tmp_path, arrays(), meta(), lambda: True)
    assert os.listdir(tmp_path) == []


def test_one_of_an_older_generation_never_takes_a_newer_ones_place(tmp_path):
    numbers = [(1, 1, 9000), (1, 2, 700), (1, 10, 800), (2, 1, 5)]
    for term, generation, version in reversed(numbers):
        checkpoint.write(tmp_path, arrays(), meta(version, generation, term))
    found = [
        (each.number.term, each.number.generation, each.number.version)
        for each in checkpoint.listed(tmp_path)
    ]
    assert found == numbers[::-1]
    assert (
        sorted(os.listdir(tmp_path))
        == [each.path.name for each in checkpoint.listed(tmp_path)][::-1]
    )


def test_only_the_newest_are_kept_and_no_leftovers(tmp_path):
    leftovers = [f".{meta(version).number.file}.00ff.partial" for version in (2, 99)]
    with closing(checkpoint.Writer(tmp_path, keep=2)) as writer:
        for name in leftovers:
            (tmp_path / name).touch()
        for version in (1, 2, 3):
            assert writer.save_now(arrays(), meta(version, 5))
        # Of a worker that was given up: it is removed again.
        assert writer.save_now(arrays(), meta(50, 4))
    kept = [meta(3, 5).number.file, meta(2, 5).number.file]
    assert [each.path.name for each in checkpoint.listed(tmp_path)] == kept
    (tmp_path / "x").touch()
    assert {*os.listdir(tmp_path)} == {*kept, "x"}


# ---- in the background ------------------------------------------------------------------------


class Gate:
    """A state that is not read on before it may be."""

    def __init__(self, state):
        self.state = state
        self.reached, self.open = threading.Event(), threading.Event()

    def __iter__(self):
        self.reached.set()
        assert self.open.wait(WAIT_S)
        return iter(self.state)

    def __getitem__(self, name):
        return self.state[name]


class closing:
    """Ends a writer's thread."""

    def __init__(self, writer):
        self.writer = writer

    def __enter__(self):
        return self.writer

    def __exit__(self, *_):
        self.writer.close(wait=True)


def test_it_is_written_in_the_background(tmp_path):
    with closing(checkpoint.Writer(tmp_path)) as writer:
        gate = Gate(arrays())
        writer.begin(gate, meta(7))
        assert gate.reached.wait(WAIT_S)
        assert not writer.idle()
        assert writer.last is None
        gate.open.set()
        assert writer.wait(WAIT_S)
        path = tmp_path / meta(7).number.file
        assert writer.last == checkpoint.Published(
            path, 7, path.stat().st_size, writer.last.seconds
        )
        assert writer.problem == ""


def test_a_newer_one_takes_the_place_of_one_that_waits(tmp_path):
    with closing(checkpoint.Writer(tmp_path, keep=9)) as writer:
        gate = Gate(arrays())
        writer.begin(gate, meta(1))
        assert gate.reached.wait(WAIT_S)
        for version in (2, 3, 4):
            writer.begin(arrays(version), meta(version))
        gate.open.set()
        assert writer.wait(WAIT_S)
    assert [each.number.version for each in checkpoint.listed(tmp_path)] == [4, 1]


def test_all_the_while_it_rests(tmp_path):
    used = []
    large = {"model/large": np.ones(3 << 20, np.uint8), "model/small": np.ones(3)}
    checkpoint.write(tmp_path, large, meta(), rest=used.append)
    assert len(used) == 4
    assert min(used) > 0


def test_it_does_not_rest_while_a_newer_one_or_somebody_waits(tmp_path):
    with closing(checkpoint.Writer(tmp_path, keep=9, rests=1e9)) as writer:
        writer.begin(arrays(1), meta(1))
        writer.begin(arrays(2), meta(2))
        assert writer.wait(WAIT_S)
        writer.begin(arrays(3), meta(3))
        assert writer.save_now(arrays(4), meta(4))
        writer.begin(arrays(5), meta(5))
    found = [each.number.version for each in checkpoint.listed(tmp_path)]
    assert {2, 4, 5} <= set(found)


def test_what_is_written_is_let_go(tmp_path):
    class State(dict):
        gone = threading.Event()

        def __del__(self):
            self.gone.set()

    with closing(checkpoint.Writer(tmp_path)) as writer:
        writer.begin(State(arrays()), meta())
        assert writer.wait(WAIT_S)
        assert State.gone.wait(WAIT_S)


def test_steps_that_follow_do_not_change_what_is_written(tmp_path, parts):
    copy = trained(*parts)
    before = bits(copy.snapshot())
    with closing(checkpoint.Writer(tmp_path)) as writer:
        gate = Gate(copy.snapshot())
        writer.begin(gate, meta())
        for version in range(3, 6):
            step(copy, version)
        gate.open.set()
        assert writer.wait(WAIT_S)
        assert bits(checkpoint.load(writer.last.path).arrays) == before
    assert bits(copy.snapshot()) != before


def test_closing_writes_what_waits_or_leaves_it(tmp_path):
    for wait, expected in ((True, [2, 1]), (False, [])):
        directory = tmp_path / str(wait)
        writer = checkpoint.Writer(directory)
        gate = Gate(arrays())
        writer.begin(gate, meta(1))
        assert gate.reached.wait(WAIT_S)
        writer.begin(arrays(), meta(2))
        if wait:
            gate.open.set()
        writer.close(wait=wait)
        gate.open.set()
        writer.close(wait=True)
        assert [each.number.version for each in checkpoint.listed(directory)] == expected
        assert len(os.listdir(directory)) == len(expected)


# ---- storage that fails -----------------------------------------------------------------------


class Changes:
    """Waits for what a writer shows."""

    def __init__(self):
        self.condition, self.count = threading.Condition(), 0

    def __call__(self):
        with self.condition:
            self.count += 1
            self.condition.notify_all()

    def until(self, that):
        with self.condition:
            assert self.condition.wait_for(that, WAIT_S)


def test_a_failure_of_storage_is_shown_and_tried_again_until_it_passes(tmp_path):
    directory = tmp_path / "checkpoints"
    directory.write_text("in the way")
    changes = Changes()
    with closing(checkpoint.Writer(directory, changed=changes, retry_s=0.001)) as writer:
        writer.begin(arrays(), meta(7))
        changes.until(lambda: changes.count >= 3)
        assert writer.problem == (
            f"checkpoint: {directory}: File exists, since version 7. It is tried again; training "
            "goes on."
        )
        writer.begin(arrays(2.0), meta(8))
        changes.until(lambda: changes.count >= 6)
        assert "since version 7" in writer.problem
        assert writer.last is None
        directory.unlink()
        assert writer.wait(WAIT_S)
        assert writer.problem == ""
        assert writer.last is not None
        assert writer.last.version == 8
        assert bits(checkpoint.load(writer.last.path).arrays) == bits(arrays(2.0))
        for left in directory.iterdir():
            left.unlink()
        directory.rmdir()
        writer.begin(arrays(), meta(9))
        assert writer.wait(WAIT_S)
        assert [each.number.version for each in checkpoint.listed(directory)] == [9]


def test_a_full_disk_leaves_the_older_one_and_no_rubbish(tmp_path):
    # A device without room, as a directory's own file: what the system says is real.
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    with closing(checkpoint.Writer(tmp_path)) as writer:
        assert writer.save_now(arrays(), meta(1))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            assert not writer.save_now({"model/a": np.zeros(10_000)}, meta(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert "File too large, since version 2." in writer.problem
        assert os.listdir(tmp_path) == [meta(1).number.file]
        assert writer.save_now(arrays(), meta(3))
        assert writer.problem == ""


def test_closing_does_not_wait_for_storage(tmp_path):
    (tmp_path / "file").touch()
    changes = Changes()
    writer = checkpoint.Writer(tmp_path / "file", changed=changes, retry_s=1000)
    writer.begin(arrays(), meta())
    changes.until(lambda: writer.problem)
    writer.close(wait=True)
    assert "Not a directory" in writer.problem or "File exists" in writer.problem


def test_attempts_become_rarer():
    delays = [checkpoint.retry_delay(0.5, failures) for failures in (1, 2, 3, 4, 5, 6, 1000)]
    assert delays == [0.5, 1, 2, 4, 8, 10, 10]


# ---- when -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "version", "now", "expected"),
    [
        (configs.Every(), 1000, 1e9, False),
        (configs.Every(steps=100), 199, 1e9, False),
        (configs.Every(steps=100), 150, 0, False),
        (configs.Every(steps=100), 200, 0, True),
        (configs.Every(steps=100), 205, 0, True),
        (configs.Every(seconds=60), 199, 69.9, False),
        (configs.Every(seconds=60), 199, 70, True),
        (configs.Every(seconds=60), 150, 1e9, False),
    ],
)
def test_it_is_due_after_so_many_steps_or_seconds(every, version, now, expected):
    assert checkpoint.due(every, version, now, last_version=150, last_time=10) == expected


def test_numbers_order_as_names():
    numbers = [checkpoint.Number(*n) for n in ((1, 2, 3), (1, 10, 1), (2, 1, 1), (2, 1, 20))]
    assert sorted(numbers) == sorted(numbers, key=lambda number: number.file) == numbers
    assert dataclasses.replace(numbers[0], version=10**13) > numbers[0]


def test_arrays_of_a_snapshot_cannot_be_written_to():
    for array in trained().snapshot().values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert_array_equal(arrays()["model/a"], 1.0)
