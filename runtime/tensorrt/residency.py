"""Which engines have their weights on the device now."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.engine import Engine


class Residency:
    """Loads an engine's group before it runs, and unloads the group that ran before."""

    def __init__(self, groups: Sequence[Sequence[str]], engines: Mapping[str, Engine], arena: Arena) -> None:
        self.groups, self.engines, self.arena = groups, engines, arena
        self.loaded: tuple[str, ...] = ()
        """The group that can run."""
        self.held: tuple[str, ...] = ()
        """What may hold memory: the loaded group, or what a failure left of one."""

    def require(self, stage: str) -> None:
        """Bring the stage's group to the device; when that fails nothing is left on it.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        if stage in self.loaded:
            return
        group = next(tuple(group) for group in self.groups if stage in group)
        self.release()
        # Noted before the loads: what a failing one leaves must be unloaded too.
        self.held = group
        try:
            for name in group:
                self.engines[name].load()
        except BaseException:
            self.release()
            raise
        self.loaded = group

    def release(self) -> None:
        """Take everything off the device; the scratch memory too, which another group may need less of.

        Everything is tried. What could not be taken off is tried again the next time, and the error is raised.
        """
        self.loaded = ()
        with ExitStack() as steps:  # all are done, whichever fails; the last one first
            steps.callback(self.arena.release)
            for name in self.held:
                steps.callback(self._unload, name)

    def _unload(self, name: str) -> None:
        self.engines[name].unload()
        self.held = tuple(other for other in self.held if other != name)
