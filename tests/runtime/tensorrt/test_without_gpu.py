"""The real packages on a machine without a GPU: a bundle with a plan that TensorRT-RTX built says what it needs.

What comes after finding a GPU cannot run here; the fakes of tests/runtime stand in for it.
"""

import hashlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart

from runtime import Pipeline
from runtime.backend.machine import look
from runtime.bundle.graph_specs import EngineSet, EngineSpec, Profile, TensorSpec
from runtime.bundle.manifest import FileSpec, read_manifest
from runtime.errors import BundleError
from runtime.tensorrt import package as trt
from runtime.tensorrt.cuda import NoGpuError, find_gpu, load_cudart

pytestmark = pytest.mark.skipif(
    cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess, reason="this machine has a GPU"
)
STAGES = ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder")


@pytest.fixture(scope="module")
def plan():
    """A plan for sm89 that adds two vectors."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    first, second = (network.add_input(name, tensorrt_rtx.float32, (4,)) for name in ("a", "b"))
    total = network.add_elementwise(first, second, tensorrt_rtx.ElementWiseOperation.SUM).get_output(0)
    network.mark_output(total)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
    built = builder.build_serialized_network(network, config)
    assert built is not None
    return bytes(built)


@pytest.fixture
def bundle(demo_bundle, tmp_path, plan):
    """The demo bundle with this plan for every stage: nothing here gets as far as reading it as one."""
    directory = tmp_path / "bundle"
    shutil.copytree(demo_bundle, directory)
    manifest = read_manifest(directory)
    tensor = (TensorSpec("a", "float32", (4,)),)
    specs, files = {}, dict(manifest.files)
    for stage in STAGES:
        (directory / f"{stage}.plan").write_bytes(plan)
        specs[stage] = EngineSpec(f"{stage}.plan", "bfloat16", tensor, tensor, (Profile({}, 0),))
        files[f"{stage}.plan"] = FileSpec(len(plan), hashlib.sha256(plan).hexdigest())
    engines = EngineSet("rtx", ("sm89", "sm120"), tensorrt_rtx.__version__, "base", specs)
    made = replace(manifest, engines={"rtx-sm89-sm120": engines}, files=files)
    (directory / "manifest.json").write_text(made.to_json())
    return directory


def test_no_gpu():
    with pytest.raises(NoGpuError, match=r"this machine has no NVIDIA GPU that CUDA can use \(.+\)"):
        find_gpu(load_cudart(), 0)
    assert look(0, ["rtx"]).gpu is None


def test_a_bundle_with_engines_names_the_targets_and_the_way_out(bundle):
    with pytest.raises(
        RuntimeError,
        match=r"this machine has no NVIDIA GPU that CUDA can use \(.+\); the bundle's engines are for sm89, sm120; "
        r"--backend ort runs it on any machine",
    ):
        Pipeline.load(bundle, backend="rtx")


def test_auto_runs_it_with_onnx_runtime_and_says_why(bundle):
    choice = Pipeline.load(bundle).opened.choice
    assert choice.backend == "ort"
    assert choice.reason.startswith("this machine has no NVIDIA GPU that CUDA can use (")


def test_a_bundle_without_graphs(bundle):
    manifest = replace(read_manifest(bundle), graphs={})
    (bundle / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(
        RuntimeError, match=r"no NVIDIA GPU .* sm89, sm120; the bundle holds no ONNX graphs: python -m export.build"
    ):
        Pipeline.load(bundle)


def test_the_package_is_loaded_and_versions_are_compared_with_it():
    assert trt.load_package("rtx") is tensorrt_rtx
    package = trt.TensorRT("rtx", tensorrt_rtx)
    assert package.title == f"TensorRT-RTX {tensorrt_rtx.__version__}"


def test_the_missing_package_is_named():
    with pytest.raises(
        trt.MissingPackageError, match=r"TensorRT is not installed .*; install the extra 'tensorrt'"
    ) as caught:
        trt.load_package("tensorrt")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan, "Error reading CUDA GPU properties"),  # what TensorRT-RTX says of a good plan here
        (lambda plan: b"\0" * len(plan), "malformed engine"),
        (lambda plan: plan[:20], "malformed engine"),
    ],
    ids=["no-gpu", "altered", "truncated"],
)
def test_a_plan_is_judged_by_its_header(tmp_path, plan, damage, message):
    file = tmp_path / "x.plan"
    file.write_bytes(damage(plan))
    with pytest.raises(BundleError, match=rf"TensorRT-RTX .* cannot run the plan .*x.plan: .*{message}"):
        trt.TensorRT("rtx", tensorrt_rtx).check_plan(file)


def test_the_reader_reads_as_tensorrt_asks(tmp_path, plan):
    """With TensorRT-RTX's own positions; its base class cannot be made without a driver."""
    file = tmp_path / "x.plan"
    file.write_bytes(plan)
    position = tensorrt_rtx.SeekPosition
    reader = trt._plan_reader(SimpleNamespace(IStreamReaderV2=object, SeekPosition=position), file)
    assert reader.read(10, 0) == plan[:10]
    assert reader.seek(5, position.CUR) and reader.read(3, 0) == plan[15:18]
    assert reader.seek(2, position.SET) and reader.read(3, 0) == plan[2:5]
    assert reader.seek(4, position.END) and reader.read(100, 0) == plan[-4:]
    assert reader.seek(-4, position.END) and reader.read(100, 0) == plan[-4:]
    assert reader.read(1, 0) == b"" and reader.problem is None
    assert not reader.seek(-1, position.SET) and isinstance(reader.problem, OSError)
    reader.file.close()
