"""Lists of kernels: what is read from a build's log, and what an engine's report and audit make of it.

The logs in ``data`` are of builds by TensorRT-RTX 1.7.1.116 for sm89 and sm120. Strides and formats of the tensors are
cut out of all but ``unfused.log``; ``dit_cond.log`` is otherwise whole, the others are excerpts.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.processes import make_checkpoint

from export.engine.files import engines_from_json, engines_to_dict, kernels_from_json, kernels_to_json
from export.engine.kernel_roles import BlockProduct, block_products
from export.engine.kernels import Tensor
from export.engine.listing import parse_kernels
from export.engine.report import Build, Wanted, audit, report
from export.graph.coded_share import IMAGE_TOKENS, TEXT_TOKENS, share
from export.graph.recipe import Recipe
from model.checkpoint.directory import open_checkpoint

DATA = Path(__file__).parent / "data"
ROWS = TEXT_TOKENS + IMAGE_TOKENS
"""Those that `export.graph.coded_share` counts for: a picture of 1024 x 1024 pixels and 256 tokens of text."""
ATTENTIONS = tuple(f"dit_cond.layers.{block}.attention.fused" for block in range(4))
PRODUCTS = tuple(
    f"layers.{block}.{name}"
    for block in range(4)
    for name in ("attention.qkv", "attention.o", "feed_forward.w13", "feed_forward.w2")
)


def log(name):
    return (DATA / f"{name}.log").read_text(encoding="utf-8").split("\n")


def kernels(name):
    return parse_kernels(log(name))


def measure(listed, stage="dit_cond", rows=ROWS):
    build = Build(stage, "rtx", ("sm89", "sm120"), "1.7.1.116", "fp8", rows, 7_000_000, 900_000, 600_000_000, 1.5)
    return report(build, listed)


def test_a_kernel_with_all_that_the_log_says():
    gemm = next(kernel for kernel in kernels("dit_cond") if kernel.kind == "gemm")
    assert (gemm.name, gemm.stream) == ("node_linear_5_myl0_9", 0)
    assert gemm.inputs == (Tensor(gemm.inputs[0].name, "FP8", (1, -1, 128)),)
    assert [(tensor.dtype, tensor.dims) for tensor in gemm.constants] == [
        ("FP8", (1, 128, 384)),
        ("Float", (1,)),
        ("Float", (1,)),
    ]
    assert [(tensor.dtype, tensor.dims) for tensor in gemm.outputs] == [("BFloat16", (1, -1, 384))]
    assert "dit_cond.layers.0.attention.qkv_dequantized" in gemm.layers
    assert all("[" not in layer and "]" not in layer and "\x1f" not in layer for layer in gemm.layers)


def test_every_entry_is_read():
    lines = log("dit_cond")
    listed = kernels("dit_cond")
    assert len(listed) == sum("LayerType:" in line for line in lines) == 56
    assert [kernel.name for kernel in listed] == [line.split(", ")[0][6:] for line in lines if line]
    # Every tensor of the text is one of a kernel.
    tensors = sum(len(k.inputs) + len(k.constants) + len(k.outputs) for k in listed)
    assert tensors == sum(line.count("Datatype:") for line in lines)


def test_untrimmed_log_and_what_follows_the_list():
    """A logger's prefix, the engine's own inputs and outputs, and the builder's last words are no kernels."""
    lines = log("unfused")
    assert any("I/O Tensors" in line for line in lines)
    listed = parse_kernels(["[Severity.VERBOSE] " + "\n".join(lines)])
    assert listed == kernels("unfused") and len(listed) == 12
    assert listed[3].inputs == (Tensor("k", "BFloat16", (1, 1, -1, 512)),)


def test_the_last_list_of_a_log_counts():
    """A build may print several."""
    assert parse_kernels([*log("unfused"), *log("unfused")]) == kernels("unfused")


def test_names_that_were_cut_and_very_long_lines():
    name = "__myl_" + "CastMulAdd" * 20_000 + "Etc_myl0_1"
    tensor = "{ Name: a, Dimensions: [1,-1], Datatype: Float }"
    line = (
        f"Name: {name}, LayerType: kgen, Inputs: [ {', '.join([tensor] * 5_000)}], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 3, Metadata: [ONNX Layer: a][ONNX Layer: cut of"
    )
    (kernel,) = parse_kernels([line])
    assert kernel.name == name and len(kernel.inputs) == 5_000
    assert (kernel.stream, kernel.layers) == (3, ("a", "cut of"))
    assert not kernel.is_product and not kernel.is_convolution


