"""Which backend runs a bundle on this machine, and why. A pure function of what the bundle holds and what was found."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.backend.limits import activation_bytes
from runtime.backend.machine import Machine, device_index
from runtime.bundle.graph_specs import EngineSet
from runtime.bundle.manifest import Manifest
from runtime.errors import BackendError, RequestError, shown
from runtime.plan import Plan
from runtime.tensorrt.memory_plan import MemoryPlan, MemoryPlanError, plan_memory

BACKENDS = ("auto", "ort", "rtx", "tensorrt")
ENGINE_BACKENDS = ("rtx", "tensorrt")
"""In the order of preference."""
_EXTRAS = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt-cu13"}


@dataclass(frozen=True)
class Choice:
    """What will run the graphs."""

    backend: str
    """ort, rtx or tensorrt."""
    device: str
    """cpu, cuda or cuda:N."""
    reason: str
    """For the user."""
    engines: EngineSet | None = None
    """None for ort."""
    memory: MemoryPlan | None = None
    """None for ort."""


@dataclass(frozen=True)
class _Objection:
    """Why a set of engines cannot run; a later check that fails means a better match."""

    check: int
    text: str


_MEMORY = 4
"""The check for room: engines that fail it run here once there is more."""
_log = logging.getLogger(__name__)


def needs_machine(manifest: Manifest, backend: str, device: str) -> bool:
    """Whether the choice depends on the machine: only where engines may run."""
    return backend != "ort" and device != "cpu" and any(_sets(manifest, backend))


def choose(
    manifest: Manifest,
    stages: Sequence[str],
    machine: Machine | None,
    backend: str,
    device: str,
    memory: str,
    most: int | None = None,
    plans: Sequence[Plan] = (),
) -> Choice:
    """The best of what can run.

    Args:
        manifest: of the bundle.
        stages: that will run.
        machine: what was found; None where `needs_machine` is false.
        backend: one of `BACKENDS`; ``auto`` is the first engines that this machine can run, else ONNX Runtime. Engines
            that only lack free memory are no reason to run on a CPU instead: they raise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; engines run on CUDA, ONNX Runtime's ``auto`` is the CPU.
        memory: for engines, one of `runtime.tensorrt.memory_plan.MEMORY`.
        most: bytes of device memory that engines may take, of what is free; None for all of it.
        plans: what will be run, if it is known: engines then need room for those sizes only.

    Raises:
        RequestError: an unknown backend, device or memory level, or a combination that does not exist.
        BackendError: nothing that is allowed can run; the message says why and what can.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend is {shown(backend)}, wanted one of {', '.join(BACKENDS)}")
    on_gpu = device_index(device) is not None
    if backend in ENGINE_BACKENDS and not on_gpu:
        raise RequestError(f"device is {shown(device)}, and {backend} runs on GPUs only: wanted auto, cuda or cuda:N")
    sets = _sets(manifest, backend)
    if backend == "ort" or not on_gpu or (backend == "auto" and not sets):
        why = "as asked for" if backend == "ort" else "the CPU is asked for" if sets else "the bundle holds no engines"
        return _onnx(manifest, device, why)
    if not sets:
        held = ", ".join(engines.label for engines in manifest.engines.values()) or "none at all"
        raise BackendError(
            f"the bundle holds no {backend} engines, but {held}; python -m export.build --backend {backend} makes a "
            f"bundle with them{_way_out(manifest)}"
        )
    assert machine is not None, "needs_machine"
    found = [_try(manifest, engines, stages, machine, memory, most, plans) for engines in sets]
    if fits := [choice for choice in found if isinstance(choice, Choice)]:
        return fits[0]
    objection = max((o for o in found if isinstance(o, _Objection)), key=lambda o: o.check)
    if backend == "auto" and manifest.graphs and objection.check < _MEMORY:
        if objection.check:  # there is a GPU, which was expected to run
            _log.warning("running on ONNX Runtime: %s", objection.text)
        return _onnx(manifest, device, objection.text)
    raise BackendError(objection.text + _way_out(manifest))


def _sets(manifest: Manifest, backend: str) -> list[EngineSet]:
    wanted = ENGINE_BACKENDS if backend == "auto" else (backend,)
    return [engines for name in wanted for engines in manifest.engines.values() if engines.backend == name]


def _onnx(manifest: Manifest, device: str, why: str) -> Choice:
    if not manifest.graphs:
        held = ", ".join(engines.label for engines in manifest.engines.values()) or "nothing"
        raise BackendError(
            f"the bundle holds no ONNX graphs for ONNX Runtime, but {held} ({why}); python -m export.build "
            "--backend ort makes a bundle with them"
        )
    return Choice("ort", "cpu" if device == "auto" else device, why)


def _try(
    manifest: Manifest,
    engines: EngineSet,
    stages: Sequence[str],
    machine: Machine,
    memory: str,
    most: int | None,
    plans: Sequence[Plan],
) -> Choice | _Objection:
    """The checks, from what a machine lacks altogether to what only lacks room."""
    label, gpu = engines.label, machine.gpu
    if gpu is None:
        return _Objection(0, f"{machine.no_gpu}; the bundle's engines are for {_targets(_sets(manifest, 'auto'))}")
    if gpu.capability not in engines.targets:
        held = _targets(_sets(manifest, engines.backend))
        return _Objection(
            1,
            f"the GPU {gpu.name} is {gpu.capability}, and the bundle's {engines.backend} engines are for {held}; build "
            f"them for {gpu.capability}",
        )
    versions, problems = dict(machine.versions), dict(machine.problems)
    if engines.backend not in versions:
        return _Objection(2, f"the {label} cannot run: {problems[engines.backend]}")
    if (version := versions[engines.backend]) != engines.version:
        return _Objection(
            3,
            f"the {label} were built by version {engines.version}, and {version} is installed; only the same version "
            f'loads them: pip install "{_EXTRAS[engines.backend]}=={engines.version}", or build them again',
        )
    try:
        free = gpu.free if most is None else min(gpu.free, most)
        activations = activation_bytes(engines, stages, plans)
        plan = plan_memory(engines, manifest.files, stages, free, memory, activations)
    except MemoryPlanError as error:
        return _Objection(_MEMORY, str(error))
    return Choice(
        engines.backend, f"cuda:{gpu.index}", f"{label} on {gpu.name} ({gpu.capability}); {plan.reason}", engines, plan
    )


def _targets(sets: Sequence[EngineSet]) -> str:
    return ", ".join(dict.fromkeys(target for engines in sets for target in engines.targets))


def _way_out(manifest: Manifest) -> str:
    if manifest.graphs:
        return "; --backend ort runs it on any machine"
    return "; the bundle holds no ONNX graphs: python -m export.build --backend ort makes one that runs on any machine"
