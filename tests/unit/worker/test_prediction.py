"""Every part of a prediction is written once for all, whatever happens to masters and user code."""

import numpy as np
import pytest
import tensorflow as tf

from elasticdl.core import leases, streams
from elasticdl.data import outputs, pipeline, recordio
from elasticdl.errors import UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import prediction

RECORDS = 20
PLAN = streams.Plan([RECORDS], slice_records=6, streams=1, shuffle=False)  # 4 slices
SIZES = [6, 6, 6, 2]


def numbers(dataset):
    return dataset.map(lambda record: tf.strings.to_number(record, tf.float32))


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "numbers.recordio")
    with recordio.Writer(path) as writer:
        for n in range(RECORDS):
            writer.write(str(n).encode())
    opener = pipeline.Opener([path], numbers, 0)
    opener.sample(PLAN)
    return opener


class Replica:
    """Predicts twice each number; fails at those in `bad`, as often as they stand there."""

    def __init__(self, bad=(), shape=None):
        self.bad = list(bad)
        self.seen = []
        self._shape = shape

    def predict(self, components):
        values = np.asarray(components[0])
        for number in values:
            if number in self.bad:
                self.bad.remove(number)
                raise UserCodeError(f"model: cannot take {number:g}")
        self.seen.append(len(values))
        return {"twice": 2 * values if self._shape is None else np.zeros(self._shape)}


class Masters:
    """One master after the other; each leases what has no part yet.

    Args:
        gone: the numbers of the Lease calls in which the master dies: from 0, before it has heard
            of the call; if negative, after.
        most: slices in a lease.
    """

    def __init__(self, directory, *, gone=(), most=1):
        self._directory = directory
        self._gone = set(gone)
        self._most = most
        self.calls = 0
        self.records = {}
        self._begin()

    def _begin(self):
        names = [outputs.part_name(number, PLAN.slices) for number in range(PLAN.slices)]
        done = [n for n, name in enumerate(names) if (self._directory / name).exists()]
        self.leases = leases.Leases(PLAN.slices, done)

    def call(self, method, request, *, deadline_s=None):
        assert method == "Lease"
        number, self.calls = self.calls, self.calls + 1
        if number in self._gone:
            self._begin()
            raise rpc.Unreachable(method)
        for done in request.done:
            self.leases.finish(done.slice)
            self.records[done.slice] = done.records
        given = () if self.leases.finished else self.leases.lease(request.worker, self._most)
        if -number in self._gone:
            self._begin()
            raise rpc.Unreachable(method)
        return pb.LeaseReply(slices=given, finished=self.leases.finished)


class Beat:
    stop = orphaned = False
    leaving = ""

    def alive(self):
        """Not of interest here."""


class Telling(Replica):
    """Predicts; its worker is told something meanwhile."""

    def __init__(self, beat, **wish):
        super().__init__()
        self._beat, self._wish = beat, wish

    def predict(self, components):
        vars(self._beat).update(self._wish)
        return super().predict(components)


class Ended(Exception):
    """This process would be no more."""


class Leaver:
    """Keeps what it was told; a worker may try again as often as `attempts` says."""

    def __init__(self, attempts=0):
        self.attempts = attempts
        self.failures = []

    def end(self, reason):
        raise Ended(reason)

    def again(self, beat, error, phase):
        assert phase == "predicting"
        self.failures.append(error)
        self.attempts -= 1
        return self.attempts >= 0


class Worker:
    """A predicting worker and what surrounds it."""

    def __init__(self, opener, directory, *, attempts=0, replica=None, told=None, **master):
        self.directory = directory
        self.masters = Masters(directory, **master)
        self.beat = Beat()
        self.leaver = Leaver(attempts)
        self.replica = replica or Telling(self.beat, **(told or {}))
        self.predictor = prediction.Predictor(PLAN, opener, self.replica, batch_size=4)
        self.writes = []

    def write(self, number, path):
        self.writes.append(number)
        return self.predictor.write(number, path)

    def run(self):
        predicts = Noting(self)
        prediction.run(self.masters, "worker-1", predicts, self.directory, self.beat, self.leaver)

    def predicted(self):
        """What stands in all parts, in order."""
        return [
            x
            for number in range(PLAN.slices)
            for x in numbers_in(self.directory / outputs.part_name(number, PLAN.slices))
        ]


class Noting:
    """A predictor of which is known what it wrote."""

    plan = PLAN

    def __init__(self, worker):
        self.write = worker.write
        self.where = worker.predictor.where


