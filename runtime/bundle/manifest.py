"""The bundle's manifest: what the bundle holds, and what the runtime must know to run it.

Format, version 3. A bundle is a directory with ``manifest.json`` (UTF-8, one object with exactly the fields of
`Manifest`, of which those with a default may be missing) and the files that its ``files`` object lists; paths use
``/``, are relative, and never leave the directory. Unknown keys, other versions, missing keys and values of another
type are refused. The manifest is written last, so a directory that has one is complete.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from runtime.bundle.graph_specs import EngineSet, GraphSpec
from runtime.bundle.json_fields import DecodeError, decode, parse
from runtime.bundle.preview_spec import PreviewSpec
from runtime.constants import MANIFEST
from runtime.errors import BundleError, MissingFileError, RequestError, shown

FORMAT = "ideogram4-bundle"
VERSION = 3


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the diffusion transformers."""

    head_dim: int
    theta: float
    sections: tuple[int, int, int]
    """Lanes of the t, h and w axes."""

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2 or not self.theta > 0:
            raise ValueError(f"rope has head_dim {self.head_dim} and theta {self.theta}, wanted even and above 0")


@dataclass(frozen=True)
class PromptSpec:
    """How a prompt becomes tokens."""

    tokenizer: str
    """Path of the tokenizer.json in the bundle."""
    prefix: str
    suffix: str
    max_tokens: int
    """Largest number of tokens, prefix and suffix included."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"prompt.max_tokens is {self.max_tokens}, wanted at least 1")


@dataclass(frozen=True)
class SizeSpec:
    """Picture sizes that the model takes, in pixels."""

    multiple: int
    """Pixels per latent token on each axis: the VAE's factor times the patch."""
    minimum: int
    maximum: int
    default: int
    max_aspect: float
    """Longer side over shorter side, at most."""

    def __post_init__(self) -> None:
        if not 0 < self.multiple <= self.minimum <= self.default <= self.maximum or not self.max_aspect >= 1:
            raise ValueError(f"the picture sizes {self} are not in order: multiple, minimum, default, maximum")
        if any(size % self.multiple for size in (self.minimum, self.default, self.maximum)):
            raise ValueError(f"the picture sizes {self} are not all multiples of {self.multiple}")

    def check(self, width: int, height: int) -> None:
        """Raise RequestError unless a picture of `width` x `height` pixels can be made."""
        for name, value in (("width", width), ("height", height)):
            if not self.minimum <= value <= self.maximum:
                raise RequestError(f"{name} is {shown(value)}, wanted {self.minimum} to {self.maximum} pixels")
            if value % self.multiple:
                below = value - value % self.multiple
                raise RequestError(
                    f"{name} is {value}, wanted a multiple of {self.multiple}, such as {max(below, self.minimum)}"
                )
        if max(width, height) > self.max_aspect * min(width, height):
            raise RequestError(f"the size {width}x{height} is more elongated than {self.max_aspect:g} to 1")


@dataclass(frozen=True)
class FileSpec:
    """Size in bytes and SHA-256 of a file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class QuantizationSpec:
    """How the blocks of a bundle in float8 or int8 are quantized; the weights always are."""

    activations: Literal["none", "token", "max", "percentile", "mse"]
    """token: one scale for each token, found while running; none: weights only; the others: algorithm that chose a
    static range for each activation."""
    attention: Literal["fp8", "base"]
    keep_base: tuple[str, ...]
    """Patterns of activations that stay in the base type."""
    smoothing: float | None = None
    """Share of a channel's size that the weights have taken over; None if channels are as in the checkpoint."""


@dataclass(frozen=True)
class LoraSpec:
    """An adapter that was folded into the weights."""

    name: str
    """Name of its file."""
    sha256: str
    """Of the file."""
    scale: float
    """What its update was multiplied by, beside its own alpha / rank."""
    target: Literal["cond", "uncond", "both"]
    """The transformers that it was folded into."""


