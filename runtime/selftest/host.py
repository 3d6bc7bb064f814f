"""What the host computes for a picture from the manifest and the tokenizer, to compare with the build's.

No graph is in it: tokens, rotary tables, start noise, and the times and weights of the steps. The manifest's own fields
are compared as well, as far as numbers depend on them.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.plan import Plan, make_plan
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.noise import randn
from runtime.sampling.rope import image_positions, rope_tables, text_positions
from runtime.sampling.velocity import rounded_time
from runtime.selftest.contents import SmallPicture

_FACTS = (
    "fingerprint",
    "precision",
    "quantization",
    "timestep_dtype",
    "latent_stats",
    "latent_channels",
    "rope",
    "prompt",
    "sizes",
)
"""Fields of the manifest that are compared; of objects, each of their fields."""
_NOISE = 4096
"""Values of the start noise that are compared, from its beginning."""


def host_arrays(manifest: Manifest, encoder: PromptEncoder, picture: SmallPicture) -> dict[str, np.ndarray]:
    """``tokens`` (T,), ``rope`` (2, T + N, D), ``noise`` (at most 4096,), and ``schedule`` (S, 3): time as the
    transformers get it, end of the step as sigma, guidance weight."""
    plan = make_plan(manifest, encoder, picture.prompt, width=picture.side, height=picture.side, seed=picture.seed)
    positions = np.concatenate((text_positions(len(plan.token_ids)), image_positions(*plan.grid)))
    rope = manifest.rope
    rows, columns = plan.grid
    noise = randn((1, rows * columns, manifest.latent_channels), picture.seed)
    steps = [(rounded_time(step.t, manifest.timestep_dtype), step.sigma_next, step.guidance) for step in plan.steps]
    return {
        "tokens": np.array(plan.token_ids, np.int64),
        "rope": np.stack(rope_tables(positions, rope.head_dim, rope.theta, rope.sections)),
        "noise": noise.ravel()[:_NOISE],
        "schedule": np.array(steps, np.float32),
    }


def small_plan(manifest: Manifest, encoder: PromptEncoder, picture: SmallPicture) -> Plan:
    """The picture's plan; with guidance if there is an unconditional transformer."""
    unconditional = "graph" if "dit_uncond" in manifest.stages else "off"
    return make_plan(
        manifest,
        encoder,
        picture.prompt,
        width=picture.side,
        height=picture.side,
        steps=picture.steps,
        seed=picture.seed,
        unconditional=unconditional,
    )


def facts_of(manifest: Manifest) -> dict[str, str]:
    """The manifest's fields that numbers depend on, as JSON, by name, such as ``rope.theta`` and ``graphs.dit_cond``.

    Names, presets and files may be changed without harm; presets show in the schedule.
    """
    whole = asdict(manifest)
    facts: dict[str, Any] = {}
    for name in _FACTS:
        value = whole[name]
        facts |= {f"{name}.{part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
    facts |= {f"graphs.{name}": [graph.compute, graph.codes] for name, graph in manifest.graphs.items()}
    for label, engines in manifest.engines.items():
        facts |= {f"engines.{label}.{name}": graph.compute for name, graph in engines.graphs.items()}
    # A field that holds 10000 when it is written holds 10000.0 when it is read.
    return {name: json.dumps(json.loads(json.dumps(value), parse_int=float)) for name, value in facts.items()}
