"""The life of a training worker: what is stepped, reported and evaluated, and when."""

import collections
import concurrent.futures
import math
import pathlib
import re
import types

import numpy as np
import pytest
import tensorflow as tf

from elasticdl.config import JobConfig
from elasticdl.core import membership, progress, streams
from elasticdl.data import pipeline, recordio
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.worker import loop, replica

RECORDS = 40
STREAMS = 4
PLAN = streams.Plan([RECORDS], slice_records=6, streams=STREAMS, seed=2)
EVAL_PLAN = streams.Plan([RECORDS], slice_records=6, streams=STREAMS, shuffle=False)
EVERYTHING = tuple(range(STREAMS))


def number(record):
    return tf.strings.to_number(record, tf.float32)


def numbers(dataset):
    return dataset.map(number)


def none(dataset):
    return numbers(dataset).take(0)


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "numbers.recordio")
    with recordio.Writer(path) as writer:
        for n in range(RECORDS):
            writer.write(str(n).encode())
    opener = pipeline.Opener([path], numbers, 0)
    opener.sample(PLAN)
    return opener


@pytest.fixture(scope="module")
def pool():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool


class Replica:
    """Adds up its elements; the loss of an element is its number."""

    evaluation_length = 1

    def evaluation_sums(self, batch):
        return np.array([float(np.sum(batch.components[0]))])

    def evaluation_metrics(self, sums, elements):
        return {"mean": float(sums[0] / elements)}

    def training_metrics(self, states):
        return {name: float(total / count) for name, (total, count) in states.items()}

    def learning_rate(self):
        return 0.5

    def rehearse(self, streams):
        self.rehearsed = streams

    def losses_by_stream(self, batch, version):
        losses, begin = {}, 0
        for stream, count in zip(batch.used, batch.counts, strict=True):
            if count:
                losses[stream] = loss_of(pipeline.part_of(batch, begin, begin + count))
            begin += count
        return losses


def loss_of(components):
    """The sum of the numbers; that of 13 is not finite."""
    values = np.asarray(components[0])
    return math.nan if bad.number in values else float(values.sum())


bad = types.SimpleNamespace(number=None)


@pytest.fixture
def unlucky():
    bad.number = 13.0
    yield
    bad.number = None


class Members:
    """A generation of one member; what is given up stands in `breaks`, by kind and place, and the
    versions at which the user's code fails in `fails`.
    """

    def __init__(self, *, alone=True, breaks=(), fails=(), others_bad=0.0):
        self.alone = alone
        self.computed_s = 0.0
        self.flags = []
        self.steps = []
        self.totals = 0
        self._breaks = set(breaks)
        self._fails = set(fails)
        self._others_bad = others_bad

    def step(self, batch, at, regroup):
        if ("step", at.version) in self._breaks:
            raise loop.GivenUp
        if at.version in self._fails:
            raise UserCodeError("loss: bad")
        self.computed_s += 0.25
        self.flags.append(regroup)
        elements = np.asarray(batch.components[0]).tolist() if batch.elements else []
        self.steps.append((at.version, elements))
        count = len(elements)
        metrics = {"twice": [np.float64(2 * sum(elements)), np.float64(count)]}
        loss = loss_of(batch.components) if elements else 0.0
        if self._others_bad:
            loss = math.nan
        outcome = replica.Outcome(count, loss, metrics, math.isfinite(loss))
        asked = int(regroup) or ("regroup", at.version) in self._breaks
        return outcome, progress.Tail(batch.used, int(asked))

    def total(self, sums):
        self.totals += 1
        if ("total", self.totals) in self._breaks:
            raise loop.GivenUp
        return sums + self._others_bad


class Beat:
    """Keeps what it is told."""

    def __init__(self):
        self.regroup = self.stop = self.orphaned = False
        self.leaving = ""
        self.reports = []
        self.silent = []
        self.evaluations = []
        self.notices = []
        self.phases = []
        self.standing = []
        self.pace = None

    def phase(self, phase):
        self.phases.append(phase)

    def interrupts_evaluation(self):
        return bool(self.leaving) or self.orphaned or self.stop

    def stands(self, at):
        self.standing.append(at.version)

    def paced(self, pace):
        self.pace = pace

    def committed(self, report, learning_rate, *, speaks):
        assert learning_rate == 0.5
        (self.reports if speaks else self.silent).append(report)

    def evaluated(self, version, elements, metrics):
        self.evaluations.append((version, elements, metrics))

    def notice(self, text):
        self.notices.append(text)


