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
    leases.finish(1)
    assert leases.give_back("a") == (0, 2)
    assert leases.lease("b", most=3) == (0, 2, 3)
    assert leases.give_back("a") == ()


def test_a_worker_whose_answer_was_lost_gets_it_again():
    leases = Leases(9)
    assert leases.lease("a", most=2) == leases.lease("a", most=2) == (0, 1)
    leases.finish(0)
    assert leases.lease("a", most=2) == (1, 2)


def test_a_report_counts_once():
    leases = Leases(2)
    leases.lease("a")
    assert not leases.finish(7)
    assert not leases.finish(-1)
    assert leases.finish(0)
    assert not leases.finish(0)
    assert leases.done == 1


def test_what_is_done_is_done_whoever_holds_it_by_now():
    leases = Leases(1)
    leases.lease("a")
    leases.give_back("a")
    leases.lease("b")
    # The worker that was given up has written the part all the same.
    assert leases.finish(0)
    assert not leases.finish(0)
    assert leases.finished
    assert leases.lease("b") == ()


def test_a_report_to_a_master_that_knows_of_no_lease_counts():
    leases = Leases(4)
    assert leases.finish(2)
    leases.lease("a")
    leases.give_back("a")
    assert leases.finish(0)
    assert leases.lease("b", most=9) == (1, 3)


def test_what_is_done_already_is_not_leased():
    leases = Leases(4, done=(1, 3, 3, 9))
    assert leases.done == 2
    assert leases.lease("a", most=9) == (0, 2)
    assert leases.finish(0)
    assert leases.finish(2)
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

    @rule(number=st.integers(-1, SLICES))
    def finish(self, number):
        counts = 0 <= number < SLICES and number not in self.done
        assert self.leases.finish(number) == counts
        if counts:
            self.holder.pop(number, None)
            self.done.add(number)

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def finish_what_is_held(self, data):
        self.finish(data.draw(st.sampled_from(sorted(self.holder))))

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
                assert self.leases.finish(number)
        assert self.done == set(range(SLICES))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, derandomize=True, max_examples=60)
