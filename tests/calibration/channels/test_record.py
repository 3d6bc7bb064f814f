"""Channel maxima: the values of a run, whole or block by block, at once or after an interruption."""

import contextlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from calibration import streaming
from calibration.channels import record
from calibration.channels.record import measure_channels
from calibration.plans import make_plans
from calibration.points import STAGES, hooked, inputs_of, layers_of
from calibration.reference import torch_pipeline
from runtime.errors import NonFiniteError

PROMPTS = ["a red circle", "ein blaues Quadrat mit Rand"]
HOW = {"steps": 2, "width": 256, "height": 256, "quiet": True}


@pytest.fixture(scope="module")
def channels(checkpoint):
    return measure_channels(checkpoint, PROMPTS, **HOW)


def test_equal_those_of_a_pipeline(channels, checkpoint):
    """The same hooks on the runtime's own pipeline, one prompt after another."""
    maxima = {}

    def add(name, x):
        found = x.abs().flatten(0, -2).amax(dim=0)
        maxima[name] = torch.maximum(maxima[name], found) if name in maxima else found

    stages = ("text_encoder", *STAGES)
    pipeline = torch_pipeline(checkpoint, stages, "cpu")
    with contextlib.ExitStack() as hooks:
        for stage in stages:
            names = inputs_of(stage, layers_of(checkpoint, stage))
            hooks.enter_context(hooked(pipeline.graphs[stage].module, stage, add, names))
        for plan in make_plans(checkpoint, PROMPTS, None, 2, 256, 256, 0):
            assert len(list(pipeline.trajectory(plan))) == 2
    assert maxima.keys() == channels.maxima.keys()
    for name, wanted in maxima.items():
        # The same float32 operations; threads may add in another order.
        torch.testing.assert_close(channels.maxima[name], wanted, rtol=1e-4, atol=1e-6)


def test_streamed_blocks_give_nearly_the_same(channels, checkpoint, monkeypatch):
    """bfloat16 products: 2^-9 each, over two steps of three blocks."""
    monkeypatch.setattr(streaming, "_WHOLE", 0.0)
    found = measure_channels(checkpoint, PROMPTS, **HOW)
    for name, wanted in channels.maxima.items():
        torch.testing.assert_close(found.maxima[name], wanted, rtol=0.05, atol=0.05 * float(wanted.max()))


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_measurement_continues(channels, checkpoint, tmp_path, monkeypatch, after):
    state = tmp_path / "state"
    saved = record.Store.save
    seen = []

    def stop(self, progressed):
        saved(self, progressed)
        seen.append(progressed.done)
        if len(seen) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(record.Store, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_channels(checkpoint, PROMPTS, **HOW, state=state)
    monkeypatch.setattr(record.Store, "save", lambda self, progressed: seen.append(progressed.done))
    assert measure_channels(checkpoint, PROMPTS, **HOW, state=state).digest() == channels.digest()
    assert seen == [1, 2, 3], "nothing is done twice"


@pytest.mark.parametrize("how", ["other steps", "damaged", "incomplete", "too far"])
def test_a_state_that_does_not_fit_is_not_continued(channels, checkpoint, tmp_path, capsys, how):
    state = tmp_path / "state"
    measure_channels(checkpoint, PROMPTS, **(HOW | {"steps": 1} if how == "other steps" else HOW), state=state)
    if how == "damaged":
        state.write_bytes(state.read_bytes()[:100])
    elif how != "other steps":
        with safe_open(state, "pt") as stored:
            tensors, about = {name: stored.get_tensor(name) for name in stored.offset_keys()}, stored.metadata()
        if how == "incomplete":
            del tensors["latents.0"]
        else:
            about["done"] = "99"
        save_file(tensors, state, about)
    found = measure_channels(checkpoint, PROMPTS, **(HOW | {"quiet": False}), state=state)
    assert found.digest() == channels.digest()
    message = "belongs to another calibration" if how == "other steps" else "is damaged"
    assert f"{state} {message}; starting anew" in capsys.readouterr().err


def test_what_is_not_finite_is_named(checkpoint, monkeypatch):
    """And the other prompts' threads end, too."""
    load = streaming.loaded

    def broken(checkpoint, stage, *args):
        module = load(checkpoint, stage, *args)
        if stage == "dit_uncond":
            module.layers[1].feed_forward.w3.weight[5, 0] = torch.inf
        return module

    monkeypatch.setattr(record, "loaded", broken)
    with pytest.raises(NonFiniteError, match=r"dit_uncond.layers.1.feed_forward.w2 has NaN or infinite values"):
        measure_channels(checkpoint, PROMPTS, **HOW)


def test_the_estimate_comes_first(checkpoint, capsys):
    measure_channels(checkpoint, PROMPTS, **(HOW | {"quiet": False}))
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("calibrating: about ") and first.endswith(" GB of memory")
