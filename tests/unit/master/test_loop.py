"""A master answers workers that call it over the wire, to the end of the job."""

import asyncio
import contextlib
import json
import math
import os
import sys

import grpc
import grpc.aio
import pytest

from elasticdl.config import JobConfig
from elasticdl.data import outputs, recordio
from elasticdl.errors import UserError
from elasticdl.master import definition, loop, service
from elasticdl.model import artifact
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc
from tests.unit import pipes

RECORDS = 40


@pytest.fixture
def data(tmp_path):
    """40 records in two files."""
    directory = tmp_path / "data"
    directory.mkdir()
    for name, count in (("a", 30), ("b", 10)):
        with recordio.Writer(str(directory / f"{name}.recordio")) as writer:
            for number in range(count):
                writer.write(f"{name}{number}".encode())
    return directory


@pytest.fixture
def config(data, tmp_path):
    """Makes a configuration of some kind."""

    def config(kind, **fields):
        given = {
            "kind": kind,
            "data": str(data),
            "output": str(tmp_path / "out"),
            "job_name": "a-job",
            "num_workers": 2,
            "streams": 4,
            ("model_def" if kind == "train" else "trained_model"): "models.Model",
        }
        return JobConfig(**(given | fields))

    return config


class Serving:
    """A master that runs, and calls to it; nobody starts its workers."""

    def __init__(self, config, **options):
        self.master = loop.Loop(config, **{"start_workers": False, **options})

    async def __aenter__(self):
        self._server, self.master.address = await rpc.serve(service.Service(self.master))
        self._channel = grpc.aio.insecure_channel(self.master.address)
        self._stub = elasticdl_pb2_grpc.MasterStub(self._channel)
        self._run = asyncio.create_task(self.master.run())
        return self

    async def __aexit__(self, *error):
        while not self.master.over.is_set():  # the second one does not wait for a checkpoint
            await self.stop("The test is over.")
        await self._run
        await self._channel.close()
        await self._server.stop(grace=None)

    async def ended(self):
        """Returns when the job is over and cleared away; its last status."""
        await self._run
        return await self.status()

    def join(self, worker, generation=0, version=None, term=0):
        progress = None if version is None else pb.Progress(version=version, cursors=[pb.Cursor()])
        return asyncio.ensure_future(
            self._stub.Join(
                pb.JoinRequest(
                    worker=worker,
                    generation=generation,
                    progress=progress,
                    address=f"host-of-{worker}:1",
                    term=term,
                )
            )
        )

    async def heartbeat(self, worker, **fields):
        return await self._stub.Heartbeat(pb.HeartbeatRequest(worker=worker, **fields))

    async def lease(self, worker, *done):
        return await self._stub.Lease(
            pb.LeaseRequest(
                worker=worker, done=[pb.Done(slice=slice_, records=10) for slice_ in done]
            )
        )

    async def finish(self, worker, generation, **fields):
        return await self._stub.Finish(
            pb.FinishRequest(worker=worker, generation=generation, **fields)
        )

    async def fail(self, worker, kind, message, trace="", **fields):
        return await self._stub.Fail(
            pb.FailRequest(worker=worker, kind=kind, message=message, trace=trace, **fields)
        )

    async def leave(self, worker, **fields):
        return await self._stub.Leave(pb.LeaveRequest(worker=worker, **fields))

    async def scale(self, num_workers):
        return (await self._stub.Scale(pb.ScaleRequest(num_workers=num_workers))).problem

    def follow(self, worker):
        return Orders(self._stub.Follow(pb.OrdersRequest(worker=worker)))

    async def orders(self, worker):
        """Those that a worker has that begins to follow now."""
        async with self.follow(worker) as orders:
            return await orders.next()

    async def joined(self, *workers):
        """Returns when these calls of Join have come in."""
        while not self.master.job.alive.issuperset(workers):
            await self.status()

    async def register(self, worker):
        return await self._stub.Register(pb.RegisterRequest(worker=worker, pid=1))

    async def status(self):
        return await self._stub.Status(pb.StatusRequest())

    async def stop(self, reason=""):
        await self._stub.Stop(pb.StopRequest(reason=reason))

    async def two_members(self):
        """The answers to two workers that form the first generation."""
        return await asyncio.gather(self.join("worker-0"), self.join("worker-1"))


