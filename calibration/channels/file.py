"""The file of channel maxima, ``channels.safetensors``.

A safetensors file with one float32 vector (channels,) for each tensor that enters products, by its name as
``dit_cond.layers.0.attention.qkv``, and one entry of metadata, ``ideogram4-channels``: a JSON object with ``version`` 1
and exactly the fields of `Measured`. Other versions, unknown or missing keys, and tensors that are not the model's are
refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calibration.origin import Model, Prompts
from calibration.points import TEXT_ENCODER, inputs_of, layers_of, quantized_stages
from model.checkpoint.directory import Checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.hub import model_name
from model.checkpoint.lora import without_loras
from runtime.atomic_files import write_whole
from runtime.bundle.json_fields import DecodeError, decode, parse
from runtime.errors import SAID, SHOWN, cut, shown

KEY = "ideogram4-channels"
VERSION = 1
_LISTED = 3


class ChannelsError(ValueError):
    """Channel maxima are damaged, unusable, or of another model."""


@dataclass(frozen=True)
class Measured:
    """What was measured, and how."""

    model: Model
    prompts: Prompts
    steps: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seed: int
    """Of the first prompt; each prompt has the next one."""


@dataclass(frozen=True, eq=False)
class Channels:
    """The largest magnitudes (channels,) float32 of all tensors that enter products."""

    measured: Measured
    maxima: Mapping[str, Tensor] = field(repr=False)

    def digest(self) -> str:
        """Hexadecimal digits that differ for other maxima."""
        return maxima_digest(self.maxima)


def maxima_digest(maxima: Mapping[str, Tensor]) -> str:
    """Hexadecimal digits that differ for other maxima."""
    digest = hashlib.sha256()
    for name in sorted(maxima):
        digest.update(name.encode() + maxima[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_channels(channels: Channels, file: Path) -> None:
    """Write the file whole or not at all; an existing one is replaced."""
    about = {"version": VERSION, **asdict(channels.measured)}
    tensors = {name: value.contiguous() for name, value in channels.maxima.items()}
    write_whole(file, save(tensors, {KEY: json.dumps(about, ensure_ascii=False)}))


def read_channels(file: Path) -> Channels:
    """Read the file.

    Raises:
        OSError: it cannot be read.
        ChannelsError: it is damaged, of another format or version, or holds a magnitude that is not a finite number.
    """
    with file.open("rb"):
        pass  # safetensors' own message for a missing file does not name it
    try:
        with safe_open(file, "pt") as stored:
            about = (stored.metadata() or {}).get(KEY)
            tensors = {name: stored.get_tensor(name) for name in stored.offset_keys()}
    except SafetensorError as error:
        raise ChannelsError(f"{file}: {cut(str(error), SAID)}{_hint(file)}") from error
    if about is None:
        raise ChannelsError(f"{file}: no metadata {KEY!r}; this is not a file of channel maxima")
    measured = _decode(file, about)
    for name, value in tensors.items():
        if value.dtype != torch.float32 or value.ndim != 1 or not (torch.isfinite(value) & (value >= 0)).all():
            raise ChannelsError(
                f"{file}: {cut(name, SHOWN)} holds other values than finite float32 magnitudes of channels"
            )
    return Channels(measured, tensors)


def _decode(file: Path, text: str) -> Measured:
    try:
        data = parse(text, f"{file}: {KEY}")
    except DecodeError as error:
        raise ChannelsError(str(error)) from error
    version = data.pop("version", None) if isinstance(data, dict) else None
    if version != VERSION or type(version) is not int:
        raise ChannelsError(f"{file}: the format version is {shown(version)}, wanted {VERSION}")
    try:
        return decode(data, Measured, "the file")
    except DecodeError as error:
        raise ChannelsError(f"{file}: {error}") from error


def _hint(file: Path) -> str:
    with file.open("rb") as stream:
        is_json = stream.read(1) == b"{"
    if not is_json:
        return ""
    return "; it looks like static ranges, and int8 needs channel maxima: python -m calibration --measure channels"


def wanted_widths(checkpoint: Checkpoint) -> dict[str, int]:
    """Every tensor that enters products in the text encoder and the transformers, and its number of channels."""
    widths = {}
    for stage in quantized_stages(checkpoint):
        config = checkpoint.text_encoder if stage == TEXT_ENCODER else checkpoint.transformer
        size, inside = config.hidden_size, config.intermediate_size
        heads = config.num_attention_heads * getattr(config, "head_dim", 0) or size
        by_point = {"w2": inside, "down_proj": inside, "o_proj": heads}
        for name in inputs_of(stage, layers_of(checkpoint, stage)):
            widths[name] = by_point.get(name.rpartition(".")[2], size)
    return widths


def check_channels(channels: Channels, checkpoint: Checkpoint) -> None:
    """Raise ChannelsError unless the maxima are those of this checkpoint's model, complete and without others.

    A checkpoint with LoRAs takes those that were measured without them: factors for smoothing need not be exact.
    """
    name = model_name(checkpoint.directory)
    known = {fingerprint(checkpoint), fingerprint(without_loras(checkpoint))}
    measured = channels.measured.model
    if measured.fingerprint not in known:
        raise ChannelsError(
            f"the channel maxima were measured on {cut(measured.name, SHOWN)} (fingerprint "
            f"{cut(measured.fingerprint, SHOWN)}), which is not "
            f"the model {name} (fingerprint {fingerprint(checkpoint)}); calibrate this one"
        )
    wanted = wanted_widths(checkpoint)
    found = {tensor: len(value) for tensor, value in channels.maxima.items()}
    if wrong := sorted(tensor for tensor in wanted.keys() | found.keys() if wanted.get(tensor) != found.get(tensor)):
        listed = ", ".join(cut(tensor, SHOWN) for tensor in wrong[:_LISTED]) + (", …" if len(wrong) > _LISTED else "")
        raise ChannelsError(f"the channel maxima do not fit {name}: {len(wrong)} tensors differ in size ({listed})")
