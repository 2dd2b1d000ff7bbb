"""Who is alive at `now`; the next generation: members, source, streams of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elasticdl.core import pods
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
    rank whose replica the others receive. With `restore` nobody has one: the source begins with the
    newest checkpoint, or, where there is none, with initial weights. Generations are ordered by
    (term, number), the term being that of the master that formed them.
    """

    number: int
    members: tuple[str, ...]
    streams: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    source: int = 0
    rendezvous: str = ""
    restore: bool = False
    term: int = 0

    @property
    def behind(self) -> tuple[int, ...]:
        """The ranks whose replica the source's replaces; none of them stands at its version."""
        newest = self.versions[self.members[self.source]]
        return tuple(
            rank
            for rank, member in enumerate(self.members)
            if rank != self.source and (newest < 0 or self.versions[member] < newest)
        )


@dataclass(frozen=True)
class Pace:
    """What a member has measured of itself since its generation began."""

    seconds: float = 0.0
    elements: int = 0
    steps: int = 0

    def since(self, earlier: "Pace") -> "Pace":
        """What came after `earlier`; all of it where a new generation has begun in between."""
        if self.steps < earlier.steps:
            return self
        return Pace(
            self.seconds - earlier.seconds,
            self.elements - earlier.elements,
            self.steps - earlier.steps,
        )


NO_PACE = Pace()


def silent(last_seen: Mapping[str, float], now: float, grace_s: float) -> set[str]:
    """The workers not heard from for more than `grace_s` seconds."""
    return {worker for worker, seen in last_seen.items() if now - seen > grace_s}


def next_generation(
    number: int,
    candidates: Sequence[Candidate],
    streams: int,
    previous: Mapping[str, tuple[int, ...]],
    *,
    term: int = 0,
    costs: Mapping[str, float] | None = None,
    least_gain: float = 0.0,
) -> Generation:
    """The generation that these candidates form.

    Members that have a replica come first, in the order of their names, so that the source is
    the lowest rank with a highest version. Rank 0 is where they meet.

    Args:
        costs, least_gain: as in `placement`.
    """
    by_age = sorted(candidates, key=lambda c: (c.progress is None, *pods.natural(c.worker)))
    members = tuple(candidate.worker for candidate in by_age)
    versions = {c.worker: -1 if c.progress is None else c.progress.version for c in by_age}
    return Generation(
        number=number,
        members=members,
        streams=placement(streams, members, previous, costs or {}, least_gain),
        versions=versions,
        source=max(range(len(members)), key=lambda rank: (versions[members[rank]], -rank)),
        rendezvous=by_age[0].address,
        restore=all(candidate.progress is None for candidate in candidates),
        term=term,
    )


def placement(
    streams: int,
    members: Sequence[str],
    previous: Mapping[str, tuple[int, ...]],
    costs: Mapping[str, float] | None = None,
    least_gain: float = 0.0,
) -> dict[str, tuple[int, ...]]:
    """Which member hosts which streams: as even as can be, moving as few as can be.

    Args:
        costs: seconds that a member takes for one stream's part of a step, as far as measured.
        least_gain: by what share a step must become shorter for an uneven placement, which leaves
            slow members fewer streams; 0: it is always even.
    """
    kept = {member: list(previous.get(member, ())) for member in members}
    room = _even(streams, members, kept)
    known = _known(costs or {}, members)
    if least_gain and known:
        fair = _fair(streams, members, known)
        if gain(room, fair, known) >= least_gain:
            room = fair
    for member in members:
        del kept[member][room[member] :]
    placed = {stream for hosted in kept.values() for stream in hosted}
    homeless = [stream for stream in range(streams) if stream not in placed]
    for member in members:
        wanted = room[member] - len(kept[member])
        kept[member] += homeless[:wanted]
        del homeless[:wanted]
    return {member: tuple(sorted(hosted)) for member, hosted in kept.items()}


def gain(before: Mapping[str, int], after: Mapping[str, int], costs: Mapping[str, float]) -> float:
    """By what share a step becomes shorter with `after` streams for each member in place of
    `before`; the slowest member decides how long it takes.
    """
    now, then = (max(counts[m] * costs[m] for m in costs) for counts in (before, after))
    return (now - then) / now if now else 0.0


def _even(
    streams: int, members: Sequence[str], kept: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    least, extra = divmod(streams, len(members))
    # Members that host most already take the odd streams, which saves moving them.
    most_first = sorted(members, key=lambda member: -len(kept[member]))
    return {member: least + (place < extra) for place, member in enumerate(most_first)}


def _known(costs: Mapping[str, float], members: Sequence[str]) -> dict[str, float]:
    """The cost of each member; one not measured yet counts as the median; empty: none was."""
    measured = sorted(costs[member] for member in members if costs.get(member, 0.0) > 0)
    if not measured:
        return {}
    median = measured[len(measured) // 2]
    return {member: costs.get(member, 0.0) or median for member in members}


def _fair(streams: int, members: Sequence[str], costs: Mapping[str, float]) -> dict[str, int]:
    """Streams for each member, at least one, such that the slowest is done as soon as can be."""
    counts = dict.fromkeys(members, 1)
    for _ in range(streams - len(members)):
        cheapest = min(members, key=lambda member: (counts[member] + 1) * costs[member])
        counts[cheapest] += 1
    return counts