class Orders:
    """The stream of one worker's orders."""

    def __init__(self, call):
        self._call = call

    async def next(self):
        return await self._call.read()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        self._call.cancel()


def tells(story, config, **options):
    """Runs a story with a master of its own."""

    async def told():
        async with Serving(config, **options) as serving:
            await story(serving)

    asyncio.run(told())


def trained(directory):
    """What a worker leaves to be published."""
    directory.mkdir()
    message = pb.TrainedModel(model_def="models.Model", params_filename="parameters.safetensors")
    (directory / artifact.TRAINED_MODEL).write_bytes(message.SerializeToString())
    (directory / "parameters.safetensors").write_bytes(b"weights")
    return str(directory)


def found(output):
    return sorted(path.name for path in output.iterdir())


def test_a_worker_that_registers_is_told_the_job(config, data, tmp_path):
    async def story(serving):
        reply = await serving.register("worker-0")
        assert JobConfig.from_json(reply.config) == serving.master.config
        assert [(file.path, file.records) for file in reply.data.files] == [
            (str(data / "a.recordio"), 30),
            (str(data / "b.recordio"), 10),
        ]
        assert reply.data.slice_records == 128
        assert [file.records for file in reply.eval_data.files] == [10]
        assert reply.threads >= 1
        assert reply.work_directory == str(tmp_path / "out" / ".elasticdl" / "result")

    tells(story, config("train", eval_data=str(data / "b.recordio")))


def test_a_reproducible_job_has_as_many_threads_everywhere(config):
    async def story(serving):
        reply = await serving.register("worker-0")
        assert reply.threads == 1
        assert not reply.HasField("eval_data")

    tells(story, config("train", reproducible=True))


def test_workers_that_join_get_the_same_generation(config):
    async def story(serving):
        first, second = await serving.two_members()
        assert (first.generation, first.rank, second.rank) == (1, 0, 1)
        assert first.members == second.members
        assert [member.worker for member in first.members] == ["worker-0", "worker-1"]
        assert [list(member.streams) for member in first.members] == [[0, 1], [2, 3]]
        assert first.rendezvous == second.rendezvous == "host-of-worker-0:1"

    tells(story, config("train"))


def test_a_call_is_superseded_by_the_same_workers_next(config):
    async def story(serving):
        older = serving.join("worker-0")
        await serving.joined("worker-0")
        newer = serving.join("worker-0")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await older
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (await serving.join("worker-1")).generation == 1
        assert (await newer).generation == 1

    tells(story, config("train"))


def test_a_worker_that_hung_up_and_calls_again_is_answered(config):
    async def story(serving):
        older = serving.join("worker-0")
        await serving.joined("worker-0")
        older.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await older
        other = serving.join("worker-1")
        # Whether the generation was formed with it in the meantime or not.
        again = await serving.join("worker-0")
        assert again.generation == (await other).generation
        assert not again.stop

    tells(story, config("train"))


def test_members_hear_at_once_of_a_worker_that_takes_a_lost_ones_place(config):
    async def story(serving):
        await asyncio.gather(*(serving.join(f"worker-{number}") for number in range(2)))
        async with serving.follow("worker-0") as member, serving.follow("worker-2") as newcomer:
            assert not (await member.next()).regroup
            assert not (await newcomer.next()).regroup
            await serving.leave("worker-1", reason="SIGTERM")
            # It waits for a generation that has left it.
            assert (await member.next()).given_up == 1
            joining = serving.join("worker-2")
            assert (await member.next()).regroup
            first, second = await asyncio.gather(joining, serving.join("worker-0", 1, 7))
            assert first.generation == second.generation == 2
            assert [each.version for each in first.members] == [7, -1]
            after = await member.next()
            assert (after.regroup, after.stop) == (False, False)

    tells(story, config("train"))


def test_one_too_many_stands_by_and_interrupts_nobody(config):
    async def story(serving):
        await serving.two_members()
        standby = serving.join("worker-2")
        await serving.joined("worker-2")
        await serving.heartbeat("worker-2", phase="warm")
        assert not (await serving.orders("worker-0")).regroup
        status = await serving.status()
        assert [(each.worker, each.phase) for each in status.workers][2] == ("worker-2", "standby")
        assert not standby.done()

    tells(story, config("train"))


