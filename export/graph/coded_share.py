"""How much of a quantized model is in 8 bits: bytes of its weights, and floating-point operations of its products."""

from dataclasses import asdict, astuple, dataclass

from calibration.points import layers_of
from export.graph.precision import CodeName
from export.graph.recipe import OPERANDS, Recipe, block_weights, quantized_weights
from model.checkpoint.directory import Checkpoint

TEXT_TOKENS, IMAGE_TOKENS = 256, 4096
"""Sizes that the operations are counted for: a picture of 1024 x 1024 pixels and a prompt of 256 tokens."""


@dataclass(frozen=True)
class Share:
    """The part of 8-bit numbers in one stage."""

    bytes: int
    """Of the weights of matrix products, with the row scales of codes."""
    bytes_coded: int
    """Of the codes."""
    operations: int
    """Floating-point operations of one call: two for each multiplication and addition."""
    operations_coded: int
    """Those whose operands are both float8."""

    def to_dict(self) -> dict[str, float]:
        """Plain values with the two shares."""
        return asdict(self) | {
            "bytes_share": round(self.bytes_coded / self.bytes, 4),
            "operations_share": round(self.operations_coded / self.operations, 4),
        }

    def __add__(self, other: "Share") -> "Share":
        return Share(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def share(checkpoint: Checkpoint, stage: str, recipe: Recipe, base_bytes: int, codes: CodeName = "fp8") -> Share:
    """Count a transformer or the text encoder, whose attention is left out of the operations.

    `base_bytes` is the size of a weight that is not quantized.
    """
    module, sources = checkpoint.module(stage), checkpoint.sources[stage]
    names = [
        n for n in sources if n.endswith(".weight") and len(sources[n].shape) == 2 and "embed" not in n.split(".")[-2]
    ]
    coded = set(quantized_weights(module, stage, sources, recipe, codes))
    size = {name: sources[name].shape[0] * sources[name].shape[1] for name in names}
    rows = {"dit_cond": TEXT_TOKENS + IMAGE_TOKENS, "dit_uncond": IMAGE_TOKENS}.get(stage, TEXT_TOKENS)
    points = set(recipe.points(stage, layers_of(checkpoint, stage)))
    both = {weight for point, weight in block_weights(stage, layers_of(checkpoint, stage)) if point in points}
    operations = {name: 2 * weights * (rows if _per_row(name) else 1) for name, weights in size.items()}
    attention = fp8_attention = 0
    if stage.startswith("dit_"):
        attention = 4 * rows**2 * checkpoint.transformer.hidden_size
        fp8_attention = attention * sum(point.endswith(OPERANDS[0]) for point in points)
        attention *= checkpoint.transformer.num_layers
    return Share(
        bytes=sum(n + 4 * sources[name].shape[0] if name in coded else n * base_bytes for name, n in size.items()),
        bytes_coded=sum(size[name] for name in coded),
        operations=sum(operations.values()) + attention,
        operations_coded=sum(operations[name] for name in both) + fp8_attention,
    )


def _per_row(name: str) -> bool:
    """Whether a product runs for every row of the sequence; the time's layers run once a picture."""
    return not name.startswith("t_embedding") and "adaln" not in name