def config(**settings):
    given = {"batch_size": 8, "streams": STREAMS, "epochs": 2, **settings}
    return JobConfig(kind="train", model_def="a.B", data="d", output="o", **given)


class Saver:
    """Keeps what might be saved."""

    def __init__(self):
        self.positions = []

    def committed(self, position, *, speaks):
        if speaks:
            self.positions.append(position)


class Worker:
    """A member and what surrounds it."""

    def __init__(self, opener, pool, *, evaluates=True, **settings):
        self.beat = Beat()
        self.saver = Saver()
        self.training = loop.Training(
            config(**settings),
            Replica(),
            loop.DataSet(PLAN, opener),
            loop.DataSet(EVAL_PLAN, opener) if evaluates else None,
            self.beat,
            pool,
            self.saver,
        )

    def run(self, members=None, *, rank=0, number=1):
        """Everything in one generation, of which this is the only real member."""
        members = members or Members()
        names = ("a", "b")
        generation = membership.Generation(number, names, {name: EVERYTHING for name in names})
        self.training.run(generation, rank, members)
        return members.steps


# ---- steps ------------------------------------------------------------------------------------


def test_each_epoch_has_each_element_once(opener, pool):
    worker = Worker(opener, pool)
    steps = worker.run()
    assert [version for version, _ in steps] == list(range(10))
    for epoch in range(2):
        elements = [x for _, some in steps[5 * epoch : 5 * epoch + 5] for x in some]
        assert sorted(elements) == list(range(RECORDS))
    assert worker.training.finished
    assert worker.beat.standing == list(range(11))
    assert worker.beat.phases[0] == "member"


@pytest.mark.parametrize("hosted", [EVERYTHING, EVERYTHING[:1], ()])
def test_a_rehearsal_trains_on_nothing(opener, pool, hosted):
    undisturbed = Worker(opener, pool).run()
    worker = Worker(opener, pool)
    worker.training.rehearse(hosted)
    assert worker.training.replica.rehearsed
    assert worker.training.progress.version == 0
    assert worker.run() == undisturbed


