"""Attention in chunks of queries."""

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run

from export.graph.passes.attention_chunks import chunk_attention

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
SIZE = 8
LENGTHS = {"q": "L", "k": "T", "v": "T"}
ROUNDING = 1e-6
"""Sums of float32 in another order, of values up to 3. A chunk that sees half of the keys is off by 0.1."""


def attention(dtype=FLOAT, heads=1, size=SIZE, behind=True, **attributes):
    """One attention whose batch and lengths may vary, of queries and keys apart."""
    graph = SmallGraph()
    operands = [graph.input(name, "B", heads, length, size, dtype=dtype) for name, length in LENGTHS.items()]
    result = graph.add("Attention", *operands, name="old", shape=("B", heads, "L", size), dtype=dtype, **attributes)
    if behind:
        result = graph.add("Neg", result, name="end", shape=("B", heads, "L", size), dtype=dtype)
    return graph.model(result)


def feeds(queries, keys, batch=1, heads=1, dtype=FLOAT, size=SIZE):
    random = np.random.default_rng(queries)
    lengths = {"q": queries, "k": keys, "v": keys}
    return {
        name: random.standard_normal((batch, heads, length, size), np.float32).astype(dtype.numpy())
        for name, length in lengths.items()
    }


def session(model):
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("behind", [True, False], ids=["inside", "a result of the graph"])
@pytest.mark.parametrize("chunks", [1, 2, 3, 16])
def test_one_graph_for_all_sizes(chunks, behind):
    """More and fewer queries than chunks, lengths that no number of chunks divides, one picture and two."""
    model = attention(behind=behind)
    whole = session(model)
    assert chunk_attention(model, chunks)
    assert operators(model).count("Softmax") == chunks and "Attention" not in operators(model)
    parts = session(model)
    for queries, keys, batch in ((1, 1, 1), (2, 5, 2), (3, 3, 1), (15, 17, 1), (16, 16, 2), (37, 41, 2), (101, 7, 1)):
        given = feeds(queries, keys, batch)
        got, wanted = parts.run(None, given)[0], whole.run(None, given)[0]
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "attributes", [{"scale": 0.25}, {"scale": 1.0}, {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0}]
)
def test_scale_and_heads(attributes):
    model = attention(heads=3, **attributes)
    given = feeds(11, 6, heads=3)
    wanted = run(model, given)[0]
    assert chunk_attention(model, 4)
    np.testing.assert_allclose(run(model, given)[0], wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("dtype", "bound"), [(HALF, 4e-3), (BRAIN, 3e-2)])
def test_types_of_16_bits(dtype, bound):
    """The softmax is in float32. `bound`: some roundings to 11 or 8 bits of values up to 2.5, against float32."""
    given = feeds(9, 12, dtype=dtype)
    wanted = run(attention(), {name: value.astype(np.float32) for name, value in given.items()})[0]
    model = attention(dtype)
    assert chunk_attention(model, 4)
    got = run(model, given)[0]
    assert got.dtype == dtype.numpy()
    assert np.abs(got.astype(np.float32) - wanted).max() <= bound
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert softmax.inputs[0].dtype == FLOAT


def test_each_chunk_waits_for_the_one_before():
    """Behind every chunk but the first lies the result of its neighbour, whatever computes them."""
    model = attention()
    chunk_attention(model, 4)
    results = [node for node in model.graph if node.name.endswith(".result")]
    for before, after in pairwise(results):
        assert before.outputs[0] in ancestors(after)
    assert ancestors(results[0]) & {node.outputs[0] for node in results} == set()


def ancestors(node):
    """All values that a node's result depends on."""
    found, queue = set(), list(node.inputs)
    while queue:
        value = queue.pop()
        if value is not None and value not in found:
            found.add(value)
            queue += value.producer().inputs if value.producer() else ()
    return found


@pytest.mark.parametrize(
    ("size", "dtype", "stays"),
    [(256, HALF, True), (256, BRAIN, True), (264, BRAIN, False), (512, HALF, False), (32, FLOAT, False)],
)
def test_what_tensorrt_has_a_kernel_for_may_stay(size, dtype, stays):
    model = attention(dtype, size=size)
    before = picture(model)
    assert chunk_attention(model, 4, keep_fused=True) is not stays
    assert (picture(model) == before) is stays


def masked():
    graph = SmallGraph()
    operands = [graph.input(name, 1, 1, 5, SIZE) for name in "qkv"]
    mask = graph.input("mask", 5, 5)
    return graph.model(graph.add("Attention", *operands, mask, name="old", shape=(1, 1, 5, SIZE)))


def grouped():
    graph = SmallGraph()
    operands = [graph.input(name, 1, heads, 5, SIZE) for name, heads in zip("qkv", (4, 2, 2), strict=True)]
    return graph.model(graph.add("Attention", *operands, name="old", shape=(1, 4, 5, SIZE)))


def flat():
    graph = SmallGraph()
    operands = [graph.input(name, 1, 5, SIZE) for name in "qkv"]
    heads = {"q_num_heads": 1, "kv_num_heads": 1}
    return graph.model(graph.add("Attention", *operands, name="old", shape=(1, 5, SIZE), **heads))


@pytest.mark.parametrize(
    "model",
    [masked(), grouped(), flat(), attention(is_causal=1), attention(softcap=2.0)],
    ids=["masked", "grouped", "flat", "causal", "capped"],
)
def test_others_stay(model):
    before = picture(model)
    assert not chunk_attention(model, 4) and picture(model) == before