@dataclass(frozen=True)
class Manifest:
    """All that the runtime knows about a model; see the module's docstring for the file."""

    name: str
    """Name of the checkpoint that the bundle was made from."""
    fingerprint: str
    """Tells that checkpoint from another of the same sizes."""
    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8", "fp8-weight-only"]
    quantization: QuantizationSpec | None
    """None without float8."""
    timestep_dtype: Literal["float32", "bfloat16"]
    """Type that the time is rounded to before it enters a graph."""
    latent_stats: Literal["bn", "constants"]
    """Where the latent statistics inside the VAE graphs come from."""
    latent_channels: int
    """Channels of a latent token."""
    default_preset: str
    rope: RopeSpec
    prompt: PromptSpec
    sizes: SizeSpec
    graphs: dict[str, GraphSpec]
    """What ONNX Runtime runs, by stage; empty in a bundle of engines only."""
    engines: dict[str, EngineSet]
    """What TensorRT runs, by the name of the set, such as rtx-sm89-sm120."""
    files: dict[str, FileSpec]
    """Every file of the bundle but the manifest, by path."""
    tools: dict[str, str]
    """Versions of what built the bundle."""
    loras: tuple[LoraSpec, ...] = ()
    """Adapters in the weights, in the order in which they were folded."""
    preview: PreviewSpec | None = None
    """Colours of the latents, for previews; bundles made before there were any lack the key."""
    default_guidance: float | None = None
    """Guidance weight where a request names none, at each step that its preset guides; None for the preset's own."""

    def __post_init__(self) -> None:
        if self.preview is not None and len(self.preview.weights) != self.latent_channels:
            raise ValueError(
                f"preview has {len(self.preview.weights)} weights, wanted one for each of {self.latent_channels} "
                "latent channels"
            )

    @property
    def stages(self) -> frozenset[str]:
        """Stages that the bundle holds for every backend it has."""
        sets = [self.graphs] * bool(self.graphs) + [engines.graphs for engines in self.engines.values()]
        return frozenset.intersection(*map(frozenset, sets)) if sets else frozenset()

    @property
    def identity(self) -> dict[str, str]:
        """What tells one bundle's pictures from another's."""
        return {"bundle": self.name, "fingerprint": self.fingerprint, "precision": self.precision}

    def to_json(self) -> str:
        """Text of ``manifest.json``."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read the text of ``manifest.json``; BundleError names the key that is wrong."""
        try:
            data = parse(text, MANIFEST)
        except DecodeError as error:
            raise BundleError(str(error)) from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BundleError(f'{MANIFEST} does not say "format": "{FORMAT}"; this is not a bundle')
        version = data.pop("version", None)
        if version != VERSION or type(version) is not int:
            raise BundleError(f"the bundle's format version is {shown(version)}, this runtime reads {VERSION}")
        try:
            manifest = decode(data, cls, "the manifest")
        except ValueError as error:
            raise BundleError(f"{MANIFEST}: {error}") from error
        for path in manifest.files:
            check_path(path, MANIFEST)
        plans = (spec.plan for engines in manifest.engines.values() for spec in engines.graphs.values())
        for path in (manifest.prompt.tokenizer, *(graph.onnx for graph in manifest.graphs.values()), *plans):
            if path not in manifest.files:
                raise BundleError(f"{MANIFEST} uses {shown(path)} but does not list it in files")
        return manifest


def check_path(path: str, where: str) -> None:
    """Raise BundleError unless the path of a file, which `where` lists, is a plain one inside the bundle."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path or str(parts) != path:
        raise BundleError(f"{where} lists the path {shown(path)}, wanted a plain relative path inside the bundle")


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` of a bundle.

    Raises:
        FileNotFoundError: there is no such directory, or no manifest in it.
        BundleError: the manifest is damaged or of another version.
    """
    file = directory / MANIFEST
    if not directory.is_dir():
        raise MissingFileError(
            f"there is no bundle directory {directory}; python -m export.build makes one, and "
            "--bundle names one elsewhere"
        )
    if not file.is_file():
        raise MissingFileError(f"{directory} holds no {MANIFEST}: it is not a bundle, or its build did not finish")
    try:
        return Manifest.from_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text: {error}") from error
