"""The count of an engine's memory, and what the builder reports beside it."""

import onnx_ir as ir
import pytest
from support.engines.real import engine
from support.small_graphs import FLOAT, SmallGraph

from export.demo_model import DEMO_CHECKPOINT
from export.engine import plan
from export.engine.builder import build_plan
from export.engine.scratch import counted_bytes, overflow
from export.graph.passes.attention_chunks import chunk_attention
from export.graph.passes.attention_kernels import allow_decomposition
from model.checkpoint.directory import open_checkpoint

HALF = ir.DataType.FLOAT16


def chain(dtype=FLOAT):
    """x -> product -> (cast) -> SiLU -> product, beside a residual that a norm reads."""
    graph = SmallGraph()
    x = graph.input("x", "N", 8, dtype=dtype)
    weights = [graph.parameter(name, 8, 8, dtype=dtype) for name in ("w0", "w1", "w2")]
    first = graph.add("MatMul", x, weights[0], name="first", dtype=dtype)
    if dtype != FLOAT:
        first = graph.add("Cast", first, name="first32", to=FLOAT.value)
    normed = graph.add("RMSNormalization", first, graph.parameter("scale", 8), name="normed")
    inner = graph.add("Mul", normed, graph.add("Sigmoid", normed, name="gate"), name="inner")
    if dtype != FLOAT:
        inner = graph.add("Cast", inner, name="inner16", dtype=dtype, to=dtype.value)
    second = graph.add("MatMul", inner, weights[1], name="second", dtype=dtype)
    if dtype != FLOAT:
        second = graph.add("Cast", second, name="second32", to=FLOAT.value)
    whole = graph.add("Add", first, second, name="whole")
    if dtype != FLOAT:
        whole = graph.add("Cast", whole, name="whole16", dtype=dtype, to=dtype.value)
    return graph.model(graph.add("MatMul", whole, weights[2], name="end", dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        # residual, what the second product reads, and what it writes; then the residual's sum takes their place
        (FLOAT, 4 + 4 + 4),
        # what a product writes is cast on the way: the residual and the second product's result are in float32
        (HALF, 4 + 2 + 4),
    ],
)
def test_a_chain_of_products(dtype, values):
    for rows in (1, 50):
        assert counted_bytes(chain(dtype), {"x": (rows, 8)}) == rows * 8 * values


def attention(chunks):
    """One head of 512 over T positions; its inputs and its output are none of the engine's memory."""
    graph = SmallGraph()
    q, k, v = (graph.input(name, 1, 1, "T", 512) for name in "qkv")
    model = graph.model(graph.add("Attention", q, k, v, name="attention", shape=(1, 1, "T", 512)))
    if chunks:
        chunk_attention(model, chunks)
    allow_decomposition(model, "vae_decoder")
    return model


def reported(model, length, folder):
    """What TensorRT-RTX reserves for up to `length` positions."""
    ir.save(model, folder / "attention.onnx")
    shapes = {name: tuple((1, 1, size, 512) for size in (256, 1024, length)) for name in "qkv"}
    built = build_plan(folder / "attention.onnx", folder / "attention.plan", "rtx", ("sm89",), [shapes])
    return built.activation_bytes


def test_an_attention_that_overflows_the_builder_is_found(tmp_path):
    """At 2048 x 2048 pixels scores and softmax take 17 GB each, and the builder reports a part of that."""
    model = attention(0)
    counted = {length: counted_bytes(model, dict.fromkeys("qkv", (1, 1, length, 512))) for length in (16384, 65536)}
    assert counted[65536] == 2 * 65536**2 * 4
    (small,) = reported(model, 16384, tmp_path)
    assert overflow("vae_decoder", [small], [counted[16384]]) == []
    (tmp_path / "attention.plan").unlink()
    (large,) = reported(model, 65536, tmp_path)
    (problem,) = overflow("vae_decoder", [large], [counted[65536]])
    assert "for profile 0 of vae_decoder" in problem and "about 34,360 MB" in problem


def test_chunks_do_not_overflow(tmp_path):
    """The scores of one chunk and their softmax, the queries, keys and results."""
    model = attention(16)
    counted = counted_bytes(model, dict.fromkeys("qkv", (1, 1, 65536, 512)))
    assert 65536**2 * 4 / 16 * 2 < counted < 65536**2 * 4 / 4
    (told,) = reported(model, 65536, tmp_path)
    assert 0.7 <= told / counted <= 1.4
    assert overflow("vae_decoder", [told], [counted]) == []


@pytest.mark.parametrize("told", [0, 60, 61, 1000])
def test_what_is_enough(told):
    """No report at all, and one that is not far below."""
    assert overflow("vae_decoder", [told, 100], [100, 100]) == []


def test_the_profile_is_named():
    (problem,) = overflow("vae_encoder", [10**9, 5 * 10**8], [10**9, 10**9])
    assert problem.startswith(
        "the builder reports 500 MB of scratch memory for profile 1 of vae_encoder, and its graph"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_engines_up_to_2048_pixels(tmp_path, monkeypatch, stage, precision):
    """The demo's VAE: what the builder reports is near the count, and the report has nothing to say."""
    pairs = []

    def told(stage, reported, counted):
        pairs.extend(zip(reported, counted, strict=True))
        return overflow(stage, reported, counted)

    monkeypatch.setattr(plan, "overflow", told)
    spec, _, report = engine(open_checkpoint(DEMO_CHECKPOINT), stage, tmp_path, "base", ("sm89",), precision)
    assert list(report["problems"]) == []
    ((reported, counted),) = pairs
    assert spec.activation_bytes == reported and 0.7 <= reported / counted <= 1.5
