"""Keys of finished stages: whatever a stage is made from changes its key, the program's own sources included."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
"""Folder of the packages."""
_SOURCES = ("calibration", "export", "model", "runtime")


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
