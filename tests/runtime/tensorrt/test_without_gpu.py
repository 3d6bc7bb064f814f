"""The real packages on a machine without a GPU: a bundle with a plan that TensorRT-RTX built says what it needs.

What comes after finding a GPU cannot run here; the fakes of tests/runtime stand in for it.
"""

import hashlib
import logging
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart

from runtime import Pipeline
from runtime.backend.machine import look
from runtime.bundle.graph_specs import EngineSet, EngineSpec, Profile, TensorSpec
from runtime.bundle.manifest import FileSpec, read_manifest
from runtime.errors import BackendError, BundleError
from runtime.tensorrt import package as trt
from runtime.tensorrt.callbacks import Callbacks
from runtime.tensorrt.cuda import NoGpuError, find_gpu, load_cudart
from runtime.tensorrt.validity import check_plan

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
    with pytest.raises(NoGpuError, match=r"this machine has no NVIDIA GPU that CUDA can use \(.+\)") as caught:
        find_gpu(load_cudart(), 0)
    if not cudart.cudaDriverGetVersion()[1]:
        assert str(caught.value).endswith("(no NVIDIA driver is installed)")
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


NO_PLAN = r"it is no plan of TensorRT-RTX, or it is damaged; build the bundle's engines again$"
NO_REASON = "Error reading CUDA GPU properties: .*"
"""What TensorRT-RTX logs of everything that it takes for a plan, on a machine without a driver."""


def changed(plan, position, value):
    """A plan with another byte in its header."""
    return plan[:position] + bytes([value]) + plan[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda plan: plan, BackendError, NO_REASON),
        (lambda plan: plan[:64], BackendError, NO_REASON),  # the header alone: the rest is not looked at
        (lambda plan: b"", BundleError, NO_PLAN),
        (lambda plan: plan[:20], BundleError, NO_PLAN),
        (lambda plan: plan[:63], BundleError, NO_PLAN),
        (lambda plan: b"\0" * len(plan), BundleError, NO_PLAN),
        (lambda plan: b"\x08\x0a\x12\x07pytorch" + bytes(100), BundleError, NO_PLAN),  # how an ONNX file begins
        (lambda plan: b"PK\x03\x04" + plan[4:], BundleError, NO_PLAN),
        (lambda plan: b"ftrt" + plan[4:], BundleError, NO_PLAN),
        (lambda plan: changed(plan, 3, plan[3] ^ 1), BundleError, NO_PLAN),
        (lambda plan: changed(plan, 25, 6), BackendError, NO_REASON),  # version 1.6: recognised with a driver only
    ],
    ids=["good", "header", "empty", "short", "one-less", "zeros", "onnx", "zip", "foreign", "magic", "version"],
)
def test_a_plan_is_judged_by_its_header(tmp_path, plan, damage, kind, message):
    """By the real library; with the driver's own fault where that is known."""
    file = tmp_path / "x.plan"
    file.write_bytes(damage(plan))
    package = trt.TensorRT("rtx", tensorrt_rtx)
    with pytest.raises(kind, match=rf"TensorRT-RTX .* cannot run the plan .*x.plan: {message}"):
        check_plan(package, file)
    known = NO_PLAN if message is NO_PLAN else "no NVIDIA driver is installed$"
    with pytest.raises(kind, match=rf"cannot run the plan .*x.plan: {known}"):
        check_plan(package, file, "no NVIDIA driver is installed")


def test_a_plan_of_another_version_is_noticed(plan, tmp_path):
    """Without a driver only in the log; with one it is among the reasons."""
    said = []
    logger = logging.getLogger("runtime.tensorrt.package")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        runtime = trt.TensorRT("rtx", tensorrt_rtx).runtime
        runtime.get_engine_validity(changed(plan, 25, 6)[: runtime.engine_header_size])
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    assert any(text.startswith("The engine has been created with TensorRT-RTX version") for text in said)


def test_what_a_callback_raises_is_lost_in_the_bindings(plan, capfd):
    """Why `Callbacks` exists: the real bindings print an exception and go on, Ctrl-C's too."""

    class Log(tensorrt_rtx.ILogger):
        def __init__(self):
            tensorrt_rtx.ILogger.__init__(self)

        def log(self, severity, msg):
            raise KeyboardInterrupt("pressed")

    log = Log()
    runtime = tensorrt_rtx.Runtime(log)
    validity, found = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    assert (validity, found) == (tensorrt_rtx.EngineValidity.INVALID, 0)
    assert "[ERROR] Exception caught in log(): KeyboardInterrupt: pressed" in capfd.readouterr().err


def test_ctrl_c_in_a_callback_of_the_real_library(plan, tmp_path):
    """It comes out of the call during which it was pressed."""
    file = tmp_path / "x.plan"
    file.write_bytes(plan)
    package = trt.TensorRT("rtx", tensorrt_rtx)

    class Pressed(logging.Handler):
        def emit(self, record):
            os.kill(os.getpid(), signal.SIGINT)

    handler, logger = Pressed(), logging.getLogger("runtime.tensorrt.package")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            check_plan(package, file)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def test_the_reader_reads_as_tensorrt_asks(tmp_path, plan):
    """With TensorRT-RTX's own positions; its base class cannot be made without a driver."""
    file = tmp_path / "x.plan"
    file.write_bytes(plan)
    position = tensorrt_rtx.SeekPosition
    reader = trt._plan_reader(SimpleNamespace(IStreamReaderV2=object, SeekPosition=position), file, Callbacks())
    assert reader.read(10, 0) == plan[:10]
    assert reader.seek(5, position.CUR) and reader.read(3, 0) == plan[15:18]
    assert reader.seek(2, position.SET) and reader.read(3, 0) == plan[2:5]
    assert reader.seek(4, position.END) and reader.read(100, 0) == plan[-4:]
    assert reader.seek(-4, position.END) and reader.read(100, 0) == plan[-4:]
    assert reader.read(1, 0) == b"" and reader.problem is None
    assert not reader.seek(-1, position.SET) and isinstance(reader.problem, OSError)
    reader.file.close()
