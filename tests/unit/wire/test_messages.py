"""Values survive the way through a message and back."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core import membership
from elasticdl.core.progress import Cursor, Progress
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages

COUNTS = st.integers(0, (1 << 63) - 1)
CURSORS = st.builds(Cursor, COUNTS, COUNTS, COUNTS)
PROGRESS = st.builds(Progress, COUNTS, st.lists(CURSORS, max_size=6).map(tuple))
NAMES = st.text(min_size=1, max_size=8)
NUMBERS = st.floats(allow_nan=False)


def through_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@given(PROGRESS)
@settings(deadline=None)
def test_progress(progress):
    message = through_the_wire(messages.progress_message(progress))
    assert messages.progress_value(message) == progress


@st.composite
def generations(draw):
    members = tuple(draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)))
    return membership.Generation(
        number=draw(st.integers(1, 1 << 40)),
        members=members,
        streams={
            member: tuple(draw(st.lists(st.integers(0, 1 << 30), max_size=4))) for member in members
        },
        versions={member: draw(st.integers(-1, 1 << 40)) for member in members},
        source=draw(st.integers(0, len(members) - 1)),
        rendezvous=draw(st.sampled_from(["", "127.0.0.1:4711"])),
    )


@given(generations(), st.data())
@settings(deadline=None)
def test_a_generation_as_each_member_gets_it(generation, data):
    rank = data.draw(st.integers(0, len(generation.members) - 1))
    reply = through_the_wire(messages.join_reply(generation, generation.members[rank]))
    assert messages.generation_value(reply) == generation
    assert reply.rank == rank
    assert not reply.stop


@given(
    st.dictionaries(NAMES, NUMBERS | st.lists(NUMBERS, max_size=4).filter(lambda v: len(v) != 1))
)
@settings(deadline=None)
def test_metrics(metrics):
    report = pb.StepReport(metrics=messages.metric_messages(metrics))
    assert messages.metric_values(through_the_wire(report).metrics) == metrics


def test_metrics_that_are_no_numbers_survive_too():
    report = pb.StepReport(metrics=messages.metric_messages({"loss": math.nan, "v": [math.inf, 1]}))
    values = messages.metric_values(through_the_wire(report).metrics)
    assert math.isnan(values["loss"])
    assert values["v"] == [math.inf, 1.0]


def test_a_vector_of_one_number_is_that_number():
    assert messages.metric_values(messages.metric_messages({"m": [3.0]})) == {"m": 3.0}