def test_what_fails_in_a_rehearsal_is_told_when_it_is_trained_on(opener, pool, tmp_path):
    lost = tmp_path / "lost.recordio"
    lost.write_bytes(pathlib.Path(opener.files[0]).read_bytes())
    only = pipeline.Opener([str(lost)], numbers, 0)
    only.sample(PLAN)
    lost.write_bytes(b"")
    worker = Worker(only, pool)
    worker.training.rehearse(EVERYTHING)
    with pytest.raises(UserError):
        worker.run()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_any_batch_size_trains_on_everything(opener, pool, batch_size):
    steps = Worker(opener, pool, batch_size=batch_size, epochs=1, evaluates=False).run()
    assert sorted(x for _, some in steps for x in some) == list(range(RECORDS))
    assert all(len(some) <= batch_size for _, some in steps)
    assert all(len(some) == batch_size for _, some in steps[: RECORDS // batch_size - STREAMS])


def test_as_many_steps_as_were_asked_for(opener, pool):
    worker = Worker(opener, pool, max_steps=7)
    assert len(worker.run()) == 7
    assert worker.training.progress.version == 7


def test_history_adds_up(opener, pool):
    worker = Worker(opener, pool, log_every_steps=3, epochs=2)
    worker.run()
    reports = worker.beat.reports
    # Every three steps, and where an epoch ends.
    assert [report.version for report in reports] == [3, 5, 6, 9, 10]
    assert [report.steps for report in reports] == [3, 2, 1, 3, 1]
    assert sum(report.elements for report in reports) == 2 * RECORDS
    total = sum(range(RECORDS))
    assert sum(report.loss_sum for report in reports) == 2 * total
    assert [report.total_elements for report in reports] == [24, 40, 48, 72, 80]
    assert [report.epoch_elements for report in reports] == [24, 0, 8, 32, 0]
    assert reports[0].time <= reports[-1].time
    for report in reports:
        mean = report.loss_sum / report.elements
        assert report.metrics["twice"].numbers[0] == pytest.approx(2 * mean)


def test_only_rank_0_speaks(opener, pool):
    worker = Worker(opener, pool, log_every_steps=5)
    worker.run(rank=1)
    assert worker.beat.reports == []
    assert [report.version for report in worker.beat.silent] == [5, 10]
    assert worker.beat.evaluations == []
    assert worker.training.metrics == {"mean": 19.5}


def test_a_step_that_was_given_up_is_done_again(opener, pool):
    undisturbed = Worker(opener, pool).run()
    worker = Worker(opener, pool)
    seen = []
    for number, breaks in enumerate([{("step", 0)}, {("step", 4)}, {("step", 7)}, set()], 1):
        members = Members(alone=False, breaks=breaks)
        if breaks:
            with pytest.raises(loop.GivenUp):
                worker.run(members, number=number)
        else:
            worker.run(members, number=number)
        seen += members.steps
    assert seen == undisturbed


def test_members_part_after_the_step_in_which_one_asks(opener, pool):
    worker = Worker(opener, pool)
    members = Members(alone=False, breaks={("regroup", 3)})
    with pytest.raises(loop.GivenUp):
        worker.run(members)
    assert worker.training.progress.version == 4
    worker.beat.regroup = True
    with pytest.raises(loop.GivenUp):
        worker.run(Members())
    assert worker.training.progress.version == 5


@pytest.mark.parametrize("why", ["regroup", "leaving", "orphaned"])
def test_the_flag_is_raised_by_who_joins_leaves_or_has_lost_the_master(opener, pool, why):
    worker = Worker(opener, pool)
    setattr(worker.beat, why, "told to" if why == "leaving" else True)
    members = Members()
    with pytest.raises(loop.GivenUp):
        worker.run(members)
    assert members.flags == [True]
    assert worker.training.progress.version == 1


def test_where_it_stands_is_offered_for_a_checkpoint_by_the_one_who_speaks(opener, pool):
    worker, silent = Worker(opener, pool), Worker(opener, pool)
    worker.run()
    silent.run(rank=1)
    assert silent.saver.positions == []
    seen = [
        (at.progress.version, at.epoch_version, at.elements, at.epoch_elements)
        for at in worker.saver.positions
    ]
    assert seen[3:6] == [(4, 0, 32, 32), (5, 5, 40, 0), (6, 5, 48, 8)]
    assert seen[-1] == (10, 10, 80, 0)


def test_a_members_pace_is_that_of_its_own_computing(opener, pool):
    worker = Worker(opener, pool)
    worker.run()
    assert worker.beat.pace == membership.Pace(seconds=2.5, elements=80, steps=10)


def test_what_was_measured_in_one_generation_does_not_count_in_the_next(opener, pool):
    worker = Worker(opener, pool)
    for asks, steps in ((2, 3), (3, 1)):
        with pytest.raises(loop.GivenUp):
            worker.run(Members(breaks={("regroup", asks)}))
        assert worker.beat.pace == membership.Pace(0.25 * steps, 8 * steps, steps)


def test_a_position_goes_with_the_replica_to_whoever_goes_on(opener, pool):
    undisturbed = Worker(opener, pool)
    undisturbed.run()
    first, second = Worker(opener, pool), Worker(opener, pool)
    with pytest.raises(loop.GivenUp):
        first.run(Members(alone=False, breaks={("step", 7)}))
    second.training.position = first.training.position
    second.run()
    assert second.saver.positions == undisturbed.saver.positions[7:]


def test_members_that_part_after_the_last_step_do_not_step_again(opener, pool):
    worker = Worker(opener, pool)
    with pytest.raises(loop.GivenUp):
        worker.run(Members(alone=False, breaks={("regroup", 9)}))
    assert worker.training.finished
    assert worker.run(Members(alone=False)) == []
    assert evaluated(worker)[-1] == 10


def test_an_exception_of_the_users_names_its_slices_and_commits_nothing(opener, pool):
    undisturbed = Worker(opener, pool).run()
    worker = Worker(opener, pool)
    failing = Members(fails={4})
    with pytest.raises(UserCodeError) as caught:
        worker.run(failing)
    assert worker.training.progress.version == 4
    spans = [re.search(r"records (\d+) to (\d+)", each) for each in caught.value.slices]
    named = {n for span in spans for n in range(int(span[1]), int(span[2]) + 1)}
    assert named >= set(undisturbed[4][1])
    # The next attempt begins with the same step.
    assert failing.steps + worker.run() == undisturbed


def test_a_stopped_worker_stops_between_steps(opener, pool):
    worker = Worker(opener, pool)
    worker.beat.stop = True
    with pytest.raises(Cancelled):
        worker.run(members := Members())
    assert members.steps == []


# ---- evaluation -------------------------------------------------------------------------------


def evaluated(worker):
    return [version for version, _, _ in worker.beat.evaluations]


def test_each_epoch_ends_with_an_evaluation(opener, pool):
    worker = Worker(opener, pool, epochs=3)
    worker.run()
    assert worker.beat.evaluations == [(v, RECORDS, {"mean": 19.5}) for v in (5, 10, 15)]
    assert worker.beat.phases.count("evaluating") == 3
    assert worker.beat.phases[-1] == "member"


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        ({"eval_every_steps": 3}, [3, 6, 9, 10]),
        ({"eval_every_steps": 5}, [5, 10]),
        ({"eval_every_steps": 100}, [10]),
        ({"max_steps": 7}, [5, 7]),
        ({"max_steps": 5}, [5]),
        ({"max_steps": 7, "eval_every_steps": 7}, [7]),
        ({"evaluates": False}, []),
    ],
)
def test_evaluations_come_when_asked_for_and_at_the_end(opener, pool, settings, versions):
    worker = Worker(opener, pool, **settings)
    worker.run()
    assert evaluated(worker) == versions


