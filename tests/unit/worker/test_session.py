"""Which devices a worker uses."""

import pytest
import tensorflow as tf

from elasticdl.errors import UserError
from elasticdl.worker import session


@pytest.fixture
def chosen(monkeypatch):
    """What is chosen among two GPUs."""
    found = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *choice: found.append(choice))
    grows = tf.config.experimental
    monkeypatch.setattr(grows, "set_memory_growth", lambda gpu, yes: found.append((gpu, yes)))
    return found


@pytest.mark.parametrize(("worker", "own"), [("worker-0", 0), ("worker-3", 1), ("worker-4", 0)])
def test_each_worker_has_one_gpu_and_leaves_memory_to_others(chosen, worker, own):
    session.choose_gpu(1, worker)
    assert chosen == [(f"GPU:{own}", "GPU"), (f"GPU:{own}", True)]


def test_without_a_gpu_that_was_asked_for_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UserError, match=r"worker_gpus: expected 1 GPU .* elasticdl\[gpu\]"):
        session.choose_gpu(1, "worker-0")
    session.choose_gpu(0, "worker-0")
