"""Which engines have their weights on the device now."""

from collections.abc import Mapping, Sequence

from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.engine import Engine


class Residency:
    """Loads an engine's group before it runs, and unloads the group that ran before."""

    def __init__(self, groups: Sequence[Sequence[str]], engines: Mapping[str, Engine], arena: Arena) -> None:
        self.groups, self.engines, self.arena = groups, engines, arena
        self.loaded: tuple[str, ...] = ()

    def require(self, stage: str) -> None:
        """Bring the stage's group to the device; when that fails nothing is left on it."""
        if stage in self.loaded:
            return
        group = next(tuple(group) for group in self.groups if stage in group)
        self.release()
        # Noted before the loads: what a failing one leaves must be unloaded too.
        self.loaded = group
        try:
            for name in group:
                self.engines[name].load()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Take everything off the device; the scratch memory too, which another group may need less of."""
        group, self.loaded = self.loaded, ()
        for name in group:
            self.engines[name].unload()
        self.arena.release()
