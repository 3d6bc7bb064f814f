"""Engines, really built by TensorRT-RTX for Ada and Blackwell without either, and what they are made of.

The kernels are those of TensorRT-RTX 1.7.1.116, which the test environment pins. A number that is smaller than the
stated one after a change is good news: state it.
"""

from dataclasses import replace

import numpy as np
import pytest
from support.engines.real import BOTH, SIZES, engine, stage_options

from export.build.weight_sizes import scratch_bytes
from export.demo_model import DEMO_CHECKPOINT
from export.engine.plan import EngineOptions, build_engine
from export.graph import weights
from export.graph.precision import precision_of
from export.graph.recipe import Recipe
from export.graph.stage import stage_graph
from model.checkpoint.directory import open_checkpoint

BLOCK_KERNELS = {"fp8": 12, "base": 12}
"""Kernels of a transformer block at the real width, by the attention's type; see `export.graph.passes`."""


@pytest.fixture(scope="module")
def built(wide, tmp_path_factory):
    """built(attention, targets) -> (directory, spec, files, report) of the conditional transformer, made once."""
    made = {}

    def make(attention, targets):
        if (attention, targets) not in made:
            folder = tmp_path_factory.mktemp("engine")
            made[attention, targets] = (folder, *engine(wide, "dit_cond", folder, attention, targets))
        return made[attention, targets]

    return make


@pytest.mark.parametrize("targets", [BOTH, ("sm89",), ("sm120",)], ids="+".join)
@pytest.mark.parametrize("attention", ["fp8", "base"])
def test_blocks_of_the_real_width(built, attention, targets):
    folder, spec, files, report = built(attention, targets)
    assert set(report["block_kernels"]) == {BLOCK_KERNELS[attention]}
    assert report["synchronisations"] == 0 and report["streams"] == 1
    assert report["qkv_products"] == report["gate_products"] == 1
    assert report["attentions"]["types"] == {"fp8" if attention == "fp8" else "bf16": 2}
    assert report["unfused"]["types"] == {}
    assert report["products"]["types"]["fp8"] == 2 * 4, "qkv, o, w13 and w2 of two blocks"
    assert report["copies"] == 0, "no weight is written back in 16 bits"
    products = report["products"]
    assert products["operations_coded"] / products["operations"] > 0.99
    plan = folder / spec.plan
    assert plan.stat().st_size == files[spec.plan].size < 1.02 * report["build"]["weight_bytes"]


def test_weight_streaming_changes_no_kernel(built, wide, tmp_path):
    options = EngineOptions("rtx", BOTH, (SIZES,), weight_streaming=True)
    _, _, report = build_engine(wide, "dit_cond", stage_options(wide, "dit_cond", "fp8"), options, tmp_path, quiet=True)
    assert built("fp8", BOTH)[3]["block_kernels"] == report["block_kernels"] and report["copies"] == 0


