"""Numbers of other implementations, written down by scripts/golden."""

import json
from typing import Any

from support.processes import ROOT


def golden(name: str) -> dict[str, Any]:
    """The content of ``tests/golden/<name>.json``."""
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())
