"""The kernels of an engine, from the listing that TensorRT's builder prints at the end of a build.

With ``ProfilingVerbosity.DETAILED`` and a logger of VERBOSE severity the builder prints one line for each kernel, in
the order of their launches; no GPU is needed (TensorRT-RTX 1.7.1):

    Name: node_linear_5_myl0_8, LayerType: gemm, Inputs: [ { Name: …, Dimensions: [1,-1,4608], …, Datatype: FP8, … }],
    Constants: [ … ], Outputs: [ … ], TacticName: …, StreamId: 0, Metadata: [ONNX Layer: node_linear_5]…

``gemm`` is a matrix product and ``correlation`` a convolution; ``runtime_fusion`` is either of them with what happens
to its operands or its result, such as a weight that is dequantised on the way. ``kgen`` is a generated kernel of
whatever else was fused, the fused attention among them. ``signal`` and ``wait`` order the streams and
``shape_call`` computes sizes on the host; none of the three is a kernel, but the listing has them. The names of fused
ones tell their operations, shortened to four letters; names that became too long are cut and end in ``Etc``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

SYNCHRONISATION = ("signal", "wait")
NOT_KERNELS = (*SYNCHRONISATION, "shape_call")
"""Entries of a listing that run nothing on the GPU."""
BYTES = {"FP8": 1, "Int8": 1, "UInt8": 1, "Bool": 1, "BFloat16": 2, "Half": 2, "Float": 4, "Int32": 4, "Int64": 8}
"""Size of an element, by the listing's word for its type."""

_WORD = re.compile("[A-Z][a-z]*")
_TYPE = re.compile(r"Datatype: (\w+)")


@dataclass(frozen=True)
class Tensor:
    """An operand or a result of a kernel."""

    name: str
    dtype: str
    """The listing's word, such as FP8, BFloat16, Half, Float or Int64."""
    dims: tuple[int, ...]
    """-1 for a size that varies."""

    def elements(self, rows: int) -> int:
        """Number of elements when the sizes that vary are all `rows`."""
        return prod(rows if size < 0 else size for size in self.dims)

    @property
    def is_matrix(self) -> bool:
        """Whether more than one of the sizes is not 1, as in a weight and unlike in a bias or a scale."""
        return sum(size != 1 for size in self.dims) > 1


@dataclass(frozen=True)
class Kernel:
    """One entry of a listing."""

    name: str
    kind: str
    """The listing's LayerType, such as gemm."""
    stream: int
    inputs: tuple[Tensor, ...]
    """What is known at run time only."""
    constants: tuple[Tensor, ...]
    """Weights, scales and the like, in the order of use."""
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]
    """Names of the ONNX nodes that it computes a part of."""

    @property
    def runs(self) -> bool:
        """Whether it is a kernel at all; see the module's docstring."""
        return self.kind not in NOT_KERNELS

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, a fused attention not counted."""
        return self.kind == "gemm" or "Fc" in self._operations

    @property
    def is_row_product(self) -> bool:
        """Whether it multiplies single rows with weight matrices, element by element and then summed."""
        return self.kind == "kgen" and "MulSum" in self.name and any(c.is_matrix for c in self.constants)

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution."""
        return self.kind == "correlation" or "Corr" in self._operations

    @property
    def is_attention(self) -> bool:
        """Whether it is a fused attention."""
        return "_mha" in self.name.lower()

    @cached_property
    def _operations(self) -> list[str]:
        """``["Cast", "Mul", "Fc"]`` for ``__myl_CastMulFc_myl0_6``; the names of other kernels come from ONNX."""
        return _WORD.findall(self.name.split("_")[3]) if self.name.startswith("__myl_") else []


def parse_kernels(lines: Iterable[str]) -> tuple[Kernel, ...]:
    """The last listing of a build's log.

    Args:
        lines: the builder's messages, oldest first. One may hold several lines.

    Raises:
        ValueError: there is no listing, most likely because the verbosity was lower; or one that is not understood.
    """
    kernels: list[Kernel] = []
    for message in lines:
        # Not splitlines: it also splits at control characters, which metadata may hold.
        for line in message.split("\n"):
            if line.rpartition("] ")[2].strip() == "Layers:":  # a logger may have put the severity in front
                kernels.clear()
            start = line.find("Name: ")
            if start >= 0 and ", LayerType: " in line:
                kernels.append(_kernel(line[start:]))
    if not kernels:
        raise ValueError("the build's log lists no kernels; it needs detailed profiling verbosity and verbose messages")
    return tuple(kernels)


def _kernel(line: str) -> Kernel:
    head, inputs, rest = line.partition(", Inputs: [")
    name, _, kind = head.removeprefix("Name: ").partition(", LayerType: ")
    operands, outputs, rest = rest.partition("], Outputs: [")
    results, tactic, rest = rest.partition("], TacticName: ")
    if not (inputs and outputs and tactic):
        raise ValueError(f"an entry of the build's list of kernels is not understood: {line[:200]}")
    taken, _, constants = operands.partition("], Constants: [")
    settings, _, metadata = rest.partition(", Metadata: ")
    stream = settings.partition("StreamId: ")[2].partition(",")[0].strip()
    return Kernel(
        name=name,
        kind=kind.strip(),
        stream=int(stream) if stream.isdecimal() else 0,
        inputs=_tensors(taken),
        constants=_tensors(constants),
        outputs=_tensors(results),
        layers=_layers(metadata),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    """The tensors of `` { Name: a, Dimensions: [1,-1], …, Datatype: FP8, Format: … }, { … }``."""
    tensors = []
    for part in text.split("{ Name: ")[1:]:
        name, dimensions, rest = part.partition(", Dimensions: [")
        dims, bracket, rest = rest.partition("]")
        found = _TYPE.search(rest)
        try:
            sizes = tuple(int(size) for size in dims.split(",") if size.strip())
        except ValueError:
            found = None
        if not (dimensions and bracket and found):
            raise ValueError(f"a tensor in the build's list of kernels is not understood: {part[:200]}")
        tensors.append(Tensor(name, found[1], sizes))
    return tuple(tensors)


def _layers(metadata: str) -> tuple[str, ...]:
    """The names of ``[ONNX Layer: a]\x1f[ONNX Layer: b]``; strip takes the separator, which Python calls a space."""
    return tuple(part.strip().removesuffix("]") for part in metadata.split("[ONNX Layer: ")[1:])
