"""Which backend runs a bundle, and what the user is told."""

from dataclasses import replace

import pytest
from support.engines.bundles import GB, STAGES, engine_set, manifest, with_profiles
from support.engines.bundles import picture_plan as plan

from runtime.backend.choice import choose, needs_machine
from runtime.backend.machine import Machine
from runtime.backend.opening import choose_backend
from runtime.errors import BackendError
from runtime.tensorrt.cuda import Gpu

ADA = Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", 13000, 23 * GB, 24 * GB)
VERSIONS = (("rtx", "1.7.1.116"), ("tensorrt", "11.4.0.106"))
MACHINE = Machine(ADA, "", VERSIONS)
NO_GPU = Machine(None, "this machine has no NVIDIA GPU that CUDA can use (no CUDA-capable device is detected)")
RTX, TENSORRT = engine_set(), engine_set("tensorrt", ("sm89",), "11.4.0.106")


def pick(bundle, machine=MACHINE, backend="auto", device="auto", memory="auto", most=None, plans=()):
    return choose(bundle, STAGES, machine, backend, device, memory, most, plans)


# What can run


def test_engines_come_before_onnx_and_rtx_before_tensorrt():
    got = pick(manifest(TENSORRT, RTX))
    assert (got.backend, got.device, got.engines) == ("rtx", "cuda:0", RTX)
    assert got.memory.level == "staged"
    assert got.reason == (
        "rtx engines for sm89, sm120 on NVIDIA GeForce RTX 4090 (sm89); staged: needs 19.7 GB of 23.0 GB free, "
        "resident needs 30.9 GB"
    )
    assert pick(manifest(TENSORRT)).backend == "tensorrt"


def test_the_set_for_this_gpu_is_taken():
    ada, blackwell = engine_set(targets=("sm89",)), engine_set(targets=("sm120",))
    assert pick(manifest(blackwell, ada)).engines is ada
    assert pick(manifest(blackwell, ada), Machine(replace(ADA, capability="sm120"), "", VERSIONS)).engines is blackwell


def test_a_backend_can_be_asked_for():
    both = manifest(RTX, TENSORRT)
    assert pick(both, backend="tensorrt").backend == "tensorrt"
    got = pick(both, backend="ort")
    assert (got.backend, got.device, got.engines, got.reason) == ("ort", "cpu", None, "as asked for")
    assert pick(both, backend="ort", device="cuda:1").device == "cuda:1"


def test_the_cpu_can_be_asked_for():
    got = pick(manifest(RTX), None, device="cpu")
    assert (got.backend, got.device, got.reason) == ("ort", "cpu", "the CPU is asked for")


def test_the_machine_is_looked_at_only_for_engines():
    assert needs_machine(manifest(RTX), "auto", "auto") and needs_machine(manifest(RTX), "rtx", "cuda")
    assert not needs_machine(manifest(), "auto", "auto")
    assert not needs_machine(manifest(RTX), "ort", "cuda")
    assert not needs_machine(manifest(RTX), "auto", "cpu")
    assert not needs_machine(manifest(RTX), "tensorrt", "auto")
    assert choose_backend(manifest(), STAGES).reason == "the bundle holds no engines"


# auto without engines that run: ONNX Runtime, and why; not for want of memory, which may be there in a minute

SHORT = Machine(replace(ADA, free=3 * GB), "", VERSIONS)
REFUSED = [
    (NO_GPU, "no NVIDIA GPU that CUDA can use .no CUDA-capable device is detected.; the bundle's engines are for sm89"),
    (
        Machine(replace(ADA, name="NVIDIA H100", capability="sm90"), "", VERSIONS),
        "the GPU NVIDIA H100 is sm90, and the bundle's rtx engines are for sm89, sm120; build them for sm90",
    ),
    (
        Machine(ADA, "", (), (("rtx", "TensorRT-RTX is not installed (x); install the extra 'rtx'"),)),
        "the rtx engines for sm89, sm120 cannot run: TensorRT-RTX is not installed .x.; install the extra 'rtx'",
    ),
    (
        Machine(ADA, "", (("rtx", "1.8.0.1"),)),
        "were built by version 1.7.1.116, and 1.8.0.1 is installed; only the same version loads them: "
        'pip install "tensorrt_rtx==1.7.1.116", or build them again',
    ),
    (
        SHORT,
        "need 30.9 GB resident, 19.7 GB staged, 10.7 GB swapped, and 3.0 GB of device memory are free",
    ),
]


