"""What pip adds to an empty environment: our runtime, and the peer."""

import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from scripts.root import ROOT

PEER_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow")


def measure_installed() -> tuple[int, int]:
    """Bytes that pip adds to an empty environment: our runtime, and the peer in the versions that are measured."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because setuptools builds inside the source tree.
        source = shutil.copytree(ROOT, Path(folder, "source"), ignore=shutil.ignore_patterns(".*", "build", "*-bundle"))
        pins = [f"{name}=={version(name).split('+')[0]}" for name in PEER_PACKAGES]
        return added_bytes(Path(folder, "ours"), [f"{source}[ort]"]), added_bytes(Path(folder, "peer"), pins)


def added_bytes(environment: Path, packages: list[str]) -> int:
    """Install `packages` into a new `environment`; the bytes by which that makes it grow."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    before = tree_bytes(environment)
    subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return tree_bytes(environment) - before


def tree_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