def test_an_engine_from_stitched_weights_is_the_engine_from_a_copy(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    _, stitched, _ = engine(checkpoint, "dit_cond", tmp_path / "stitched", targets=("sm89",))
    monkeypatch.setattr(weights, "can_stitch", lambda parts: len(parts) == 1)
    _, copied, _ = engine(checkpoint, "dit_cond", tmp_path / "copied", targets=("sm89",))
    name = "engines/rtx-sm89/dit_cond.plan"
    assert stitched[name].size == copied[name].size
    one, other = (np.fromfile(tmp_path / kind / name, np.uint8) for kind in ("stitched", "copied"))
    # The builder numbers some things anew each time: of eight plans of this graph, four with either kind of weights,
    # any two differed in 0 to 61 bytes. The smallest joined weight has tens of thousands.
    assert np.count_nonzero(one != other) <= 256


@pytest.mark.parametrize(
    ("targets", "base"), [(("sm75",), "fp16"), (("sm86",), "bf16"), (BOTH, "bf16")], ids=["sm75", "sm86", "sm89+sm120"]
)
def test_int8_blocks_of_the_real_width(wide, tmp_path, targets, base):
    """As many kernels in a block as in float8. The time's layers are not in int8: two parallel streams at the start."""
    _, _, report = engine(wide, "dit_cond", tmp_path, "base", targets, "int8", base)
    assert set(report["block_kernels"]) == {BLOCK_KERNELS["base"]}
    assert report["products"]["types"]["int8"] == 2 * 4 and not report["problems"]
    assert report["attentions"]["types"] == {base: 2} and report["unfused"]["types"] == {}
    assert report["copies"] == 0 and report["synchronisations"] <= 4


def test_token_scales_cost_no_kernel(built, wide, tmp_path):
    static = engine(wide, "dit_cond", tmp_path, "base", ("sm89",), activations="static")[2]
    token = built("base", ("sm89",))[3]
    assert token["kernels"] == static["kernels"] and token["block_kernels"] == static["block_kernels"]


def test_float16_base(wide, tmp_path):
    """Codes smaller by a power of two, so that float16 holds their products: no kernel more."""
    _, _, report = engine(wide, "dit_cond", tmp_path, "base", ("sm89",), "fp8", "fp16")
    assert set(report["block_kernels"]) == {BLOCK_KERNELS["base"]}
    assert report["products"]["types"]["fp8"] == 2 * 4 and not report["problems"]


def test_text_encoder_in_int8(tmp_path):
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    _, _, report = engine(checkpoint, "text_encoder", tmp_path, "base", ("sm86",), "int8")
    assert not report["problems"] and report["products"]["types"]["int8"] == 36 * 4 and report["copies"] == 0


def test_an_engine_that_is_not_as_wanted(tmp_path, monkeypatch, capsys):
    """A warning that is in the report; an error only where that was asked for."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    monkeypatch.setattr("export.engine.plan.audit", lambda kernels, wanted: ["the product a runs in bf16, wanted fp8"])
    spec, _, report = engine(checkpoint, "dit_uncond", tmp_path, targets=("sm89",))
    assert (tmp_path / spec.plan).is_file() and report["problems"] == ("the product a runs in bf16, wanted fp8",)
    message = "the engine of dit_uncond is not what was asked for: the product a runs in bf16, wanted fp8"
    assert f"warning: {message}" in capsys.readouterr().err
    options = EngineOptions("rtx", ("sm89",), (SIZES,), strict_audit=True)
    with pytest.raises(RuntimeError, match=message):
        build_engine(checkpoint, "dit_uncond", stage_options(checkpoint, "dit_uncond"), options, tmp_path, quiet=True)


def test_nearly_nothing_is_written_for_the_builder(wide, monkeypatch):
    types, recipe = precision_of("fp8", None, "rtx"), Recipe(True, True)
    held = sum(part.nbytes for part in wide.stored("dit_cond"))
    assert scratch_bytes(wide, "dit_cond", types, recipe) < 1e-3 * held, "norms, in float32"
    monkeypatch.setattr(weights, "can_stitch", lambda parts: len(parts) == 1)
    assert scratch_bytes(wide, "dit_cond", types, recipe) > 0.3 * held, "w1 and w3 of every block"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8-weight-only"])
def test_other_precisions(tmp_path, precision):
    """Attention is one kernel in each; `build_engine` fails otherwise."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    targets = ("sm75",) if precision == "fp16" else ("sm86",) if precision == "bf16" else BOTH
    _, _, report = engine(checkpoint, "dit_uncond", tmp_path, "base", targets, precision)
    assert report["attentions"]["types"] == {
        "fp16" if precision == "fp16" else "bf16": checkpoint.transformer.num_layers
    }
    assert report["copies"] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["vae_decoder_tile", "vae_encoder_tile"])
def test_tiles_are_built(tmp_path, stage, precision):
    """Both attentions, which TensorRT-RTX would crash on if they read the same keys."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    targets = ("sm86",) if precision == "fp16" else ("sm89",)
    spec, files, report = engine(checkpoint, stage, tmp_path, "base", targets, precision)
    # With --precision fp16 the VAE computes in float32, for which there is no fused attention.
    assert report["attentions"]["types"] == ({"bf16": 2} if precision == "bf16" else {})
    assert report["copies"] == 0 and set(files) == {spec.plan, spec.plan.replace(".plan", ".kernels.json")}


def test_attention_without_a_fused_kernel_is_named():
    """A head of 288, which the graph of the VAE may have and no other."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    wider = replace(checkpoint.transformer, attention_head_dim=288, mrope_section=(48, 48, 48))
    changed = replace(checkpoint, transformer=wider)
    name = "layers.0.node_scaled_dot_product_attention"
    message = f"dit_uncond: the attention {name} has heads of 288, and TensorRT has fused kernels"
    options = stage_options(changed, "dit_uncond", "base", "bf16")
    with pytest.raises(RuntimeError, match=f"{message}.*--attention decomposed takes it apart"):
        stage_graph(changed, "dit_uncond", options)
    model = stage_graph(changed, "dit_uncond", replace(options, decomposed=True))
    apart = [node for node in model.graph if node.op_type == "Attention"]
    assert apart and all("TRT_decomposable" in node.attributes for node in apart)
