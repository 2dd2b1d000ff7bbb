"""Models whose workers fail at the points of a plan, a directory: see `tests.jobs.faults`."""

import json
import os
import pathlib
import signal
import sys
import threading

import numpy as np
import tensorflow as tf
from counting import Counting as _Counting
from digits import Conv as _Conv
from digits import Dense as _Dense

from elasticdl import UserCodeError


class Faults:
    """Puts the plan's faults at their points in this worker; each of them happens once.

    Points, in the order of a worker's life: join (the master has answered, nothing is connected),
    send and receive (of the source's replica, half of it having gone), step (before the gradient),
    reduce (before the all-reduce), reducing (in it), reduced (after it, nothing is applied),
    applied (nothing is reported), saving (a checkpoint is written, but not yet safe on the disk),
    export (the result); evaluate (a batch), predict and predicted (a slice).
    """

    def __init__(self, plan):
        self.plan = pathlib.Path(plan)
        self.entries = json.loads((self.plan / "plan.json").read_text())
        self.worker = sys.argv[2]
        self.version = 0
        self.beat = None
        self._install()

    def reach(self, point):
        for number, entry in enumerate(self.entries):
            if entry["point"] != point or self.version < entry["version"]:
                continue
            if entry["worker"] not in ("any", self.worker):
                continue
            if not self._first(number):
                continue
            self._do(entry)

    def _first(self, number):
        try:
            (self.plan / f"fired-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _do(self, entry):
        if entry["until"]:
            # Another process says when, by making this file.
            while not ((self.plan / entry["until"]).exists() or self._is(entry["until"])):
                threading.Event().wait(0.01)
        if entry["fails"]:
            raise UserCodeError(
                "create_loss: scripted.", "Traceback: scripted", tuple(entry["slices"])
            )
        for victim in entry["victims"]:
            if victim == "master":
                claim = json.loads(pathlib.Path(sys.argv[1]).with_name("claim").read_text())
                os.kill(claim["pid"], signal.SIGKILL)
        if "self" in entry["victims"]:
            os.kill(os.getpid(), entry["signal"])

    def _is(self, state):
        return state == "orphaned" and self.beat is not None and self.beat.orphaned

    def _install(self):
        from elasticdl.worker import (
            checkpoint,
            group,
            loop,
            members,
            prediction,
            replica,
            session,
            work,
        )

        def before(owner, name, point):
            inner = getattr(owner, name)

            def wrapped(*arguments, **keywords):
                self.reach(point)
                return inner(*arguments, **keywords)

            setattr(owner, name, wrapped)

        def after(owner, name, point):
            inner = getattr(owner, name)

            def wrapped(*arguments, **keywords):
                result = inner(*arguments, **keywords)
                self.reach(point)
                return result

            setattr(owner, name, wrapped)

        faults = self
        step = loop.Training._step

        def stepped(training, together, speaks):
            faults.version = training.progress.version
            faults.beat = training.beat
            faults.reach("step")
            return step(training, together, speaks)

        loop.Training._step = stepped
        before(session.Session, "_connect", "join")
        join = session.Session._join

        def joins(worker, last, part):
            (self.plan / f"joining-{self.worker}").touch()
            return join(worker, last, part)

        session.Session._join = joins
        before(group.Group, "all_reduce", "reduce")
        after(group.Group, "all_reduce", "reduced")
        for kind in (members.Alone, members.Together):
            after(kind, "step", "applied")
        before(work.Trainer, "finish", "export")
        before(checkpoint, "_sync", "saving")
        before(replica.Replica, "evaluation_sums", "evaluate")
        before(prediction.Predictor, "write", "predict")
        after(prediction.Predictor, "write", "predicted")
        receive = group.Group.broadcast_into

        def received(joined, buffer, source):
            self.reach("send" if joined.rank == source else "receive")
            return receive(joined, buffer, source)

        group.Group.broadcast_into = received
        finish = group.Group._finish

        def finished(joined, begin):
            def begun(*arguments):
                work = begin(*arguments)
                self.reach("reducing")
                return work

            return finish(joined, begun)

        group.Group._finish = finished


class Counting(_Counting):
    """Counts, with faults."""

    def __init__(self, context=None, plan="", **keywords):
        super().__init__(context, **keywords)
        self.faults = Faults(plan) if plan else None


class Dense(_Dense):
    """Classifies digits, with faults."""

    def __init__(self, context=None, plan="", **keywords):
        super().__init__(context, **keywords)
        self.faults = Faults(plan) if plan else None


class Conv(_Conv):
    """Batch statistics and a random layer, with faults."""

    def __init__(self, context=None, plan="", **keywords):
        super().__init__(context, **keywords)
        self.faults = Faults(plan) if plan else None


class Slow(_Dense):
    """Takes a time for each element that depends on the worker, and no processor.

    Args:
        per_element_s: seconds, of a worker that is not named.
        slow: a worker that takes twice as long.
    """

    def __init__(self, context=None, per_element_s=0.0005, slow="worker-1", **keywords):
        super().__init__(context, **keywords)
        self.seconds = per_element_s * (2 if context["worker_id"] == slow else 1)

    def create_loss(self, outputs, labels):
        def wait(labels):
            threading.Event().wait(self.seconds * len(labels))
            return np.float32(0)

        waited = tf.numpy_function(wait, [labels], tf.float32)
        return super().create_loss(outputs, labels) + tf.ensure_shape(waited, [])
