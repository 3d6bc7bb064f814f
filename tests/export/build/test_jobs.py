"""Keys of jobs: an option touches the stages that it changes, and no other is built again."""

import json
from dataclasses import replace

import pytest
import torch
from support import peers

from calibration.channels.file import Channels, Measured, wanted_widths
from calibration.origin import Model, Prompts
from export.build.options import BuildOptions
from export.build.variant import variants_of
from export.demo_model import DEMO_CHECKPOINT
from export.graph.stage import stage_graph
from export.measurements import Measurements
from model.checkpoint.description import describe
from model.checkpoint.directory import open_checkpoint

TRANSFORMERS = {"dit_cond", "dit_uncond"}
VAE = {"vae_decoder", "vae_encoder", "vae_decoder_tile", "vae_encoder_tile"}
ALL = {"text_encoder"} | TRANSFORMERS | VAE


@pytest.fixture(scope="module")
def demo():
    return open_checkpoint(DEMO_CHECKPOINT)


def channels(checkpoint, **larger):
    """Maxima of 1 for all channels, but larger ones for a stage."""
    measured = Measured(Model("demo", "0" * 16), Prompts(1, "0" * 64), 1, 128, 128, 0)
    widths = wanted_widths(checkpoint)
    return Channels(
        measured, {name: torch.full((size,), larger.get(name.partition(".")[0], 1.0)) for name, size in widths.items()}
    )


def jobs_of(checkpoint, precision="fp8", larger=None, backend="ort", **options):
    options = BuildOptions(precision=precision, backend=(backend,), target=("sm89",), **options)
    (variant,) = variants_of(options, checkpoint, describe(checkpoint))
    known = Measurements(channels=channels(checkpoint, **(larger or {})) if precision == "int8" else None)
    return {job.stage: job for job in variant.jobs(checkpoint, known)}


def keys_of(checkpoint, **options):
    return {stage: job.key(checkpoint) for stage, job in jobs_of(checkpoint, **options).items()}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({}, {"keep_base": ("dit_cond.layers.0.*",)}, {"dit_cond"}),
        ({}, {"keep_base": ("dit_*.layers.0.attention.o",)}, TRANSFORMERS),
        ({}, {"keep_base": ("text_encoder.layers.3.*",)}, {"text_encoder"}),
        ({"precision": "int8"}, {"precision": "int8", "keep_base": ("text_encoder.*",)}, {"text_encoder"}),
        ({"precision": "int8"}, {"precision": "int8", "larger": {"dit_uncond": 2.0}}, {"dit_uncond"}),
        ({"keep_base": ("dit_cond.layers.0.*",)}, {"keep_base": ("dit_con?.layers.0.*", "dit_cond.layers.0.*")}, set()),
        ({}, {"attention": "fp8"}, TRANSFORMERS),
        ({}, {"precision": "fp8-weight-only"}, TRANSFORMERS),
        ({"precision": "fp32"}, {"precision": "fp16"}, {"text_encoder"} | TRANSFORMERS),
        ({"precision": "fp32"}, {"precision": "bf16"}, ALL),
        ({}, {"weights": "link"}, ALL),
        ({}, {"base": "bf16"}, ALL),
        ({"backend": "rtx"}, {"backend": "rtx", "max_size": 1536}, TRANSFORMERS | {"vae_decoder", "vae_encoder"}),
        (
            {"backend": "rtx"},
            {"backend": "rtx", "max_batch": 2},
            ALL - {"text_encoder", *(VAE - {"vae_decoder", "vae_encoder"})},
        ),
        ({"backend": "rtx"}, {"backend": "rtx", "attention": "decomposed"}, ALL - VAE),
        ({}, {"attention": "decomposed"}, set()),
        ({"backend": "rtx"}, {"backend": "rtx", "strict_audit": True}, ALL),
        ({}, {"default_preset": "V4_TURBO_12", "timestep_dtype": "float32"}, set()),
    ],
)
def test_stages_that_an_option_touches(demo, before, after, changed):
    first, second = keys_of(demo, **before), keys_of(demo, **after)
    assert first.keys() == second.keys() == ALL
    assert {stage for stage in ALL if first[stage] != second[stage]} == changed


def test_static_ranges_touch_their_stage(demo):
    job = jobs_of(demo)["dit_cond"]
    types = replace(job.options.precision, activations="static")
    points = {f"{stage}.layers.0.attention.o": 1.0 for stage in TRANSFORMERS}
    changed = set()
    for stage in TRANSFORMERS:
        first, second = (
            replace(job, stage=stage, options=replace(job.options, precision=types, ranges=ranges)).key(demo)
            for ranges in (points, points | {"dit_uncond.layers.0.attention.o": 2.0})
        )
        changed |= {stage} if first != second else set()
    assert changed == {"dit_uncond"}


def test_what_touches_a_stage_makes_the_same_graph(demo):
    """The key covers what `of_stage` leaves, so it must leave all that the graph depends on."""
    patterns = ("dit_cond.layers.0.*", "dit_uncond.layers.1.attention.?", "text_encoder.layers.1.mlp.*")
    for precision, attention in (("fp8", "fp8"), ("fp8", "base"), ("int8", "base"), ("bf16", "base")):
        given = {"keep_base": patterns} if precision != "bf16" else {}
        for stage, job in jobs_of(demo, precision, attention=attention, **given).items():
            narrow = job.options.of_stage(stage, demo)
            assert repr(narrow.of_stage(stage, demo)) == repr(narrow)
            assert described(stage_graph(demo, stage, narrow)) == described(stage_graph(demo, stage, job.options))


def described(model):
    nodes = [(n.op_type, n.name, [v and v.name for v in n.inputs], str(n.attributes)) for n in model.graph]
    tensors = {name: (value.dtype, str(value.shape)) for name, value in model.graph.initializers.items()}
    return nodes, tensors


@pytest.mark.parametrize(
    ("folder", "values", "changed"),
    [
        ("vae", {"latent_stats": "bn"}, VAE),
        ("vae", {"norm_num_groups": 4}, VAE),
        ("transformer", {"rope_theta": 10_000.0}, {"text_encoder"} | TRANSFORMERS),
        ("text_encoder", {"text_config": {"rms_norm_eps": 1e-5}}, {"text_encoder"}),
    ],
)
def test_configurations_touch_their_stages(tmp_path, folder, values, changed):
    directory = peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")
    # The demo's file holds the published constants, too.
    file = directory / "vae" / "diffusion_pytorch_model.safetensors"
    peers.rewrite(file, lambda tensors: tensors["bn.running_mean"].add_(1))
    before = keys_of(open_checkpoint(directory))
    for name in {folder, "unconditional_transformer" if folder == "transformer" else folder}:
        config = directory / name / "config.json"
        data = json.loads(config.read_text())
        for key, value in values.items():
            data[key] = data[key] | value if isinstance(value, dict) else value
        config.write_text(json.dumps(data))
    after = keys_of(open_checkpoint(directory))
    assert {stage for stage in before if before[stage] != after[stage]} == changed
