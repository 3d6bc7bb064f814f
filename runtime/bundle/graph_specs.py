"""What a manifest says of one graph: its inputs and outputs, its file, and the sizes that an engine takes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A dimension is a number, or the name of a size that may vary."""

    name: str
    dtype: Literal["float32", "int64", "uint8"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One stage of the model."""

    onnx: str
    """Path of the ONNX file in the bundle."""
    compute: Literal["float32", "float16", "bfloat16"]
    """Type of the matrix multiplications and convolutions inside; the boundary types are in the tensor specs."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    expanded_bytes: int = 0
    """Memory that the weights take when float8 ones are multiplied out into the compute type, and int8 ones are packed;
    0 if there are none."""
    codes: Literal["none", "fp8", "int8"] = "none"
    """Type of quantized weights."""


@dataclass(frozen=True)
class SizeRange:
    """What a named size of a graph may be, and the value that the engine was tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"the range {self} is not in order: minimum, optimum, maximum")

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum


@dataclass(frozen=True)
class Profile:
    """An optimization profile: sizes that an engine has kernels for."""

    sizes: dict[str, SizeRange]
    """A range for every named size of the inputs."""
    activation_bytes: int
    """Device memory beside the weights at the largest sizes: an estimate; the loaded engine knows better."""


@dataclass(frozen=True)
class EngineSpec:
    """One stage as a TensorRT plan."""

    plan: str
    """Path of the plan in the bundle."""
    compute: Literal["float32", "float16", "bfloat16"]
    """Type of the matrix multiplications that are not float8."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    """In the plan's order, all of the same named sizes."""

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError(f"the engine {self.plan} has no profiles, wanted at least one")
        names = sorted(self.profiles[0].sizes)
        for profile in self.profiles[1:]:
            if sorted(profile.sizes) != names:
                raise ValueError(
                    f"the engine {self.plan} has profiles of the sizes {names} and {sorted(profile.sizes)}, wanted the "
                    "same in each"
                )

    @property
    def activation_bytes(self) -> int:
        """Device memory beside the weights at the largest sizes of all profiles."""
        return max(profile.activation_bytes for profile in self.profiles)

    def ranges(self, name: str) -> tuple[SizeRange, ...]:
        """The profiles' ranges of a named size; none for a size that the engine does not have."""
        return tuple(profile.sizes[name] for profile in self.profiles if name in profile.sizes)


@dataclass(frozen=True)
class EngineSet:
    """Plans of all stages for some GPUs."""

    backend: Literal["rtx", "tensorrt"]
    targets: tuple[str, ...]
    """Compute capabilities, such as sm89."""
    version: str
    """Of the TensorRT or TensorRT-RTX that built the plans; only the same one loads them."""
    attention: Literal["fp8", "base"]
    """Type of the transformers' attention."""
    graphs: dict[str, EngineSpec]
    weight_streaming: bool = False
    """Built so that part of the weights can stay in host memory and be read by the GPU from there."""

    @property
    def label(self) -> str:
        """What messages call the set."""
        return f"{self.backend} engines for {', '.join(self.targets)}"
