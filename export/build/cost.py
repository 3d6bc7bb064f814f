"""What a build's quantization costs, for its report: each stage in 8 bits against the same unquantized."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.points import quantized_stages
from export.build.finished.ledger import Finished
from export.build.jobs import Job
from export.measurements import calibration_prompts
from export.rounding.compare import BOUND, StageError, compare_with_calls
from export.rounding.inputs import token_ids
from model.checkpoint.directory import Checkpoint
from runtime.bundle.json_fields import parse
from runtime.graph import Call

KEY = "rounding"
"""Of the report's part."""


@dataclass(frozen=True)
class Cost:
    """What quantization costs."""

    report: dict[str, Any] = field(default_factory=dict)
    """The report's part, under `KEY`; empty if no activations are quantized, or nothing was compared."""
    calls: dict[str, list[Call]] = field(default_factory=dict)
    """What the comparison computed in float32 on the way; see `export.rounding.compare.Compared`."""

    @property
    def errors(self) -> dict[str, float]:
        """Relative error of each stage that is quantized."""
        return {stage: part["error"] for stage, part in self.report.get(KEY, {}).get("stages", {}).items()}


def rounding_cost(
    checkpoint: Checkpoint, finished: Mapping[Job, Finished], reports: Sequence[Path], side: int, quiet: bool
) -> Cost:
    """Compare the stages, with a warning for each above the bound.

    Args:
        checkpoint: of the build.
        finished: jobs of all backends; the first ones' options count.
        reports: of earlier builds, which may hold the result already.
        side: of the picture to compare on, in pixels.
        quiet: no progress and no messages.
    """
    options = next(iter(finished)).options
    if options.precision.activations == "base":
        return Cost()
    stages = quantized_stages(checkpoint)
    prompt = calibration_prompts(checkpoint)[0]
    # The text goes through the tokenizer, and the picture that the transformers see through the encoder.
    own = {job.stage: made.key for job, made in finished.items() if job.options is options}
    keys = [own[stage] for stage in (*stages, "vae_encoder")]
    tokens = token_ids(checkpoint, prompt)["input_ids"].tolist()
    key = hashlib.sha256(json.dumps([keys, tokens, side]).encode()).hexdigest()[:16]
    for report in reports:
        if found := _found(report, key):
            return Cost({KEY: found})
    compared = compare_with_calls(checkpoint, options, prompt, quiet, side=side)
    errors = compared.errors
    if not quiet:
        for error in errors:
            print(f"{error.stage:24}  {error.error:.1e} off in 8 bits", file=sys.stderr)
    for error in errors:
        if warning := error.warning():
            print(f"warning: {warning}", file=sys.stderr)
    part = {"key": key, "bound": BOUND, "stages": {error.stage: _plain(error) for error in errors}}
    return Cost({KEY: part}, compared.calls)


def _plain(error: StageError) -> dict[str, Any]:
    def rounded(values: Sequence[float]) -> list[float]:
        return [float(f"{value:.3g}") for value in values]

    return {
        "error": float(f"{error.error:.3g}"),
        "times": list(error.times),
        "errors": rounded(error.errors),
        "layers": rounded(error.layers),
        "worst": [f"{error.stage}.layers.{layer}" for layer in error.worst],
    }


def _found(file: Path, key: str) -> dict[str, Any] | None:
    """The part of an earlier report that was made from the same things."""
    try:
        part = parse(file.read_text(encoding="utf-8"), str(file))[KEY]
        return dict(part) if part["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
