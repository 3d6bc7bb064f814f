"""Write tests/golden/peers.json: numbers of PyTorch and diffusers for the tests that run where neither is installed.

python -m scripts.golden.peers tests/golden/peers.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_ideogram4 import Ideogram4MRoPE
from diffusers.pipelines.ideogram4 import pipeline_ideogram4

from runtime.sampling.schedule import PRESETS

SEEDS = (0, 1, 2026, 2**32 + 5, 2**63 + 11)
SIZES = ((256, 256), (1024, 1024), (512, 320), (2048, 768))
ROPES = ((256, (24, 20, 20)), (64, (12, 10, 10)), (32, (6, 5, 5)))
TEXT, GRID = 3, (2, 3)


def noise() -> list[dict[str, Any]]:
    """The last values of torch's CPU noise: they depend on the order of all that were drawn before."""
    cases = []
    for seed, shape in zip(SEEDS, ((1, 256, 128), (2, 60, 128), (1, 1, 128), (1, 4096, 128), (3, 7, 128)), strict=True):
        values = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
        cases.append({"seed": seed, "shape": shape, "last": values.flatten()[-64:].tolist()})
    return cases


def schedules() -> list[dict[str, Any]]:
    """diffusers' model times and sigmas of every preset."""
    cases = []
    for name, preset in PRESETS.items():
        for width, height in SIZES:
            mu = pipeline_ideogram4._resolution_aware_mu(height, width, preset.mu)
            sigmas = pipeline_ideogram4._logit_normal_sigmas(len(preset.guidance), mu, std=preset.std)
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=sigmas.tolist())
            times = 1.0 - scheduler.timesteps.float() / scheduler.config.num_train_timesteps
            cases.append(
                {
                    "preset": name,
                    "size": (width, height),
                    "t": times.tolist(),
                    "sigma": scheduler.sigmas.tolist(),
                    "t_bf16": times.bfloat16().float().tolist(),
                }
            )
    return cases


def ropes() -> list[dict[str, Any]]:
    """diffusers' rotary tables for a short text and a small grid."""
    cases = []
    for head_dim, sections in ROPES:
        positions = pipeline_ideogram4.Ideogram4Pipeline._prepare_ids([TEXT], *GRID, TEXT, torch.device("cpu"))[0]
        cos, sin = Ideogram4MRoPE(head_dim, 5_000_000, sections)(positions)
        cases.append(
            {
                "head_dim": head_dim,
                "sections": sections,
                "text": TEXT,
                "grid": GRID,
                "positions": positions[0].tolist(),
                "cos": cos[0].tolist(),
                "sin": sin[0].tolist(),
            }
        )
    return cases


def golden() -> dict[str, Any]:
    """All of the file but its version line."""
    return {"noise": noise(), "schedules": schedules(), "ropes": ropes()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.golden.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("output", type=Path)
    versions = {"made_with": {"torch": torch.__version__, "diffusers": diffusers.__version__}}
    parser.parse_args().output.write_text(json.dumps(versions | golden()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
