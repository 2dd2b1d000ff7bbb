"""Who must act on an error: the user, nobody (it is retried), or, for every other exception, us."""


class ElasticDLError(Exception):
    """The root of the errors that this package raises on purpose."""


class UserError(ElasticDLError):
    """Something that the user can put right.

    Its text is one line: where, what was expected, what came, what to do. The command line
    prints it and exits with status 2.
    """


class UserCodeError(UserError):
    """An exception raised by the user's own code: model, input function, loss, metrics.

    Args:
        message: one line: which part of the user's code failed, and how.
        trace: the user's own frames of the traceback, ours left out, as Python prints them;
            empty if there are none.
        slices: the slices of data that it was given, in words, as far as they are known.
    """

    def __init__(self, message: str, trace: str = "", slices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.trace = trace
        self.slices = slices


class CorruptData(UserError):
    """A data file that does not hold what its format promises.

    Args:
        path: the file.
        offset: byte offset at which the file stops making sense.
        problem: what was expected there, and what came.
    """

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(f"{path}: at byte {offset}: {problem}")
        self.path = path
        self.offset = offset
        self.problem = problem

    def __reduce__(self) -> tuple[type["CorruptData"], tuple[str, int, str]]:
        return type(self), (self.path, self.offset, self.problem)


class Cancelled(ElasticDLError):
    """The job was stopped on request before it was done."""


class Retryable(ElasticDLError):
    """A failure that may pass; only `wire.rpc` catches it."""
