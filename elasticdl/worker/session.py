"""One worker's part in one job, from its first call to the master to its last."""

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from elasticdl.config import JobConfig
from elasticdl.core import membership, pods, streams
from elasticdl.core.progress import tail_length
from elasticdl.data import pipeline
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.model import artifact, spec
from elasticdl.model import mode as modes
from elasticdl.model import source as sources
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc
from elasticdl.worker import heartbeat, leaving, loop, members, prediction, replica, work

if TYPE_CHECKING:
    from elasticdl.worker import group

_JOIN_S = 30.0  # the master may be one that has been superseded, and hangs
_SWITCH_S = 0.0005
_PLAINTEXT = (
    "What the workers send each other is plaintext, as this build of torch has no TLS for it: only "
    "a cluster that enforces the job's NetworkPolicies keeps others away from it."
)


class Session:
    """A registered worker.

    Args:
        client: calls the master.
        worker: this worker's name.
        registered: what the master said.
        beat: reports to the master.
        leaver: takes this worker's leave.
        security: directory of what workers show each other; None: they do without.
    """

    def __init__(
        self,
        client: rpc.Client,
        worker: str,
        registered: pb.RegisterReply,
        beat: heartbeat.Heartbeat,
        leaver: leaving.Leaver,
        security: Path | None = None,
    ) -> None:
        self.config = JobConfig.from_json(registered.config)
        self._security = security
        self._client = client
        self._registered = registered
        self._beat = beat
        self._leaver = leaver
        self._pool = ThreadPoolExecutor(
            max_workers=max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="read-ahead"
        )
        self._worker = work.Worker(
            worker,
            self.config,
            client,
            beat,
            self._pool,
            Path(registered.work_directory),
            Path(registered.checkpoint_directory),
        )
        self._meeting: group.Meeting | None = None
        # A worker that is alone does without torch, until others come.
        self._meets = self.config.num_workers > 1

    @property
    def _on_gpu(self) -> bool:
        """Whether workers exchange what is on their GPUs."""
        return self.config.worker_gpus > 0

    def run(self) -> None:
        """Does this worker's part; returns when the master has no more for it.

        Raises:
            Cancelled, UserError, UserCodeError
        """
        configure(self.config, self._registered.threads, self._worker.name)
        try:
            definition, source = self._definition()
            if self.config.kind == "predict":
                self._predict(definition)
            else:
                self._work_in_generations(definition, source)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _definition(self) -> tuple[spec.Definition, sources.ModelSource]:
        config = self.config
        source = (
            sources.ModelSource.from_config(config)
            if config.kind == "train"
            else artifact.source_of(config.trained_model)
        )
        context = {
            "worker_id": self._worker.name,
            "master_ip": self._client.address.rpartition(":")[0],
            "mode": _MODES[config.kind],
            "job_name": config.job_name,
        }
        definition = spec.load(source, context)
        for notice in definition.notices:
            self._beat.notice(notice)
        return definition, source

    # ---- training and evaluation -------------------------------------------------------------

    def _work_in_generations(
        self, definition: spec.Definition, source: sources.ModelSource
    ) -> None:
        config = self.config
        training = config.kind == "train"
        data = self._data_set(
            self._registered.data,
            definition,
            modes.Mode.TRAINING if training else modes.Mode.EVALUATION,
            shuffle=training,
        )
        eval_data = None
        if training and self._registered.HasField("eval_data"):
            eval_data = self._data_set(
                self._registered.eval_data, definition, modes.Mode.EVALUATION, shuffle=False
            )
        sample = sample_of(data)
        copy = replica.Replica(
            definition,
            sample,
            seed=config.seed,
            reproducible=config.reproducible,
            tail=tail_length(config.streams),
            parallelism=max(1, (os.cpu_count() or 1) // config.num_workers),
            shares={
                config.batch_size // config.streams,
                -(-config.batch_size // config.streams),
            },
        )
        if training:
            artifact.check_size(copy.parameter_bytes, config.params_format)
            copy.prepare_training()
            if eval_data is not None:
                copy.prepare_evaluation(sample_of(eval_data).specs)
        else:
            artifact.restore(definition, config.trained_model)
            copy.prepare_evaluation(sample.specs)
        for notice in definition.notices:
            self._beat.notice(notice)
        part: work.Work = (
            work.Trainer(self._worker, copy, data, eval_data, sample, source)
            if training
            else work.Evaluator(self._worker, copy, data)
        )
        part.rehearse()
        self._leaver.save = part.save
        self._beat.phase("warm")
        last = 0
        while True:
            generation, rank = self._join(last, part)
            last = generation.number
            hosted = generation.streams[generation.members[rank]]
            self._beat.joined(generation.number, rank, hosted)
            try:
                with self._leaver.working():
                    # Nothing else may refer to the group: its connections close with it, and
                    # others notice.
                    part.run(generation, rank, self._connect(generation, rank, copy, part))
                    if rank == 0:
                        part.finish(generation)
            except UserCodeError as error:
                if not self._leaver.again(self._beat, error, self._beat.present_phase):
                    # Whoever mends the code goes on from here.
                    with self._leaver.working():
                        part.save()
                    raise Cancelled("the job has failed") from error
            except loop.GivenUp:
                # The others have seen it by themselves, or are about to.
                continue
            except Cancelled:
                # Nobody leaves before the master has said that the job is over.
                continue
            except rpc.Unreachable:
                # The result goes to the next master, or nobody: that of the next generation.
                continue
            finally:
                self._beat.phase("warm")

    def _data_set(
        self, message: pb.Dataset, definition: spec.Definition, mode: modes.Mode, *, shuffle: bool
    ) -> loop.DataSet:
        plan = streams.Plan(
            [file.records for file in message.files],
            slice_records=message.slice_records,
            streams=self.config.streams,
            seed=self.config.seed,
            shuffle=shuffle,
        )
        return loop.DataSet(plan, self._opener(message, definition, mode))

    def _opener(
        self, message: pb.Dataset, definition: spec.Definition, mode: modes.Mode
    ) -> pipeline.Opener:
        return pipeline.Opener(
            [file.path for file in message.files],
            lambda records: definition.create_dataset(records, mode),
            self.config.seed,
        )

    def _join(self, last: int, part: work.Work) -> tuple[membership.Generation, int]:
        """Blocks until there is a generation.

        Raises:
            Cancelled: there is none any more.
        """
        while True:
            if self._beat.leaving or self._beat.orphaned:
                self._leaver.end(self._beat.leaving or "no master was heard from")
            at = part.progress
            request = pb.JoinRequest(
                worker=self._worker.name,
                generation=last,
                progress=None if at is None else messages.progress_message(at),
                address=self._address(),
                term=self._client.term,
            )
            try:
                reply = self._client.call("Join", request, deadline_s=_JOIN_S)
            except rpc.Unreachable:
                # There may be another master; or a standby waits for as long as the job runs.
                continue
            if reply.save:
                with self._leaver.working():
                    part.save()
                continue
            if reply.stop:
                raise Cancelled("the job is over")
            return messages.generation_value(reply), reply.rank

    def _address(self) -> str:
        """Where others meet this worker; empty where it is not to have any."""
        self._meets = self._meets or self._beat.regroup
        if not self._meets:
            return ""
        if self._meeting is None:
            from elasticdl.worker import group, transport

            if self._security and not self._on_gpu and not transport.encrypt(self._security):
                self._beat.notice(_PLAINTEXT)
            self._meeting = group.Meeting(own_host(self._client.address))
        return self._meeting.address

    def _connect(
        self,
        generation: membership.Generation,
        rank: int,
        copy: replica.Replica,
        part: work.Work,
    ) -> loop.Members:
        reproducible = self.config.reproducible
        if generation.restore and rank == generation.source:
            part.begin()
        if len(generation.members) == 1:
            return members.Alone(copy, reproducible=reproducible)
        self._meets = True
        if not generation.rendezvous:
            raise loop.GivenUp("rank 0 did not expect others")
        from elasticdl.worker import group, transport

        try:
            together = group.Group(
                generation,
                rank,
                own_host(self._client.address),
                lambda: self._beat.given_up(generation.number),
                term=generation.term,
                connect=transport.Nccl if self._on_gpu else transport.Gloo,
            )
            if generation.behind:
                part.receive(generation, rank, together)
        except group.Broken as error:
            raise loop.GivenUp(str(error)) from error
        return members.Together(copy, together, reproducible=reproducible, on_gpu=self._on_gpu)

    # ---- prediction --------------------------------------------------------------------------

    def _predict(self, definition: spec.Definition) -> None:
        message = self._registered.data
        opener = self._opener(message, definition, modes.Mode.PREDICTION)
        plan = streams.Plan(
            [file.records for file in message.files],
            slice_records=message.slice_records,
            streams=1,
            shuffle=False,
        )
        artifact.restore(definition, self.config.trained_model)
        sample = sample_of(loop.DataSet(plan, opener))
        copy = replica.Replica(definition, sample, seed=self.config.seed)
        copy.prepare_prediction(sample.specs)
        self._beat.phase("predicting")
        prediction.run(
            self._client,
            self._worker.name,
            prediction.Predictor(plan, opener, copy, self.config.batch_size),
            Path(self._registered.work_directory),
            self._beat,
            self._leaver,
        )


_MODES = {
    "train": modes.Mode.TRAINING,
    "evaluate": modes.Mode.EVALUATION,
    "predict": modes.Mode.PREDICTION,
}


def configure(config: JobConfig, threads: int, worker: str) -> None:
    """Sets TensorFlow up for this process, before it computes anything.

    Raises:
        UserError: there is no such GPU.
    """
    import keras

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(
        max(threads, (os.cpu_count() or 1) // config.num_workers)
    )
    choose_gpu(config.worker_gpus, worker)
    if config.num_workers > 1:
        import torch

        torch.set_num_threads(1)
    # The step's thread waits no longer for Python code of those that read ahead than they take.
    sys.setswitchinterval(_SWITCH_S)
    keras.utils.set_random_seed(config.seed % (1 << 32))
    if config.reproducible:
        tf.config.experimental.enable_op_determinism()


def choose_gpu(wanted: int, worker: str) -> None:
    """Has this process use one of the GPUs that are there, and no more of its memory than it needs.

    Raises:
        UserError: one is wanted, and there is none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if wanted and not gpus:
        raise UserError(
            f"worker_gpus: expected {wanted} GPU for each worker; TensorFlow sees none here. The "
            "image needs elasticdl[gpu], and the node a driver and its device plugin."
        )
    if gpus:
        own = gpus[pods.number_of(worker) % len(gpus)]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)


def sample_of(data: loop.DataSet) -> replica.Sample:
    """Elements from the first slice that has any.

    Raises:
        UserError: no slice has; or the elements cannot be batched.
        UserCodeError: the input function fails.
    """
    specs, block = data.opener.sample(data.plan)
    batch = pipeline.Batch(block.components, (block.elements,), {}, {})
    leaves = pipeline.tensors(pipeline.part_of(batch, 0, min(2, block.elements)))
    return replica.Sample(tf.nest.pack_sequence_as(specs, leaves), specs)


def own_host(master: str) -> str:
    """The address of this machine that lies towards the master (host:port)."""
    host, _, port = master.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])
