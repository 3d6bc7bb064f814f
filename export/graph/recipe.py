"""What is quantized at which precision.

``fp8-weight-only`` makes every ``Linear`` of the text encoder and the transformers W8A16. ``fp8`` also quantizes the
activations of the matrix products inside the transformer blocks (qkv, o, w1, w2, w3) and, where asked for, of the
attention. The embedders, the time's layers (``t_embedding``, ``adaln``) and the final layer never get quantized
activations: they are 1 % of the arithmetic, and quantizing them too is the published way to get noise
(vllm-omni #2728: LPIPS 0.74 against 0.07).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from model.checkpoint.sources import Sources
from model.layers import Linear

# A point is an activation with one range; the products that read it, by the names of their weights' modules.
PRODUCTS = {
    "attention.qkv": ("attention.qkv",),
    "attention.o": ("attention.o",),
    "feed_forward.w1": ("feed_forward.w1", "feed_forward.w3"),
    "feed_forward.w2": ("feed_forward.w2",),
}
OPERANDS = ("attention.q", "attention.k", "attention.v")


@dataclass(frozen=True)
class Recipe:
    """The choices of one build."""

    activations: bool
    """Quantize the activations of the blocks' products."""
    attention: bool
    """Quantize the attention's operands too."""
    keep_base: tuple[str, ...] = ()
    """Shell patterns of points, such as ``dit_cond.layers.0.*``, whose activations stay in the base type."""

    def points(self, stage: str, layers: int) -> list[str]:
        """Quantized activations of a stage, as ``dit_cond.layers.0.attention.qkv``."""
        if not self.activations or not stage.startswith("dit_"):
            return []
        names = (*PRODUCTS, *OPERANDS) if self.attention else tuple(PRODUCTS)
        points = [f"{stage}.layers.{layer}.{name}" for layer in range(layers) for name in names]
        kept = set(self.kept(points))
        # One operand of an attention cannot stay behind alone.
        whole = {p.rpartition(".")[0] for p in kept if p.endswith(OPERANDS)}
        return [p for p in points if p not in kept and not (p.endswith(OPERANDS) and p.rpartition(".")[0] in whole)]

    def kept(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that a pattern keeps in the base type."""
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.keep_base)]


def unmatched(patterns: Sequence[str], stages: Iterable[str], layers: int) -> list[str]:
    """Patterns that match no point of any stage: most likely misspelt."""
    everything = Recipe(activations=True, attention=True)
    points = [point for stage in stages for point in everything.points(stage, layers)]
    return [pattern for pattern in patterns if not any(fnmatchcase(point, pattern) for point in points)]


def quantized_weights(module: nn.Module, stage: str, sources: Sources, recipe: Recipe) -> list[str]:
    """Weights of a stage that become codes.

    All of its ``Linear`` weights, but of a float checkpoint not those whose activation a pattern keeps: codes of a
    float8 checkpoint lose nothing, so they are used there as well.
    """
    kept = set()
    if stage.startswith("dit_"):
        for layer in range(len(module.layers)):
            for point, products in PRODUCTS.items():
                if recipe.kept([f"{stage}.layers.{layer}.{point}"]):
                    kept |= {f"layers.{layer}.{product}.weight" for product in products}
    weights = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)]
    return [weight for weight in weights if weight not in kept or sources[weight].coded]
