"""Where the repository is."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository's root, which processes with ``python -m …`` start in."""
