"""ONNX Runtime backend. The only file that imports onnxruntime."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.bundle.graph_specs import GraphSpec
from runtime.errors import BackendError, ClosedError, RequestError, shown
from runtime.graph import check_feeds
from runtime.host_memory import available_memory

MAX_THREADS = 1024
_FATAL_ONLY = 4
_LAST = "vae_"
"""What the graphs' names begin with that run once for a picture, with the largest activations of all."""
_USABLE = 0.8
"""Part of the available memory that weights may take; activations and other programs need the rest."""


class OrtGraph:
    """One graph in an ONNX Runtime session."""

    def __init__(
        self,
        name: str,
        spec: GraphSpec,
        session: onnxruntime.InferenceSession,
        options: onnxruntime.RunOptions | None = None,
    ) -> None:
        """`options`: of every run."""
        self.name, self.spec, self.options = name, spec, options
        self.session: onnxruntime.InferenceSession | None = session

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run on one array for each input; RuntimeError when ONNX Runtime fails (out of memory, for one)."""
        if self.session is None:
            raise ClosedError(f"graph {self.name} was closed")
        check_feeds(self.name, self.spec.inputs, feeds)
        try:
            output: np.ndarray = self.session.run([self.spec.outputs[0].name], feeds, self.options)[0]
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise BackendError(f"graph {self.name} failed in ONNX Runtime: {error}") from error
        return output

    def close(self) -> None:
        """Free the session and its memory."""
        self.session = None


def opener(
    directory: Path, device: str, threads: int | None, most: int | None = None, graphs: Sequence[GraphSpec] = ()
) -> Callable[[str, GraphSpec], OrtGraph]:
    """A function that opens graphs of a bundle on ``cpu``, ``cuda`` or ``cuda:N``; see `runtime.backend.opening`.

    `graphs` are all that will be opened. Weights in int8 are packed if those of all fit into memory. If not, none are,
    and they are read from their files in each call: packing some would take the memory in which the system keeps the
    files of the others.
    """
    left = most
    integers = _fits(sum(spec.expanded_bytes for spec in graphs if spec.codes == "int8"), most)
    providers = _providers(device)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise RequestError(f"threads is {threads}, wanted 1 to {MAX_THREADS}")

    def open_graph(name: str, spec: GraphSpec) -> OrtGraph:
        if spec.compute == "bfloat16" and device == "cpu":
            raise BackendError(
                f"graph {name} computes in bfloat16, which ONNX Runtime cannot run on a CPU; "
                "use --device cuda, or build the bundle with --precision fp32 or fp16"
            )
        nonlocal left
        frugal = device == "cpu" and not (_fits(spec.expanded_bytes, left) and (integers or spec.codes != "int8"))
        if left is not None and not frugal:
            left -= spec.expanded_bytes
        shares = device == "cpu" and not frugal
        try:
            session = _session(directory / spec.onnx, spec.codes, providers, threads, frugal, shares)
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise BackendError(f"ONNX Runtime cannot load graph {name} from {spec.onnx}: {error}") from error
        if (wanted := _name(providers[0])) not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime could not start {wanted} for graph {name}: its CUDA or cuDNN libraries are missing "
                "or of another version; use --device cpu, or install them"
            )
        return OrtGraph(name, spec, session, _gives_back() if shares and name.startswith(_LAST) else None)

    return open_graph


def _session(
    file: Path,
    codes: str,
    providers: list[str | tuple[str, dict[str, str]]],
    threads: int | None,
    frugal: bool,
    shares: bool,
) -> onnxruntime.InferenceSession:
    """Load a graph.

    `frugal` leaves quantized weights in their file: each call multiplies float8 ones out one at a time, and packs int8
    ones. `shares`: the session takes its memory from the process's one arena.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # The default makes integer products of Q/DQ pairs. It takes float8 for int8 too: such graphs then fail to load
    # (ONNX Runtime 1.31).
    options.add_session_config_entry("session.disable_quant_qdq", "0" if codes == "int8" else "1")
    # Each session has its own threads, which spin for a while after a call: those of one transformer would take the
    # cores from the other's, and on two cores make a picture take twice as long (1.28 s against 0.65 s).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if shares:
        _share_memory(options)
    if not frugal:
        return onnxruntime.InferenceSession(file, options, providers=providers)
    # The arena would keep what the largest weight took for good.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if codes == "int8":
        options.add_session_config_entry("session.disable_prepacking", "1")
        return onnxruntime.InferenceSession(file, options, providers=providers)
    # The optimizers multiply weights out when they load, or quantize them again behind a transposition at every call;
    # and the default order begins with the weights of many products. In the file each weight stands before its product.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(file, options, providers=providers)


def _share_memory(options: onnxruntime.SessionOptions) -> None:
    """Let all sessions of the process take activations from one arena, and none of its weights.

    A session has an arena of its own else, and keeps what its largest run took for good: 1.8 GB for the demo after one
    picture of 1024 x 1024. With one arena the peak is lower, and a run of the last graph can give all of it back.
    """
    _make_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


@cache
def _make_arena() -> None:
    """ONNX Runtime's one arena of CPU memory. It grows by what is asked for, so that unused pieces can go again."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    no_limit, as_asked, default = 0, 1, -1
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(no_limit, as_asked, default, default))


def _gives_back() -> onnxruntime.RunOptions:
    """Options of a run behind which the arena's unused memory is given back to the system."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _fits(size: int, most: int | None) -> bool:
    """Whether the memory that is available now takes so many bytes of weights; true where nobody can tell.

    `most`: bytes that may be taken of it; None for no other limit.
    """
    limits = [limit for limit in (available_memory(), most) if limit is not None]
    return not limits or size <= _USABLE * min(limits)


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not match:
        raise RequestError(f"device is {shown(device)}, wanted cpu, cuda or cuda:N")
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise BackendError(
            f"this onnxruntime has no CUDA provider (it has {', '.join(available)}); "
            "replace it with the extra 'ort-gpu', or use --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": match[1] or "0"}), "CPUExecutionProvider"]


def _name(provider: str | tuple[str, dict[str, str]]) -> str:
    return provider if isinstance(provider, str) else provider[0]
