"""Every graph under ONNX Runtime against the PyTorch module it was traced from, which test_parity ties to the peers."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.feeding import feeds
from support.measure import relative_error
from support.peers import SHAPES

from model.checkpoint.directory import STAGES, open_checkpoint
from model.layers import set_compute_dtype
from runtime.backend.ort import opener
from runtime.bundle.manifest import read_manifest

SIZES = [(1, (1, 1), 1), (9, (2, 3), 2), (600, (5, 3), 1)]
"""(text tokens, grid, batch): other ones than the graphs were traced with, and not square."""

FP32_BOUND = 1e-5
"""The project's bound. Measured: 1e-6 for the transformers and the text encoder, 5e-6 for the VAE encoder."""

FP16_BOUND = 4e-3
"""float16 rounds each operand of a product by up to 2**-11 = 4.9e-4; the 36 and more layers of products in line add
up like a random walk to at most sqrt(36) * 4.9e-4 = 3e-3. Measured: 1.3e-3 for the text encoder, 6e-4 elsewhere."""


def compare(bundle, checkpoint, stage, bound, size):
    manifest = read_manifest(bundle)
    graph = opener(bundle, "cpu", 1)(stage, manifest.graphs[stage])
    values = feeds(stage, checkpoint, *size)
    got = graph(**values)
    wanted = checkpoint.load(stage)(**{name: torch.from_numpy(value) for name, value in values.items()}).numpy()
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    if got.dtype == np.uint8:
        # A last-bit difference before the rounding may move a byte by one.
        assert np.abs(got.astype(int) - wanted).max() <= 1
    else:
        assert relative_error(got, wanted) <= bound


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32(peer, peer_bundle, shape, stage, size):
    compare(peer_bundle(shape, "fp32"), open_checkpoint(peer(shape, "diffusers")[1]), stage, FP32_BOUND, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_float16(peer, peer_bundle, stage, size):
    compare(peer_bundle("head32", "fp16"), open_checkpoint(peer("head32", "diffusers")[1]), stage, FP16_BOUND, size)


def test_graphs_are_plain_onnx(peer_bundle):
    """Opset 23, no other domain, weights outside, attention and norms as single operators, nothing of this machine."""
    bundle = peer_bundle("head32", "fp32")
    for stage in STAGES:
        file = bundle / "onnx" / f"{stage}.onnx"
        onnx.checker.check_model(file, full_check=True)
        model = onnx.load(file, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
        operators = [node.op_type for node in model.graph.node]
        assert not {"ScatterND", "ScatterElements", "Loop", "If", "NonZero", "Where"} & set(operators)
        if stage.startswith("dit"):
            assert operators.count("Attention") == 3 and operators.count("RMSNormalization") == 3 * 5
        if stage == "text_encoder":
            assert operators.count("Attention") == 36 and operators.count("RMSNormalization") == 36 * 4 + 1
        external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert external and all(t.ByteSize() < 2000 for t in model.graph.initializer)
        text = file.read_bytes()
        assert b"/home" not in text and b"site-packages" not in text and b".py" not in text


def test_unconditional_graph_has_no_text_weights(peer_bundle):
    model = onnx.load(peer_bundle("head32", "fp32") / "onnx" / "dit_uncond.onnx", load_external_data=False)
    assert not [t.name for t in model.graph.initializer if "llm_cond" in t.name]
    assert [i.name for i in model.graph.input] == ["latents", "timestep", "rope_cos", "rope_sin"]


def test_last_block_leaves_text_rows_behind(peer_bundle):
    """Its output projection and feed-forward see N rows where the blocks before see T + N."""
    model = onnx.load(peer_bundle("head32", "fp32") / "onnx" / "dit_cond.onnx", load_external_data=False)
    rows = {
        v.name: v.type.tensor_type.shape.dim[1].dim_param
        for v in model.graph.value_info
        if len(v.type.tensor_type.shape.dim) == 3
    }
    weights = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    seen = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and "feed_forward" in weights.get(node.input[1], ""):
            seen.setdefault(weights[node.input[1]].split(".")[1], set()).add(rows[node.output[0]])
    assert len(seen["2"]) == 1 and seen["2"] == {"N"}, seen
    assert seen["0"] == seen["1"] and "N" not in seen["0"], seen


BF16_MARGIN = 1.5
"""The graph's error against PyTorch's own with the same products in bfloat16 (5e-3 to 3e-2): both round the same
operands, and differ by the order in which a product is summed."""


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16(peer, peer_bundle, stage):
    """ONNX Runtime has no bfloat16 on a CPU, but ONNX's own reference implementation does."""
    bundle, checkpoint = peer_bundle("head64", "bf16"), open_checkpoint(peer("head64", "diffusers")[1])
    manifest = read_manifest(bundle)
    assert manifest.graphs[stage].compute == "bfloat16" and manifest.timestep_dtype == "bfloat16"
    file = bundle / "onnx" / f"{stage}.onnx"
    onnx.checker.check_model(file, full_check=True)
    model = onnx.load(file)
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 2} == {onnx.TensorProto.BFLOAT16}
    values = feeds(stage, checkpoint, 9, (2, 3), 2)
    (got,) = ReferenceEvaluator(model).run(None, values)
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    wanted = checkpoint.load(stage)(**tensors).numpy()
    in_torch = set_compute_dtype(checkpoint.load(stage), torch.bfloat16)(**tensors).numpy()
    assert got.dtype == wanted.dtype
    assert relative_error(got, wanted) <= BF16_MARGIN * relative_error(in_torch, wanted)
