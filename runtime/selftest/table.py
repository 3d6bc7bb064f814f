"""A self-test's rows as text and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from runtime.selftest.rows import Row
from runtime.selftest.run import Outcome

_HEAD = ("", "relative error", "tolerance", "cosine", "seconds", "peak MB", "")


def table_text(rows: Sequence[Row]) -> str:
    """One line for each row, in columns; what failed says why at its end."""
    lines = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD) - 1)]
    return "\n".join(_line(line, widths) for line in lines)


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """For ``--json``; a number that is not finite, which JSON has no word for, is null."""
    rows = [
        {name: value if _is_said(value) else None for name, value in asdict(row).items()} | {"passed": not row.problem}
        for row in outcome.rows
    ]
    return {"passed": outcome.passed, "where": outcome.where, "rows": rows}


def _is_said(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.tolerance is None else f"{row.tolerance:.1e}",
        "" if row.cosine is None else f"{row.cosine:.6f}",
        "" if row.seconds is None else f"{row.seconds:.2f}",
        "" if row.memory is None else f"{row.memory / 1e6:.0f}",
        f"FAILED: {row.problem}" if row.problem else "ok",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest[:-1], widths[1:], strict=True))
    return "  ".join((first.ljust(widths[0]), *numbers, rest[-1])).rstrip()
