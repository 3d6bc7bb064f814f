"""The report of a bundle: how much of it is in 8 bits, what that costs, and what its engines are made of."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from export.build.finished.ledger import Finished
from export.build.jobs import Job
from export.build.variant import Variant
from export.engine.engines_page import engines_page
from export.engine.files import PAGE, REPORT, engines_from_json
from export.graph.coded_share import share
from export.graph.precision import torch_dtype
from model.checkpoint.directory import Checkpoint


def write_report(
    folder: Path,
    name: str,
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    finished: Mapping[Job, Finished],
    cost: Mapping[str, Any],
) -> list[str]:
    """Write the report of the model `name`, and a page about the engines; returns the names of what there was to write.

    A bundle in a plain type for ONNX Runtime alone has neither. `cost` is what `rounding_cost` found.
    """
    report = _coded(checkpoint, variants[0]) | dict(cost) | _engines(finished)
    if not report:
        return []
    text = json.dumps(report, indent=1) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")
    if not (engines := engines_from_json(text, REPORT)):
        return [REPORT]
    (folder / PAGE).write_text(engines_page(name, engines), encoding="utf-8")
    return [REPORT, PAGE]


def _coded(checkpoint: Checkpoint, variant: Variant) -> dict[str, Any]:
    """How much of each stage, and of all, is in 8 bits."""
    if not variant.types.codes:
        return {}
    size = torch_dtype(variant.types.compute).itemsize
    stages = [stage for stage in checkpoint.sources if not stage.startswith("vae_")]
    shares = {stage: share(checkpoint, stage, variant.recipe, size, variant.types.codes) for stage in stages}
    return {stage: part.to_dict() for stage, part in (shares | {"all": reduce(add, shares.values())}).items()}


def _engines(finished: Mapping[Job, Finished]) -> dict[str, Any]:
    engines: dict[str, dict[str, Any]] = {}
    for job, made in finished.items():
        if job.engine is not None:
            engines.setdefault(job.engine.name, {})[job.stage] = made.report
    return {"engines": engines} if engines else {}