@pytest.mark.parametrize("lines", [[], ["Engine generation completed in 0.7 seconds.", "Name: x, IOMode: Input"]])
def test_log_without_a_list(lines):
    assert parse_kernels(lines) == ()


def test_a_type_without_a_name_is_unknown():
    line = next(line for line in log("dit_cond") if "LayerType: gemm" in line)
    assert "Datatype: FP8" in line
    (kernel,) = parse_kernels([line.replace("Datatype: FP8", "Type: FP8")])
    assert not kernel.opaque and kernel.inputs[0].dtype == "unknown"


def test_report_of_a_transformer():
    measured = measure(kernels("dit_cond"))
    assert (measured.kernels, measured.streams, measured.synchronisations) == (55, 1, 0)
    assert measured.kinds == {"kgen": 37, "gemm": 16, "runtime_fusion": 2, "shape_call": 1}
    assert measured.block_kernels == (11, 11, 12)
    assert measured.products.types == {"fp8": 16, "bf16 x fp8": 2}
    assert measured.row_products.types == {"fp32 x fp8": 5}
    assert measured.attentions.types == {"fp8": 4} and measured.unfused.types == {}
    assert (measured.qkv_products, measured.gate_products, measured.copies, measured.copy_bytes) == (1, 1, 0, 0)


def test_operations_are_those_of_the_model(tmp_path):
    """The kernels' sizes give what the sizes of the checkpoint that they are of give, to the last operation."""
    checkpoint = make_checkpoint(tmp_path / "random", "--size", "demo")
    measured = measure(kernels("dit_cond"))
    wanted = share(open_checkpoint(checkpoint), "dit_cond", Recipe(activations=True, attention=True), 2)
    uses = (measured.products, measured.row_products, measured.attentions, measured.unfused)
    assert sum(use.operations for use in uses) == wanted.operations
    assert sum(use.operations_coded for use in uses) == wanted.operations_coded
    assert measured.coded_share == measured.products.operations_coded / (
        wanted.operations - measured.attentions.operations
    )


def test_engine_as_wanted_has_no_problems():
    assert audit(kernels("dit_cond"), Wanted(ATTENTIONS, ATTENTIONS, PRODUCTS)) == []


def test_unshaped_graph():
    """Copies of weights that each call writes, w1 and w3 apart, and signals between streams."""
    listed = kernels("unshaped")
    measured = measure(listed)
    assert (measured.qkv_products, measured.gate_products) == (1, 2)
    # Two modulations of 512 x 18432 in one tensor of bfloat16.
    assert (measured.copies, measured.copy_bytes) == (1, 2 * 2 * 512 * 18432)
    assert measured.products.types["bf16"] == 1, "the product that reads the copies"
    assert measured.synchronisations == sum(kernel.kind in ("signal", "wait") for kernel in listed) > 0
    names = ("layers.0.feed_forward.w1", "layers.0.feed_forward.w3")
    assert audit(listed, Wanted(products=names)) == []
    assert audit(listed, Wanted(products=("layers.0.feed_forward.w13",))) == [
        "the product layers.0.feed_forward.w13 runs in no kernel, wanted fp8"
    ]


def test_product_that_is_not_float8():
    listed = [
        replace(kernel, inputs=(replace(kernel.inputs[0], dtype="BFloat16"),))
        if any("layers.2.attention.o.weight" in layer for layer in kernel.layers) and kernel.is_product
        else kernel
        for kernel in kernels("dit_cond")
    ]
    assert audit(listed, Wanted(ATTENTIONS, ATTENTIONS, PRODUCTS)) == [
        "the product layers.2.attention.o runs in bf16 x fp8, wanted fp8"
    ]
    measured = measure(listed)
    assert measured.products.types == {"fp8": 15, "bf16 x fp8": 3}
    assert measured.coded_share < measure(kernels("dit_cond")).coded_share


