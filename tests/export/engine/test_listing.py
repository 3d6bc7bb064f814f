"""Lists of kernels in every form that TensorRT has for them, of several profiles, and in none of them.

``data/tensorrt10.log`` is a list as TensorRT 10 prints it, and the JSON files are the engine inspector's of TensorRT 10
and 11, in the forms that NVIDIA documents with detailed verbosity. No such build can run here: layers and sizes are
made up, and differ in nothing else from what is published. TensorRT-RTX's own logs are in ``test_kernels.py``.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.engine.engines_page import engines_page
from export.engine.files import engines_from_json, engines_to_dict, kernels_from_json, kernels_to_json
from export.engine.kernels import Kernel, Tensor
from export.engine.listing import LONGEST_NAME, parse_kernels
from export.engine.report import Build, Wanted, audit, report

DATA = Path(__file__).parent / "data"
WANTED = Wanted(
    ("dit_cond.layers.0.attention.fused",), ("dit_cond.layers.0.attention.fused",), ("layers.0.attention.qkv",)
)
BUILD = Build("dit_cond", "tensorrt", ("sm90",), "10.16.1.11", "base", 4352, 1, 1, 1, 1.0, (1280, 4352))


def read(name):
    return (DATA / name).read_text(encoding="utf-8")


def test_tensorrt_10_prints_parameters_and_other_words_for_types():
    kernels = parse_kernels([read("tensorrt10.log")])
    assert [(kernel.kind, kernel.opaque) for kernel in kernels] == [
        ("Reformat", False),
        ("CaskConvolution", False),
        ("ShapeHostToDeviceCopy", False),
        ("kgen", False),
        ("gemm", False),
        ("kgen", False),
        ("MatrixMultiply", False),
        ("CaskConvolution", False),
    ]
    reformat, convolution, copy, norm, gemm, attention, product, last = kernels
    assert reformat.inputs == (Tensor("latents", "Float", (1, 32, 64, 64)),)
    assert reformat.outputs == (Tensor("Reformatted Input Tensor 0 to decoder.conv_in", "Half", (1, 32, 64, 64)),)
    assert convolution.constants == (Tensor("weights", "Half", (147456,)),)
    assert convolution.layers == ("decoder.conv_in", "decoder.act") and convolution.is_convolution
    assert (copy.name, copy.inputs, copy.outputs) == ("[HostToDeviceCopy 0]", (), ())
    assert [tensor.name for tensor in norm.constants] == ["__mye116_dconst"], "they are listed among the inputs"
    assert gemm.is_product and (gemm.inputs[0].dtype, gemm.constants[0].dtype) == ("FP8", "FP8")
    assert attention.is_attention and attention.stream == 1
    assert product.is_product and {tensor.dtype for tensor in product.inputs} == {"unknown"}
    assert last.inputs[0].dtype == "Int8" and last.outputs[0].dtype == "Float"


def test_what_tensorrt_10_lists_is_reported_and_audited():
    kernels = parse_kernels([read("tensorrt10.log")])
    made = report(BUILD, kernels)
    assert made.products.types == {"fp8": 1} and made.unfused.types == {"unknown": 1}
    assert made.products.operations == 2 * 4352 * 4608 * 13824 and made.coded_share == 1
    assert made.convolutions == {"fp16": 1, "int8": 1} and made.opaque == ()
    assert made.attentions.types == {"bf16": 1}
    assert audit(kernels, replace(WANTED, fused_fp8=())) == []
    assert audit(kernels, WANTED) == ["the attention dit_cond.layers.0.attention.fused runs in bf16, wanted fp8"]


@pytest.mark.parametrize("version", [10, 11])
def test_the_inspectors_json(version):
    kernels = parse_kernels([read(f"tensorrt{version}.json")])
    assert [kernel.kind for kernel in kernels] == ["Reformat", "CaskConvolution", "gemm", "kgen"]
    reformat, convolution, gemm, attention = kernels
    assert (reformat.inputs[0].dtype, reformat.outputs[0].dtype) == ("Float", "Half")
    assert convolution.constants == (Tensor("weights", "Half", (147456,)),)
    assert convolution.layers == ("decoder.conv_in", "decoder.act")
    assert gemm.inputs == (Tensor("__myln_k_arg__bb1_2", "FP8", (1, -1, 4608)),)
    assert gemm.constants == (Tensor("__mye120_dconst", "FP8", (1, 4608, 13824)),)
    assert attention.stream == 1 and not any(kernel.opaque for kernel in kernels)
    assert audit(kernels, replace(WANTED, fused_fp8=())) == []


def test_json_and_lines_say_the_same():
    """Of TensorRT 10, for the entries that are in both files."""
    of_lines = {kernel.name: kernel for kernel in parse_kernels([read("tensorrt10.log")])}
    for kernel in parse_kernels([read("tensorrt10.json")]):
        assert kernel == of_lines[kernel.name]


@pytest.mark.parametrize("prefix", ["", "[V] [TRT] ", "[11/01/2026-10:32:57] [V] [TRT] "])
def test_names_alone(prefix):
    """What is listed with the verbosity LAYER_NAMES_ONLY, in which no form can be told."""
    message = f"{prefix}Layers:\nnode_of_gpu_0 + node_of_gpu_1\n[trainStation1]\n\nBindings:\nlatents\nimage"
    kernels = parse_kernels([message])
    assert [(kernel.name, kernel.kind, kernel.opaque) for kernel in kernels] == [
        ("node_of_gpu_0 + node_of_gpu_1", "unknown", True),
        ("[trainStation1]", "unknown", True),
    ]
    of_json = parse_kernels([json.dumps({"Layers": ["node_of_gpu_0 + node_of_gpu_1", "[trainStation1]"]})])
    assert of_json == kernels


def test_entries_that_are_not_understood_are_counted_and_named():
    text = read("tensorrt10.log")
    broken = text.replace("Dimensions: [1,-1,4608]", "Dimensions: [1,?,4608]")
    broken = broken.replace("Outputs: [ { Name: c", "Results")
    kernels = parse_kernels([broken.replace("\n\nBindings", "\nwhat is this\n\nBindings")])
    assert [kernel.name for kernel in kernels if kernel.opaque] == [
        "__myl_CastMulMean_myl0_0",
        "node_linear_1_myl0_1",
        "node_matmul_9",
        "what is this",
    ]
    made = report(BUILD, kernels)
    assert made.kernels == 9 and made.kinds["gemm"] == 1 and made.kinds["unknown"] == 1
    assert made.opaque == (
        "__myl_CastMulMean_myl0_0 (kgen)",
        "node_linear_1_myl0_1 (gemm)",
        "node_matmul_9 (MatrixMultiply)",
        "what is this (unknown)",
    )
    assert engines_from_json(json.dumps(engines_to_dict({"x": {"dit_cond": made}})), "x") == {"x": {"dit_cond": made}}
    assert "; 4 not understood" in engines_page("x", {"x": {"dit_cond": made}})
    assert audit(kernels, replace(WANTED, fused=(), fused_fp8=())) == [
        "the product layers.0.attention.qkv runs in no kernel, wanted fp8"
    ]


def test_long_names_are_cut():
    (kernel,) = parse_kernels([f"Layers:\n{'x' * 10_000}"])
    assert kernel.opaque and len(kernel.name) == LONGEST_NAME


def profiled():
    """A list of two profiles, as TensorRT-RTX 1.7.1 prints it: the second's first kernel has no name that tells."""
    tensor = "{ Name: x, Dimensions: [1,-1,128], Strides: [-1,128,1], Datatype: BFloat16, Format: (Linear) Row major }"
    other = tensor.replace("Name: x", "Name: velocity [profile 1]")
    entries = [
        ("__mye35185_0_myl0_0", "shape_call", "", ""),
        ("layers.0.node_linear_1_myl0_1", "gemm", tensor, tensor),
        ("_gemm_mha_v2_myl0_2", "kgen", tensor, tensor),
        ("__mye35185_0_myl1_0", "shape_call", "", ""),
        ("layers.0.node_linear_1 [profile 1]_myl1_1", "gemm", tensor, tensor),
        ("_gemm_mha_v2_myl1_2", "kgen", tensor, other),
        ("Reformatting CopyNode for x [profile 1]", "Reformat", tensor, tensor),
    ]
    layers = "[ONNX Layer: dit_cond.layers.0.attention.fused]"
    lines = [
        f"Name: {name}, LayerType: {kind}, Inputs: [ {taken}], Constants: [], Outputs: [ {given}], TacticName: , "
        f"StreamId: 0, Metadata: {layers if 'mha' in name else ''}"
        for name, kind, taken, given in entries
    ]
    return "\n".join(["Layers:", *lines]).replace("[ ]", "[]")


