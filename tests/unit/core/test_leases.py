"""Each slice is in one worker's hands at a time, and done once."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from elasticdl.core.leases import Leases


def test_slices_are_leased_in_order():
    leases = Leases(3)
    assert [leases.lease(worker) for worker in "abcd"] == [(0,), (1,), (2,), ()]


def test_a_worker_may_lease_several():
    leases = Leases(5)
    assert leases.lease("a", most=3) == (0, 1, 2)
    assert leases.lease("b", most=3) == (3, 4)


def test_slices_given_back_come_first():
    leases = Leases(9)
    assert leases.lease("a", most=3) == (0, 1, 2)
    leases.finish("a", 1)
    assert leases.give_back("a") == (0, 2)
    assert leases.lease("b", most=3) == (0, 2, 3)
    assert leases.give_back("a") == ()


def test_a_worker_whose_answer_was_lost_gets_it_again():
    leases = Leases(9)
    assert leases.lease("a", most=2) == leases.lease("a", most=2) == (0, 1)
    leases.finish("a", 0)
    assert leases.lease("a", most=2) == (1, 2)


def test_reports_count_once_and_from_the_holder_alone():
    leases = Leases(2)
    leases.lease("a")
    assert not leases.finish("b", 0)
    assert not leases.finish("a", 1)
    assert not leases.finish("a", 7)
    assert leases.finish("a", 0)
    assert not leases.finish("a", 0)
    assert leases.done == 1


def test_a_report_that_comes_after_the_slice_was_given_back_does_not_count():
    leases = Leases(1)
    leases.lease("a")
    leases.give_back("a")
    leases.lease("b")
    assert not leases.finish("a", 0)
    assert leases.finish("b", 0)
    assert leases.finished


def test_what_is_done_already_is_not_leased():
    leases = Leases(4, done=(1, 3, 3, 9))
    assert leases.done == 2
    assert leases.lease("a", most=9) == (0, 2)
    assert leases.finish("a", 0)
    assert leases.finish("a", 2)
    assert leases.finished


def test_without_slices_all_is_done():
    assert Leases(0).finished
    assert Leases(2, done=range(2)).finished


SLICES = 12
WORKERS = st.sampled_from("abcd")


class AnyOrder(RuleBasedStateMachine):
    """Workers lease, report, repeat themselves, are lost and wake, in any order."""

    def __init__(self):
        super().__init__()
        self.leases = Leases(SLICES, done=(5, 11))
        self.holder = {}
        self.done = {5, 11}

    @rule(worker=WORKERS, most=st.integers(1, 3))
    def lease(self, worker, most):
        held = {number for number, holder in self.holder.items() if holder == worker}
        given = self.leases.lease(worker, most)
        assert len(given) == len(set(given)) <= most
        for number in given:
            assert number not in self.done
            assert self.holder.get(number, worker) == worker
        assert set(given) <= held or held <= set(given)
        free = SLICES - len(self.done) - len(self.holder) + len(held)
        assert len(given) == min(most, free)
        self.holder |= dict.fromkeys(given, worker)

    @rule(worker=WORKERS, number=st.integers(-1, SLICES))
    def finish(self, worker, number):
        counts = self.holder.get(number) == worker
        assert self.leases.finish(worker, number) == counts
        if counts:
            del self.holder[number]
            self.done.add(number)

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def finish_own(self, data):
        number = data.draw(st.sampled_from(sorted(self.holder)))
        self.finish(self.holder[number], number)

    @rule(worker=WORKERS)
    def give_back(self, worker):
        lost = {number for number, holder in self.holder.items() if holder == worker}
        assert set(self.leases.give_back(worker)) == lost
        for number in lost:
            del self.holder[number]

    @invariant()
    def counts_what_is_done(self):
        assert self.leases.done == len(self.done)
        assert self.leases.finished == (len(self.done) == SLICES)

    def teardown(self):
        """Whatever happened, one worker that stays can end it, each slice once."""
        for worker in "abcd":
            self.give_back(worker)
        while not self.leases.finished:
            for number in self.leases.lease("last"):
                assert number not in self.done
                self.done.add(number)
                assert self.leases.finish("last", number)
        assert self.done == set(range(SLICES))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=60)
