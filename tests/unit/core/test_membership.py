"""Who is alive, and the generation that candidates form."""

from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core.membership import Candidate, next_generation, placement, silent
from elasticdl.core.progress import Cursor, Progress

WORKERS = [f"worker-{number}" for number in range(12)]
MEMBERS = st.lists(st.sampled_from(WORKERS), min_size=1, unique=True)


def candidate(worker, version=None):
    progress = None if version is None else Progress(version, (Cursor(),))
    return Candidate(worker, f"host-of-{worker}:1", 0, progress)


def test_a_worker_is_silent_once_the_grace_is_over():
    assert silent({"a": 10.0, "b": 11.0}, now=40.0, grace_s=30.0) == set()
    assert silent({"a": 10.0, "b": 11.0}, now=40.5, grace_s=30.0) == {"a"}


@given(MEMBERS, st.integers(0, 40))
@settings(deadline=None)
def test_placement_is_total_and_even(members, streams):
    placed = placement(streams, members, {})
    assert sorted(sum(placed.values(), ())) == list(range(streams))
    sizes = [len(placed[member]) for member in members]
    assert max(sizes) - min(sizes) <= 1


@given(MEMBERS, MEMBERS, st.integers(0, 40))
@settings(deadline=None)
def test_placement_moves_no_more_streams_than_it_must(before, after, streams):
    previous = placement(streams, before, {})
    placed = placement(streams, after, previous)
    assert sorted(sum(placed.values(), ())) == list(range(streams))
    stayed = sum(len(set(placed[member]) & set(previous.get(member, ()))) for member in after)
    least, extra = divmod(streams, len(after))
    # Everyone keeps what it has up to an even share; those that have most may take the larger one.
    had = sorted((len(previous.get(member, ())) for member in after), reverse=True)
    most = sum(min(count, least + (rank < extra)) for rank, count in enumerate(had))
    assert stayed == most


def test_a_lost_member_moves_only_its_own_streams():
    before = placement(16, ["a", "b", "c", "d"], {})
    after = placement(16, ["a", "b", "d"], before)
    for member in ("a", "b", "d"):
        assert set(before[member]) <= set(after[member])


def test_a_newcomer_takes_some_streams_from_each():
    before = placement(16, ["a", "b"], {})
    after = placement(16, ["a", "b", "c"], before)
    assert set(after["a"]) < set(before["a"])
    assert set(after["b"]) < set(before["b"])
    assert sorted(map(len, after.values())) == [5, 5, 6]


@given(
    st.dictionaries(st.sampled_from(WORKERS), st.none() | st.integers(0, 3), min_size=1),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_the_source_has_a_highest_version(versions, random):
    candidates = [candidate(worker, version) for worker, version in versions.items()]
    generation = next_generation(3, candidates, 8, {})
    assert sorted(generation.members) == sorted(versions)
    known = {worker: -1 if version is None else version for worker, version in versions.items()}
    assert generation.versions == known
    source = generation.members[generation.source]
    assert known[source] == max(known.values())
    assert generation.rendezvous == f"host-of-{generation.members[0]}:1"
    # The order in which they called does not matter.
    random.shuffle(candidates)
    assert next_generation(3, candidates, 8, {}) == generation


def test_members_stand_in_the_order_of_their_names_those_with_a_replica_first():
    candidates = [
        candidate("worker-10", 5),
        candidate("worker-0"),
        candidate("worker-9", 6),
        candidate("worker-2", 5),
    ]
    generation = next_generation(2, candidates, 4, {})
    assert generation.members == ("worker-2", "worker-9", "worker-10", "worker-0")
    assert generation.source == 1


def test_streams_stay_where_they_were():
    first = next_generation(1, [candidate("a"), candidate("b")], 4, {})
    again = [candidate("a", 3), candidate("b", 3)]
    assert next_generation(2, again, 4, first.streams).streams == first.streams
