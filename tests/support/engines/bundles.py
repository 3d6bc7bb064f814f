"""Manifests with engines, for tests of what runs them: the real model's sizes, and a toy whose arithmetic is known."""

from dataclasses import replace

import numpy as np
from support.engines.fake_tensorrt import plan_text, stage

from runtime.bundle.graph_specs import EngineSet, EngineSpec, GraphSpec, Profile, SizeRange, TensorSpec
from runtime.bundle.manifest import FileSpec, Manifest, PromptSpec, RopeSpec, SizeSpec
from runtime.plan import Plan
from runtime.sampling.schedule import sampling

GB = 10**9
STAGES = ("text_encoder", "dit_cond", "vae_decoder", "dit_uncond")
FP8_WEIGHTS = {
    "text_encoder": 9 * GB,
    "dit_cond": 9_300_000_000,
    "dit_uncond": 9_000_000_000,
    "vae_decoder": 100_000_000,
}
"""Bytes of the plans of the released float8 model, roughly: 9.3 billion parameters in each transformer."""
ACTIVATIONS = {
    "text_encoder": 200_000_000,
    "dit_cond": 900_000_000,
    "dit_uncond": 900_000_000,
    "vae_decoder": 3 * GB,
}
TEXT, TOKENS = SizeRange(1, 256, 2048), SizeRange(256, 4096, 16384)
GRID, BATCH = SizeRange(16, 64, 128), SizeRange(1, 1, 2)
TILE, TILE_SIDE = SizeRange(16, 72, 72), SizeRange(256, 1152, 1152)


def _tensor(name, dtype, *shape):
    return TensorSpec(name, dtype, shape)


def engine_specs(folder, channels=128, width=4608, head=256):
    """The four stages' specs, as an exporter writes them."""
    rope = [_tensor(name, "float32", "L", head) for name in ("rope_cos", "rope_sin")]
    free = [_tensor(name, "float32", "N", head) for name in ("rope_cos", "rope_sin")]
    latents = [_tensor("latents", "float32", "B", "N", channels), _tensor("timestep", "float32", "B")]
    velocity = (_tensor("velocity", "float32", "B", "N", channels),)
    tokens = {"B": BATCH, "N": TOKENS}
    both = tokens | {"T": TEXT, "L": SizeRange(257, 4352, 18432)}
    inputs = {
        "text_encoder": (_tensor("input_ids", "int64", 1, "T"),),
        "dit_cond": (*latents, *rope, _tensor("text", "float32", "B", "T", width)),
        "dit_uncond": (*latents, *free),
        "vae_decoder": (_tensor("latents", "float32", "B", "grid_h", "grid_w", channels),),
    }
    outputs = {
        "text_encoder": (_tensor("text", "float32", 1, "T", width),),
        "dit_cond": velocity,
        "dit_uncond": velocity,
        "vae_decoder": (_tensor("image", "uint8", "B", "H", "W", 3),),
    }
    sizes = {
        "text_encoder": {"T": TEXT},
        "dit_cond": both,
        "dit_uncond": tokens,
        "vae_decoder": {"B": BATCH, "grid_h": GRID, "grid_w": GRID},
    }
    return {
        name: EngineSpec(
            f"{folder}/{name}.plan", "bfloat16", inputs[name], outputs[name], (Profile(sizes[name], ACTIVATIONS[name]),)
        )
        for name in STAGES
    }


def engine_set(backend="rtx", targets=("sm89", "sm120"), version="1.7.1.116", streaming=False):
    """A set of engines of the real sizes."""
    folder = f"engines/{backend}-{'-'.join(targets)}"
    return EngineSet(backend, targets, version, "base", engine_specs(folder), streaming)


def with_tiles(engines, channels=128):
    """The set with the VAE's encoder and the graphs for tiles."""
    folder = engines.graphs["vae_decoder"].plan.rpartition("/")[0]
    image, latents = _tensor("image", "uint8", "B", "H", "W", 3), engines.graphs["vae_decoder"].inputs[0]
    pixels = [
        _tensor(name, "uint8", 1, f"{part}_H", f"{part}_W", 3)
        for name, part in (("image", "tile"), ("thumbnail", "thumb"))
    ]
    tokens = [
        _tensor(name, "float32", 1, f"{part}_h", f"{part}_w", channels)
        for name, part in (("latents", "tile"), ("thumbnail", "thumb"))
    ]
    tensors = {
        "vae_encoder": ((image,), (latents,)),
        "vae_decoder_tile": (tuple(tokens), (pixels[0],)),
        "vae_encoder_tile": (tuple(pixels), (tokens[0],)),
    }
    sizes = {"B": BATCH, "H": SizeRange(256, 1024, 2048), "W": SizeRange(256, 1024, 2048)}
    sizes |= {f"{part}_{axis}": TILE for part in ("tile", "thumb") for axis in "hw"}
    sizes |= {f"{part}_{axis}": TILE_SIDE for part in ("tile", "thumb") for axis in "HW"}
    specs = {
        name: EngineSpec(
            f"{folder}/{name}.plan",
            "bfloat16",
            inputs,
            outputs,
            (Profile({size: sizes[size] for spec in inputs for size in spec.shape if isinstance(size, str)}, 2 * GB),),
        )
        for name, (inputs, outputs) in tensors.items()
    }
    return replace(engines, graphs=engines.graphs | specs)