def test_orders_are_whole_each_time_and_the_newest_stream_has_them(config):
    async def story(serving):
        await serving.two_members()
        async with serving.follow("worker-0") as older:
            assert not (await older.next()).stop
            async with serving.follow("worker-0") as newer:
                assert (await newer.next()).term == 1
                await serving.stop()
                assert (await newer.next()).regroup  # to stop at the end of a step
                await serving.stop()
                assert (await newer.next()).stop
        assert (await serving.orders("worker-0")).stop

    tells(story, config("train"))


def test_status_says_how_the_job_stands(config):
    async def story(serving):
        before = await serving.status()
        assert before.phase == "starting"
        assert before.reason == "Workers are starting."
        assert math.isnan(before.loss)
        assert math.isnan(before.seconds_left)
        assert not before.workers
        await serving.two_members()
        await serving.heartbeat(
            "worker-0",
            phase="member",
            generation=1,
            progress=pb.Progress(version=3, cursors=[pb.Cursor(epoch=1)] * 4),
            steps=[
                pb.StepReport(
                    version=3,
                    elements=60,
                    loss_sum=30.0,
                    steps=3,
                    total_elements=60,
                    epoch_elements=20,
                    metrics={"accuracy": pb.Value(numbers=[0.25])},
                )
            ],
            evaluations=[
                pb.EvaluationReport(version=3, metrics={"f": pb.Value(numbers=[0.5, 0.75])})
            ],
            learning_rate=0.01,
            notices=["Mind the gap."],
            checkpoint=pb.CheckpointReport(version=2, problem="checkpoint: full"),
        )
        await serving.heartbeat("worker-1", phase="evaluating", generation=1)
        status = await serving.status()
        assert math.isnan(status.seconds_left)
        status.ClearField("seconds_left")
        assert status == pb.JobStatus(
            job_name="a-job",
            kind="train",
            phase="running",
            reason="2 workers at work.",
            generation=1,
            version=3,
            epoch=1,
            epochs=2,
            epoch_fraction=0.5,
            records=60,
            records_total=80,
            loss=0.5,
            metrics={"accuracy": pb.Value(numbers=[0.25])},
            eval_version=3,
            eval_metrics={"f": pb.Value(numbers=[0.5, 0.75])},
            workers=[
                pb.WorkerStatus(worker="worker-0", phase="member", rank=0, streams=[0, 1]),
                pb.WorkerStatus(worker="worker-1", phase="evaluating", rank=1, streams=[2, 3]),
            ],
            notices=["Mind the gap.", "checkpoint: full"],
            output=serving.master.config.output,
            num_workers=2,
            min_workers=1,
            checkpoint_version=2,
            checkpoint_problem="checkpoint: full",
            term=1,
        )

    tells(story, config("train", epochs=2))


def test_a_job_of_so_many_steps_has_so_many_records(config):
    async def story(serving):
        assert (await serving.status()).records_total == 3 * 8

    tells(story, config("train", epochs=2, max_steps=3, batch_size=8))


def test_a_training_ends_with_its_result_in_the_output(config, tmp_path):
    async def story(serving):
        await serving.two_members()
        await serving.heartbeat(
            "worker-0",
            steps=[
                pb.StepReport(version=9, elements=40, loss_sum=20.0, steps=9, total_elements=40)
            ],
        )
        other = serving.join("worker-1", 1, 9)
        directory = trained(serving.master.places.result / "generation-1")
        reply = await serving.finish(
            "worker-0",
            1,
            version=9,
            directory=directory,
            metrics={"accuracy": pb.Value(numbers=[1.0])},
        )
        assert reply.accepted
        assert (await other).stop
        assert (await serving.join("worker-0", 1, 9)).stop
        assert (await serving.orders("worker-0")).stop
        status = await serving.ended()
        assert (status.phase, status.reason) == ("succeeded", "All records are done.")
        assert status.eval_metrics["accuracy"].numbers == [1.0]
        assert status.records == 40

    tells(story, config("train"))
    assert found(tmp_path / "out") == [
        "events.jsonl",
        "logs",
        "metrics.jsonl",
        "parameters.safetensors",
        "trained_model.pb",
    ]


def test_a_result_of_a_generation_that_is_no_more_is_refused(config):
    async def story(serving):
        await serving.two_members()
        await asyncio.gather(serving.join("worker-0", 1, 5), serving.join("worker-1", 1, 5))
        reply = await serving.finish("worker-0", 1, directory="/nowhere")
        assert not reply.accepted
        assert reply.reason == "generation 1 with worker-0 is no more"
        assert not (await serving.finish("worker-7", 2, directory="/nowhere")).accepted
        assert (await serving.status()).phase == "running"

    tells(story, config("train"))


