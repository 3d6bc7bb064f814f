"""What a backend is: something that runs one graph of a bundle on numpy arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.manifest import GraphSpec, TensorSpec

BACKENDS = ("auto", "ort")


class Graph(Protocol):
    """A loaded graph. The array that a call returns belongs to the caller."""

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run the graph on one array for each of its inputs and return its output."""
        ...


OpenGraph = Callable[[str, GraphSpec], Graph]


def graph_opener(backend: str, device: str, directory: Path, threads: int | None) -> OpenGraph:
    """The function that loads graphs of the bundle in `directory` on `backend` and `device`.

    Args:
        backend: ``auto`` or ``ort``. ``auto`` is ONNX Runtime, the one backend of this version.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        directory: of the bundle.
        threads: CPU threads for a graph, None for one per core.

    Raises:
        ValueError: an unknown backend or device.
        RuntimeError: the backend or the device is not there; the message says what to install.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, wanted one of {', '.join(BACKENDS)}")
    try:
        from runtime import ort
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"ONNX Runtime is not installed ({error}); install the extra 'ort' for CPUs or 'ort-gpu' for CUDA"
        ) from error
    except ImportError as error:
        raise RuntimeError(f"ONNX Runtime is installed but cannot be imported: {error}") from error
    return ort.opener(directory, device, threads)


def check_feeds(name: str, inputs: tuple[TensorSpec, ...], feeds: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless `feeds` has the names, types and shapes of `inputs`.

    Dimensions that vary are only compared in rank here; the graph itself rejects sizes that do not fit together.
    """
    if set(feeds) != {spec.name for spec in inputs}:
        raise ValueError(f"graph {name} got the inputs {sorted(feeds)}, wanted {sorted(s.name for s in inputs)}")
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(wanted, str) or wanted == got for wanted, got in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            raise ValueError(
                f"graph {name} got {spec.name} as {array.dtype}{list(array.shape)}, "
                f"wanted {spec.dtype}{list(spec.shape)}"
            )
