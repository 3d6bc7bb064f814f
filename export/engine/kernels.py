"""The kernels of an engine, as TensorRT lists them; `export.engine.listing` reads the lists.

``gemm`` is a matrix product and ``correlation`` a convolution; ``runtime_fusion`` is either of them with what happens
to its operands or its result, such as a weight that is dequantised on the way. ``kgen`` is a generated kernel of
whatever else was fused, the fused attention among them. ``signal`` and ``wait`` order the streams and
``shape_call`` computes sizes on the host; none of the three is a kernel, but the listing has them. The names of fused
ones tell their operations, shortened to four letters; names that became too long are cut and end in ``Etc``.

TensorRT runs what its compiler does not take with other layers: ``MatrixMultiply``, ``CaskConvolution``, ``Reformat``.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod

SYNCHRONISATION = ("signal", "wait")
NOT_KERNELS = (*SYNCHRONISATION, "shape_call")
"""Entries of a listing that run nothing on the GPU."""
UNKNOWN = "unknown"
BYTES = {"FP8": 1, "Int8": 1, "UInt8": 1, "Bool": 1, "BFloat16": 2, "Half": 2, "Float": 4, "Int32": 4, "Int64": 8}
"""Size of an element, by the listing's word for its type."""

_WORD = re.compile("[A-Z][a-z]*")
_PRODUCTS = ("gemm", "MatrixMultiply")


@dataclass(frozen=True)
class Tensor:
    """An operand or a result of a kernel."""

    name: str
    dtype: str
    """The listing's word, such as FP8, BFloat16, Half, Float or Int64; `UNKNOWN` where it tells none of them."""
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
    profile: int = 0
    """Index of the optimization profile that it is for."""
    opaque: bool = False
    """Whether its entry is not understood: then it has a name at most."""

    @property
    def runs(self) -> bool:
        """Whether it is a kernel at all; see the module's docstring."""
        return self.kind not in NOT_KERNELS

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, a fused attention not counted."""
        return self.kind in _PRODUCTS or "Fc" in self._operations

    @property
    def is_row_product(self) -> bool:
        """Whether it multiplies single rows with weight matrices, element by element and then summed."""
        return self.kind == "kgen" and "MulSum" in self.name and any(c.is_matrix for c in self.constants)

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution."""
        return self.kind == "correlation" or "Conv" in self.kind or "Corr" in self._operations

    @property
    def is_attention(self) -> bool:
        """Whether it is a fused attention."""
        return "_mha" in self.name.lower()

    @cached_property
    def _operations(self) -> list[str]:
        """``["Cast", "Mul", "Fc"]`` for ``__myl_CastMulFc_myl0_6``; the names of other kernels come from ONNX."""
        return _WORD.findall(self.name.split("_")[3]) if self.name.startswith("__myl_") else []