def test_an_interrupted_evaluation_begins_again_at_the_same_version(opener, pool):
    worker = Worker(opener, pool)
    with pytest.raises(loop.GivenUp):
        worker.run(Members(alone=False, breaks={("total", 1)}))
    assert worker.training.progress.version == 5
    with pytest.raises(loop.GivenUp):
        worker.run(Members(alone=False, breaks={("total", 2)}))
    assert worker.training.progress.version == 10
    worker.run(Members(alone=False))
    assert evaluated(worker) == [5, 10]


def test_members_agree_on_what_is_due_however_they_came(opener, pool):
    """One has evaluated this version already, one was interrupted, one has only just joined."""
    first, second, third = (Worker(opener, pool) for _ in range(3))
    for worker, breaks in ((first, ("step", 5)), (second, ("total", 1))):
        with pytest.raises(loop.GivenUp):
            worker.run(Members(alone=False, breaks={breaks}))
        assert worker.training.progress.version == 5
    third.training.position = first.training.position
    totals = []
    for worker in (first, second, third):
        members = Members(alone=False, breaks={("step", 6)})
        with pytest.raises(loop.GivenUp):
            worker.run(members)
        totals.append((members.totals, [version for version, _ in members.steps]))
    assert totals == [(1, [5])] * 3

    third = Worker(opener, pool)
    third.training.position = first.training.position
    for worker in (first, third):
        worker.run(members := Members(alone=False))
        assert members.totals == 1
    assert evaluated(third) == [10]


@pytest.mark.parametrize("why", ["leaving", "orphaned", "stop"])
def test_who_is_to_go_gives_an_evaluation_up_for_the_others_to_do_again(opener, pool, why):
    worker = Worker(opener, pool)

    class Going(Replica):
        def evaluation_sums(self, batch):
            setattr(worker.beat, why, "told to" if why == "leaving" else True)
            return super().evaluation_sums(batch)

    worker.training.replica = Going()
    with pytest.raises(loop.GivenUp):
        worker.run(members := Members(alone=False))
    assert members.totals == 0
    assert worker.training.progress.version == 5
    assert evaluated(worker) == []


