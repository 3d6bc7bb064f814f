"""``python -m export.inspect BUNDLE``: what a bundle holds, and what its engines are made of.

The figures are those that the build wrote into the bundle's ``report.json``; `export.engine.report` says what they
count. Nothing is loaded and no GPU is needed.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.engine.files import REPORT, engines_from_json, engines_to_dict, kernels_from_json, kernels_path
from export.engine.kernels import Kernel
from export.engine.report import EngineReport
from export.engine.tables import TABLES
from export.reporting.text_table import aligned
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.console import guard
from runtime.errors import BundleError, shown

PROGRAM = "export.inspect"
_Engines = dict[tuple[str, str], EngineReport | None]
"""By set and stage; None for an engine whose build wrote no report."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description="Show what a bundle holds, and what its engines are made of."
    )
    option = parser.add_argument
    option("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    option("--set", dest="engines", metavar="NAME", help="only this set of engines, such as rtx-sm89-sm120")
    option("--stage", metavar="S", help="only this stage, such as dit_cond")
    option("--kernels", action="store_true", help="list every kernel of the engines, with its types and its layers")
    option("--json", action="store_true", help="print JSON instead of text")
    return parser


def inspect(
    bundle: Path, engines: str | None = None, stage: str | None = None, kernels: bool = False, as_json: bool = False
) -> str:
    """The text that the command prints; see its options.

    Raises:
        FileNotFoundError: there is no such bundle, or it keeps no list of kernels.
        BundleError: a file of the bundle is damaged.
        ValueError: the bundle has no such set of engines or no such stage.
    """
    manifest = read_manifest(bundle)
    _check_choice("--set", engines, manifest.engines)
    stages = {*manifest.graphs, *(name for chosen in manifest.engines.values() for name in chosen.graphs)}
    _check_choice("--stage", stage, sorted(stages))
    reports = _chosen(bundle, manifest, engines, stage)
    listed = {key: _kernels(bundle, manifest, *key) for key in reports} if kernels else {}
    if kernels and not listed:
        raise ValueError(f"{bundle} has no engines whose kernels could be listed")
    if as_json:
        return json.dumps(_to_dict(bundle, manifest, stage, reports, listed), indent=1, ensure_ascii=False)
    parts = [_title(bundle, manifest), _graphs(bundle, manifest, stage), *_sets(manifest, reports)]
    parts += [f"kernels of {stage}, {name}\n{_listing(rows)}" for (name, stage), rows in listed.items()]
    return "\n\n".join(part for part in parts if part)


def _check_choice(option: str, value: str | None, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{option} is {shown(value)}, the bundle has {', '.join(known) or 'none'}")


def _chosen(bundle: Path, manifest: Manifest, engines: str | None, stage: str | None) -> _Engines:
    reports: dict[str, dict[str, EngineReport]] = {}
    if REPORT in manifest.files and manifest.engines:
        try:
            reports = engines_from_json(_read(bundle, REPORT), str(bundle / REPORT))
        except ValueError as error:
            raise BundleError(str(error)) from error
    return {
        (name, graph): reports.get(name, {}).get(graph)
        for name, chosen in manifest.engines.items()
        for graph in chosen.graphs
        if engines in (None, name) and stage in (None, graph)
    }


def _kernels(bundle: Path, manifest: Manifest, engines: str, stage: str) -> tuple[Kernel, ...]:
    path = kernels_path(engines, stage)
    if path not in manifest.files:
        raise FileNotFoundError(f"{bundle} keeps no list of the kernels of {stage} in {engines}")
    try:
        return kernels_from_json(_read(bundle, path), str(bundle / path))
    except ValueError as error:
        raise BundleError(str(error)) from error


def _read(bundle: Path, path: str) -> str:
    file = bundle / path
    if not file.is_file():
        raise BundleError(f"the bundle's file {file} is missing; copy or build the bundle again")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text: {error}") from error


def _title(bundle: Path, manifest: Manifest) -> str:
    size = sum(file.size for file in manifest.files.values())
    parts = [f"{manifest.name}, {manifest.precision}, {size / 1e6:,.1f} MB"]
    if spec := manifest.quantization:
        kept = f", but not {', '.join(spec.keep_base)}" if spec.keep_base else ""
        parts.append(f"activations: {spec.activations}, attention: {spec.attention}{kept}")
    return f"{bundle}: {'; '.join(parts)}"


def _graphs(bundle: Path, manifest: Manifest, stage: str | None) -> str:
    rows = [
        [name, graph.compute, f"{_weight_bytes(manifest, name) / 1e6:,.1f}"]
        for name, graph in manifest.graphs.items()
        if stage in (None, name)
    ]
    return aligned([("ONNX graph", "base type", "MB"), *rows]) if rows else ""


def _weight_bytes(manifest: Manifest, stage: str) -> int:
    """Bytes of a graph with its weights."""
    files = (manifest.graphs[stage].onnx, f"onnx/weights/{stage}.data")
    return sum(manifest.files[file].size for file in files if file in manifest.files)


def _sets(manifest: Manifest, reports: _Engines) -> list[str]:
    """A heading for each set of engines, and its tables."""
    parts = []
    for name in dict.fromkeys(name for name, _ in reports):
        spec = manifest.engines[name]
        parts.append(f"{name}: {spec.backend} {spec.version}, {', '.join(spec.targets)}, attention: {spec.attention}")
        plans = [
            [stage, graph.compute, f"{manifest.files[graph.plan].size / 1e6:,.1f}"]
            for stage, graph in spec.graphs.items()
            if (name, stage) in reports and reports[name, stage] is None
        ]
        if plans:
            parts.append(aligned([("engine without a report", "base type", "plan in MB"), *plans]))
        found = {stage: report for (owner, stage), report in reports.items() if owner == name and report}
        parts += [
            aligned([(table.title, *table.columns), *([stage, *table.cells(r)] for stage, r in found.items())], words=1)
            for table in TABLES
            if found
        ]
    return parts


def _listing(kernels: Sequence[Kernel]) -> str:
    """One line for each entry: kind, profile, stream, name, operands and results, and the first layers."""
    rows = [
        [
            kernel.kind,
            str(kernel.profile),
            str(kernel.stream),
            _short(kernel.name, 48),
            _types(kernel),
            _short(" ".join(kernel.layers), 100),
        ]
        for kernel in kernels
    ]
    return aligned([("kind", "profile", "stream", "name", "types", "layers"), *rows], words=6)


def _types(kernel: Kernel) -> str:
    taken, kept, given = (
        ",".join(tensor.dtype for tensor in tensors) for tensors in (kernel.inputs, kernel.constants, kernel.outputs)
    )
    return f"{taken} [{kept}] -> {given}" if taken or kept or given else ""


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _to_dict(
    bundle: Path,
    manifest: Manifest,
    stage: str | None,
    reports: _Engines,
    listed: Mapping[tuple[str, str], Sequence[Kernel]],
) -> dict[str, Any]:
    """The same as plain values; an engine without a report is null."""
    engines: dict[str, dict[str, Any]] = {}
    for (name, graph), report in reports.items():
        plain = engines_to_dict({name: {graph: report}})["engines"][name][graph] if report else None
        engines.setdefault(name, {})[graph] = plain
    data = {
        "bundle": str(bundle),
        "name": manifest.name,
        "precision": manifest.precision,
        "quantization": asdict(manifest.quantization) if manifest.quantization else None,
        "graphs": {
            name: {"compute": graph.compute, "bytes": _weight_bytes(manifest, name)}
            for name, graph in manifest.graphs.items()
            if stage in (None, name)
        },
        "engines": engines,
    }
    if listed:
        data["kernels"] = [
            {"set": name, "stage": graph, "kernels": [asdict(kernel) for kernel in kernels]}
            for (name, graph), kernels in listed.items()
        ]
    return data


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = vars(build_parser().parse_args(argv))
    args["as_json"] = args.pop("json")
    return guard(PROGRAM, lambda: print(inspect(**args)))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
