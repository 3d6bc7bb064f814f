"""Write tests/golden/diffsynth.json: image-to-image as DiffSynth-Studio schedules it, for tests without that package.

    pip install --no-deps --target /tmp/diffsynth diffsynth==2.1.12
    python -m scripts.golden.diffsynth /tmp/diffsynth tests/golden/diffsynth.json

Only its scheduler is loaded, from its file: the package's own import needs a dozen others that this does not.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SIZES = ((256, 256), (1024, 1024), (512, 320))
STRENGTHS = (1.0, 0.75, 0.6, 0.3, 0.05)
STEPS = (1, 8, 20)
STD = 1.75
"""That of V4_DEFAULT_20; DiffSynth-Studio's own default is 1.5."""


def scheduler_module(folder: Path) -> ModuleType:
    """DiffSynth-Studio's ``diffusion/flow_match.py`` below the directory that pip installed it to."""
    spec = importlib.util.spec_from_file_location("flow_match", folder / "diffsynth/diffusion/flow_match.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trajectory(scheduler: Any, mask: torch.Tensor | None) -> dict[str, Any]:
    """Latents before the first and after each step, for a made-up velocity; with a mask as its pipelines inpaint."""
    generator = torch.Generator().manual_seed(0)
    picture, noise, target = (torch.randn(1, 4, 16, generator=generator) for _ in range(3))
    latents = scheduler.add_noise(picture, noise, timestep=scheduler.timesteps[0])
    seen = [latents]
    for time in scheduler.timesteps:
        predicted = latents - target  # its models give noise minus picture
        if mask is not None:
            kept = scheduler.return_to_timestep(time, latents, picture)
            predicted = mask * predicted + (1 - mask) * kept
        latents = scheduler.step(predicted, time, latents)
        seen.append(latents)
    names = {"picture": picture, "noise": noise, "target": target}
    return {name: value.tolist() for name, value in names.items()} | {"latents": [value.tolist() for value in seen]}


def golden(module: ModuleType) -> dict[str, Any]:
    """All of the file but its version line."""
    scheduler = module.FlowMatchScheduler("Ideogram4")
    schedules = []
    for width, height in SIZES:
        for strength in STRENGTHS:
            for steps in STEPS:
                scheduler.set_timesteps(
                    steps, denoising_strength=strength, image_resolution=(height, width), mu=0.0, std=STD
                )
                schedules.append(
                    {
                        "size": (width, height),
                        "strength": strength,
                        "steps": steps,
                        "std": STD,
                        "t": scheduler.timesteps.tolist(),
                        "sigma": scheduler.sigmas.tolist(),
                    }
                )
    scheduler.set_timesteps(6, denoising_strength=0.6, image_resolution=(256, 256), mu=0.0, std=STD)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])[None, :, None]
    runs = {"plain": trajectory(scheduler, None), "masked": trajectory(scheduler, mask) | {"mask": [1, 0, 1, 0]}}
    return {"schedules": schedules, "runs": runs, "run": {"steps": 6, "strength": 0.6, "size": (256, 256), "std": STD}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.golden.diffsynth", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    (info,) = args.folder.glob("diffsynth-*.dist-info")
    versions = {"made_with": {"diffsynth": info.name.split("-")[1].removesuffix(".dist"), "torch": torch.__version__}}
    text = json.dumps(versions | golden(scheduler_module(args.folder))) + "\n"
    args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
