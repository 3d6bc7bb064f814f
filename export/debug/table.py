"""What was compared, as text and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from export.debug.comparison import Compared
from export.reporting.text_table import aligned

_SHOWN = 12
"""Values in front of the last one that the text lists."""


def table_text(rows: Sequence[Compared]) -> str:
    """The last values that were compared, one a line."""
    lines = [["layer", "operator", "relative error", "tolerance", ""]]
    for row in rows[-_SHOWN:]:
        verdict = "OFF" if row.is_off else "ok"
        lines.append([row.layer.node, row.layer.operator, f"{row.error:.1e}", f"{row.tolerance:.1e}", verdict])
    left_out = max(0, len(rows) - _SHOWN)
    above = f"{left_out} layers before these are ok\n" if left_out else ""
    return above + aligned(lines)


def to_dict(graph: str, ours: str, theirs: str, rows: Sequence[Compared]) -> dict[str, Any]:
    """For ``--json``; an error that is not finite, which JSON has no word for, is null."""
    return {
        "graph": graph,
        "ours": ours,
        "theirs": theirs,
        "passed": not rows[-1].is_off,
        "first": _row(rows[-1]) if rows[-1].is_off else None,
        "layers": [_row(row) for row in rows],
    }


def _row(row: Compared) -> dict[str, Any]:
    error = row.error if math.isfinite(row.error) else None
    return {**asdict(row.layer), "error": error, "tolerance": row.tolerance, "off": row.is_off}
