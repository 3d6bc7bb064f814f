"""Ordinary TensorRT before and around a build, on a stand-in: versions, GPUs, memory, and the timing cache."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx
from support.engines import fake_builder
from support.engines.fake_builder import FakeBuilder, build, entries, machine
from support.engines.fake_cuda import FakeCudart
from support.engines.real import SIZES, SMALL_SIZES

from export.build.preflight import check_needs, needs_of
from export.build.variant import Variant
from export.demo_model import DEMO_CHECKPOINT
from export.engine.plan import EngineOptions
from export.engine.targets import check_gpu
from export.engine.timing_cache import TIMING_CACHE, TimingCache, carry_over
from export.engine.version import check_version
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from model.checkpoint.directory import open_checkpoint
from runtime.backend.machine import Machine
from runtime.tensorrt import cuda, package
from runtime.tensorrt.cuda import Gpu

H100 = Gpu(0, "NVIDIA H100", "sm90", 13000, 80 * 10**9, 80 * 10**9)


# Before the build


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11", "10.99.0", "11.0.0.114", "11.4.0.106", "11.20.1"])
def test_versions_that_read_the_graphs(version):
    check_version(version)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.9.0.34", "10.14.1.48.post1", "12.0.0", "", "unknown", "11"])
def test_versions_that_do_not(version):
    with pytest.raises(RuntimeError, match=rf"^TensorRT {re.escape(version)} is installed, and .* 10.15, 10.16 or 11:"):
        check_version(version)


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        ("sm72", "int8", "NVIDIA H100 .sm72., and TensorRT takes sm75 .Turing. and later"),
        ("sm75", "bf16", "cannot compute in bfloat16. Choose --precision fp16 for it"),
        ("sm87", "fp8", "cannot compute in float8. Choose --precision int8, or --precision fp16 or bf16, for it"),
        ("sm80", "fp8-weight-only", "cannot compute in float8"),
        ("sm75", "int8", "cannot compute in bfloat16. Choose --precision int8 --base fp16 for it"),
        ("sm87", "int8", None),
        ("sm89", "fp8", None),
        ("sm90", "fp8", None),
        ("sm100", "fp8-weight-only", None),
        ("sm110", "bf16", None),
        ("sm121", "fp8", None),
        ("sm75", "fp16", None),
    ],
)
def test_what_gpus_compute(capability, precision, message):
    gpu, types = replace(H100, capability=capability), precision_of(precision, None, "tensorrt")
    if message is None:
        assert check_gpu(gpu, types) == capability
    else:
        with pytest.raises(ValueError, match=message):
            check_gpu(gpu, types)


@pytest.mark.parametrize(
    ("module", "capability", "precision", "message"),
    [
        (
            FakeBuilder("10.3.0"),
            (8, 7),
            "int8",
            "TensorRT 10.3.0 is installed, and --backend tensorrt needs 10.15, 10.16",
        ),
        (FakeBuilder(), (8, 7), "fp8", "Fake RTX 4090 (sm87), which cannot compute in float8. Choose --precision int8"),
    ],
)
def test_nothing_is_begun_that_cannot_end(tmp_path, monkeypatch, capsys, module, capability, precision, message):
    machine(monkeypatch, module, capability)
    assert build(tmp_path / "bundle", precision=precision) == 1
    assert message in capsys.readouterr().err
    assert not module.builds and list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing(tmp_path, monkeypatch, capsys):
    cudart = FakeCudart(capability=(9, 0))
    monkeypatch.setattr(cuda, "load_cudart", lambda: cudart)

    def missing(backend):
        raise package.MissingPackageError("TensorRT is not installed (x); install the extra 'tensorrt'")

    monkeypatch.setattr(package, "load_package", missing)
    assert build(tmp_path / "bundle") == 1
    assert "TensorRT is not installed (x); install the extra 'tensorrt'" in capsys.readouterr().err


def needs(backend, profiles=1):
    """Of the demo's conditional transformer and its VAE."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    types = precision_of("bf16", None, backend)
    engine = EngineOptions(backend, ("sm90",), (SIZES, SMALL_SIZES)[:profiles])
    variant = Variant(backend, types, recipe_of(types), engine, True)
    return needs_of(variant, checkpoint, ["dit_cond", "vae_decoder"], Path())


def test_needs_of_tensorrt():
    """Five times the largest weights in memory, and once on the device; room for a plan of each profile."""
    rtx, one, two = needs("rtx"), needs("tensorrt"), needs("tensorrt", 2)
    assert one.device > 0 and rtx.device == 0 and "device" not in str(rtx)
    largest, process = one.device, 1 << 30
    assert one.memory == process + 5 * largest and rtx.memory == process + int(1.2 * largest)
    assert two.disk - one.disk == 2 * (40 << 20) and one.disk == rtx.disk
    assert f"{one.memory / 1e9:.1f} GB of memory, {one.device / 1e9:.1f} GB of device memory and about" in str(one)


def test_device_memory_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("export.build.preflight.available_memory", lambda: 10**12)
    wanted = replace(needs("tensorrt"), device=10**8)
    small = replace(H100, free=5 * 10**7)
    monkeypatch.setattr("export.build.preflight.look", lambda index, backends: Machine(small))
    with pytest.raises(MemoryError, match=r"the build needs 0.1 GB of device memory, but only 0.1 GB of NVIDIA H100"):
        check_needs(wanted, tmp_path / "bundle")
    monkeypatch.setattr("export.build.preflight.look", lambda index, backends: Machine(H100))
    check_needs(wanted, tmp_path / "bundle")