@pytest.mark.parametrize(("machine", "why"), REFUSED, ids=["no-gpu", "target", "package", "version", "memory"])
def test_why_not(machine, why, caplog):
    """The same reason, as a remark where ONNX Runtime can do it and as an error where it may not or cannot."""
    if machine is SHORT:
        with pytest.raises(
            BackendError, match=rf"{why}; close other programs .*; --backend ort runs it on any machine"
        ):
            pick(manifest(RTX), machine)
        assert not caplog.text
    else:
        got = pick(manifest(RTX), machine)
        assert (got.backend, got.device) == ("ort", "cpu")
        with pytest.raises(RuntimeError, match=why):
            raise RuntimeError(got.reason)
        assert (f"running on ONNX Runtime: {got.reason}" in caplog.text) == (machine.gpu is not None)
    with pytest.raises(RuntimeError, match=rf"{why}.*; --backend ort runs it on any machine$"):
        pick(manifest(RTX), machine, backend="rtx")
    for backend in ("auto", "rtx"):
        with pytest.raises(
            RuntimeError, match=rf"{why}.*; the bundle holds no ONNX graphs: python -m export.build --backend ort makes"
        ):
            pick(manifest(RTX, onnx=False), machine, backend=backend)


def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu():
    assert pick(manifest(RTX), NO_GPU, device="cuda").device == "cuda", "ONNX Runtime then says that it has none"


def test_without_a_gpu_all_targets_are_named():
    sets = engine_set(targets=("sm89",)), engine_set(targets=("sm120",)), engine_set("tensorrt", ("sm90",), "11")
    with pytest.raises(RuntimeError, match=r"the bundle's engines are for sm89, sm120, sm90; --backend ort runs it"):
        pick(manifest(*sets), NO_GPU, backend="rtx")


def test_the_closest_set_is_reported():
    """One set is for another GPU, the other only of another version: that is what can be mended."""
    sets = engine_set(targets=("sm120",)), engine_set(targets=("sm89",), version="1.6.0.1")
    with pytest.raises(RuntimeError, match=r"the rtx engines for sm89 were built by version 1.6.0.1"):
        pick(manifest(*sets), backend="rtx")


# What cannot be asked for


def test_no_such_engines():
    with pytest.raises(
        RuntimeError,
        match=r"holds no tensorrt engines, but rtx engines for sm89, sm120; python -m export.build --backend tensorrt",
    ):
        pick(manifest(RTX), backend="tensorrt")
    with pytest.raises(RuntimeError, match=r"the bundle holds no rtx engines, but none at all"):
        pick(manifest(), None, backend="rtx")


def test_no_onnx_graphs():
    with pytest.raises(
        RuntimeError, match=r"holds no ONNX graphs for ONNX Runtime, but rtx engines .*\(as asked for\)"
    ):
        pick(manifest(RTX, onnx=False), backend="ort")
    with pytest.raises(RuntimeError, match=r"holds no ONNX graphs .* \(the CPU is asked for\)"):
        pick(manifest(RTX, onnx=False), None, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda', wanted one of auto, ort, rtx, tensorrt"),
        ({"device": "gpu"}, "device is 'gpu', wanted auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device is 'cuda:x', wanted"),
        ({"backend": "rtx", "device": "cpu"}, "device is 'cpu', and rtx runs on GPUs only: wanted auto, cuda or"),
        ({"memory": "all"}, "memory is 'all', wanted one of auto, resident, staged"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        pick(manifest(RTX), **options)


def test_several_that_load_together_share_the_free_memory():
    """Each sees 46 GB; two that may take 23 GB each are staged, and four with 11.5 GB each take turns within."""
    large = Machine(replace(ADA, free=46 * GB, total=48 * GB), "", VERSIONS)
    assert pick(manifest(RTX), large).memory.level == "resident"
    for most, level in ((46, "resident"), (23, "staged"), (11.5, "swapped"), (99, "resident")):
        chosen = pick(manifest(RTX), large, most=int(most * GB))
        assert chosen.memory.level == level and chosen.memory.needed <= most * GB
    with pytest.raises(BackendError, match=r"and 5\.0 GB of device memory are free"):
        pick(manifest(RTX), large, backend="rtx", most=5 * GB)


def test_room_for_what_will_run():
    """Profiles of 1 and 3 GB: where only small pictures come, a level fits that does not for all."""
    engines = with_profiles(RTX, (256, 768), (256, 2048))
    graphs = {
        name: replace(
            spec,
            profiles=tuple(replace(p, activation_bytes=n * GB) for p, n in zip(spec.profiles, (1, 3), strict=True)),
        )
        for name, spec in engines.graphs.items()
    }
    bundle = manifest(replace(engines, graphs=graphs))
    tight = Machine(replace(ADA, free=20 * GB), "", VERSIONS)
    assert pick(bundle, tight).memory.level == "swapped"
    assert pick(bundle, tight, plans=[plan(512, 512)]).memory.level == "staged"
    assert pick(bundle, tight, plans=[plan(512, 512), plan(1024, 1024)]).memory.level == "swapped"
