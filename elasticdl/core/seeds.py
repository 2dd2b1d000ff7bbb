"""Numbers that look random and depend on nothing but what they are named after."""

import hashlib


def seed(*parts: int | str) -> int:
    """A number in [0, 2**31) that is the same for the same parts on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33


class Permutation:
    """A bijection of range(size), computed and not stored.

    A balanced Feistel network over the next even number of bits, walked until it lands inside the
    range again (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    _ROUNDS = 4

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        self._keys = [seed(key, size, round) for round in range(self._ROUNDS)]

    def __call__(self, position: int) -> int:
        """Which member of range(size) stands at `position`, 0 <= position < size."""
        while True:
            left, right = position >> self._half, position & self._mask
            for key in self._keys:
                left, right = right, left ^ _mixed(right, key) & self._mask
            position = left << self._half | right
            if position < self._size:
                return position

    def position(self, member: int) -> int:
        """Where `member` stands: the inverse of the call."""
        while True:
            left, right = member >> self._half, member & self._mask
            for key in reversed(self._keys):
                left, right = right ^ _mixed(left, key) & self._mask, left
            member = left << self._half | right
            if member < self._size:
                return member


def _mixed(number: int, key: int) -> int:
    """The finalizer of splitmix64: each bit of the number reaches each bit of the result."""
    x = (number + key + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
