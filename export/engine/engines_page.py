"""The engines of a bundle as one HTML page, in the look of the quality report."""

from collections.abc import Iterable
from html import escape

from export.engine.report import EngineReport
from export.engine.tables import NONE, TABLES, Reports, Table, describe
from export.reporting.page import page, section, table

_BADGED = {
    # Columns whose cell is good or bad, and when it is good.
    "Kernels for q, k, v": lambda report: report.qkv_products == 1,
    "For gate and up": lambda report: report.gate_products == 1,
    "Weight copies": lambda report: report.copies == 0,
    "Products not fused": lambda report: report.unfused.kernels == 0,
}
_SHARES = {"coded": "#0072b2", "base": "#d0d5dd"}


def engines_page(name: str, reports: Reports) -> str:
    """The page's text; `name` is the model's."""
    facts = "".join(
        f"<div><dt>{escape(engines)}</dt><dd>{escape(describe(stages))}</dd></div>"
        for engines, stages in reports.items()
    )
    sections = [f'<dl class="facts">{facts}</dl>', _operations(reports)]
    return page(f"Engines: {name}", [*sections, *(_table(part, reports) for part in TABLES)])


def _operations(reports: Reports) -> str:
    """A bar for each engine: how much of a call's operations is in 8 bits."""
    rows = []
    for heading, stage, report in _engines(reports):
        uses = (report.products, report.row_products, report.attentions, report.unfused)
        total, coded = sum(use.operations for use in uses), sum(use.operations_coded for use in uses)
        share = coded / total if total else 0.0
        rows.append([*heading, stage, f"{share:.1%}" if total else NONE, _bar(share)])
    colors = ", ".join(
        f'<span class="dot" style="background:{color}"></span>{name}'
        for color, name in ((_SHARES["coded"], "both operands in 8 bits"), (_SHARES["base"], "other types"))
    )
    note = (
        "Of the matrix products and the attention of one call, at the size that an engine is tuned for; convolutions "
        f"are not counted: {colors}."
    )
    return section("Operations", note, table(("Engines", "Stage", "In 8 bits", ""), rows, words=4))


def _bar(share: float) -> str:
    """A bar of 1 as wide as the table leaves room, its left part coloured."""
    return (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" '
        f'aria-label="{share:.1%} in 8 bits">'
        f'<rect width="100" height="4" fill="{_SHARES["base"]}"/>'
        f'<rect width="{100 * share:.2f}" height="4" fill="{_SHARES["coded"]}"/></svg>'
    )


def _table(part: Table, reports: Reports) -> str:
    rows = []
    for heading, stage, report in _engines(reports):
        pairs = zip(part.columns, part.cells(report), strict=True)
        rows.append([*heading, stage, *(_cell(column, cell, report) for column, cell in pairs)])
    return section(part.title, part.note, table(("Engines", "Stage", *part.columns), rows, words=2))


def _cell(column: str, cell: str, report: EngineReport) -> str:
    good = _BADGED.get(column)
    if good is None or cell == NONE:
        return escape(cell)
    return f'<span class="{"good" if good(report) else "bad"}">{escape(cell)}</span>'


def _engines(reports: Reports) -> Iterable[tuple[list[str], str, EngineReport]]:
    """Every engine, with the cell that heads its set's rows in front of the first."""
    for name, stages in reports.items():
        for position, (stage, report) in enumerate(stages.items()):
            heading = f'<th scope="rowgroup" rowspan="{len(stages)}">{escape(name)}</th>'
            yield [] if position else [heading], f"<code>{escape(stage)}</code>", report
