"""A member's replica begins, is saved and is handed on whole, or stays what it was."""

import os
import types

import numpy as np
import pytest

from elasticdl.config import JobConfig
from elasticdl.core import membership, streams
from elasticdl.core.progress import Cursor, Progress
from elasticdl.errors import UserError
from elasticdl.worker import checkpoint, group, loop, work

PATIENCE_S = 60
STREAMS = 2
PLAN = streams.Plan([40], slice_records=6, streams=STREAMS)


# ---- what surrounds a member's work -----------------------------------------------------------


class Variable:
    """A variable that keeps what it was assigned."""

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def assign(self, values):
        self.values = np.array(values)


class Replica:
    """Two variables: a weight and its optimizer's slot."""

    definition = None

    def __init__(self, weight=0.0):
        self.weight, self.slot = Variable([weight, weight]), Variable([10 * weight])
        self.state_bytes = 12

    def variables_by_name(self):
        return {"model/weight": self.weight, "optimizer/slot": self.slot}

    def snapshot(self):
        return {name: each.values for name, each in self.variables_by_name().items()}

    def dump_into(self, state):
        state[:] = np.concatenate([self.weight.values, self.slot.values]).view(np.uint8)

    def restore(self, state):
        values = np.array(state).view(np.float32)
        self.weight.assign(values[:2])
        self.slot.assign(values[2:])

    def values(self):
        return [*self.weight.values.tolist(), *self.slot.values.tolist()]


class Beat:
    """Keeps what it is told."""

    regroup = stop = orphaned = False
    leaving = ""

    def __init__(self):
        self.notices = []
        self.checkpoints = []

    def notice(self, text):
        self.notices.append(text)

    def checkpointed(self, report):
        self.checkpoints.append((report.version, report.problem))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def position(version, **fields):
    return loop.Position(Progress(version, (Cursor(0, 1, version), Cursor())), **fields)


def generation(number=1, *, term=1, **fields):
    names = ("a", "b")
    hosted = {"a": (0,), "b": (1,)}
    return membership.Generation(number, names, hosted, term=term, **fields)


class Workplace:
    """One worker, and the storage that it shares with others."""

    def __init__(self, directory, **settings):
        config = JobConfig(
            kind="train",
            model_def="a.B",
            data="d",
            output="o",
            streams=STREAMS,
            **{"checkpoint_every": "2", "keep_checkpoints": 10, **settings},
        )
        self.directory = directory
        self.beat = Beat()
        self.clock = Clock()
        self.worker = work.Worker(
            "worker-1", config, None, self.beat, None, directory, directory / "checkpoints"
        )

    def saver(self, replica=None):
        return work.Saver(self.worker, replica or Replica(), self.clock)

    def trainer(self, replica):
        data = loop.DataSet(PLAN, types.SimpleNamespace(block=8))
        return work.Trainer(self.worker, replica, data, None, None, None)

    def stored(self):
        """The checkpoints that are there, oldest first, as (term, generation, version)."""
        there = checkpoint.listed(self.worker.checkpoints)
        return [
            (each.number.term, each.number.generation, each.number.version)
            for each in reversed(there)
        ]

    def write(self, version, replica, **meta):
        there = {"term": 1, "generation": 1, "progress": position(version).progress, **meta}
        published = checkpoint.write(
            self.worker.checkpoints, replica.snapshot(), checkpoint.Meta(**there)
        )
        return published.path


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


def commits(saver, versions, *, speaks=True):
    for version in versions:
        saver.committed(position(version), speaks=speaks)
        assert saver._writer.wait(PATIENCE_S)


# ---- when checkpoints are written -------------------------------------------------------------


def test_checkpoints_are_written_when_due(workplace):
    saver = workplace.saver()
    saver.joined(generation(3, term=2), 0)
    commits(saver, range(1, 6))
    assert workplace.stored() == [(2, 3, 2), (2, 3, 4)]
    assert workplace.beat.checkpoints == [(2, ""), (4, "")]


def test_only_who_speaks_writes_and_who_speaks_next_goes_on(workplace):
    saver = workplace.saver()
    saver.joined(generation(1), 0)
    commits(saver, range(1, 4), speaks=False)
    assert workplace.stored() == []
    saver.joined(generation(2), 3)
    commits(saver, range(4, 6))
    assert workplace.stored() == [(1, 2, 4)]


