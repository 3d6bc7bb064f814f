"""What the kernels of an engine do for the model: which product of which block, in which types, and how large."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt, prod

from export.engine.kernels import BYTES, UNKNOWN, Kernel, Tensor

QKV = ("attention.qkv", "self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_AND_UP = (
    "feed_forward.w13",
    "feed_forward.w1",
    "feed_forward.w3",
    "mlp.gate_up_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)
OTHERS = ("attention.o", "self_attn.o_proj", "feed_forward.w2", "mlp.down_proj")
"""Products of a block, as the weights' modules are called in the transformers and in the text encoder."""
FLOATS = ("BFloat16", "Half", "Float")
CODES = ("fp8", "int8")
"""Short names of the types of quantized operands."""
_SHORT = {"FP8": "fp8", "Int8": "int8", "BFloat16": "bf16", "Half": "fp16", "Float": "fp32"}
_NAMES = "|".join(map(re.escape, (*QKV, *GATE_AND_UP, *OTHERS)))
# What quantizes a product's input may be part of the kernel before it, what scales or splits its result of the next.
_AROUND = r"_quantize|_scaled|_float32|_parts"
_PRODUCT = re.compile(rf"(?:^|\.)layers\.(\d+)\.({_NAMES})(?=[._]|$)(?!.*(?:_token_|(?:{_AROUND})$))")


@dataclass(frozen=True)
class BlockProduct:
    """A matrix product of a block."""

    block: int
    name: str
    """One of `QKV`, `GATE_AND_UP` and `OTHERS`."""

    def __str__(self) -> str:
        return f"layers.{self.block}.{self.name}"


def block_products(kernel: Kernel, copies: Sequence[Kernel]) -> set[BlockProduct]:
    """Which products a kernel computes, told by the names of its weights; `copies` name the weights that they wrote."""
    read = {tensor.name for tensor in kernel.inputs}
    sources = [copy for copy in copies if any(tensor.name in read for tensor in copy.outputs)]
    found = (_PRODUCT.search(layer) for part in (kernel, *sources) for layer in part.layers)
    return {BlockProduct(int(match[1]), match[2]) for match in found if match}


def weight_copies(running: Iterable[Kernel]) -> list[Kernel]:
    """Kernels that write a quantized weight in more bits; one that only rearranges such a copy is one too."""
    copies: list[Kernel] = []
    written: set[str] = set()
    for kernel in running:
        fixed = all(tensor.name in written for tensor in kernel.inputs)
        coded = any(_SHORT.get(constant.dtype) in CODES for constant in kernel.constants)
        outputs = [tensor.name for tensor in kernel.outputs if tensor.dtype in FLOATS]
        if fixed and outputs and (coded or kernel.inputs):
            copies.append(kernel)
            written.update(outputs)
    return copies


def multiplies_activations(kernel: Kernel, written: set[str]) -> bool:
    """Whether no operand of a product is a weight or the copy of one."""
    activations = [tensor for tensor in kernel.inputs if tensor.name not in written and tensor.is_matrix]
    return len(activations) > 1 and not any(constant.is_matrix for constant in kernel.constants)


def operands(kernel: Kernel) -> tuple[Tensor, ...]:
    """The two factors of a product or a convolution, not what is added to it."""
    weights = [constant for constant in kernel.constants if constant.is_matrix]
    if not weights and len(kernel.inputs) > 1:
        return kernel.inputs[:2]
    if not weights:  # a weight of one column or row
        weights = sorted(kernel.constants, key=lambda constant: constant.elements(1), reverse=True)
    # A residual is added in at least as many bits, and may stand in front.
    first = min(kernel.inputs, key=lambda tensor: BYTES.get(tensor.dtype, 8), default=None)
    return (*((first,) if first else ()), *weights[:1])


def type_name(tensors: Iterable[Tensor]) -> str:
    """``fp8``, or ``bf16 x fp8`` where the types differ; ``unknown`` where nothing is known of the operands."""
    return " x ".join(dict.fromkeys(_SHORT.get(tensor.dtype, tensor.dtype.lower()) for tensor in tensors)) or UNKNOWN


def operations(kernel: Kernel, rows: int) -> int:
    """2·M·N·K, from the sizes M·K, K·N and M·N of operands and result, whichever is transposed; 0 if not known."""
    factors = operands(kernel)
    if len(factors) < 2 or not kernel.outputs:
        return 0
    batch = prod(rows if size < 0 else size for size in factors[1].dims[:-2]) or 1
    sizes = [tensor.elements(rows) for tensor in (*factors, kernel.outputs[0])]
    return 2 * isqrt(prod(sizes) // batch)
