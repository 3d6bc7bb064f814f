"""Open the graphs of a bundle with the backend that was chosen for this machine."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.backend.choice import Choice, choose, needs_machine
from runtime.backend.machine import device_index, look
from runtime.backend.placement import graphs_on, stage_of
from runtime.bundle.manifest import Manifest
from runtime.errors import BackendError
from runtime.graph import Graph
from runtime.plan import Plan
from runtime.tensorrt.engines import open_engines


@dataclass(frozen=True)
class Opened:
    """The graphs of a bundle, ready to run."""

    graphs: dict[str, Graph]
    choice: Choice
    close: Callable[[], object]
    """Frees what the graphs hold; they cannot be called afterwards."""


def choose_backend(
    manifest: Manifest,
    stages: Sequence[str],
    backend: str = "auto",
    device: str = "auto",
    memory: str = "auto",
    most: int | None = None,
    plans: Sequence[Plan] = (),
) -> Choice:
    """What would run these stages here; see `runtime.backend.choice`. Looks for a GPU only if engines may run."""
    machine = None
    if needs_machine(manifest, backend, device):
        names = dict.fromkeys(engines.backend for engines in manifest.engines.values())
        machine = look(device_index(device) or 0, names)
    return choose(manifest, stages, machine, backend, device, memory, most, plans)


def choose_placed(
    manifest: Manifest,
    placed: Mapping[str, str],
    backend: str = "auto",
    memory: str = "auto",
    most: int | None = None,
    plans: Sequence[Plan] = (),
) -> dict[str, Choice]:
    """What would run the graphs of each device, as `choose_backend` finds it: engines on all devices, or on none.

    Raises:
        RequestError: as `choose_backend`.
        BackendError: the same; with two devices the message names the device.
    """
    choices = {}
    several = graphs_on(placed)
    for device, names in several.items():
        try:
            choices[device] = choose_backend(manifest, _stages(names), backend, device, memory, most, plans)
        except BackendError as error:
            raise BackendError(f"{device}: {error}" if len(several) > 1 else str(error)) from error
    if len({choice.engines is None for choice in choices.values()}) == 1:
        return choices
    # Automatic: one device can run engines and the other cannot, so both run the graphs, which the bundle then has.
    why = "; ".join(f"{device}: {choice.reason}" for device, choice in choices.items() if choice.engines is None)
    return {device: Choice("ort", device, why) for device in choices}


def open_graphs(
    manifest: Manifest,
    directory: Path,
    stages: Sequence[str],
    choice: Choice,
    threads: int | None,
    most: int | None = None,
    cuda_graphs: bool = True,
) -> Opened:
    """Open the stages of the bundle in `directory` with the backend that was chosen.

    Args:
        manifest: of the bundle.
        directory: of the bundle; its files have been checked.
        stages: that will run.
        choice: from `choose_backend`.
        threads: CPU threads for a graph of ONNX Runtime, None for one per core.
        most: bytes of memory that ONNX Runtime's weights may take on a CPU; None for what is available.
        cuda_graphs: launch engines as CUDA graphs; False launches each kernel by itself, for comparing.

    Raises:
        RequestError: `threads` is out of range.
        BackendError: the backend or the device is not there, or cannot run a graph; the message says what to do.
    """
    if choice.engines is not None:
        index = device_index(choice.device)
        assert choice.memory is not None and index is not None, "a choice of engines"
        graphs, close = open_engines(
            directory, manifest.files, stages, choice.engines, choice.memory, index, cuda_graphs=cuda_graphs
        )
        return Opened(graphs, choice, close)
    try:
        from runtime.backend import ort
    except ModuleNotFoundError as error:
        raise BackendError(
            f"ONNX Runtime is not installed ({error}); install the extra 'ort' for CPUs or 'ort-gpu' for CUDA"
        ) from error
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is installed but cannot be imported: {error}") from error
    try:
        open_graph = ort.opener(directory, choice.device, threads, most, [manifest.graphs[name] for name in stages])
    except RuntimeError as error:
        # A GPU was asked for, and engines would have run on it.
        raise BackendError(f"{error}; not on engines: {choice.reason}" if manifest.engines else str(error)) from error
    opened = {name: open_graph(name, manifest.graphs[name]) for name in stages}

    def release() -> None:
        for graph in opened.values():
            graph.close()

    return Opened(dict(opened), choice, release)


def _stages(names: Sequence[str]) -> list[str]:
    """The bundle's graphs that are opened under these names."""
    return list(dict.fromkeys(map(stage_of, names)))


def open_placed(
    manifest: Manifest,
    directory: Path,
    placed: Mapping[str, str],
    choices: Mapping[str, Choice],
    choice: Choice,
    threads: int | None,
    most: int | None = None,
    cuda_graphs: bool = True,
) -> Opened:
    """Open each graph on the device that `placed` names; `choice` is all of `choices`, as `together` made it.

    Raises as `open_graphs` does; then nothing is left on either device.
    """
    graphs: dict[str, Graph] = {}
    with contextlib.ExitStack() as opened:
        for device, names in graphs_on(placed).items():
            part = open_graphs(manifest, directory, _stages(names), choices[device], threads, most, cuda_graphs)
            opened.callback(part.close)
            graphs |= {name: part.graphs[stage_of(name)] for name in names}
        return Opened(graphs, choice, opened.pop_all().close)
