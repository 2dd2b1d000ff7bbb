"""Who is alive at `now`; the next generation: members, source, streams of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elasticdl.core.progress import Progress


@dataclass(frozen=True)
class Candidate:
    """A worker that waits for the next generation.

    `progress` is that of its replica; None: it has none and must receive one.
    """

    worker: str
    address: str
    generation: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class Generation:
    """A fixed, ordered membership with its streams.

    `versions` are those of the members' replicas, -1 for a member that has none; `source` is the
    rank whose replica the others receive.
    """

    number: int
    members: tuple[str, ...]
    streams: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    source: int = 0
    rendezvous: str = ""


def silent(last_seen: Mapping[str, float], now: float, grace_s: float) -> set[str]:
    """The workers not heard from for more than `grace_s` seconds."""
    return {worker for worker, seen in last_seen.items() if now - seen > grace_s}


def next_generation(
    number: int,
    candidates: Sequence[Candidate],
    streams: int,
    previous: Mapping[str, tuple[int, ...]],
) -> Generation:
    """The generation that these candidates form.

    Members that have a replica come first, in the order of their names, so that the source is
    the lowest rank with a highest version. Rank 0 is where they meet.
    """
    by_age = sorted(candidates, key=lambda c: (c.progress is None, *_natural(c.worker)))
    members = tuple(candidate.worker for candidate in by_age)
    versions = {c.worker: -1 if c.progress is None else c.progress.version for c in by_age}
    return Generation(
        number=number,
        members=members,
        streams=placement(streams, members, previous),
        versions=versions,
        source=max(range(len(members)), key=lambda rank: (versions[members[rank]], -rank)),
        rendezvous=by_age[0].address,
    )


def placement(
    streams: int, members: Sequence[str], previous: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Which member hosts which streams: as even as can be, moving as few as can be."""
    least, extra = divmod(streams, len(members))
    kept = {member: list(previous.get(member, ())) for member in members}
    # Members that host most already take the odd streams, which saves moving them.
    most_first = sorted(members, key=lambda member: -len(kept[member]))
    room = {member: least + (place < extra) for place, member in enumerate(most_first)}
    for member in members:
        del kept[member][room[member] :]
    placed = {stream for hosted in kept.values() for stream in hosted}
    homeless = [stream for stream in range(streams) if stream not in placed]
    for member in members:
        wanted = room[member] - len(kept[member])
        kept[member] += homeless[:wanted]
        del homeless[:wanted]
    return {member: tuple(sorted(hosted)) for member, hosted in kept.items()}


def _natural(worker: str) -> tuple[int, str]:
    """worker-10 comes after worker-9."""
    return len(worker), worker
