"""What a TensorRT engine is made of, told from the builder's list of its kernels, and whether that is as wanted.

- *Products* are kernels that multiply by a weight matrix; their type is that of their two operands, such as ``fp8``, or
  ``bf16 x fp8`` where a weight of 8 bits is dequantised on the way. *Row products* do so for the one row that the time
  gives, element by element.
- *Operations* are 2·M·N·K of each product. Sizes that vary count as ``rows``, the sequence length that the engine is
  tuned for; queries of fewer rows are not told apart. Those of attention are counted by themselves: 4·rows per element
  of the result, two products over a sequence of that length; they are 0 where the batch may vary.
- A *block* is what lies between the first product for a block's queries, keys or values and the first of the next
  block, in the order of the launches: signals and waits are not counted, and neither is the last block, which has no
  such end. Without a weight's name, which only dequantised weights have, the fused attentions are taken instead.
- An *opaque* entry of the list is one that `export.engine.listing` does not understand.
- A *copy* is a weight of 8 bits that is written to memory in 16 or 32 bits by a kernel without run-time inputs. It is
  repeated in each call, so it costs memory and time that 8 bits are meant to save.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from export.engine.kernel_roles import (
    CODES,
    FLOATS,
    GATE_AND_UP,
    QKV,
    BlockProduct,
    block_products,
    multiplies_activations,
    operands,
    operations,
    type_name,
    weight_copies,
)
from export.engine.kernels import BYTES, SYNCHRONISATION, Kernel


@dataclass(frozen=True)
class Build:
    """How an engine was built."""

    stage: str
    backend: str
    """rtx or tensorrt."""
    targets: tuple[str, ...]
    version: str
    attention: str
    """Type that was asked for the transformers' attention: fp8 or base."""
    rows: int
    """Sequence length that the profile which is reported is tuned for."""
    plan_bytes: int
    weight_bytes: int
    """Of the ONNX graph."""
    peak_bytes: int
    """Largest anonymous memory of the process during the build."""
    seconds: float
    profiles: tuple[int, ...] = ()
    """Sequence lengths that the optimization profiles are tuned for, in the plan's order."""


@dataclass(frozen=True)
class Use:
    """Kernels of one sort."""

    types: dict[str, int]
    """How many kernels have operands of each type."""
    operations: int
    """Floating-point operations of one call."""
    operations_coded: int
    """Those whose operands are both float8, or both int8."""

    @property
    def kernels(self) -> int:
        """How many there are."""
        return sum(self.types.values())


@dataclass(frozen=True)
class EngineReport:
    """One engine; the module's docstring says what is counted."""

    build: Build
    kernels: int
    """All but those that only order streams or compute sizes."""
    streams: int
    synchronisations: int
    """Signals and waits between streams."""
    kinds: dict[str, int]
    """Entries of the builder's list by its own names."""
    block_kernels: tuple[int, ...]
    """Of each transformer block but the last."""
    products: Use
    row_products: Use
    attentions: Use
    """Fused ones."""
    unfused: Use
    """Products of two activations: what an attention is made of that is not one kernel."""
    convolutions: dict[str, int]
    """By the type of their operands."""
    qkv_products: int
    """Kernels that compute queries, keys and values of a block: the largest number in any."""
    gate_products: int
    """The same for both halves of the feed-forward's first layer."""
    copies: int
    copy_bytes: int
    """Bytes that the copies write in one call."""
    problems: tuple[str, ...] = ()
    """What is not as it was asked for, by `audit`."""
    opaque: tuple[str, ...] = ()
    """Names of entries that are not understood, of all profiles; they are counted as kernels of their kinds."""

    @property
    def coded_share(self) -> float:
        """Part of the operations of products, without attention, that runs in 8 bits."""
        return _share(self.products, self.row_products)

    @property
    def coded_attention_share(self) -> float:
        """The same for attention, fused or not."""
        return _share(self.attentions, self.unfused)


@dataclass(frozen=True)
class Wanted:
    """What must be true of an engine."""

    fused: tuple[str, ...] = ()
    """Names of attention nodes that must be one kernel."""
    fused_fp8: tuple[str, ...] = ()
    """Those of them whose queries, keys and values must be float8."""
    products: tuple[str, ...] = ()
    """Products whose operands must both be codes, such as layers.0.attention.qkv."""
    codes: str = "fp8"
    """Type of the codes, ``fp8`` or ``int8``."""


def report(build: Build, listed: Sequence[Kernel], profile: int = 0) -> EngineReport:
    """Count the kernels of an engine for one of its profiles; whatever the builder lists, this does not fail."""
    kernels = [kernel for kernel in listed if kernel.profile == profile]
    running = [kernel for kernel in kernels if kernel.runs]
    copies = weight_copies(running)
    written = {tensor.name for copy in copies for tensor in copy.outputs}
    products = [kernel for kernel in running if kernel.is_product]
    unfused = [kernel for kernel in products if multiplies_activations(kernel, written)]
    weighted = [kernel for kernel in products if kernel not in unfused]
    names = {kernel: block_products(kernel, copies) for kernel in weighted}
    return EngineReport(
        build=build,
        kernels=len(running),
        streams=len({kernel.stream for kernel in running}),
        synchronisations=sum(kernel.kind in SYNCHRONISATION for kernel in kernels),
        kinds=dict(Counter(kernel.kind for kernel in kernels).most_common()),
        block_kernels=_block_kernels(running, names),
        products=_use(weighted, build.rows),
        row_products=_row_use([kernel for kernel in running if kernel.is_row_product]),
        attentions=_attention_use([kernel for kernel in running if kernel.is_attention], build.rows),
        unfused=_use(unfused, build.rows),
        convolutions=dict(Counter(type_name(operands(k)) for k in running if k.is_convolution).most_common()),
        qkv_products=_most(names, QKV),
        gate_products=_most(names, GATE_AND_UP),
        copies=len(copies),
        copy_bytes=sum(
            t.elements(build.rows) * BYTES[t.dtype] for copy in copies for t in copy.outputs if t.dtype in FLOATS
        ),
        opaque=tuple(f"{kernel.name} ({kernel.kind})" for kernel in listed if kernel.opaque),
    )