def numbers_in(path):
    found = []
    with recordio.Reader(str(path)) as reader:
        for record in reader:
            example = tf.train.Example.FromString(bytes(record))
            found += example.features.feature["twice"].float_list.value
    return found


TWICE = [2.0 * n for n in range(RECORDS)]


def test_each_slice_becomes_a_part(opener, tmp_path):
    worker = Worker(opener, tmp_path)
    worker.run()
    assert worker.predicted() == TWICE
    assert worker.writes == [0, 1, 2, 3]
    assert worker.masters.records == dict(enumerate(SIZES))
    assert max(worker.replica.seen) == 4


def test_a_part_is_the_same_file_whoever_writes_it_and_how_often(opener, tmp_path):
    predictor = Worker(opener, tmp_path).predictor
    for name in ("a", "b"):
        assert predictor.write(1, tmp_path / name) == 6
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_predicted_that_another_worker_has(opener, tmp_path):
    worker = Worker(opener, tmp_path)
    assert worker.masters.leases.lease("worker-0", 2) == (0, 1)
    for number in (0, 1):
        worker.masters.leases.finish(number)
    worker.run()
    assert worker.writes == [2, 3]


@pytest.mark.parametrize("gone", [{0}, {1}, {2}, {4}, {1, 2, 3}, {-1}, {-2}, {-4}, {1, -3}])
def test_a_prediction_goes_on_with_the_next_master(opener, tmp_path, gone):
    worker = Worker(opener, tmp_path, gone=gone)
    worker.run()
    assert worker.predicted() == TWICE
    # No part is done again, only because the master that was to hear of it is gone.
    assert worker.writes == [0, 1, 2, 3]
    assert worker.masters.records == dict(enumerate(SIZES))


def test_who_finds_no_master_ends_when_it_is_an_orphan(opener, tmp_path):
    worker = Worker(opener, tmp_path, gone=range(100))
    beat = worker.beat

    def calls(method, request):
        beat.orphaned = True
        raise rpc.Unreachable(method)

    worker.masters.call = calls
    with pytest.raises(Ended, match="no master"):
        worker.run()


# ---- failures of the user's code --------------------------------------------------------------


def test_a_slice_that_failed_is_tried_again_while_the_master_says_so(opener, tmp_path):
    worker = Worker(opener, tmp_path, attempts=2, replica=Replica(bad=[7.0, 7.0]))
    worker.run()
    assert worker.predicted() == TWICE
    assert worker.writes == [0, 1, 1, 1, 2, 3]
    for failure in worker.leaver.failures:
        [named] = failure.slices
        assert "records 6 to 11" in named


def test_a_worker_ends_its_part_when_the_master_says_that_it_was_enough(opener, tmp_path):
    worker = Worker(opener, tmp_path, attempts=1, replica=Replica(bad=[7.0] * 3))
    worker.run()
    assert len(worker.leaver.failures) == 2
    assert worker.writes == [0, 1, 1]


def test_what_was_done_before_a_failure_is_not_done_again(opener, tmp_path):
    worker = Worker(opener, tmp_path, attempts=1, replica=Replica(bad=[7.0]), most=3)
    worker.run()
    assert worker.predicted() == TWICE
    assert sorted(worker.writes) == [0, 1, 1, 2, 3]


def test_an_output_that_is_not_one_row_an_element_is_refused(opener, tmp_path):
    predictor = Worker(opener, tmp_path, replica=Replica(shape=[3])).predictor
    with pytest.raises(UserError, match=r"one row of output 'twice' for each of 4 .* shape \[3\]"):
        predictor.write(0, tmp_path / "part")


# ---- leaving ----------------------------------------------------------------------------------


def test_a_leaving_worker_finishes_its_slice_says_so_and_gives_back_the_rest(opener, tmp_path):
    worker = Worker(opener, tmp_path, most=3, told={"leaving": "told to end"})
    with pytest.raises(Ended, match="told to end"):
        worker.run()
    assert worker.writes == [0]
    assert worker.masters.records == {0: 6}
    assert worker.masters.leases.give_back("worker-1") == (1, 2, 3)


def test_a_stopped_worker_stops_after_its_slice(opener, tmp_path):
    worker = Worker(opener, tmp_path, most=3, told={"stop": True})
    worker.run()
    assert worker.writes == [0]


def test_values_are_stored_as_types_that_examples_have(opener, tmp_path):
    class Half(Replica):
        def predict(self, components):
            return {"twice": (2 * np.asarray(components[0])).astype(np.float16)}

    predictor = Worker(opener, tmp_path, replica=Half()).predictor
    predictor.write(0, tmp_path / "part")
    assert numbers_in(tmp_path / "part") == TWICE[:6]
