"""The activations that may be quantized, by name, and hooks on them.

A *point* is a place in a block; a *tensor* is a point of one layer of one stage, with the name
``<stage>.layers.<layer>.<point>``, as in ``dit_cond.layers.0.attention.qkv``. The embedders, the time's layers and the
final layer have no points: they are never quantized.

Nothing here imports torch, so that the names can be used without it.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.checkpoint.directory import Checkpoint

STAGES = ("dit_cond", "dit_uncond")
TEXT_ENCODER = "text_encoder"
PRODUCTS = {
    "attention.qkv": ("attention.qkv",),
    "attention.o": ("attention.o",),
    "feed_forward.w1": ("feed_forward.w1", "feed_forward.w3"),
    "feed_forward.w2": ("feed_forward.w2",),
}
"""Inputs of a transformer block's products, and the names of the modules that are multiplied by each."""
TEXT_PRODUCTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The same of a layer of the text encoder."""
POINTS = (
    "attention.qkv",
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.o",
    "feed_forward.w1",
    "feed_forward.w2",
)
"""In the order of computation: inputs of the Linears qkv, o, w1 (which w3 shares) and w2, and the attention's operands
after rotation. q and k count as multiplied by head_dim^-1/4 each, which together is the attention's 1/sqrt(head_dim):
so they enter a float8 attention."""
SCALED = ("attention.q", "attention.k")
_MODULES = {"feed_forward.w1": "feed_forward", "self_attn.q_proj": "self_attn", "mlp.gate_proj": "mlp"}
"""Modules that take a point's tensor where that is not the module of the point's name. w1 and w3 have one input, so a
hook that changes it must sit where both see the change."""

Act = Callable[[str, "Tensor"], "Tensor | None"]
"""Called with a tensor's name and its value; what it returns, if not None, takes the value's place."""


def products_of(stage: str) -> Mapping[str, tuple[str, ...]]:
    """The inputs of a block's products and the modules of each; empty for the VAE."""
    if stage in STAGES:
        return PRODUCTS
    return TEXT_PRODUCTS if stage == TEXT_ENCODER else {}


def quantized_stages(checkpoint: "Checkpoint") -> tuple[str, ...]:
    """The text encoder and the transformers that a checkpoint has, in the order in which they run."""
    return tuple(stage for stage in (TEXT_ENCODER, *STAGES) if stage in checkpoint.sources)


def layers_of(checkpoint: "Checkpoint", stage: str) -> int:
    """How many blocks a text encoder or transformer has."""
    from model.text_encoder import TAPS  # needs torch, which the names do not

    return TAPS[-1] + 1 if stage == TEXT_ENCODER else checkpoint.transformer.num_layers


def module_prefix(stage: str, layer: int) -> str:
    """Where the modules of a block are, as ``layers.0.``."""
    return f"encoder.layers.{layer}." if stage == TEXT_ENCODER else f"layers.{layer}."


def names_of(stage: str, layers: int) -> list[str]:
    """The tensors of a transformer with that many layers, in the order of computation."""
    return [f"{stage}.layers.{layer}.{point}" for layer in range(layers) for point in POINTS]


def inputs_of(stage: str, layers: int) -> list[str]:
    """The tensors that enter products, of a transformer or the text encoder."""
    return [f"{stage}.layers.{layer}.{point}" for layer in range(layers) for point in products_of(stage)]


def tensor_names(checkpoint: "Checkpoint") -> list[str]:
    """The tensors of all transformers of a checkpoint; a distilled one has no ``dit_uncond``."""
    stages = [stage for stage in STAGES if stage in checkpoint.sources]
    return [name for stage in stages for name in names_of(stage, checkpoint.transformer.num_layers)]


def point_of(name: str) -> str:
    """``attention.qkv`` of ``dit_cond.layers.0.attention.qkv``."""
    return name.split(".", 3)[3]


@contextlib.contextmanager
def hooked(module: "nn.Module", stage: str, act: Act, names: Collection[str]) -> Iterator[None]:
    """Call `act` on tensors of a transformer or text encoder whenever it runs, as long as the context lasts.

    Args:
        module: an `Ideogram4Transformer` or a `TextStage`.
        stage: ``dit_cond``, ``dit_uncond`` or ``text_encoder``, for the names.
        act: gets q and k multiplied by head_dim^-1/4; what it returns for them is divided by that again.
        names: tensors to call it on.
    """
    handles = []
    try:
        for name in names:
            handles.append(_module_of(module, stage, name).register_forward_pre_hook(_hook(name, act)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module_of(module: "nn.Module", stage: str, name: str) -> "nn.Module":
    _, _, layer, point = name.split(".", 3)
    return module.get_submodule(f"{module_prefix(stage, int(layer))}{_MODULES.get(point, point)}")


def _hook(name: str, act: Act) -> Callable[["nn.Module", tuple], tuple | None]:
    scaled = point_of(name) in SCALED

    def hook(module: "nn.Module", inputs: tuple) -> tuple | None:
        x = inputs[0]
        factor = x.shape[-1] ** -0.25  # used for q and k only, whose last dimension is head_dim
        changed = act(name, x * factor if scaled else x)
        if changed is None:
            return None
        return (changed / factor if scaled else changed, *inputs[1:])

    return hook