# The timing cache


@pytest.fixture
def config():
    return fake_builder.IBuilderConfig(FakeBuilder())


def test_a_cache_is_made_extended_and_kept(tmp_path, config, capsys):
    file = tmp_path / TIMING_CACHE
    cache = TimingCache(file)
    cache.attach(config)
    assert config.cache.entries == []
    config.cache.entries.append("a")
    cache.keep(config)
    again = fake_builder.IBuilderConfig(FakeBuilder())
    TimingCache(file).attach(again)
    assert again.cache.entries == ["a"] and capsys.readouterr().err == ""


@pytest.mark.parametrize("other", [FakeBuilder("10.15.1.29"), FakeBuilder(capability="sm89")], ids=["version", "gpu"])
def test_a_cache_of_another_kind_is_replaced(tmp_path, config, capsys, other):
    file = tmp_path / TIMING_CACHE
    theirs = fake_builder.IBuilderConfig(other)
    cache = TimingCache(file)
    cache.attach(theirs)
    theirs.cache.entries.append("a")
    cache.keep(theirs)
    assert entries(file) == ["a"]
    cache.attach(config)
    assert config.cache.entries == []
    message = f"warning: the timing cache {file} is ignored: it is of another version of TensorRT or another GPU\n"
    assert capsys.readouterr().err == message
    cache.keep(config)
    assert entries(file) == []


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[100:], lambda data: b"", lambda data: b"\n"],
    ids=["cut", "longer", "no line", "empty", "empty line"],
)
def test_a_damaged_cache_is_replaced(tmp_path, config, capsys, damage):
    file = tmp_path / TIMING_CACHE
    cache = TimingCache(file)
    cache.attach(config)
    config.cache.entries.append("a")
    cache.keep(config)
    file.write_bytes(damage(file.read_bytes()))
    cache.attach(config)
    assert config.cache.entries == []
    assert capsys.readouterr().err == f"warning: the timing cache {file} is ignored: it is damaged\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX says that it makes no use of a cache
def test_the_real_objects_of_a_cache(tmp_path, capsys):
    """Of TensorRT-RTX: empty ones, but it gives, takes and serializes them without a driver."""
    file = tmp_path / TIMING_CACHE
    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    for _ in range(2):
        config = builder.create_builder_config()
        cache = TimingCache(file)
        cache.attach(config)
        cache.keep(config)
        assert file.stat().st_size > 100
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_read_or_written(tmp_path, config, capsys):
    file = tmp_path / TIMING_CACHE
    file.mkdir()
    cache = TimingCache(file)
    cache.attach(config)
    cache.keep(config)
    error = capsys.readouterr().err
    assert "timing.cache cannot be read: " in error and "timing.cache cannot be kept: " in error


def test_no_cache_at_all(tmp_path, config, monkeypatch, capsys):
    monkeypatch.setattr(config, "create_timing_cache", lambda content: None)
    cache = TimingCache(tmp_path / TIMING_CACHE)
    cache.attach(config)
    cache.keep(config)
    assert list(tmp_path.iterdir()) == [] and "is not made: TensorRT gives none" in capsys.readouterr().err


def test_the_cache_of_the_bundle_that_is_replaced(tmp_path):
    earlier, folder = tmp_path / TIMING_CACHE, tmp_path / "folder"
    own = folder / TIMING_CACHE
    folder.mkdir()
    carry_over([], folder)
    assert not own.exists()
    earlier.write_bytes(b"old")
    carry_over([earlier], folder)
    assert own.read_bytes() == b"old"
    own.unlink()
    own.write_bytes(b"own")
    carry_over([own, earlier], folder)
    assert own.read_bytes() == b"own" and earlier.read_bytes() == b"old"


REAL = {
    fake_builder.ITimingCache: tensorrt_rtx.ITimingCache,
    fake_builder.IOptimizationProfile: tensorrt_rtx.IOptimizationProfile,
    fake_builder.IBuilderConfig: tensorrt_rtx.IBuilderConfig,
    fake_builder.OnnxParser: tensorrt_rtx.OnnxParser,
    fake_builder.Builder: tensorrt_rtx.Builder,
}


@pytest.mark.parametrize("fake", REAL, ids=lambda fake: fake.__name__)
def test_the_stand_ins_have_the_real_parameters(fake):
    """As many as one of the overloads in the real method's docstring, and the same names."""
    methods = {name: method for name, method in vars(fake).items() if hasattr(method, "__code__") and name[0] != "_"}
    assert methods
    for name, method in methods.items():
        real = re.sub(r" = [^,)]*", "", getattr(REAL[fake], name).__doc__)
        signatures = [re.findall(r"(\w+): ", found) for found in re.findall(rf"\b{name}\((self: .*)\) ->", real)]
        assert list(method.__code__.co_varnames[: method.__code__.co_argcount]) in signatures, (name, signatures)


def test_types_and_flags_are_the_real_ones():
    for name in ("STRONGLY_TYPED",):
        assert hasattr(tensorrt_rtx.NetworkDefinitionCreationFlag, name)
    assert hasattr(tensorrt_rtx.ProfilingVerbosity, "DETAILED") and hasattr(
        tensorrt_rtx.BuilderFlag, "WEIGHT_STREAMING"
    )