def test_kernels_of_several_profiles():
    kernels = parse_kernels([profiled()])
    assert not any(kernel.opaque for kernel in kernels)
    assert [kernel.profile for kernel in kernels] == [0, 0, 0, 1, 1, 1, 1]
    made = [report(BUILD, kernels, profile) for profile in (0, 1)]
    assert [(one.kernels, one.products.kernels, one.attentions.types) for one in made] == [
        (2, 1, {"bf16": 1}),
        (3, 1, {"bf16": 1}),
    ]


def test_each_profile_is_audited():
    """An attention is one kernel in each profile, not two in the engine."""
    wanted = Wanted(("dit_cond.layers.0.attention.fused",))
    kernels = parse_kernels([profiled()])
    assert audit(kernels, wanted) == []
    apart = [replace(kernel, name="bmm") if kernel.name == "_gemm_mha_v2_myl1_2" else kernel for kernel in kernels]
    assert audit(apart, wanted) == [
        "in profile 1 the attention dit_cond.layers.0.attention.fused is not one fused kernel; its kernels are bmm"
    ]


def test_lists_written_before_there_were_profiles():
    kernel = Kernel("a", "gemm", 0, (), (), (), ())
    data = json.loads(kernels_to_json([kernel]))
    for name in ("profile", "opaque"):
        del data["kernels"][0][name]
    assert kernels_from_json(json.dumps(data), "x") == (kernel,)


