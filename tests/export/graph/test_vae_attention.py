"""The VAE with its attention in chunks of queries: as whole graphs, against the attention as one operator."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support.engines.real import stage_options
from support.measure import relative_error

from export.demo_model import DEMO_CHECKPOINT
from export.graph import stage as stages
from export.graph.passes.attention_chunks import chunk_attention
from export.graph.precision import Precision
from export.graph.stage import export_stage
from model.checkpoint.directory import open_checkpoint

BOUND = 1e-5
"""Of every float32 graph."""


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(DEMO_CHECKPOINT)


def exported(checkpoint, stage, folder, form="ort"):
    """A float32 graph; a decoder's gives the numbers that are rounded to bytes, too."""
    options = stage_options(checkpoint, stage, "base", "fp16", linked=False)
    options = stages.replace(options, form=form, precision=Precision("float32"))
    spec, _ = export_stage(checkpoint, stage, options, folder, quiet=True)
    model = ir.load(folder / spec.onnx)
    model.graph.outputs.extend(node.inputs[0] for node in model.graph if node.op_type == "Round")
    ir.save(model, folder / spec.onnx)
    return model, onnxruntime.InferenceSession(folder / spec.onnx, providers=["CPUExecutionProvider"])


def feeds(stage, batch, rows, columns):
    random = np.random.default_rng(rows)
    if stage == "vae_decoder":
        return {"latents": random.standard_normal((batch, rows, columns, 128), np.float32)}
    return {"image": random.integers(0, 256, (batch, 16 * rows, 16 * columns, 3), dtype=np.uint8)}


@pytest.mark.parametrize("form", ["ort", "trt"])
@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_chunks_are_the_whole(checkpoint, tmp_path, monkeypatch, stage, form):
    """One graph for small and odd sizes, wide and tall, one picture and two; 12 to 140 positions in 7 chunks."""
    monkeypatch.setattr(stages, "chunk_attention", lambda model, chunks, keep_fused: chunk_attention(model, 7))
    model, parts = exported(checkpoint, stage, tmp_path / "parts", form)
    assert [node.op_type for node in model.graph].count("Softmax") == 7
    monkeypatch.setattr(stages, "chunk_attention", lambda model, chunks, keep_fused: False)
    monkeypatch.setattr(stages, "allow_decomposition", lambda *_: False)  # ONNX Runtime refuses TensorRT's attribute
    _, whole = exported(checkpoint, stage, tmp_path / "whole", form)
    for batch, rows, columns in ((1, 1, 3), (1, 3, 5), (2, 7, 5), (2, 4, 2)):
        given = feeds(stage, batch, rows, columns)
        got, wanted = parts.run(None, given), whole.run(None, given)
        assert relative_error(got[-1], wanted[-1]) <= BOUND
        assert np.abs(got[0].astype(np.float64) - wanted[0]).max() <= 1  # a byte may round the other way


@pytest.mark.parametrize(("form", "chunks"), [("ort", 16), ("trt", 8)])
@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_graphs_of_a_bundle_have_chunks(checkpoint, tmp_path, stage, form, chunks):
    model, _ = exported(checkpoint, stage, tmp_path, form)
    operators = [node.op_type for node in model.graph]
    assert operators.count("Softmax") == chunks and "Attention" not in operators