def with_profiles(engines, *sides):
    """The engines with a profile for each (minimum, maximum) of both sides in pixels."""

    def sizes(spec, low, high):
        ranges = dict(spec.profiles[0].sizes)
        units = {"grid_h": 16, "grid_w": 16, "H": 1, "W": 1}
        ranges |= {name: SizeRange(low // u, low // u, high // u) for name, u in units.items() if name in ranges}
        if "N" in ranges:
            ranges["N"] = SizeRange((low // 16) ** 2, (low // 16) ** 2, (high // 16) ** 2)
        return replace(spec.profiles[0], sizes=ranges)

    graphs = {
        name: replace(spec, profiles=tuple(sizes(spec, *ends) for ends in sides))
        for name, spec in engines.graphs.items()
    }
    return replace(engines, graphs=graphs)


def picture_plan(width=1024, height=1024, tokens=20, guidance=7.0, unconditional="graph"):
    """A plan for two steps of five pictures."""
    return Plan(
        "x", tuple(range(tokens)), width, height, 16, 0, 5, sampling(None, 2, guidance, None, None), unconditional
    )


def manifest(*sets, onnx=True):
    """A manifest with these sets, and with ONNX graphs unless told otherwise."""
    engines = {f"{one.backend}-{'-'.join(one.targets)}": one for one in sets}
    files = {spec.plan: FileSpec(FP8_WEIGHTS[name], "00") for one in sets for name, spec in one.graphs.items()}
    graphs = {}
    if onnx:
        specs = engine_specs("none")
        graphs = {
            name: GraphSpec(f"onnx/{name}.onnx", "float32", spec.inputs, spec.outputs) for name, spec in specs.items()
        }
    return Manifest(
        name="real",
        fingerprint="00",
        precision="fp8",
        quantization=None,
        timestep_dtype="float32",
        latent_stats="bn",
        latent_channels=128,
        default_preset="V4_TURBO_12",
        rope=RopeSpec(256, 5e6, (48, 40, 40)),
        prompt=PromptSpec("tokenizer.json", "", "", 2048),
        sizes=SizeSpec(16, 256, 2048, 1024, 6.0),
        graphs=graphs,
        engines=engines,
        files=files,
        tools={},
    )


# The toy: small tensors, and functions that tell one input from another.

TOY_WEIGHTS = {"text_encoder": 9000, "dit_cond": 9300, "dit_uncond": 9000, "vae_decoder": 1000}
TOY_SIZES = {"B": BATCH, "N": SizeRange(1, 4, 6), "T": SizeRange(1, 2, 5), "L": SizeRange(2, 6, 11)}
TOY_SIZES |= dict.fromkeys(("grid_h", "grid_w"), SizeRange(1, 2, 3))
LARGE_TOY_SIZES = TOY_SIZES | {"N": SizeRange(5, 16, 40), "L": SizeRange(6, 18, 45)}
LARGE_TOY_SIZES |= dict.fromkeys(("grid_h", "grid_w"), SizeRange(2, 4, 6))
"""A second profile of the toy, which overlaps with the first."""
TOY = {
    "text_encoder": stage(
        lambda input_ids: np.repeat(input_ids[..., None], 4, axis=2).astype(np.float32),
        {"input_ids": "int64"},
        "text",
        lambda shapes: (*shapes["input_ids"], 4),
    ),
    "dit_cond": stage(
        lambda latents, timestep, rope_cos, rope_sin, text: (
            latents * timestep[:, None, None] + text.sum((1, 2))[:, None, None] + rope_cos.sum() - rope_sin.sum()
        ),
        dict.fromkeys(("latents", "timestep", "rope_cos", "rope_sin", "text"), "float32"),
        "velocity",
        lambda shapes: shapes["latents"],
    ),
    "dit_uncond": stage(
        lambda latents, timestep, rope_cos, rope_sin: latents - timestep[:, None, None],
        dict.fromkeys(("latents", "timestep", "rope_cos", "rope_sin"), "float32"),
        "velocity",
        lambda shapes: shapes["latents"],
    ),
    "vae_decoder": stage(
        lambda latents: np.repeat(np.repeat(latents[..., :3], 2, axis=1), 2, axis=2).astype(np.uint8),
        {"latents": "float32"},
        "image",
        lambda shapes: (shapes["latents"][0], 2 * shapes["latents"][1], 2 * shapes["latents"][2], 3),
        "uint8",
    ),
}


def toy_bundle(directory, streaming=False, backend="rtx", version="1.7.1.116", profiles=(TOY_SIZES,)):
    """The toy's plans in `directory`, and the manifest that describes them."""
    specs = {
        name: replace(spec, profiles=tuple(_toy_profile(spec, sizes, 500 * n) for n, sizes in enumerate(profiles, 1)))
        for name, spec in engine_specs("engines/toy", channels=8, width=4, head=2).items()
    }
    files = {}
    (directory / "engines" / "toy").mkdir(parents=True)
    for name, spec in specs.items():
        (directory / spec.plan).write_text(plan_text(name, TOY_WEIGHTS[name], spec))
        files[spec.plan] = FileSpec(TOY_WEIGHTS[name], "00")
    engines = EngineSet(backend, ("sm89",), version, "base", specs, streaming)
    return replace(manifest(onnx=False), engines={"toy": engines}, files=files)


def _toy_profile(spec, sizes, activation_bytes):
    return Profile({size: sizes[size] for size in spec.profiles[0].sizes}, activation_bytes)
