"""Prediction's slices: waiting, leased, done."""

from collections.abc import Iterable


class Leases:
    """Hands out the numbers 0 … slices - 1, each until some worker has done it.

    Memory grows with what is out of order, not with the number of slices: all below a low-water
    mark are leased or done, and the exceptions are kept by name.

    Args:
        slices: how many there are.
        done: those of them that are done already, and are never leased.
    """

    def __init__(self, slices: int, done: Iterable[int] = ()) -> None:
        self.slices = slices
        self._next = 0
        self._ahead = {number for number in done if 0 <= number < slices}  # done beyond _next
        self._returned: list[int] = []
        self._holder: dict[int, str] = {}
        self.done = len(self._ahead)

    @property
    def finished(self) -> bool:
        return self.done == self.slices

    def lease(self, worker: str, most: int = 1) -> tuple[int, ...]:
        """Up to `most` slices, now in the hands of `worker`; none when all are leased or done.

        Those that it has already come first: it asks again because the answer did not reach it.
        """
        given = [number for number, holder in self._holder.items() if holder == worker][:most]
        while len(given) < most and self._returned:
            given.append(self._returned.pop())
        while len(given) < most and self._next < self.slices:
            number, self._next = self._next, self._next + 1
            if number in self._ahead:
                self._ahead.discard(number)
            else:
                given.append(number)
        for number in given:
            self._holder[number] = worker
        return tuple(given)

    def finish(self, number: int) -> bool:
        """Whether this report is the first of that slice; whoever has done it, it is done.

        A worker may have been given up in between, or a master that knew of its lease be gone.
        """
        if number in self._holder:
            del self._holder[number]
        elif number in self._returned:
            self._returned.remove(number)
        elif self._next <= number < self.slices and number not in self._ahead:
            self._ahead.add(number)
        else:
            return False
        self.done += 1
        return True

    def give_back(self, worker: str) -> tuple[int, ...]:
        """Takes all slices from a worker that is gone; they are the next to be leased."""
        lost = tuple(number for number, holder in self._holder.items() if holder == worker)
        for number in lost:
            del self._holder[number]
        self._returned.extend(reversed(lost))
        return lost
