"""What is measured is what the runtime's sampler makes the transformers compute."""

import numpy as np
import pytest
import torch

from calibration.plans import make_plans
from calibration.points import SCALED, point_of, tensor_names
from calibration.reference import manifest_of, torch_pipeline
from calibration.static.algorithms import tensor_range
from calibration.static.histogram import histogram_of
from calibration.static.record import calibrate, record
from model.checkpoint.fingerprint import fingerprint
from runtime.errors import NonFiniteError
from runtime.pipeline import Pipeline
from runtime.sampling.schedule import PRESETS

SIZE = {"width": 256, "height": 256}
STAGES = ("text_encoder", "dit_cond", "dit_uncond")


def spied(pipeline, names):
    """Keep every tensor that enters a point's own module, without `calibration.points.hooked`."""
    seen = {name: [] for name in names}
    for name in names:
        stage, _, path = name.partition(".")
        part = pipeline.graphs[stage].module.get_submodule(path)
        part.register_forward_pre_hook(lambda _, inputs, kept=seen[name]: kept.append(inputs[0]))
    return seen


def test_both_transformers_and_all_steps(checkpoint):
    """Against the runtime's own `Pipeline.run` on the same modules, with all values kept."""
    prompts, steps = ["a red circle", "ein blaues Quadrat"], 3
    pipeline = torch_pipeline(checkpoint, (*STAGES, "vae_decoder"), "cpu")
    seen = spied(pipeline, tensor_names(checkpoint))
    for index, prompt in enumerate(prompts):
        pipeline.generate(prompt, steps=steps, seed=5 + index, **SIZE)
    found = calibrate(checkpoint, prompts, steps=steps, seed=5, algorithm="mse", percentile=99, quiet=True, **SIZE)
    assert list(found.tensors) == tensor_names(checkpoint)
    for name, got in found.tensors.items():
        assert len(seen[name]) == len(prompts) * steps
        x = torch.cat([kept.flatten() for kept in seen[name]])
        if point_of(name) in SCALED:
            x = x * 32**-0.25
        assert got == tensor_range(histogram_of(x), 99)
        assert found.range_of(name) == got.mse
    assert (found.prompts.count, found.preset, found.steps, found.seed) == (2, None, steps, 5)
    assert found.model.fingerprint == fingerprint(checkpoint)


def test_q_and_k_are_measured_scaled_and_nothing_else_is(checkpoint, measured):
    """|rotate(norm(x))| is at most sqrt(head_dim) times the norm's largest weight, before the factor."""
    module = checkpoint.load("dit_cond")
    for point, norm in (("q", "norm_q"), ("k", "norm_k")):
        weight = float(module.get_submodule(f"layers.0.attention.{norm}").weight.abs().max())
        bound = 32**0.5 * weight * 32**-0.25
        amax = measured.tensors[f"dit_cond.layers.0.attention.{point}"].amax
        # Half of a bound that only a vector along one axis reaches; without the factor it would be 2.4 times as much.
        assert 0.4 * bound < amax < bound


def test_distilled(distilled):
    found = calibrate(distilled, ["a cat"], steps=2, quiet=True, **SIZE)
    assert list(found.tensors) == tensor_names(distilled) and not any("uncond" in name for name in found.tensors)
    assert calibrate(distilled, ["a cat"], quiet=True, **SIZE).preset == "V4_FAST_20"
    with pytest.raises(ValueError, match=r"preset V4_TURBO_12 needs guidance.*wanted one of V4_FAST_20, V4_INSTANT_8"):
        calibrate(distilled, ["a cat"], preset="V4_TURBO_12", quiet=True)


def test_presets_are_the_runtimes(checkpoint):
    (plan,) = make_plans(checkpoint, ["a cat"], "V4_TURBO_12", None, None, None, 0)
    assert plan.sampling == PRESETS["V4_TURBO_12"] and plan.needs_unconditional_graph
    (plan,) = make_plans(checkpoint, ["a cat"], None, None, None, None, 0)
    assert (
        plan.sampling.preset == "V4_DEFAULT_20" and plan.width == plan.height == manifest_of(checkpoint).sizes.default
    )