def test_who_is_only_to_regroup_evaluates_first(opener, pool):
    worker = Worker(opener, pool)

    class Asked(Replica):
        def evaluation_sums(self, batch):
            worker.beat.regroup = True
            return super().evaluation_sums(batch)

    worker.training.replica = Asked()
    with pytest.raises(loop.GivenUp):
        worker.run(Members(alone=False))
    assert evaluated(worker) == [5]
    assert worker.training.progress.version == 6


def test_the_sums_are_the_same_whoever_hosts_what(opener, pool):
    seen = []

    class Noting(Replica):
        def evaluation_sums(self, batch):
            seen.append(tuple(np.asarray(batch.components[0]).tolist()))
            return super().evaluation_sums(batch)

    data = loop.DataSet(EVAL_PLAN, opener)
    for hosted in (EVERYTHING, (0, 3), (1,), (2,)):
        loop.evaluation(config(batch_size=4), Noting(), data, hosted, Members(), pool)
    assert set(collections.Counter(seen).values()) == {2}
    assert sum(map(len, seen)) == 2 * RECORDS
    assert max(map(len, seen)) == 4


def test_an_evaluation_is_left_when_the_worker_is_to_go(opener, pool):
    members = Members()
    with pytest.raises(loop.GivenUp):
        loop.evaluation(
            config(),
            Replica(),
            loop.DataSet(EVAL_PLAN, opener),
            EVERYTHING,
            members,
            pool,
            interrupted=lambda: True,
        )
    assert members.totals == 0


def test_an_evaluation_without_elements_is_refused(opener, pool):
    empty = pipeline.Opener(opener.files, none, 0)
    empty.block = 4
    with pytest.raises(UserError, match="expected elements to evaluate; got none"):
        loop.evaluation(
            config(), Replica(), loop.DataSet(EVAL_PLAN, empty), EVERYTHING, Members(), pool
        )


# ---- losses that are not finite ---------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_names_step_and_slices(opener, pool, unlucky):
    worker = Worker(opener, pool)
    members = Members()
    with pytest.raises(UserError) as caught:
        worker.run(members)
    version, elements = members.steps[-1]
    assert 13 in elements
    message = str(caught.value)
    assert message.startswith(
        f"loss: expected a finite number; got nan at step {version + 1}, from {opener.files[0]}, "
    )
    # 13 is in the slice of records 12 to 17; a cut may have taken some of it.
    assert "records 12 to" in message or "to 17" in message or "records 13" in message
    assert "\n" not in message
    assert worker.training.progress.version == version


def test_steps_with_such_a_loss_are_left_out_where_asked_for(opener, pool, unlucky):
    worker = Worker(opener, pool, nan_loss="skip", log_every_steps=1)
    steps = worker.run()
    assert len(steps) == 10
    assert len(worker.beat.notices) == 2
    for notice in worker.beat.notices:
        assert notice.startswith("loss: expected a finite number; got nan at step ")
        assert notice.endswith(" The step was skipped.")
    # What was left out is in no mean.
    left_out = [version + 1 for version, elements in steps if 13 in elements]
    reports = {report.version: report for report in worker.beat.reports}
    assert [v for v, report in reports.items() if not report.elements] == left_out
    assert all(math.isfinite(report.loss_sum) for report in reports.values())
    assert all(report.steps == 1 for report in reports.values())


def test_who_has_none_of_the_bad_elements_leaves_the_word_to_who_has(opener, pool):
    worker = Worker(opener, pool)
    with pytest.raises(Cancelled):
        worker.run(Members(alone=False, others_bad=1.0))


def test_the_speaker_says_so_where_nobody_knows_whence(opener, pool):
    """The loss of all together may overflow where that of none does."""

    class Overflowing(Members):
        def step(self, batch, at, regroup):
            outcome, tail = super().step(batch, at, regroup)
            return replica.Outcome(outcome.elements, math.inf, outcome.metrics, False), tail

    with pytest.raises(UserError, match=r"got inf at step 1\. Look at"):
        Worker(opener, pool).run(Overflowing(alone=False))
    with pytest.raises(Cancelled):
        Worker(opener, pool).run(Overflowing(alone=False), rank=1)
