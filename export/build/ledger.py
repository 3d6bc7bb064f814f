"""What a build has finished, so that the next one need not do it again.

A bundle is made stage by stage, each for one backend. A finished stage is noted in ``build.json`` with a key of all
that it was made from. A build that finds the same key, in what a killed build left behind or in the bundle that it
replaces, takes the files as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.atomic_directory import link_or_copy
from runtime.atomic_files import write_whole
from runtime.bundle.json_fields import decode
from runtime.bundle.manifest import FileSpec

LEDGER = "build.json"
ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages."""
_SOURCES = ("export", "model", "runtime")


@dataclass(frozen=True)
class Finished:
    """One stage for one backend."""

    key: str
    spec: dict[str, Any]
    """Its `GraphSpec` or `EngineSpec` as JSON."""
    report: dict[str, Any]
    files: dict[str, FileSpec]


@dataclass
class Ledger:
    """The finished stages of the bundle in `folder`."""

    folder: Path
    finished: dict[str, Finished] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """The ledger of a folder; empty if it has none, or one of another format."""
        try:
            data = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
            return cls(folder, {name: _finished(name, entry) for name, entry in data.items()})
        except (OSError, ValueError, AttributeError):
            return cls(folder)

    def take(self, name: str, key: str, earlier: "Ledger") -> Finished | None:
        """What was finished before from the same things, here or in `earlier`, whose files are linked to here."""
        for ledger in (self, earlier):
            found = ledger.finished.get(name)
            if found is not None and found.key == key and ledger._whole(found):
                if ledger is not self:
                    for path in found.files:
                        _link(ledger.folder / path, self.folder / path)
                    self.add(name, found)
                return found
        return None

    def add(self, name: str, finished: Finished) -> None:
        """Note that a stage is finished; its files must be on the disk."""
        self.finished[name] = finished
        text = json.dumps({name: asdict(entry) for name, entry in self.finished.items()}, indent=1)
        write_whole(self.folder / LEDGER, (text + "\n").encode())

    def _whole(self, finished: Finished) -> bool:
        """Whether the files are there and as long as they were."""
        paths = {self.folder / path: spec.size for path, spec in finished.files.items()}
        return all(file.is_file() and file.stat().st_size == size for file, size in paths.items())


def key_of(inputs: Mapping[str, Any], root: Path = ROOT) -> str:
    """A key of everything that a stage is made from, with this program, whose packages are in `root`, and its tools.

    The values must have a stable ``repr``.
    """
    tools = {name: version(name) for name in ("torch", "onnx-ir", "onnxscript")}
    own = {"program": program_digest(root)} | tools
    text = json.dumps({name: repr(value) for name, value in inputs.items()} | own, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def program_digest(root: Path = ROOT) -> str:
    """SHA-256 of names and contents of all source files that a stage may depend on, in folders of any depth."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        for file in sorted((root / package).rglob("*.py")):
            source = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _finished(name: str, entry: dict[str, Any]) -> Finished:
    files = {path: decode(spec, FileSpec, path) for path, spec in entry["files"].items()}
    return Finished(str(entry["key"]), dict(entry["spec"]), dict(entry["report"]), files)


def _link(file: Path, to: Path) -> None:
    """A second name for a finished file, or a copy where the disk has no such thing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    link_or_copy(file, to)
