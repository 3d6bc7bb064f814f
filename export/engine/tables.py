"""The figures of engine reports as cells of tables, for the page and for terminals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from export.engine.kernels import NOT_KERNELS
from export.engine.report import EngineReport, Use

Reports = Mapping[str, Mapping[str, EngineReport]]
"""By set of engines, such as rtx-sm89-sm120, and by stage."""
NONE = "–"


@dataclass(frozen=True)
class Table:
    """One table over all engines."""

    title: str
    note: str
    columns: tuple[str, ...]
    cells: Callable[[EngineReport], list[str]]
    """An engine's, one for each column."""


def _size_cells(report: EngineReport) -> list[str]:
    build = report.build
    more = f"{build.plan_bytes / build.weight_bytes - 1:+.1%}" if build.weight_bytes else NONE
    return [
        _rows(build.rows, build.profiles),
        f"{build.plan_bytes / 1e6:,.1f}",
        f"{build.weight_bytes / 1e6:,.1f}",
        more,
        f"{build.peak_bytes / 1e9:.2f}",
        f"{build.seconds:.1f}",
    ]


def _kernel_cells(report: EngineReport) -> list[str]:
    kinds = {kind: number for kind, number in report.kinds.items() if kind not in NOT_KERNELS}
    return [
        str(report.kernels),
        blocks(report),
        str(report.streams),
        str(report.synchronisations),
        counted(report.convolutions),
        counted(kinds) + (f"; {len(report.opaque)} not understood" if report.opaque else ""),
    ]


def _product_cells(report: EngineReport) -> list[str]:
    return [
        counted(report.products.types),
        counted(report.row_products.types),
        *_operation_cells(report.coded_share, report.products, report.row_products),
        str(report.qkv_products or NONE),
        str(report.gate_products or NONE),
        f"{report.copies}, {report.copy_bytes / 1e6:,.1f} MB" if report.copies else "0",
    ]


def _attention_cells(report: EngineReport) -> list[str]:
    return [
        counted(report.attentions.types),
        str(report.unfused.kernels or NONE),
        *_operation_cells(report.coded_attention_share, report.attentions, report.unfused),
    ]


TABLES = (
    Table(
        "Plans and builds",
        "The rows are the sequence length that an engine is tuned for; of several profiles all tables are about the "
        "one with the most. Weights are those of the ONNX graph. Peak memory is what the building process has written "
        "itself; mapped weight files are not counted.",
        ("Rows", "Plan in MB", "Weights in MB", "Plan beyond weights", "Peak memory in GB", "Build in seconds"),
        _size_cells,
    ),
    Table(
        "Kernels",
        "Per block: from the first product for a block’s queries, keys or values up to the next block’s; the last "
        "block has no such end and is not counted. Signals and waits order streams and are no kernels.",
        ("Kernels", "Per block", "Streams", "Signals and waits", "Convolutions", "In the builder’s words"),
        _kernel_cells,
    ),
    Table(
        "Matrix products",
        "Kernels by the type of their operands; “bf16 x fp8” dequantises a weight of 8 bits on the way. Operations are "
        "2·M·N·K for the rows above, without attention and convolutions. A copy is a weight of 8 bits that each call "
        "writes to memory in 16 or 32 bits.",
        ("Products", "Of single rows", "GFLOP", "In 8 bits", "Kernels for q, k, v", "For gate and up", "Weight copies"),
        _product_cells,
    ),
    Table(
        "Attention",
        "Fused kernels by the type of queries, keys and values; beside them the products of attentions that are not "
        "fused. Operations are those of both products over the rows above.",
        ("Fused kernels", "Products not fused", "GFLOP", "In 8 bits"),
        _attention_cells,
    ),
)


def counted(numbers: Mapping[str, int]) -> str:
    """``20 fp8, 2 bf16``."""
    return ", ".join(f"{number} {name}" for name, number in numbers.items()) or NONE


def blocks(report: EngineReport) -> str:
    """``12``, or ``12 to 14`` where blocks differ."""
    fewest, most = min(report.block_kernels, default=0), max(report.block_kernels, default=0)
    return NONE if not most else str(most) if fewest == most else f"{fewest} to {most}"


def describe(reports: Mapping[str, EngineReport]) -> str:
    """What all engines of a set share: ``TensorRT-RTX 1.7.1.116 for sm89 and sm120, attention in fp8``."""
    build = next(iter(reports.values())).build
    name = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}.get(build.backend, build.backend)
    attention = "fp8" if build.attention == "fp8" else "the base type"
    return f"{name} {build.version} for {' and '.join(build.targets)}, attention in {attention}"


def _rows(reported: int, profiles: Sequence[int]) -> str:
    """``4,352``, or ``4,352 and 1,280`` of an engine with two profiles."""
    others = [rows for rows in profiles if rows != reported]
    return " and ".join(f"{rows:,}" for rows in (reported, *others))


def _operation_cells(share: float, *uses: Use) -> list[str]:
    total = sum(use.operations for use in uses)
    return [f"{total / 1e9:,.1f}", f"{share:.1%}"] if total else [NONE, NONE]
