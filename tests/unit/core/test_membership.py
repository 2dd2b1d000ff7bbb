"""Who is alive, and the generation that candidates form."""

from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core.membership import (
    NO_PACE,
    Candidate,
    Pace,
    gain,
    next_generation,
    placement,
    silent,
)
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
@settings(deadline=None, derandomize=True)
def test_placement_is_total_and_even(members, streams):
    placed = placement(streams, members, {})
    assert sorted(sum(placed.values(), ())) == list(range(streams))
    sizes = [len(placed[member]) for member in members]
    assert max(sizes) - min(sizes) <= 1


@given(MEMBERS, MEMBERS, st.integers(0, 40))
@settings(deadline=None, derandomize=True)
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
@settings(deadline=None, derandomize=True)
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


# ---- replicas -----------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(WORKERS), st.none() | st.integers(0, 3), min_size=1))
@settings(deadline=None, derandomize=True)
def test_once_those_behind_have_received_all_stand_at_one_version(versions):
    generation = next_generation(1, [candidate(w, v) for w, v in versions.items()], 4, {})
    source = generation.members[generation.source]
    assert generation.source not in generation.behind
    stands = dict(generation.versions)
    for rank in generation.behind:
        stands[generation.members[rank]] = stands[source]
    assert set(stands.values()) == {stands[source]}
    # Whoever stands there already receives nothing, unless nobody stands anywhere.
    newest = generation.versions[source]
    for rank in generation.behind:
        assert newest < 0 or generation.versions[generation.members[rank]] < newest


def test_a_generation_begins_with_a_checkpoint_only_if_nobody_has_a_replica():
    assert next_generation(1, [candidate("a"), candidate("b")], 4, {}).restore
    assert not next_generation(1, [candidate("a"), candidate("b", 0)], 4, {}).restore
    assert next_generation(1, [candidate("a"), candidate("b")], 4, {}).behind == (1,)


def test_the_term_is_that_of_the_master_which_forms_it():
    assert next_generation(9, [candidate("a")], 4, {}, term=3).term == 3


# ---- stragglers ---------------------------------------------------------------------------------


def counts(placed):
    return {member: len(hosted) for member, hosted in placed.items()}


def test_a_member_at_half_speed_hosts_half_as_much():
    even = placement(16, ["a", "b", "c"], {})
    costs = {"a": 1.0, "b": 1.0, "c": 2.0}
    assert counts(placement(16, ["a", "b", "c"], even, costs, 0.15)) == {"a": 7, "b": 6, "c": 3}


def test_streams_stay_where_a_step_would_hardly_become_shorter():
    even = placement(16, ["a", "b"], {})
    assert placement(16, ["a", "b"], even, {"a": 1.0, "b": 1.2}, 0.15) == even
    assert placement(16, ["a", "b"], even, {"a": 1.0, "b": 9.0}, 0.0) == even


def test_even_the_slowest_hosts_a_stream():
    placed = placement(4, ["a", "b"], {}, {"a": 1.0, "b": 1000.0}, 0.15)
    assert counts(placed) == {"a": 3, "b": 1}


def test_who_was_not_measured_counts_as_the_median():
    costs = {"a": 1.0, "b": 4.0, "c": 1.0}
    placed = counts(placement(13, ["a", "b", "c", "d"], {}, costs, 0.15))
    assert placed["d"] == placed["a"] == placed["c"] > placed["b"]


@given(
    st.dictionaries(st.sampled_from(WORKERS), st.floats(0.01, 100.0), min_size=1),
    MEMBERS,
    st.integers(12, 40),
    st.floats(0.0, 0.9),
)
@settings(deadline=None, derandomize=True)
def test_whatever_was_measured_each_stream_has_one_host_and_no_step_becomes_longer(
    costs, members, streams, least_gain
):
    even = placement(streams, members, {})
    placed = placement(streams, members, even, costs, least_gain)
    assert sorted(sum(placed.values(), ())) == list(range(streams))
    assert all(placed[member] for member in members)
    known = {member: costs[member] for member in members if member in costs}
    if len(known) == len(members):
        assert gain(counts(even), counts(placed), known) >= (
            least_gain if counts(placed) != counts(even) else 0.0
        )


def test_a_pace_is_what_came_since():
    assert Pace(9.0, 90, 30).since(Pace(6.0, 50, 20)) == Pace(3.0, 40, 10)
    assert Pace(9.0, 90, 30).since(NO_PACE) == Pace(9.0, 90, 30)
    # A new generation counts from its own beginning.
    assert Pace(1.0, 10, 3).since(Pace(6.0, 50, 20)) == Pace(1.0, 10, 3)
