"""Which attentions TensorRT may take apart."""

import onnx_ir as ir
import pytest
from support.small_graphs import FLOAT, SmallGraph, picture

from export.graph.passes.attention_kernels import allow_decomposition

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def attention(size, dtype, behind=True):
    graph = SmallGraph()
    operands = [graph.input(name, 1, 1, 3, size, dtype=dtype) for name in "qkv"]
    result = graph.add("Attention", *operands, name="attention", shape=(1, 1, 3, size), dtype=dtype)
    if behind:
        result = graph.add("Neg", result, name="end", shape=(1, 1, 3, size), dtype=dtype)
    return graph.model(result)


def marked(model):
    return [node.name for node in model.graph if "TRT_decomposable" in node.attributes]


@pytest.mark.parametrize("behind", [True, False], ids=["inside", "a result of the graph"])
@pytest.mark.parametrize(
    ("stage", "size", "dtype"),
    [("vae_decoder", 512, HALF), ("vae_encoder_tile", 32, BRAIN), ("vae_decoder", 64, FLOAT)],
)
def test_attentions_of_the_vae_are_marked(stage, size, dtype, behind):
    model = attention(size, dtype, behind)
    nodes, *rest = picture(model)
    assert allow_decomposition(model, stage) and marked(model) == ["attention"]
    del next(iter(model.graph)).attributes["TRT_decomposable"]
    # What it computes is the same: the operator knows no such attribute, and nothing else has changed.
    assert picture(model) == (nodes, *rest)


@pytest.mark.parametrize(
    ("stage", "size", "dtype"),
    [("dit_cond", 256, FLOAT), ("text_encoder", 128, HALF), ("vae_decoder", "D", FLOAT)],
)
def test_attentions_with_a_fused_kernel_stay(stage, size, dtype):
    model = attention(size, dtype)
    before = picture(model)
    assert not allow_decomposition(model, stage) and picture(model) == before


def test_what_is_marked_stays():
    model = attention(512, HALF)
    assert allow_decomposition(model, "vae_decoder") and not allow_decomposition(model, "vae_decoder")


def test_operands_of_three_dimensions_stay():
    graph = SmallGraph()
    operands = [graph.input(name, 1, 3, 512, dtype=HALF) for name in "qkv"]
    heads = {"q_num_heads": 1, "kv_num_heads": 1}
    model = graph.model(graph.add("Attention", *operands, name="attention", shape=(1, 3, 512), dtype=HALF, **heads))
    before = picture(model)
    assert not allow_decomposition(model, "vae_decoder") and picture(model) == before


@pytest.mark.parametrize("stage", ["dit_cond", "text_encoder"])
def test_wide_heads_elsewhere_are_refused(stage):
    with pytest.raises(RuntimeError, match=f"{stage}: the attention attention has heads of 264, .* for up to 256"):
        allow_decomposition(attention(264, BRAIN), stage)
