"""Tables for terminals."""

from collections.abc import Iterable, Sequence


def aligned(rows: Iterable[Sequence[str]], words: int = 2) -> str:
    """Columns as wide as they must be; the first ones hold words, the others figures."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
