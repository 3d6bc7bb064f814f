"""TensorRT's form of the graphs beside ONNX Runtime's."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support.engines.real import stage_options

from export.demo_model import DEMO_CHECKPOINT
from export.graph.records import stage_of
from export.graph.stage import export_stage, stage_graph
from model.checkpoint.directory import open_checkpoint


@pytest.mark.parametrize("stage", ["dit_cond", "text_encoder", "vae_decoder", "vae_decoder_tile", "vae_encoder_tile"])
def test_both_forms_compute_the_same(tmp_path, stage):
    """TensorRT's form differs in joined products, row scales behind them and sums for single rows: not in the result.

    In float32, where ONNX Runtime can run it; with the attention in the base type, since float8's is TensorRT's own
    operator. The order of sums differs, and a float8 code that falls on the other side of a tie moves the result by a
    step; on these weights none does.
    """
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    random = np.random.default_rng(3)
    angles = np.tile(random.random((17, 32)), 2)  # both halves of a head turn by the same, as the runtime's tables say
    feeds = {
        "dit_cond": {
            "latents": random.standard_normal((2, 12, 128)),
            "timestep": np.array([0.3, 0.8]),
            "rope_cos": np.cos(angles),
            "rope_sin": np.sin(angles),
            "text": random.standard_normal((2, 5, checkpoint.transformer.hidden_size)),
        },
        "text_encoder": {"input_ids": random.integers(0, 1000, (1, 9))},
        "vae_decoder": {"latents": random.standard_normal((1, 3, 4, 128))},
        "vae_decoder_tile": {
            "latents": random.standard_normal((1, 3, 4, 128)),
            "thumbnail": random.standard_normal((1, 5, 2, 128)),
        },
        "vae_encoder_tile": {
            "image": random.integers(0, 256, (1, 48, 64, 3), dtype=np.uint8),
            "thumbnail": random.integers(0, 256, (1, 80, 32, 3), dtype=np.uint8),
        },
    }[stage]
    feeds = {name: a if a.dtype in (np.int64, np.uint8) else a.astype(np.float32) for name, a in feeds.items()}
    results = []
    for form in ("ort", "trt"):
        options = stage_options(checkpoint, stage, "base", "fp8-weight-only", linked=False, base="fp16")
        options = replace(options, form=form, precision=replace(options.precision, compute="float32"))
        for made in dict.fromkeys((stage_of(stage), stage)):  # a graph for tiles finds its weights in the whole one's
            spec, _ = export_stage(checkpoint, made, options, tmp_path / form, quiet=True)
        model = ir.load(tmp_path / form / spec.onnx)
        for node in model.graph:  # TensorRT's own, which ONNX Runtime refuses
            node.attributes.pop("TRT_decomposable", None)
        ir.save(model, tmp_path / form / spec.onnx)
        session_options = onnxruntime.SessionOptions()
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(tmp_path / form / spec.onnx, session_options)
        results.append(session.run(None, feeds)[0].astype(np.float64))
    bound = 1 if stage.startswith("vae_decoder") else 1e-5 * np.abs(results[0]).max()  # a byte may round the other way
    assert np.abs(results[0] - results[1]).max() <= bound
    assert np.abs(results[0]).max() > 0


def test_documented_differences_are_the_only_ones():
    """Operators of the two forms, counted."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    options = stage_options(checkpoint, "dit_uncond", "base")
    counts = {}
    for form in ("ort", "trt"):
        operators = [node.op_type for node in stage_graph(checkpoint, "dit_uncond", replace(options, form=form)).graph]
        counts[form] = {kind: operators.count(kind) for kind in set(operators)}
    layers = checkpoint.transformer.num_layers
    rows = layers + 4  # adaln_modulation of every block and of the end, adaln_proj, two of the time embedding
    assert counts["ort"]["MatMul"] + counts["ort"]["Gemm"] - counts["trt"]["MatMul"] - counts["trt"].get("Gemm", 0) == (
        layers + rows
    ), "w1 and w3 are one product, and single rows are sums"
    assert counts["trt"]["ReduceSum"] == rows
    assert counts["trt"]["Attention"] == counts["ort"]["Attention"] == layers