def test_generations_that_follow_each_other_fast_do_not_put_checkpoints_off(tmp_path):
    workplace = Workplace(tmp_path, checkpoint_every="60s")
    saver = workplace.saver()
    for number in range(1, 8):
        saver.joined(generation(number), number - 1)
        workplace.clock.now += 25
        commits(saver, [number])
    # Begun at 100 s, with a step every 25 s.
    assert workplace.stored() == [(1, 3, 3), (1, 6, 6)]


def test_who_has_just_come_begins_to_count_where_it_comes(tmp_path):
    workplace = Workplace(tmp_path, checkpoint_every="60s")
    saver = workplace.saver()
    workplace.clock.now += 1000
    saver.joined(generation(1), 50)
    commits(saver, [51])
    assert workplace.stored() == []


def test_without_checkpoints_none_is_written(tmp_path):
    workplace = Workplace(tmp_path, checkpoint_every="0")
    saver = workplace.saver()
    saver.joined(generation(1), 0)
    commits(saver, range(1, 10))
    saver.save(position(9))
    assert workplace.stored() == []


# ---- a last one -------------------------------------------------------------------------------


def test_who_leaves_writes_what_nobody_has_written(workplace):
    saver = workplace.saver()
    saver.joined(generation(1), 0)
    commits(saver, range(1, 4))
    saver.save(position(3))
    assert workplace.stored() == [(1, 1, 2), (1, 1, 3)]
    assert workplace.beat.checkpoints[-1] == (3, "")


@pytest.mark.parametrize("there", [5, 6])
def test_a_version_that_is_there_is_not_written_again(workplace, there):
    """All members save when they lose their master; one file is enough."""
    path = workplace.write(there, Replica())
    before = os.stat(path).st_mtime_ns
    saver = workplace.saver(Replica(2.0))
    saver.joined(generation(1), 0)
    saver.save(position(5))
    assert workplace.stored() == [(1, 1, there)]
    assert os.stat(path).st_mtime_ns == before


def test_one_of_an_earlier_master_is_not_relied_on(workplace):
    """It may be a damaged one that was passed over."""
    workplace.write(9, Replica(), term=1)
    saver = workplace.saver()
    saver.joined(generation(2, term=2), 5)
    saver.save(position(6))
    assert workplace.stored() == [(1, 1, 9), (2, 2, 6)]


def test_a_replica_that_has_not_begun_to_train_is_not_written(workplace):
    saver = workplace.saver()
    saver.joined(generation(1), 0)
    saver.save(position(0))
    assert workplace.stored() == []


def test_storage_that_fails_is_told_and_stops_nobody(workplace):
    (workplace.directory / "checkpoints").write_text("in the way")
    saver = workplace.saver()
    saver.joined(generation(1), 0)
    saver.save(position(3))
    [(version, problem)] = workplace.beat.checkpoints
    assert version == 0
    assert "since version 3" in problem


# ---- the first replica ------------------------------------------------------------------------


def test_without_a_checkpoint_a_training_begins_with_what_there_is(workplace):
    trainer = workplace.trainer(replica := Replica(3.0))
    assert trainer.progress is None
    trainer.begin()
    assert trainer.progress.version == 0
    assert replica.values() == [3.0, 3.0, 30.0]
    assert workplace.beat.notices == []


def test_a_training_goes_on_from_the_newest_checkpoint(workplace):
    workplace.write(4, Replica(1.0))
    workplace.write(8, Replica(2.0), epoch_version=5, elements=64, epoch_elements=24)
    trainer = workplace.trainer(replica := Replica())
    trainer.begin()
    assert replica.values() == [2.0, 2.0, 20.0]
    assert trainer._training.position == position(
        8, epoch_version=5, elements=64, epoch_elements=24
    )
    assert workplace.beat.notices == ["The training goes on from the checkpoint of step 8."]


def test_damaged_checkpoints_are_passed_over_and_named(workplace):
    workplace.write(4, Replica(1.0))
    damaged = workplace.write(8, Replica(2.0))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    trainer = workplace.trainer(replica := Replica())
    trainer.begin()
    assert replica.values() == [1.0, 1.0, 10.0]
    assert trainer.progress.version == 4
    passed_over, goes_on = workplace.beat.notices
    assert passed_over.startswith(f"A checkpoint is passed over: {damaged}: is damaged")
    assert goes_on == "The training goes on from the checkpoint of step 4."


def test_a_checkpoint_of_another_model_is_refused(workplace):
    other = Replica(1.0)
    other.weight = Variable([1.0, 2.0, 3.0])
    workplace.write(4, other)
    trainer = workplace.trainer(replica := Replica(5.0))
    with pytest.raises(UserError, match=r"model/weight float32\[3\]; the model has float32\[2\]"):
        trainer.begin()
    assert trainer.progress is None
    assert replica.values() == [5.0, 5.0, 50.0]