def test_a_result_that_is_reported_twice_is_published_once(config, tmp_path):
    async def story(serving):
        await serving.two_members()
        directory = trained(serving.master.places.result / "generation-1")
        await asyncio.gather(
            *(serving.finish("worker-0", 1, version=9, directory=directory) for _ in range(3))
        )
        assert (await serving.ended()).phase == "succeeded"

    tells(story, config("train"))
    assert (tmp_path / "out" / "trained_model.pb").exists()


def test_a_result_that_is_not_there_is_told_and_leaves_nothing(config, tmp_path):
    async def story(serving):
        await serving.two_members()
        await serving.finish("worker-0", 1, directory=str(tmp_path / "nowhere"))
        status = await serving.ended()
        assert status.phase == "failed"
        assert status.failure_kind == "user"
        assert "cannot be written: No such file or directory" in status.failure_message

    tells(story, config("train"))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_ends_with_its_metrics(config, tmp_path):
    async def story(serving):
        await serving.two_members()
        await serving.finish(
            "worker-0",
            1,
            version=40,
            metrics={
                "accuracy": pb.Value(numbers=[0.5]),
                "recall": pb.Value(numbers=[math.nan]),
            },
        )
        status = await serving.ended()
        assert status.phase == "succeeded"
        assert status.records == status.records_total == 40
        assert status.eval_metrics["accuracy"].numbers == [0.5]

    tells(story, config("evaluate"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == {"accuracy": 0.5, "recall": None}


@pytest.mark.parametrize("one_file", [False, True])
def test_a_prediction_ends_with_its_parts(config, tmp_path, one_file):
    output = tmp_path / ("out.recordio" if one_file else "out")

    async def story(serving):
        slices = serving.master.data.slices
        assert slices == 4

        async def work(worker):
            done = ()
            while not (reply := await serving.lease(worker, *done)).finished:
                assert reply.wait == (not reply.slices)
                for number in reply.slices:
                    name = outputs.part_name(number, slices)
                    path = serving.master.places.result / name
                    with recordio.Writer(str(path)) as writer:
                        writer.write(str(number).encode())
                done = tuple(reply.slices)

        await asyncio.gather(work("worker-0"), work("worker-1"))
        status = await serving.ended()
        assert status.phase == "succeeded"
        assert status.records == status.records_total == 40
        assert status.version == 4

    tells(story, config("predict", slice_records=10, output=str(output)))
    if one_file:
        assert list(recordio.read(str(output))) == [b"0", b"1", b"2", b"3"]
    else:
        assert found(output) == [outputs.part_name(number, 4) for number in range(4)]


def test_a_lease_whose_answer_was_lost_is_given_again(config):
    async def story(serving):
        first = await serving.lease("worker-0")
        assert list(first.slices) == [0]
        assert await serving.lease("worker-0") == first
        second = await serving.lease("worker-0", 0)
        assert list(second.slices) == [1]
        assert await serving.lease("worker-0", 0) == second
        status = await serving.status()
        assert status.records == 10
        assert status.reason == "Slices are being predicted."

    tells(story, config("predict", slice_records=10))


@pytest.mark.parametrize(("kind", "trace"), [("user", ""), ("user_code", "File x"), ("bug", "")])
def test_a_worker_that_fails_ends_the_job_and_nothing_is_left(config, tmp_path, kind, trace):
    async def story(serving):
        await serving.two_members()
        other = serving.join("worker-1", 1, 5)
        await serving.fail("worker-0", kind, "what and why.", trace)
        assert (await other).stop
        status = await serving.ended()
        assert status.phase == "failed"
        assert status.failure_kind == kind
        assert status.failure_message == "what and why."
        assert status.failure_trace == trace

    tells(story, config("train", output=str(tmp_path / "new" / "out")))
    assert not (tmp_path / "new").exists()


def test_a_job_is_stopped_on_request(config, tmp_path):
    async def story(serving):
        waiting = serving.join("worker-0")
        await serving.joined("worker-0")
        await serving.stop("Stopped by Ctrl-C.")
        assert (await waiting).stop
        status = await serving.ended()
        assert (status.phase, status.reason) == ("cancelled", "Stopped by Ctrl-C.")
        assert status.failure_kind == ""

    tells(story, config("train"))
    assert not (tmp_path / "out").exists()


def test_reports_that_come_late_change_nothing(config, tmp_path):
    async def story(serving):
        await serving.stop()
        assert (await serving.ended()).reason == "Stopped on request."
        late = [pb.StepReport(version=9, elements=40, loss_sum=20.0)]
        await serving.heartbeat("worker-0", steps=late)
        assert (await serving.orders("worker-0")).stop
        assert (await serving.join("worker-0")).stop
        assert (await serving.lease("worker-0")).finished
        assert not (await serving.finish("worker-0", 1)).accepted
        assert not (await serving.fail("worker-0", "bug", "too late")).again
        assert await serving.scale(3) != ""
        status = await serving.status()
        assert (status.phase, status.version) == ("cancelled", 0)

    tells(story, config("train"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_job_with_what_to_do(config, tmp_path):
    async def story(serving):
        await serving.two_members()
        (serving.master.places.work / "metrics.jsonl").symlink_to("/dev/full")
        steps = [pb.StepReport(version=9, elements=40, loss_sum=20.0)]
        await serving.heartbeat("worker-0", steps=steps)
        assert (await serving.orders("worker-0")).stop
        status = await serving.ended()
        assert status.failure_kind == "user"
        assert status.failure_message == (
            f"output: {tmp_path / 'out'} cannot be written: No space left on device "
            f"({tmp_path / 'out'}). Free some space, or choose another --output."
        )

    tells(story, config("train"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data": "/nowhere/*.recordio"}, "data: expected a file"),
        ({"eval_data": "/nowhere"}, "eval_data: expected a file"),
        ({"output": "/proc/here"}, "output: /proc/here cannot be written"),
    ],
)
def test_what_cannot_begin_is_refused_and_leaves_nothing(config, tmp_path, fields, problem):
    with pytest.raises(UserError, match=problem):
        loop.Loop(config("train", **fields))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("total", "workers", "asked", "expected"), [(40, 2, 0, 5), (40, 8, 0, 2), (40, 2, 16, 16)]
)
def test_a_predictions_slices_are_enough_for_all_workers(config, total, workers, asked, expected):
    job = config("predict", num_workers=workers, streams=8, slice_records=asked)
    data = definition.Data.of("data", job.data, job)
    assert data.total == total
    assert data.slice_records == expected
    assert data.slices == -(-30 // expected) + -(-10 // expected)


# ---- a later master -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["join", "heartbeat", "finish"])
def test_a_worker_that_knows_a_later_master_ends_this_one_and_not_the_job(config, tmp_path, call):
    async def story(serving):
        await serving.two_members()
        waiting = serving.join("worker-1", 1, 5)
        await serving.status()
        calls = {
            "join": lambda: serving.join("worker-0", 1, 5, term=2),
            "heartbeat": lambda: serving.heartbeat("worker-0", generation=1, term=2),
            "finish": lambda: serving.finish("worker-0", 1, directory="/nowhere", term=2),
        }
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await calls[call]()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        await serving._run
        assert serving.master.superseded
        assert not waiting.done()
        waiting.cancel()

    tells(story, config("train"))
    # All that the later one needs is there.
    assert (tmp_path / "out" / ".elasticdl" / "job.json").exists()


def test_a_worker_that_knows_an_earlier_master_is_answered(config):
    async def story(serving):
        first, _ = await asyncio.gather(
            serving.join("worker-0", term=1), serving.join("worker-1", term=0)
        )
        assert first.term == 1
        await serving.heartbeat("worker-0", term=1)

    tells(story, config("train"))


def test_a_master_that_is_told_to_end_after_the_job_has_nothing_to_hand_over(config, tmp_path):
    async def story(serving):
        await serving.stop()
        serving.master.release()
        await serving.ended()
        assert not serving.master.superseded

    tells(story, config("train"))
    assert not (tmp_path / "out").exists()


# ---- leaving, scaling, failing -------------------------------------------------------------------


def test_the_last_worker_with_a_replica_saves_it_before_it_leaves(config):
    async def story(serving):
        await serving.two_members()
        assert not (await serving.leave("worker-1", reason="SIGTERM")).save
        assert (await serving.leave("worker-0", reason="SIGTERM")).save
        assert serving.master.job.alive == {"worker-0"}
        assert not (await serving.leave("worker-0", reason="SIGTERM", saved=True)).save
        assert serving.master.job.alive == set()
        assert (await serving.status()).notices == [
            "worker-1 leaves at step 0 (SIGTERM).",
            "worker-0 leaves at step 0 (SIGTERM).",
        ]

    tells(story, config("train"))


def test_without_checkpoints_the_last_worker_saves_nothing(config):
    async def story(serving):
        await serving.two_members()
        for worker in ("worker-1", "worker-0"):
            assert not (await serving.leave(worker, reason="SIGTERM")).save

    tells(story, config("train", checkpoint_every="0"))


def test_a_training_that_is_stopped_leaves_a_checkpoint(config):
    async def story(serving):
        await serving.two_members()
        await serving.stop("Stopped on request.")
        status = await serving.status()
        assert status.phase == "running"
        assert status.reason == "Stopped on request. A last checkpoint is being written."
        first, second = serving.join("worker-0", 1, 7), serving.join("worker-1", 1, 7)
        assert (await first).save
        assert (await serving.join("worker-0", 1, 7)).stop
        assert (await second).stop
        assert (await serving.ended()).phase == "cancelled"

    tells(story, config("train"))


def test_jobs_whose_workers_somebody_else_starts_are_not_scaled(config):
    async def story(serving):
        assert await serving.scale(3) == "this job's workers are started by somebody else"
        assert (await serving.status()).num_workers == 2

    tells(story, config("train"))


def test_checkpoints_count_only_from_members_of_the_generation(config):
    async def story(serving):
        await serving.two_members()
        report = pb.CheckpointReport(version=5, seconds=0.5, bytes=100)
        await serving.heartbeat("worker-0", generation=7, checkpoint=report)
        assert (await serving.status()).checkpoint_version == 0
        await serving.heartbeat("worker-0", generation=1, checkpoint=report)
        assert (await serving.status()).checkpoint_version == 5
        lines = (serving.master.places.work / "events.jsonl").read_text().splitlines()
        said = [json.loads(line) for line in lines]
        assert [each["event"] for each in said] == ["generation", "checkpoint"]
        assert (said[1]["version"], said[1]["bytes"]) == (5, 100)

    tells(story, config("train"))


def test_parts_that_are_done_are_not_leased_again(config):
    job = config("predict", slice_records=10)
    first = loop.Loop(job, start_workers=False)
    for number in (1, 2):
        (first.places.result / outputs.part_name(number, 4)).write_bytes(b"part")
    first.places.claim.release()

    async def story(serving):
        assert serving.master.term == 2
        given = [await serving.lease("worker-0"), await serving.lease("worker-0", 0)]
        assert [list(each.slices) for each in given] == [[0], [3]]
        status = await serving.status()
        assert (status.records, status.records_total) == (30, 40)

    tells(story, job)


def test_a_job_whose_master_died_while_it_published_is_done(config, tmp_path):
    job = config("train")
    first = loop.Loop(job, start_workers=False)
    result = trained(first.places.result / "generation-1-1")
    (first.places.work / "metrics.jsonl").write_text("lines")
    (first.places.work / "publishing").write_text(result)
    first.places.claim.release()

    async def story(serving):
        assert (await serving.ended()).phase == "succeeded"
        assert (await serving.join("worker-0", 3, 9)).stop

    tells(story, job, again=str(first.places.work))
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == "lines"
    assert (tmp_path / "out" / "trained_model.pb").exists()


# ---- with processes -----------------------------------------------------------------------------

DIES = "import sys; print('words before', file=sys.stderr); sys.exit('and its last words')"
WAITS = "import sys, signal; open(sys.argv[2] + '.pipe', 'w').close(); signal.pause()"


def program(code):
    return {"start_workers": True, "program": (sys.executable, "-c", code)}


def test_workers_that_die_again_and_again_end_the_job_with_their_last_words(config, tmp_path):
    async def story(serving):
        status = await serving.ended()
        logs = tmp_path / "out" / ".elasticdl" / "workers"
        assert status.failure_kind == "bug"
        assert status.failure_message == (
            "worker-0 ended (exit status 1; its log ends: and its last words). That was failure 3, "
            f"and max_failures = 3; the workers' logs are in {logs}"
        )
        assert status.failure_trace == "words before\nand its last words"

    tells(story, config("train", num_workers=1), **program(DIES))
    logs = tmp_path / "out" / ".elasticdl" / "workers"
    assert found(logs) == [f"worker-{number}.log" for number in range(3)]
    assert found(logs.parent) == ["workers"]


def test_a_long_log_is_told_by_its_end(config):
    async def story(serving):
        status = await serving.ended()
        lines = status.failure_trace.splitlines()
        assert lines[-1] == "line 9999"
        assert all(line.startswith("line ") for line in lines)
        assert 100 < len(lines) < 1000

    code = "import sys; [print('line', n) for n in range(10000)]; sys.exit(1)"
    tells(story, config("train", num_workers=1), **program(code))


def test_a_silent_crash_is_told_without_words(config):
    async def story(serving):
        status = await serving.ended()
        assert status.failure_message.startswith("worker-0 ended (killed by SIGSEGV)")
        assert status.failure_trace == ""

    code = "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
    code += "os.kill(os.getpid(), signal.SIGSEGV)"
    job = config("evaluate", num_workers=1, output="", max_failures=1)
    tells(story, job, **program(code))


def test_a_worker_that_is_killed_is_replaced_and_no_failure(config):
    async def story(serving):
        while not (notices := (await serving.status()).notices):
            pass
        assert notices == ["worker-0 is lost (killed by SIGKILL); that is no failure."]
        assert (await serving.status()).phase == "starting"
        assert serving.master.job.alive == {"worker-1"}

    code = "import os, signal, sys; 'worker-0' in sys.argv and os.kill(os.getpid(), 9); "
    code += "signal.pause()"
    tells(story, config("train", num_workers=1, max_failures=1), **program(code))


def test_a_worker_that_fails_by_a_fault_of_ours_leaves_the_logs_and_says_where(config, tmp_path):
    async def story(serving):
        await serving.fail("worker-0", "bug", "TypeError: no.\nmore", "frames")
        status = await serving.ended()
        logs = tmp_path / "out" / ".elasticdl" / "workers"
        assert status.failure_message == f"TypeError: no; the workers' logs are in {logs}\nmore"
        assert logs.is_dir()

    async def started(serving):
        while not any(serving.master.places.logs.glob("*.log")):
            await serving.status()
        await story(serving)

    tells(started, config("train", num_workers=1), **program("import signal; signal.pause()"))


def test_when_the_job_is_stopped_its_processes_are(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    ups = [tmp_path / f"worker-{number}.pipe" for number in range(2)]

    async def story(serving):
        await asyncio.gather(*(pipes.heard(pipe) for pipe in ups))
        await serving.stop("Stopped by Ctrl-C.")
        assert (await serving.ended()).phase == "cancelled"

    for pipe in ups:
        os.mkfifo(pipe)
    tells(story, config("train"), **program(WAITS))
    assert not (tmp_path / "out").exists()


def test_workers_that_wait_are_scaled_within_what_can_be(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def story(serving):
        assert await serving.scale(0) == "expected at least min_workers = 1; got 0"
        assert await serving.scale(5) == (
            "expected at most one worker a stream, streams = 4; got 5"
        )
        assert await serving.scale(3) == ""
        status = await serving.status()
        assert status.num_workers == 3
        assert status.notices == ["num_workers goes from 2 to 3, as asked."]
        assert serving.master.job.alive == {"worker-0", "worker-1", "worker-2"}

    tells(story, config("train"), **program("import signal; signal.pause()"))


def test_code_of_the_user_may_fail_until_the_budget_is_spent(config):
    async def story(serving):
        again = await serving.fail(
            "worker-0", "user_code", "ValueError: no.", "File x", phase="member", attempt=1
        )
        assert again.again
        [notice] = (await serving.status()).notices
        assert notice == (
            "worker-0 failed (ValueError: no); that was failure 1, and max_failures = 2: the job "
            "goes on."
        )
        again = await serving.fail(
            "worker-1", "user_code", "KeyError: other.", "File y", phase="member", attempt=1
        )
        assert not again.again
        status = await serving.ended()
        assert status.failure_message == (
            "ValueError: no. That was failure 2, and max_failures = 2."
        )
        assert status.failure_trace == "File x"

    waits = program("import signal; signal.pause()")
    tells(story, config("train", max_failures=2), **waits)