def audit(kernels: Sequence[Kernel], wanted: Wanted) -> list[str]:
    """What is not as wanted, one sentence for each layer; nothing if all is, in each of the profiles."""
    profiles = sorted({kernel.profile for kernel in kernels}) or [0]
    found = {
        profile: _audit([kernel for kernel in kernels if kernel.profile == profile], wanted) for profile in profiles
    }
    if len(profiles) == 1:
        return found[profiles[0]]
    return [f"in profile {profile} {problem}" for profile, problems in found.items() for problem in problems]


def _audit(kernels: Sequence[Kernel], wanted: Wanted) -> list[str]:
    running = [kernel for kernel in kernels if kernel.runs]
    problems = [problem for name in wanted.fused if (problem := _attention_problem(running, name, wanted))]
    copies = weight_copies(running)
    found: dict[str, list[Kernel]] = {}
    for kernel in running:
        if kernel.is_product or kernel.is_row_product:
            for product in block_products(kernel, copies):
                found.setdefault(str(product), []).append(kernel)
    for name in wanted.products:
        types = {type_name(operands(kernel)) for kernel in found.get(name, ())}
        if types != {wanted.codes}:
            seen = " and ".join(sorted(types)) or "no kernel"
            problems.append(f"the product {name} runs in {seen}, wanted {wanted.codes}")
    return problems


def _attention_problem(running: Sequence[Kernel], name: str, wanted: Wanted) -> str:
    parts = [kernel for kernel in running if name in kernel.layers]
    fused = [kernel for kernel in parts if kernel.is_attention]
    if len(fused) != 1:
        kernels = ", ".join(kernel.name for kernel in parts[:6]) or "none at all"
        return f"the attention {name} is not one fused kernel; its kernels are {kernels}"
    types = type_name(fused[0].inputs[:3])
    if name in wanted.fused_fp8 and types != "fp8":
        return f"the attention {name} runs in {types}, wanted fp8"
    return ""


def _block_kernels(running: Sequence[Kernel], names: dict[Kernel, set[BlockProduct]]) -> tuple[int, ...]:
    starts: dict[int, int] = {}
    for position, kernel in enumerate(running):
        for product in names.get(kernel, ()):
            if product.name in QKV:
                starts.setdefault(product.block, position)
    ordered = [starts[block] for block in sorted(starts)]
    if not ordered:
        ordered = [position for position, kernel in enumerate(running) if kernel.is_attention]
    return tuple(end - start for start, end in pairwise(ordered))


def _most(names: dict[Kernel, set[BlockProduct]], group: Sequence[str]) -> int:
    """The largest number of kernels in any block that compute a product of the group."""
    blocks = Counter(
        block for found in names.values() for block in {product.block for product in found if product.name in group}
    )
    return max(blocks.values(), default=0)


def _use(kernels: Sequence[Kernel], rows: int) -> Use:
    return _count({kernel: (type_name(operands(kernel)), operations(kernel, rows)) for kernel in kernels})


def _row_use(kernels: Sequence[Kernel]) -> Use:
    uses = {}
    for kernel in kernels:
        weights = [constant for constant in kernel.constants if constant.is_matrix]
        uses[kernel] = (type_name((*kernel.inputs[:1], *weights)), 2 * sum(weight.elements(1) for weight in weights))
    return _count(uses)


def _attention_use(kernels: Sequence[Kernel], rows: int) -> Use:
    uses = {}
    for kernel in kernels:
        uses[kernel] = (type_name(kernel.inputs[:3]), _attention_operations(kernel, rows))
    return _count(uses)


def _attention_operations(kernel: Kernel, rows: int) -> int:
    if not kernel.outputs:
        return 0
    result = kernel.outputs[0]
    # In a batch that varies heads and pictures are one dimension, and how many heads there are is not told.
    known = not (min(result.dims[:1], default=0) < 0 and min(result.dims[1:], default=0) < 0)
    return 4 * rows * result.elements(rows) if known else 0


def _count(uses: dict[Kernel, tuple[str, int]]) -> Use:
    return Use(
        types=dict(Counter(kind for kind, _ in uses.values()).most_common()),
        operations=sum(operations for _, operations in uses.values()),
        operations_coded=sum(operations for kind, operations in uses.values() if kind in CODES),
    )


def _share(*uses: Use) -> float:
    total = sum(use.operations for use in uses)
    return sum(use.operations_coded for use in uses) / total if total else 0.0
