"""What a build has finished, so that the next one need not do it again.

A bundle is made stage by stage, each for one backend. A finished stage is noted in ``build.json`` with a key of all
that it was made from. A build that finds the same key, in what a killed build left behind or in the bundle that it
replaces, takes the files as they are, if they still are what they were (`export.build.finished.stock`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.build.finished.sound import digest_of
from export.engine.files import report_from_dict
from runtime.atomic_files import write_whole
from runtime.bundle.graph_specs import EngineSpec, GraphSpec
from runtime.bundle.json_fields import decode, parse
from runtime.bundle.manifest import FileSpec, Manifest, check_path
from runtime.errors import shown

LEDGER = "build.json"
GRAPHS = "ort"
"""Name of the set of graphs for ONNX Runtime, as in ``ort/dit_cond``; sets of engines have their own."""


@dataclass(frozen=True)
class Finished:
    """One stage for one backend."""

    key: str
    spec: dict[str, Any]
    """Its `GraphSpec` or `EngineSpec` as JSON."""
    report: dict[str, Any]
    """Its `EngineReport` as JSON; empty for a graph."""
    files: dict[str, FileSpec]


@dataclass
class Ledger:
    """The finished stages of the bundle in `folder`."""

    folder: Path
    finished: dict[str, Finished] = field(default_factory=dict)
    problem: str = ""
    """Why nothing can be taken from the folder though it has a ledger: a sentence, empty where all is well."""

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """The ledger of a folder; empty if it has none, or one that is damaged or of another format."""
        file = folder / LEDGER
        try:
            data = parse(file.read_text(encoding="utf-8"), "it")
            return cls(folder, _entries(data))
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError) as error:
            return cls(folder, problem=f"{file} is damaged or of another version, so nothing is taken from it: {error}")

    @classmethod
    def of_bundle(cls, folder: Path, manifest: Manifest) -> "Ledger":
        """The ledger of a finished bundle, which must be as its manifest says."""
        file, listed = folder / LEDGER, manifest.files.get(LEDGER)
        if listed is None or digest_of(file) != listed.sha256:
            return cls(folder, problem=f"{file} is not what the manifest lists, so nothing is taken from the bundle")
        return cls.read(folder)

    def add(self, name: str, finished: Finished) -> None:
        """Note that a stage is finished; its files must be on the disk."""
        self.note({**self.finished, name: finished})

    def note(self, finished: Mapping[str, Finished]) -> None:
        """Note that these stages are finished, and no others."""
        self.finished = dict(finished)
        text = json.dumps({name: asdict(entry) for name, entry in sorted(self.finished.items())}, indent=1)
        write_whole(self.folder / LEDGER, (text + "\n").encode())


def _entries(data: Any) -> dict[str, Finished]:
    if not isinstance(data, dict):
        raise ValueError(f"it is {shown(data)}, wanted an object")
    return {name: _entry(name, value) for name, value in data.items()}


def _entry(name: str, value: Any) -> Finished:
    """One entry; ValueError unless a build could have written it."""
    kinds = {"key": str, "spec": dict, "report": dict, "files": dict}
    if not isinstance(value, dict) or {key: type(part) for key, part in value.items()} != kinds:
        raise ValueError(f"{shown(name)} is {shown(value)}, wanted key, spec, report and files")
    files = {path: decode(spec, FileSpec, path) for path, spec in value["files"].items()}
    for path in files:
        check_path(path, LEDGER)
    if name.startswith(f"{GRAPHS}/"):
        main = decode(value["spec"], GraphSpec, name).onnx
    else:
        main = decode(value["spec"], EngineSpec, name).plan
        report_from_dict(value["report"], name)
    if main not in files:
        raise ValueError(f"{shown(name)} lacks the file {shown(main)}")
    return Finished(value["key"], value["spec"], value["report"], files)
