"""The long options of commands, taken from the parsers that they build.

    python tests/support/command_options.py export.build scripts.bench      # JSON on standard output

Runs in a process of its own: the peers that some scripts import take a minute to load and are replaced by stand-ins.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import MagicMock, patch

PEERS = ("diffusers", "modelopt", "transformers")


class Parsed(BaseException):
    """Raised in place of parsing; no command takes it for an error of its own."""


class StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class StandIns(MetaPathFinder, Loader):
    """Finds the peers before Python does."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in PEERS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def options_of(module: str) -> list[str]:
    """The options of ``python -m module``."""
    parsers: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise Parsed

    spec = find_spec(module)
    assert spec is not None, module
    main = import_module(module if spec.submodule_search_locations is None else f"{module}.__main__").main
    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main()
        except Parsed:
            return sorted({option for action in parsers[0]._actions for option in action.option_strings})
    raise AssertionError(f"{module} parses no command line")


def main(modules: Sequence[str]) -> None:
    """Print the options of all `modules`."""
    sys.meta_path.insert(0, StandIns())
    print(json.dumps({module: options_of(module) for module in modules}))


if __name__ == "__main__":
    main(sys.argv[1:])
