"""The names that Keras gives to layers, the same in every process."""

import collections
from types import TracebackType

from keras.src.backend.common import global_state

_COUNTERS = "object_name_uids"


class Scope:
    """Inside, Keras counts layers' names from where this scope was left, from none at first.

    Keras numbers layers without a name by what the process made before; variables are stored
    under these names.
    """

    def __init__(self) -> None:
        self._inside: collections.defaultdict[str, int] = collections.defaultdict(int)
        self._outside: list[object] = []

    def __enter__(self) -> "Scope":
        self._outside.append(global_state.get_global_attribute(_COUNTERS))
        global_state.set_global_attribute(_COUNTERS, self._inside)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outside = self._outside.pop()
        global_state.set_global_attribute(
            _COUNTERS, collections.defaultdict(int) if outside is None else outside
        )
