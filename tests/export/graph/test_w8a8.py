"""Graphs in 8 bits with a scale for each token, against a PyTorch model of the same arithmetic."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.feeding import feeds
from support.measure import relative_error

from calibration.channels.record import measure_channels
from calibration.fake_quant import round_tokens
from calibration.points import TEXT_ENCODER, hooked, inputs_of, layers_of
from export.graph.precision import precision_of
from export.graph.recipe import quantized_weights, recipe_of
from export.graph.smoothing import Smoothing, smoothed
from export.graph.stage import StageOptions, export_stage
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.row_codes import quantize_rows, quantize_rows_int8
from model.checkpoint.sources import Scaled
from runtime.backend.ort import opener

SIZE = (9, (3, 5), 2)
"""Odd numbers of text and image tokens, and a batch."""
TIES = 5e-3
"""Two implementations differ in the last bit of float32 before a rounding, so that now and then a value falls on the
other side: one code in some thousands is off by one. Measured: up to 8e-4; a forgotten rounding gives 8e-3 in int8 and
2e-2 in float8, a wrong scale more."""


@pytest.fixture(scope="module")
def channels(peer):
    """channels(shape, form) -> (checkpoint, its channel maxima), measured once each."""
    made = {}

    def measure(shape, form):
        if (shape, form) not in made:
            checkpoint = open_checkpoint(peer(shape, form)[1])
            maxima = measure_channels(checkpoint, ["a red circle", "two"], steps=2, width=256, height=256, quiet=True)
            made[shape, form] = checkpoint, maxima
        return made[shape, form]

    return measure


def options_of(precision, known=None, form="ort", base=None):
    types = precision_of(precision, base, "ort")
    smoothing = None if known is None else Smoothing(known.maxima, known.digest())
    return StageOptions(types, recipe_of(types), {}, form, smoothing=smoothing)


def by_torch(checkpoint, stage, options, values):
    """The stage with rounded weights and hooks that round the inputs of its blocks' products."""
    sources = checkpoint.sources[stage]
    layers = layers_of(checkpoint, stage)
    if options.smoothing is not None:
        sources = smoothed(checkpoint, stage, options.smoothing)
    state = {name: source.read() for name, source in sources.items()}
    points = options.recipe.points(stage, layers)
    kind = options.precision.codes
    for name in quantized_weights(checkpoint.module(stage), stage, sources, options.recipe, kind):
        if kind == "int8" or not sources[name].coded:
            codes, scales = (quantize_rows_int8 if kind == "int8" else quantize_rows)(state[name])
            state[name] = codes.float() * scales[:, None]
    module = checkpoint.module(stage)
    module.load_state_dict(state, assign=True)
    with hooked(module, stage, lambda name, x: round_tokens(x, options.precision.codes), points), torch.no_grad():
        return module(**{name: torch.from_numpy(value) for name, value in values.items()}).numpy()


