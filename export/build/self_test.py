"""Write a bundle's self-test: inputs, expected outputs and tolerances of every graph."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.points import layers_of, quantized_stages
from export.build.cost import Cost
from export.build.finished.ledger import Finished
from export.build.jobs import Job
from export.graph.stage import StageOptions
from export.measurements import calibration_prompts
from export.rounding.compare import BOUND
from export.selftest.calls import expected_calls
from export.selftest.tolerances import tolerances
from export.selftest.weight_errors import weight_errors
from model.checkpoint.directory import Checkpoint
from runtime.atomic_files import write_whole
from runtime.bundle.manifest import Manifest
from runtime.errors import Ideogram4Error
from runtime.prompt.tokens import PromptEncoder
from runtime.selftest.contents import SELF_TEST, SelfTest, SmallPicture, encode, read_self_test
from runtime.selftest.host import facts_of, host_arrays

_STEPS, _SEED = 2, 11


def write_self_test(
    checkpoint: Checkpoint,
    manifest: Manifest,
    finished: Mapping[Job, Finished],
    folder: Path,
    earlier: Sequence[Path],
    side: int,
    cost: Cost,
    quiet: bool,
) -> list[str]:
    """Write the file; returns its name.

    Args:
        checkpoint: of the build.
        manifest: of the bundle; its files do not matter.
        finished: jobs of all backends; the first ones' options count.
        folder: the unfinished bundle, with its tokenizer.
        earlier: files of earlier builds, which may have been made from the same things.
        side: of the picture in pixels.
        cost: what quantization costs, as the build measured it.
        quiet: no progress.

    Raises:
        CheckpointError: a weight is damaged.
        OSError: the file cannot be written. What was there before is left alone then.
    """
    prompt = calibration_prompts(checkpoint)[0]
    picture = SmallPicture(prompt, side, _STEPS, _SEED)
    host = host_arrays(manifest, PromptEncoder(folder / manifest.prompt.tokenizer, manifest.prompt), picture)
    facts = facts_of(manifest)
    made = [*sorted(one.key for one in finished.values()), repr(picture), repr(sorted(cost.errors.items()))]
    made.append(repr(host["tokens"].tolist()))  # the stages' keys know nothing of the tokenizer
    key = hashlib.sha256("\n".join(made).encode()).hexdigest()
    test = next((found for file in earlier if (found := _found(file, key))), None)
    if test is None:
        calls = expected_calls(checkpoint, prompt, side, cost.calls, quiet)
        options = next(iter(finished)).options
        activations = cost.errors or _unmeasured(checkpoint, options)
        weights = weight_errors(checkpoint, options, calls)
        # Independent roundings add up like the sides of a right angle.
        errors = {
            stage: math.hypot(activations.get(stage, 0.0), weights.get(stage, 0.0))
            for stage in quantized_stages(checkpoint)
        }
        test = SelfTest(key, picture, calls, host, facts, tolerances(manifest, errors))
    write_whole(folder / SELF_TEST, encode(replace(test, host=host, facts=facts)))
    return [SELF_TEST]


def _unmeasured(checkpoint: Checkpoint, options: StageOptions) -> dict[str, float]:
    """For stages whose activations are in 8 bits and were not compared: the error above which a build warns."""
    stages = quantized_stages(checkpoint)
    return {stage: BOUND for stage in stages if options.recipe.points(stage, layers_of(checkpoint, stage))}


def _found(file: Path, key: str) -> SelfTest | None:
    """The self-test of an earlier build, if it was made from the same things."""
    try:
        test = read_self_test(file.parent)
    except (OSError, Ideogram4Error):
        return None
    return test if test.key == key else None
