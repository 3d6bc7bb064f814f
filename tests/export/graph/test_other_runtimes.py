"""The graphs of a bundle in other programs than this runtime: ONNX Runtime with its defaults, and OpenVINO."""

import json

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
from support.measure import relative_error
from support.small_graphs import SmallGraph

from export.graph.stage import SESSION_OPTIONS
from runtime.bundle.manifest import read_manifest
from runtime.selftest.contents import read_self_test

GRAPHS = (
    "text_encoder",
    "dit_cond",
    "dit_uncond",
    "vae_decoder",
    "vae_encoder",
    "vae_decoder_tile",
    "vae_encoder_tile",
)
CPU = ["CPUExecutionProvider"]


def errors(bundle, graph, run):
    """How far `run` is from the self-test's results, and what the self-test allows."""
    test = read_self_test(bundle)
    found = max(relative_error(run(call.feeds), call.output) for call in test.calls[graph])
    return found, test.tolerances["ort"][graph]


def with_defaults(file):
    session = onnxruntime.InferenceSession(file, providers=CPU)
    return lambda feeds: session.run(None, feeds)[0]


def as_the_file_says(file):
    """A session with the entries of the file's metadata."""
    options = onnxruntime.SessionOptions()
    for entry in onnx.load(file, load_external_data=False).metadata_props:
        if entry.key == SESSION_OPTIONS:
            for name, value in json.loads(entry.value).items():
                options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(file, options, providers=CPU)
    return lambda feeds: session.run(None, feeds)[0]


def in_openvino(file):
    """Compiled for the CPU, in float32: bfloat16 is the default where the processor has it."""
    core = openvino.Core()
    model = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: np.asarray(model(feeds)[0])


@pytest.mark.parametrize("run", [with_defaults, in_openvino])
@pytest.mark.parametrize("graph", GRAPHS)
def test_float32(demo_bundle, graph, run):
    found, allowed = errors(demo_bundle, graph, run(demo_bundle / read_manifest(demo_bundle).graphs[graph].onnx))
    assert found <= allowed


@pytest.mark.parametrize("run", [with_defaults, in_openvino])
def test_float8_weights_alone(demo_weight_only_bundle, run):
    """Nothing is quantized while running: the self-test's tolerance is what the weights' rounding costs."""
    for graph in ("text_encoder", "dit_uncond"):
        file = demo_weight_only_bundle / read_manifest(demo_weight_only_bundle).graphs[graph].onnx
        call = read_self_test(demo_weight_only_bundle).calls[graph][0]
        assert SESSION_OPTIONS not in {entry.key for entry in onnx.load(file, load_external_data=False).metadata_props}
        assert relative_error(run(file)(call.feeds), as_the_file_says(file)(call.feeds)) <= 1e-5  # of float32 graphs


@pytest.mark.parametrize("graph", ["dit_cond", "dit_uncond"])
def test_float8_needs_what_the_file_says(demo_fp8_bundle, graph):
    file = demo_fp8_bundle / read_manifest(demo_fp8_bundle).graphs[graph].onnx
    with pytest.raises(Exception, match=r"INVALID_GRAPH.*float8e4m3fn"):
        with_defaults(file)
    found, allowed = errors(demo_fp8_bundle, graph, as_the_file_says(file))
    assert found <= 1.5 * allowed  # the largest of three calls; the tolerance is of their root mean square


def test_float8_in_openvino(demo_fp8_bundle):
    """Other codes than ONNX Runtime's, and no further from float32; see the next test."""
    file = demo_fp8_bundle / read_manifest(demo_fp8_bundle).graphs["dit_cond"].onnx
    theirs, _ = errors(demo_fp8_bundle, "dit_cond", in_openvino(file))
    ours, _ = errors(demo_fp8_bundle, "dit_cond", as_the_file_says(file))
    assert theirs <= 1.3 * ours  # measured: 0.95 to 1.2 times, by which ties turn


def test_openvino_rounds_twice(tmp_path):
    """To float16 and then to float8: just above a tie of float8 becomes the tie, and goes to the even neighbour."""
    values = np.array([17.006, 2.62564, 27.0, 3.1], np.float32)
    rounded_once = values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    rounded_twice = values.astype(np.float16).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert rounded_once[0] == 18 and rounded_twice[0] == 16
    graph = SmallGraph()
    zero = graph.constant("zero", np.zeros((), ml_dtypes.float8_e4m3fn))
    scale = graph.constant("scale", np.ones((), np.float32))
    codes = graph.add("QuantizeLinear", graph.input("x", 4), scale, zero, name="q", dtype=ir.DataType.FLOAT8E4M3FN)
    ir.save(graph.model(graph.add("DequantizeLinear", codes, scale, zero, name="y", shape=(4,))), tmp_path / "q.onnx")
    assert np.array_equal(in_openvino(tmp_path / "q.onnx")({"x": values}), rounded_twice)
    assert np.array_equal(with_defaults(tmp_path / "q.onnx")({"x": values}), rounded_once)