def test_a_warm_start_takes_the_weights_and_nothing_else(tmp_path):
    other = Workplace(tmp_path / "other").write(8, Replica(2.0))
    workplace = Workplace(tmp_path / "own", from_checkpoint=str(other))
    trainer = workplace.trainer(replica := Replica(5.0))
    trainer.begin()
    assert replica.values() == [2.0, 2.0, 50.0]
    assert trainer.progress.version == 0
    assert workplace.beat.notices == [f"The training begins with the weights of {other}."]


def test_a_checkpoint_of_its_own_comes_before_a_warm_start(tmp_path):
    other = Workplace(tmp_path / "other").write(8, Replica(2.0))
    workplace = Workplace(tmp_path / "own", from_checkpoint=str(other))
    workplace.write(4, Replica(1.0))
    trainer = workplace.trainer(replica := Replica())
    trainer.begin()
    assert replica.values() == [1.0, 1.0, 10.0]
    assert trainer.progress.version == 4


# ---- from the source to the others ------------------------------------------------------------


class Wire:
    """Carries broadcasts from the source, which sends first, to the others; breaks for them after
    `whole` of them.
    """

    def __init__(self, whole=100):
        self.sent = []
        self._whole = whole

    def end(self, *, sends):
        return End(self.sent if sends else list(self.sent), sends, self._whole)


class End:
    def __init__(self, pending, sends, whole):
        self._pending = pending
        self._sends = sends
        self._left = whole

    def broadcast(self, content, source):
        assert (content is not None) == self._sends
        if self._sends:
            self._pending.append(content)
            return content
        return self._received()

    def broadcast_into(self, buffer, source):
        if self._sends:
            self._pending.append(buffer.numpy().copy())
        elif not self._left:
            # The source dies when half of it has come.
            buffer.numpy()[: len(buffer) // 2] = self._pending[0][: len(buffer) // 2]
            raise group.Broken("the source is gone")
        else:
            buffer.numpy()[:] = self._received()

    def _received(self):
        if not self._left:
            raise group.Broken("the source is gone")
        self._left -= 1
        return self._pending.pop(0)


def sent(workplace, formed, wire):
    """What a source of version 7 sends."""
    source = workplace.trainer(Replica(7.0))
    source.begin()
    source._training.position = position(7, epoch_version=5, elements=56, epoch_elements=16)
    source.receive(formed, formed.source, wire.end(sends=True))
    return source


def test_who_is_behind_receives_replica_and_position(workplace):
    formed = generation(versions={"a": 7, "b": -1})
    source = sent(workplace, formed, wire := Wire())
    trainer = workplace.trainer(replica := Replica())
    trainer.receive(formed, 1, wire.end(sends=False))
    assert replica.values() == [7.0, 7.0, 70.0]
    assert trainer._training.position == source._training.position
    assert trainer.progress.version == 7


def test_who_stands_where_the_source_stands_keeps_what_it_has(workplace):
    formed = generation(versions={"a": 7, "b": 7})
    sent(workplace, formed, wire := Wire())
    trainer = workplace.trainer(replica := Replica(7.5))
    trainer.begin()
    trainer._training.position = position(7)
    trainer.receive(formed, 1, wire.end(sends=False))
    assert replica.values() == [7.5, 7.5, 75.0]
    assert trainer._training.position == position(7)


@pytest.mark.parametrize("whole", [0, 1])
@pytest.mark.parametrize("had", [None, 6])
def test_when_the_source_dies_everyone_has_what_it_had(workplace, whole, had):
    formed = generation(versions={"a": 7, "b": -1 if had is None else had})
    sent(workplace, formed, wire := Wire(whole))
    trainer = workplace.trainer(replica := Replica(5.0))
    if had is not None:
        trainer.begin()
        trainer._training.position = position(had)
    with pytest.raises(group.Broken):
        trainer.receive(formed, 1, wire.end(sends=False))
    assert replica.values() == [5.0, 5.0, 50.0]
    assert trainer.progress == (None if had is None else position(had).progress)


# ---- who has nothing, saves nothing -----------------------------------------------------------


def test_a_worker_without_a_replica_saves_nothing(workplace):
    trainer = workplace.trainer(Replica())
    trainer._training.position = position(3)
    trainer.save()
    assert workplace.stored() == []
    trainer.begin()
    trainer._training.position = position(3)
    trainer.save()
    assert workplace.stored() == [(0, 0, 3)]
