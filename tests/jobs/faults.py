"""Faults at exact points of workers' lives, scripted by a test and carried out by the zoo."""

import json
import signal

ORPHANED = "orphaned"


class Plan:
    """What is to go wrong; each entry happens once and is then among `fired`.

    The zoo's `faulty` models take its directory as their parameter `plan`.
    """

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self._entries = []
        self._write()

    def crash(self, point, *, worker="any", version=0):
        """SIGKILL of the worker that comes to this point first at this version or a later one."""
        return self._add(point, worker, version, signal.SIGKILL, ["self"])

    def stop(self, point, *, worker="any", version=0):
        """SIGSTOP."""
        return self._add(point, worker, version, signal.SIGSTOP, ["self"])

    def tell(self, point, *, worker="any", version=0):
        """SIGTERM, a preemption notice."""
        return self._add(point, worker, version, signal.SIGTERM, ["self"])

    def crash_master(self, point, *, worker="any", version=0, also_self=False):
        """SIGKILL of the master, and if asked of this worker too."""
        victims = ["master", "self"] if also_self else ["master"]
        return self._add(point, worker, version, signal.SIGKILL, victims)

    def hold(self, point, until, *, worker="any", version=0):
        """The worker waits there until there is a file `until` in the plan's directory: one that
        the test makes with `go`, or joining-NAME, of a worker that is warm and asks to join; or
        until it has no master any more (`ORPHANED`).
        """
        return self._add(point, worker, version, 0, [], until=until)

    def fail(self, *, worker="any", version=0, slices=()):
        """User code raises in a step."""
        return self._add("step", worker, version, 0, [], fails=True, slices=slices)

    def clear(self):
        """Nothing is to go wrong, and nothing has."""
        self._entries.clear()
        self._write()
        for path in self.directory.glob("fired-*"):
            path.unlink()

    def go(self, name):
        (self.directory / name).touch()

    def _add(self, point, worker, version, number, victims, until="", fails=False, slices=()):
        self._entries.append(
            {
                "point": point,
                "worker": worker,
                "version": version,
                "signal": int(number),
                "victims": victims,
                "until": until,
                "fails": fails,
                "slices": list(slices),
            }
        )
        self._write()
        return self

    def _write(self):
        (self.directory / "plan.json").write_text(json.dumps(self._entries))

    @property
    def fired(self):
        return sorted(int(path.name.rpartition("-")[2]) for path in self.directory.glob("fired-*"))

    @property
    def param(self):
        return f"plan={str(self.directory)!r}"