def test_attention_that_is_not_fused():
    name = "decoder.mid_block.attention"
    listed = kernels("unfused")
    measured = measure(listed, "vae_decoder", 4096)
    assert measured.attentions.types == {} and measured.unfused.types == {"bf16": 2}
    # Two products of 4096 x 4096 values and 512 channels; nothing else multiplies.
    assert measured.unfused.operations == 2 * 2 * 4096**2 * 512 and measured.products.types == {}
    assert measured.block_kernels == () and measured.copies == 0
    (problem,) = audit(listed, Wanted(fused=(name,)))
    assert problem.startswith(f"the attention {name} is not one fused kernel; its kernels are __myl_Resh_myl0_3, ")
    assert audit(listed, Wanted()) == [], "nothing is asked of an attention that may be taken apart"


def test_attention_that_is_nowhere_or_of_another_type():
    assert audit(kernels("unfused"), Wanted(fused=("layers.0.attention",))) == [
        "the attention layers.0.attention is not one fused kernel; its kernels are none at all"
    ]
    name = "node_scaled_dot_product_attention_20"
    assert audit(kernels("text_encoder"), Wanted(fused=(name,))) == []
    assert audit(kernels("text_encoder"), Wanted((name,), (name,))) == [
        f"the attention {name} runs in bf16, wanted fp8"
    ]


def test_text_encoder():
    """A copy of three weights names the products of the kernel that reads it."""
    listed = kernels("text_encoder")
    copy, product = listed[:2]
    assert block_products(product, [copy]) == {BlockProduct(20, f"self_attn.{name}_proj") for name in "qkv"}
    assert block_products(product, []) == set()
    measured = measure(listed, "text_encoder", 256)
    assert measured.block_kernels == (15,), "from one product for q, k and v up to the next, the copy for that included"
    assert (measured.qkv_products, measured.gate_products, measured.copies) == (1, 1, 2)
    assert measured.products.types == {"bf16 x fp8": 3, "bf16": 2}
    assert measured.attentions.types == {"bf16": 1}


def test_vae():
    measured = measure(kernels("vae_decoder"), "vae_decoder", 4096)
    assert measured.convolutions == {"bf16": 3}, "the residual that one of them adds is float32, its operands are not"
    assert measured.products.types == {"bf16": 2}
    # q, k and v of 32 channels each, and the output's product, whose result is transposed.
    assert measured.products.operations == 2 * 4096 * 32 * (96 + 32)
    assert measured.attentions.operations == 4 * 4096**2 * 32
    assert measured.block_kernels == ()


def test_blocks_without_names_are_told_by_their_attentions():
    """Weights that are not dequantised have no names in the list."""
    nameless = [replace(kernel, layers=()) for kernel in kernels("dit_cond")]
    assert measure(nameless).block_kernels == (11, 11, 12)
    assert measure(nameless).qkv_products == 0


def test_what_is_around_a_product_does_not_name_it():
    gemm = next(kernel for kernel in kernels("dit_cond") if kernel.kind == "gemm")
    around = ("dit_cond.layers.0.feed_forward.w2_quantize", "layers.0.attention.o.weight_dequantized_scaled")
    assert block_products(replace(gemm, layers=around), []) == set()


def test_reports_and_lists_come_back_from_json():
    listed = kernels("dit_cond")
    assert kernels_from_json(kernels_to_json(listed), "x") == listed
    reports = {"rtx-sm89": {"dit_cond": measure(listed)}}
    data = engines_to_dict(reports)
    assert data["engines"]["rtx-sm89"]["dit_cond"]["shares"] == {"coded": 0.9523, "attention_coded": 1.0}
    assert engines_from_json(json.dumps(data), "x") == reports
    assert engines_from_json('{"all": {"bytes": 1}}', "x") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "report.json is not JSON"),
        ("[" * 100_000, "report.json is nested too deeply"),
        ("[]", "report.json is not a JSON object"),
        ('{"engines": []}', "report.json: engines is not an object of objects"),
        ('{"engines": {"a": {"dit_cond": {"kernels": 1}}}}', "report.json: a: dit_cond: it lacks the key 'build'"),
    ],
)
def test_report_file_of_another_form(text, message):
    with pytest.raises(ValueError, match=message):
        engines_from_json(text, "report.json")


def test_kernel_file_of_another_version():
    text = kernels_to_json(kernels("unfused")).replace('"version":1', '"version":2')
    with pytest.raises(ValueError, match="x is 'ideogram4-kernels' version 2, wanted 'ideogram4-kernels' version 1"):
        kernels_from_json(text, "x")
