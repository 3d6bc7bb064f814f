"""A stage in float32 that does not fit into memory: a product's weight is there while it is multiplied with.

Each weight is read once for all inputs, which therefore go in together, as a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from calibration.points import TEXT_ENCODER
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Weight
from model.layers import Linear

Read = Callable[[str, Weight], Tensor]
"""(name of a parameter, where it is) -> its value in float32."""


def stored_value(name: str, weight: Weight) -> Tensor:
    """A parameter as the checkpoint has it."""
    return weight.read()


def product_by_product(checkpoint: Checkpoint, stage: str, read: Read = stored_value) -> nn.Module:
    """The module of a text encoder or transformer; CheckpointError, when it is called, for a weight that is damaged."""
    module, sources = checkpoint.module(stage), checkpoint.sources[stage]
    passing: set[str] = set()
    for prefix, part in module.named_modules():
        # The transformers' small embedding is read by their own code; the text encoder's table is its largest weight.
        if not isinstance(part, Linear) and not (stage == TEXT_ENCODER and isinstance(part, nn.Embedding)):
            continue
        names = {f"{prefix}.{name}": name for name, _ in part.named_parameters(recurse=False)}
        passing |= names.keys()

        def load(part: nn.Module, inputs: object, names: dict[str, str] = names) -> None:
            part.load_state_dict({own: read(name, sources[name]) for name, own in names.items()}, assign=True)

        part.register_forward_pre_hook(load)
        part.register_forward_hook(_drop)
    stay = {name: read(name, sources[name]) for name in module.state_dict() if name not in passing}
    module.load_state_dict(stay, strict=False, assign=True)
    return module


def peak_bytes(checkpoint: Checkpoint) -> int:
    """Memory that the largest weight takes while it is read: 2 bytes a number as stored, and 4 in float32."""
    weights = (source for sources in checkpoint.sources.values() for source in sources.values())
    return 6 * max(torch.Size(weight.shape).numel() for weight in weights)


def _drop(module: nn.Module, inputs: object, output: object) -> None:
    module.to("meta")
