"""``python -m export.debug``: find the first layer of a graph whose output leaves its tolerance.

Both sides run on the inputs of the bundle's self-test, and every value inside of the graph that both have is compared,
in the order of the graph. The other side is another bundle (such as fp32 for one in fp8, or an older build) in ONNX
Runtime, or ``ort``: this bundle's own ONNX graph, for its engines, which are built again with their inner values as
outputs and need a GPU to run.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from export.debug.comparison import Compared, Side, compared_values
from export.debug.onnx_side import OnnxSide
from export.debug.table import table_text, to_dict
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from runtime.bundle.manifest import EngineSet, Manifest, read_manifest
from runtime.console import guard, json_text
from runtime.errors import Ideogram4Error, shown
from runtime.selftest.contents import SelfTest, read_self_test
from runtime.selftest.graphs import ON_CPU

PROGRAM = "export.debug"
_INSIDE = 1.5
"""Tolerance of a value inside of a graph, in tolerances of its output. The demo's transformers in fp8 against fp32
needed at most 0.84."""

_SAME = 1e-6
"""Tolerance of two bundles of one precision: on one machine the same graphs give the same bits, and another version of
ONNX Runtime or of this program may add in another order."""


class LayerError(Ideogram4Error, RuntimeError):
    """A layer left its tolerance; the message names it."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    option("--graph", required=True, metavar="G", help="graph to look into, such as dit_cond")
    option("--against", required=True, metavar="ort|BUNDLE", help="other side: ort, or another bundle's directory")
    option("--engines", metavar="NAME", help="with ort: set of engines, such as rtx-sm89 (default: the only one)")
    option("--checkpoint", type=Path, metavar="DIR", help="with ort: what the bundle was built from")
    option("--tolerance", type=float, metavar="E", help="relative error (default: from the self-tests)")
    option("--json", action="store_true", help="print JSON instead of text")
    return parser


def debug(args: argparse.Namespace) -> None:
    """Do what the options say; prints the report.

    Raises:
        LayerError: a layer left its tolerance.
        MissingFileError: there is no such bundle, or no self-test in it.
        BundleError: a file of a bundle is damaged.
        ValueError: an option names nothing that there is, or the bundles are of different models.
        RuntimeError: Polygraphy is not installed, or a side cannot be run.
    """
    if find_spec("polygraphy") is None:
        raise RuntimeError("export.debug needs Polygraphy; install the extra 'debug'")
    if args.tolerance is not None and not 0 < args.tolerance < float("inf"):
        raise ValueError(f"--tolerance is {args.tolerance}, wanted a positive number")
    manifest, test = read_manifest(args.bundle), read_self_test(args.bundle)
    known = sorted({*manifest.graphs, *(name for one in manifest.engines.values() for name in one.graphs)})
    if args.graph not in known:
        raise ValueError(f"--graph is {shown(args.graph)}, the bundle has {', '.join(known)}")
    if not test.calls.get(args.graph):
        raise ValueError(f"the self-test of {args.bundle} has no inputs for {args.graph}")
    ours, theirs, tolerance = _sides(args, manifest, test)
    tolerance = args.tolerance or tolerance
    rows = _until_off(ours, theirs, test, args.graph, tolerance)
    if args.json:
        print(json_text(to_dict(args.graph, ours.label, theirs.label, rows), sys.stdout.encoding or "utf-8", 1))
    else:
        print(f"{args.graph}: {ours.label} against {theirs.label}\n{table_text(rows)}")
    if rows[-1].is_off:
        row = rows[-1]
        weights = f", which reads {', '.join(row.layer.weights)}" if row.layer.weights else ""
        raise LayerError(
            f"the first layer that is off is {row.layer.node} ({row.layer.operator}){weights}: its output "
            f"{row.layer.value} is off by {row.error:.2g}, wanted at most {row.tolerance:.2g}"
        )


def _until_off(ours: Side, theirs: Side, test: SelfTest, graph: str, tolerance: float) -> list[Compared]:
    """All values up to the first that is off. The graph's output has `tolerance`, values inside of it more."""
    rows = []
    last = list(ours.layers)[-1]
    for row in compared_values(ours, theirs, test.calls[graph], _INSIDE * tolerance):
        if row.layer.value == last:
            row = Compared(row.layer, row.error, tolerance)
        rows.append(row)
        if row.is_off:
            break
    return rows


def _sides(args: argparse.Namespace, manifest: Manifest, test: SelfTest) -> tuple[Side, Side, float]:
    """Both sides, and the tolerance of the graph's output: the larger one of the two, from their self-tests."""
    if args.against == "ort":
        name, engines = _engines(manifest, args.engines, args.graph)
        side = _engine_side(args, manifest, engines)
        return side, _onnx_side(args.bundle, manifest, args.graph), _tolerance(test, (name, ON_CPU), args.graph)
    if args.engines is not None or args.checkpoint is not None:
        raise ValueError("--engines and --checkpoint go with --against ort")
    bundle = Path(args.against)
    other = read_manifest(bundle)
    if (other.fingerprint, other.loras) != (manifest.fingerprint, manifest.loras):
        raise ValueError(f"{bundle} is of another model or other adapters than {args.bundle}")
    if (other.precision, other.quantization) == (manifest.precision, manifest.quantization):
        tolerance = _SAME
    else:
        tolerance = max(_tolerance(one, (ON_CPU,), args.graph) for one in (test, read_self_test(bundle)))
    return _onnx_side(args.bundle, manifest, args.graph), _onnx_side(bundle, other, args.graph), tolerance


def _onnx_side(bundle: Path, manifest: Manifest, graph: str) -> OnnxSide:
    if graph not in manifest.graphs:
        raise ValueError(f"{bundle} has no ONNX graph {graph}, and has {', '.join(manifest.graphs) or 'none'}")
    return OnnxSide(bundle, manifest.graphs[graph])


def _engines(manifest: Manifest, name: str | None, graph: str) -> tuple[str, EngineSet]:
    known = [one for one, engines in manifest.engines.items() if graph in engines.graphs]
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        asked = "not given" if name is None else shown(name)
        raise ValueError(f"--engines is {asked}, the bundle has {', '.join(known) or 'none'} with {graph}")
    return name, manifest.engines[name]


def _engine_side(args: argparse.Namespace, manifest: Manifest, engines: EngineSet) -> Side:
    from export.debug.engine_side import EngineSide  # it imports torch, which two bundles do without

    if args.checkpoint is None:
        raise ValueError("--against ort builds the engine again, and needs --checkpoint")
    checkpoint = open_checkpoint(args.checkpoint)
    if fingerprint(checkpoint) != manifest.fingerprint:
        raise ValueError(f"--checkpoint {args.checkpoint} is not what the bundle was built from")
    return EngineSide(manifest, engines, args.graph, checkpoint)


def _tolerance(test: SelfTest, sets: Sequence[str], graph: str) -> float:
    return max(test.tolerances.get(name, {}).get(graph, 0.0) for name in sets)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: debug(args))