@pytest.mark.parametrize("form", ["original-fp8", "diffusers"])
@pytest.mark.parametrize(
    ("precision", "stage"), [("fp8", "dit_cond"), ("int8", "dit_cond"), ("int8", "dit_uncond"), ("int8", TEXT_ENCODER)]
)
def test_equals_the_pytorch_model(channels, tmp_path, form, precision, stage):
    """One block of the transformers, because in the next one a single turned tie moves others; all of the encoder's."""
    checkpoint, known = channels("head64", form)
    options = options_of(precision, known if precision == "int8" else None)
    spec, _ = export_stage(checkpoint, stage, options, tmp_path, quiet=True)
    assert spec.codes == precision
    values = feeds(stage, checkpoint, *SIZE)
    got = opener(tmp_path, "cpu", 1)(stage, spec)(**values)
    wanted = by_torch(checkpoint, stage, options, values)
    plain = checkpoint.load(stage)(**{name: torch.from_numpy(value) for name, value in values.items()}).numpy()
    assert relative_error(wanted, plain) > 1e-3, "the rounding that is compared must be visible"
    assert relative_error(got, wanted) <= TIES


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_engines_form_computes_the_same(channels, tmp_path, precision):
    """In float16, as for Turing, by ONNX's reference: finite, and as far off as in float32."""
    checkpoint, known = channels("head64", "original-fp8")
    values = feeds("dit_uncond", checkpoint, *SIZE)
    plain = checkpoint.load("dit_uncond")(**{name: torch.from_numpy(v) for name, v in values.items()}).numpy()
    known = known if precision == "int8" else None
    wanted = by_torch(checkpoint, "dit_uncond", options_of(precision, known), values)
    options = options_of(precision, known, "trt", "fp16")
    spec, _ = export_stage(checkpoint, "dit_uncond", options, tmp_path, quiet=True)
    (got,) = ReferenceEvaluator(onnx.load(tmp_path / spec.onnx)).run(None, values)
    assert np.isfinite(got).all()
    # float16 turns ties, so only the cost of the rounding can be compared.
    assert relative_error(got, plain) <= 1.5 * relative_error(wanted, plain)


@pytest.mark.parametrize("form", ["original-fp8", "diffusers"])
@pytest.mark.parametrize("stage", [TEXT_ENCODER, "dit_cond", "dit_uncond"])
def test_smoothing_alone_changes_nothing(channels, form, stage):
    checkpoint, known = channels("head32", form)
    sources = smoothed(checkpoint, stage, Smoothing(known.maxima, known.digest()))
    changed = [name for name, source in sources.items() if source is not checkpoint.sources[stage][name]]
    # Of a block: two norms and qkv, o, w1, w2, w3; the encoder's q, k and v are apart.
    assert len(changed) == layers_of(checkpoint, stage) * (9 if stage == TEXT_ENCODER else 7)
    module = checkpoint.module(stage)
    module.load_state_dict({name: source.read() for name, source in sources.items()}, assign=True)
    values = {name: torch.from_numpy(value) for name, value in feeds(stage, checkpoint, *SIZE).items()}
    wanted = checkpoint.load(stage)(**values).numpy()
    assert relative_error(module(**values).numpy(), wanted) <= 1e-5


def test_channels_are_evened_out(channels):
    """A channel that is a hundred times larger than it was enters the product as large as before."""
    checkpoint, known = channels("head32", "diffusers")
    stage, layer = "dit_cond", 1
    norm, readers = "layers.1.ffn_norm1.weight", ["layers.1.feed_forward.w1.weight", "layers.1.feed_forward.w3.weight"]
    name = f"{stage}.layers.{layer}.feed_forward.w1"
    factors = torch.ones(len(known.maxima[name]))
    factors[3] = 100.0
    sources = dict(checkpoint.sources[stage])
    sources[norm] = Scaled(sources[norm], rows=factors)
    for reader in readers:
        sources[reader] = Scaled(sources[reader], columns=1 / factors)
    reached = []
    for base, largest in ((checkpoint.sources[stage], known.maxima[name]), (sources, known.maxima[name] * factors)):
        copy = replace(checkpoint, sources=checkpoint.sources | {stage: base})
        after = smoothed(copy, stage, Smoothing(dict(known.maxima) | {name: largest}, ""))
        reached.append(after[norm].read() / base[norm].read() * largest)
    # The same up to one factor for all channels.
    ratio = reached[0] / reached[1]
    np.testing.assert_allclose(ratio / ratio.mean(), 1, rtol=1e-4)


def test_points_of_the_text_encoder(peer):
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    layers = layers_of(checkpoint, TEXT_ENCODER)
    types = precision_of("int8", None, "ort")
    assert recipe_of(types).points(TEXT_ENCODER, layers) == inputs_of(TEXT_ENCODER, layers)
    assert recipe_of(precision_of("fp8", None, "ort")).points(TEXT_ENCODER, layers) == []
