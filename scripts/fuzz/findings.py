"""What a campaign has found, as files: the input, and beside it what is wrong and how the input was made."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.fuzz.judge import Fault

ABOUT = ".about.json"
"""What the file that describes an input is called, behind the input's own name."""


@dataclass(frozen=True)
class Origin:
    """How an input was made: the same again from the same values."""

    target: str
    source: str
    """mutation, or property for one of hypothesis's."""
    seed: int
    index: int
    """Number of the input, or of hypothesis's block of them."""


@dataclass(frozen=True)
class Finding:
    """An input that a reader does not treat as it must."""

    origin: Origin
    fault: Fault
    content: bytes


def write(finding: Finding, folder: Path) -> Path:
    """Write a finding into `folder`; returns the file that holds the input."""
    digest = hashlib.sha256(finding.content).hexdigest()[:10]
    file = folder / f"{finding.origin.target}-{finding.fault.kind}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(finding.content)
    about = json.dumps({**asdict(finding.origin), **asdict(finding.fault)}, indent=1) + "\n"
    file.with_name(file.name + ABOUT).write_text(about, encoding="utf-8")
    return file


def target_of(file: Path) -> str:
    """The target that the input in `file` was made for.

    Raises:
        OSError: there is no description beside it.
        ValueError: the description is not one.
    """
    about = json.loads(file.with_name(file.name + ABOUT).read_text(encoding="utf-8"))
    if not isinstance(about, dict) or not isinstance(about.get("target"), str):
        raise ValueError(f"{file}{ABOUT} names no target")
    return about["target"]
