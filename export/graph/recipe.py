"""What is quantized at which precision.

``fp8-weight-only`` makes every ``Linear`` of the text encoder and the transformers W8A16. ``fp8`` also quantizes the
activations of the matrix products inside the transformer blocks (qkv, o, w1, w2, w3) and, where asked for, of the
attention. ``int8`` quantizes weights and activations of these products, and of the same ones in the text encoder's
layers, and nothing else. The embedders, the time's layers (``t_embedding``, ``adaln``) and the final layer never get
quantized activations: they are 1 % of the arithmetic, and quantizing them too is the published way to get noise
(vllm-omni #2728: LPIPS 0.74 against 0.07).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from calibration.points import TEXT_ENCODER, layers_of, module_prefix, products_of
from export.graph.precision import CodeName, Precision
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Sources
from model.layers import Linear

OPERANDS = ("attention.q", "attention.k", "attention.v")


@dataclass(frozen=True)
class Recipe:
    """The choices of one build."""

    activations: bool
    """Quantize the activations of the transformer blocks' products."""
    attention: bool
    """Quantize the attention's operands too."""
    keep_base: tuple[str, ...] = ()
    """Shell patterns of points, such as ``dit_cond.layers.0.*``, whose activations stay in the base type."""
    text: bool = False
    """Quantize the activations of the text encoder's products as well."""

    def points(self, stage: str, layers: int) -> list[str]:
        """Quantized activations of a stage with that many blocks, as ``dit_cond.layers.0.attention.qkv``."""
        if not self.activations or (stage == TEXT_ENCODER and not self.text):
            return []
        operands = OPERANDS if self.attention and stage.startswith("dit_") else ()
        names = (*products_of(stage), *operands)
        points = [f"{stage}.layers.{layer}.{name}" for layer in range(layers) for name in names]
        kept = set(self.kept(points))
        # One operand of an attention cannot stay behind alone.
        whole = {p.rpartition(".")[0] for p in kept if p.endswith(OPERANDS)}
        return [p for p in points if p not in kept and not (p.endswith(OPERANDS) and p.rpartition(".")[0] in whole)]

    def of_stage(self, stage: str, layers: int) -> "Recipe":
        """What of it touches one stage with that many blocks; the patterns become the names that they match there."""
        return Recipe(
            bool(self.points(stage, layers)),
            self.attention and stage.startswith("dit_"),
            tuple(self.kept(_EVERYTHING.points(stage, layers))),
            self.text and stage == TEXT_ENCODER,
        )

    def kept(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that a pattern keeps in the base type."""
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.keep_base)]


_EVERYTHING = Recipe(activations=True, attention=True, text=True)


def recipe_of(types: Precision, attention: str = "base", keep_base: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a precision."""
    return Recipe(types.activations != "base", attention == "fp8", keep_base, text=types.codes == "int8")


def unmatched(patterns: Sequence[str], stages: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """Patterns that match no point of any stage: most likely misspelt."""
    points = [point for stage in stages for point in _EVERYTHING.points(stage, layers_of(checkpoint, stage))]
    return [pattern for pattern in patterns if not any(fnmatchcase(point, pattern) for point in points)]


def quantized_weights(
    module: nn.Module, stage: str, sources: Sources, recipe: Recipe, codes: CodeName = "fp8"
) -> list[str]:
    """Weights of a stage that become codes.

    In float8 all of its ``Linear`` weights, but of a float checkpoint not those whose activation a pattern keeps:
    codes of a float8 checkpoint lose nothing, so they are used there as well. In int8 those of the products whose
    activations are quantized.
    """
    blocks = getattr(module, "layers", None) or (module.encoder.layers if stage == TEXT_ENCODER else ())
    if codes == "int8":
        quantized = set(recipe.points(stage, len(blocks)))
        return [weight for point, weight in block_weights(stage, len(blocks)) if point in quantized]
    kept = {weight for point, weight in block_weights(stage, len(blocks)) if recipe.kept([point])}
    weights = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)]
    return [weight for weight in weights if weight not in kept or sources[weight].coded]


def block_weights(stage: str, layers: int) -> Iterable[tuple[str, str]]:
    """Each point of a stage with each weight that is multiplied by it."""
    for layer in range(layers):
        for point, products in products_of(stage).items():
            for product in products:
                yield f"{stage}.layers.{layer}.{point}", f"{module_prefix(stage, layer)}{product}.weight"