def test_time_is_rounded_as_in_float8_bundles(checkpoint):
    seen = []
    pipeline = torch_pipeline(checkpoint, STAGES, "cpu")
    pipeline.graphs["dit_cond"].module.t_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (plan,) = make_plans(checkpoint, ["a cat"], None, 3, 256, 256, 0)
    record(pipeline, plan, pipeline.encode(np.array([plan.token_ids])))
    times = torch.cat(seen)
    assert len(times) == 3 and torch.equal(times, times.bfloat16().float())
    assert not np.array_equal(times.numpy(), [step.t for step in plan.steps])


def test_not_finite_activations_are_named(checkpoint):
    pipeline = torch_pipeline(checkpoint, STAGES, "cpu")
    pipeline.graphs["dit_uncond"].module.layers[1].feed_forward.w1.weight.mul_(1e38)
    (plan,) = make_plans(checkpoint, ["a cat"], None, 1, 256, 256, 0)
    with pytest.raises(NonFiniteError, match=r"dit_uncond\.layers\.1\.feed_forward\.w2 has NaN or infinite values"):
        record(pipeline, plan, pipeline.encode(np.array([plan.token_ids])))


def test_all_zero_activations_are_named(checkpoint, monkeypatch):
    load = type(checkpoint).load

    def silenced(self, stage):
        module = load(self, stage)
        if stage == "dit_cond":
            module.layers[2].feed_forward.w3.weight.zero_()
        return module

    monkeypatch.setattr(type(checkpoint), "load", silenced)
    with pytest.raises(ValueError, match=r"dit_cond\.layers\.2\.feed_forward\.w2 has the range 0\.0 \(max\)"):
        calibrate(checkpoint, ["a cat"], steps=1, quiet=True, **SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": ["a cat", " "]}, "prompt 2 of 2: the prompt is empty"),
        ({"prompts": ["word " * 3000]}, "prompt 1 of 1: the prompt has"),
        ({"preset": "V4_SLOW"}, "preset is 'V4_SLOW', wanted one of"),
        ({"preset": "V4_FAST_20"}, "V4_FAST_20 has no guidance.*wanted one of V4_QUALITY_48, V4_DEFAULT_20, V4_TURBO"),
        ({"preset": "V4_TURBO_12", "steps": 3}, "give either a preset or 3 steps"),
        ({"steps": 0}, "the number of steps is 0"),
        ({"width": 250}, "width is 250"),
        ({"height": 4096}, "height is 4096"),
        ({"seed": -1}, "seed is -1"),
        ({"prompts": ["a", "b"], "seed": 2**64 - 1}, f"prompt 2 of 2: seed is {2**64}"),
        ({"algorithm": "entropy"}, "algorithm is 'entropy', wanted one of max, percentile, mse"),
        ({"percentile": 0.0}, "percentile is 0.0"),
        ({"percentile": float("nan")}, "percentile is nan"),
        ({"device": "tpu"}, "device is 'tpu', wanted one of cpu, cuda"),
    ],
)
def test_wrong_arguments_are_found_before_weights_are_loaded(checkpoint, monkeypatch, arguments, message):
    monkeypatch.setattr(type(checkpoint), "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        calibrate(checkpoint, **{"prompts": ["a cat"], "quiet": True} | arguments)


def test_no_cuda(checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device is cuda, but PyTorch finds no CUDA device"):
        calibrate(checkpoint, ["a cat"], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_measures_what_the_cpu_measures(checkpoint, measured):
    found = calibrate(checkpoint, ["a red circle"], steps=2, device="cuda", quiet=True, **SIZE)
    for name, wanted in measured.tensors.items():
        assert found.tensors[name].values == wanted.values
        # float32 sums in another order, through two steps and six blocks.
        assert found.tensors[name].amax == pytest.approx(wanted.amax, rel=1e-3)


def test_the_pipeline_is_the_runtimes(checkpoint):
    pipeline = torch_pipeline(checkpoint, STAGES, "cpu")
    assert type(pipeline) is Pipeline and set(pipeline.graphs) == set(STAGES)