RECORDED = ("dit_cond.log", "unfused.log", "vae_decoder.log", "tensorrt10.log", "tensorrt10.json", "tensorrt11.json")
LINES = [line for name in RECORDED for line in read(name).split("\n") if line]
RUBBISH = ["", "-1", "[", "]", "}]", "{ Name: ", "0", "9" * 50]


@st.composite
def damaged(draw):
    """Recorded lines with pieces cut out, put in, and exchanged; whole documents cut short; and plain rubbish."""
    pieces = []
    for _ in range(draw(st.integers(1, 6))):
        text = draw(st.one_of(st.sampled_from(LINES), st.just(read("tensorrt11.json")), st.text(max_size=60)))
        for _ in range(draw(st.integers(0, 3))):
            start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
            put = draw(st.one_of(st.sampled_from(RUBBISH), st.text(max_size=9)))
            text = text[:start] + put + text[start + length :]
        pieces.append(text)
    return draw(st.sampled_from(["", "Layers:\n", '{"Layers": ['])) + "\n".join(pieces)


@settings(deadline=None, max_examples=200)
@given(messages=st.lists(damaged(), max_size=3))
def test_nothing_that_a_builder_lists_is_an_error(messages):
    kernels = parse_kernels(messages)
    assert kernels_from_json(kernels_to_json(kernels), "x") == kernels
    made = report(BUILD, kernels)
    assert engines_from_json(json.dumps(engines_to_dict({"x": {"dit_cond": made}})), "x") == {"x": {"dit_cond": made}}
    assert engines_page("x", {"x": {"dit_cond": made}})
    assert all(isinstance(problem, str) for problem in audit(kernels, WANTED))
