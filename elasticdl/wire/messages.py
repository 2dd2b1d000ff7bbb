"""Values of `core` ⇄ messages of elasticdl.proto."""

from collections.abc import Mapping, Sequence

from elasticdl.core import membership
from elasticdl.core.progress import Cursor, Progress
from elasticdl.wire import elasticdl_pb2 as pb

Metric = float | list[float]


def progress_message(progress: Progress) -> pb.Progress:
    return pb.Progress(
        version=progress.version,
        cursors=[
            pb.Cursor(epoch=cursor.epoch, slice=cursor.slice, element=cursor.element)
            for cursor in progress.cursors
        ],
    )


def progress_value(message: pb.Progress) -> Progress:
    return Progress(
        message.version, tuple(Cursor(c.epoch, c.slice, c.element) for c in message.cursors)
    )


def join_reply(generation: membership.Generation, worker: str) -> pb.JoinReply:
    return pb.JoinReply(
        generation=generation.number,
        members=[
            pb.Member(
                worker=member,
                streams=generation.streams[member],
                version=generation.versions[member],
            )
            for member in generation.members
        ],
        rank=generation.members.index(worker),
        source=generation.source,
        rendezvous=generation.rendezvous,
        restore=generation.restore,
        term=generation.term,
    )


def generation_value(reply: pb.JoinReply) -> membership.Generation:
    return membership.Generation(
        number=reply.generation,
        members=tuple(member.worker for member in reply.members),
        streams={member.worker: tuple(member.streams) for member in reply.members},
        versions={member.worker: member.version for member in reply.members},
        source=reply.source,
        rendezvous=reply.rendezvous,
        restore=reply.restore,
        term=reply.term,
    )


def metric_messages(metrics: Mapping[str, Metric]) -> dict[str, pb.Value]:
    return {
        name: pb.Value(numbers=value if isinstance(value, list) else [value])
        for name, value in metrics.items()
    }


def metric_values(messages: Mapping[str, pb.Value]) -> dict[str, Metric]:
    return {name: _metric(message.numbers) for name, message in sorted(messages.items())}


def _metric(numbers: Sequence[float]) -> Metric:
    return numbers[0] if len(numbers) == 1 else list(numbers)
