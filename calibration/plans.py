"""What to sample for each prompt."""

from collections.abc import Sequence

from calibration.reference import manifest_of, prompt_encoder
from model.checkpoint.directory import Checkpoint
from runtime.plan import Plan, make_plan
from runtime.sampling.schedule import PRESETS


def make_plans(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    preset: str | None,
    steps: int | None,
    width: int | None,
    height: int | None,
    seed: int,
) -> list[Plan]:
    """One plan for each prompt; the arguments are those of `calibration.static.record.calibrate`.

    A number of steps means guidance 7, or none for a distilled checkpoint, which has no unconditional transformer.

    Raises:
        ValueError: an argument is out of range, a prompt is empty or too long, or the preset's guidance does not fit
            the checkpoint's transformers.
    """
    if not prompts:
        raise ValueError("there is no prompt to calibrate with, wanted at least one")
    manifest, encoder = manifest_of(checkpoint), prompt_encoder(checkpoint)
    if preset is None and steps is None:
        preset = manifest.default_preset
    distilled = "dit_uncond" not in checkpoint.sources
    if preset in PRESETS:
        _check_guidance(preset, distilled)
    unconditional = "off" if distilled and steps is not None else "graph"
    plans = []
    for index, prompt in enumerate(prompts):
        try:
            plan = make_plan(
                manifest,
                encoder,
                prompt,
                width=width,
                height=height,
                preset=preset,
                steps=steps,
                seed=seed + index,
                unconditional=unconditional,
            )
        except ValueError as error:
            raise ValueError(f"prompt {index + 1} of {len(prompts)}: {error}") from error
        plans.append(plan)
    return plans


def _check_guidance(preset: str, distilled: bool) -> None:
    """Raise ValueError unless the preset runs each transformer of the checkpoint, and no other."""
    guided = {name for name, each in PRESETS.items() if any(weight != 1 for weight in each.guidance)}
    if distilled and preset in guided:
        raise ValueError(
            f"preset {preset} needs guidance, and this checkpoint has no unconditional transformer; wanted one of "
            f"{', '.join(name for name in PRESETS if name not in guided)}"
        )
    if not distilled and preset not in guided:
        raise ValueError(
            f"preset {preset} has no guidance, so nothing would be measured of this checkpoint's unconditional "
            f"transformer; wanted one of {', '.join(name for name in PRESETS if name in guided)}"
        )
