"""What a build is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from export.demo_model import DEMO_CHECKPOINT
from export.engine.profile_option import parse_profile
from export.engine.sizes import MAX_BATCH
from export.engine.targets import DEFAULT_TARGETS, check_targets
from export.graph.precision import ACTIVATIONS, BASES, PRECISIONS, QUANTIZED, Precision, precision_of
from model.checkpoint.lora import TARGETS as LORA_TARGETS
from runtime.constants import DEFAULT_BUNDLE
from runtime.sampling.schedule import PRESETS, check_number

BACKENDS = ("ort", "rtx", "tensorrt")
ATTENTIONS = ("base", "fp8", "decomposed")
WEIGHTS = ("copy", "link")
TIMESTEP_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of ``python -m export.build``, by the same names and with the same defaults.

    Raises:
        ValueError: an option has a value that is not offered, or options do not go together; the message names them.
            What depends on the checkpoint is checked when it has been read.
    """

    checkpoint: str | Path = DEMO_CHECKPOINT
    """Checkpoint directory, or the id of a model on the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; None for its main branch."""
    lora: tuple[str, ...] = ()
    """Adapters to fold in, as ``FILE`` or ``FILE:SCALE``."""
    lora_target: str = "cond"
    """Transformers that the adapters go into, one of `model.checkpoint.lora.TARGETS`."""
    output: Path = Path(DEFAULT_BUNDLE)
    """Bundle directory to write."""
    precision: str = "fp32"
    """One of `export.graph.precision.PRECISIONS`."""
    backend: tuple[str, ...] = ("ort",)
    """What will run the bundle: some of `BACKENDS`, each counted once."""
    base: str | None = None
    """Type of what is not quantized in the fp8 precisions and int8, one of `BASES`; None for each backend's default."""
    activations: str | None = None
    """How the precisions fp8 and int8 scale activations, one of `ACTIVATIONS`; None for a scale for each token."""
    calibration: Path | None = None
    """File of channel maxima for the precision int8, None to measure them here; or of static activation ranges, None
    to measure those here, for the demo model only."""
    attention: str = "base"
    """How the attention is computed, one of `ATTENTIONS`: in the base type; in float8, for the precision fp8; or in the
    base type and, on engines, taken apart where TensorRT has no fused kernel."""
    strict_audit: bool = False
    """Refuse an engine whose kernels are not what was asked for, instead of warning."""
    keep_base: tuple[str, ...] = ()
    """Shell patterns of activations that stay in the base type with the precisions fp8 and int8."""
    target: tuple[str, ...] = DEFAULT_TARGETS
    """GPUs that rtx plans run on, some of `export.engine.targets.TARGETS`."""
    min_size: int | None = None
    """Shortest side of a picture that engines take, in pixels; None for the model's."""
    opt_size: int | None = None
    """Side that engines are tuned for, in pixels, with one profile for all sizes; None for `profile`."""
    max_size: int | None = None
    """Longest side of a picture that engines take, in pixels; None for the model's."""
    profile: tuple[str, ...] = ()
    """Optimization profiles of engines, as `export.engine.profile_option` reads them; none for one that is tuned for
    the model's default size and one for half of it."""
    max_batch: int = 1
    """Pictures in one call of an engine, from 1 to `MAX_BATCH`."""
    weight_streaming: bool = False
    """Let engines keep part of their weights in host memory."""
    weights: str = "copy"
    """``link`` to share the checkpoint's own files where their bytes are what a graph wants; one of `WEIGHTS`."""
    timestep_dtype: str | None = None
    """Type that the time is rounded to, one of `TIMESTEP_DTYPES`; None for the precision's."""
    default_preset: str | None = None
    """Preset that the bundle uses where a request names none, one of `PRESETS`; None for the model's."""
    default_guidance: float | None = None
    """Guidance weight that the bundle uses where a request names none; None for the preset's."""
    overwrite: bool = False
    """Replace the output if it is a bundle."""
    fresh: bool = False
    """Build every stage again, whatever was finished before."""
    compare: bool = True
    """Compare the stages in 8 bits with the same unquantized, for the report."""
    self_test: bool = True
    """Write inputs and expected outputs of every graph into the bundle, so that any machine can compare its own."""
    verify: bool = True
    """Compare the weights with recorded checksums first."""
    quiet: bool = False
    """Show no progress and no messages."""

    def __post_init__(self) -> None:
        for name in ("lora", "backend", "keep_base", "target", "profile"):
            if not isinstance(value := getattr(self, name), tuple):
                raise ValueError(f"{name} is {value!r}, wanted a tuple of strings")
        self._check_choices()
        if not self.backend:
            raise ValueError(f"--backend is empty, wanted some of {', '.join(BACKENDS)}")
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"--max-batch is {self.max_batch}, wanted 1 to {MAX_BATCH} pictures")
        if self.default_guidance is not None:
            check_number("--default-guidance", self.default_guidance)
        if self.lora_target != "cond" and not self.lora:
            raise ValueError(f"--lora-target {self.lora_target} goes with --lora")
        self._check_quantization()
        self._check_profiles()
        if self.weights == "link" and "ort" not in self.backend:
            raise ValueError("--weights link goes with --backend ort: a TensorRT plan holds its weights itself")
        for backend in self.backends:
            types = self.types(backend)
            if backend == "rtx":
                check_targets(self.target, types)

    def _check_quantization(self) -> None:
        if self.attention == "fp8" and self.precision != "fp8":
            raise ValueError(f"--attention fp8 goes with --precision fp8, and --precision is {self.precision}")
        for option, value in {"--calibration": self.calibration, "--keep-base": self.keep_base}.items():
            if value and self.precision not in QUANTIZED:
                raise ValueError(f"{option} goes with --precision fp8 or int8, and --precision is {self.precision}")
        if self.calibration and self.precision == "fp8" and self.activations != "static":
            raise ValueError(
                "--calibration goes with --activations static or --precision int8; float8 finds a scale for each token "
                "while it runs, and needs no file"
            )

    def _check_profiles(self) -> None:
        for text in self.profile:
            parse_profile(text)
        if self.profile and self.opt_size is not None:
            raise ValueError(
                f"--profile and --opt-size {self.opt_size} exclude each other: a profile names the side to tune for"
            )
        if self.profile and set(self.backend) == {"ort"}:
            raise ValueError("--profile goes with --backend rtx or tensorrt: ONNX Runtime takes any size")

    def _check_choices(self) -> None:
        choices: dict[str, Sequence[str | None]] = {
            "precision": PRECISIONS,
            "base": (None, *BASES),
            "attention": ATTENTIONS,
            "activations": (None, *ACTIVATIONS),
            "weights": WEIGHTS,
            "timestep_dtype": (None, *TIMESTEP_DTYPES),
            "lora_target": LORA_TARGETS,
            "default_preset": (None, *PRESETS),
        }
        values = [(name, getattr(self, name), offered) for name, offered in choices.items()]
        values += [("backend", backend, BACKENDS) for backend in self.backend]
        for name, value, offered in values:
            if value not in offered:
                wanted = ", ".join(choice for choice in offered if choice is not None)
                raise ValueError(f"--{name.replace('_', '-')} is {value!r}, wanted one of {wanted}")

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends in order, each once."""
        return tuple(dict.fromkeys(self.backend))

    def types(self, backend: str) -> Precision:
        """What a backend's graphs compute in."""
        return precision_of(self.precision, self.base, backend, self.activations)


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(BuildOptions)}
"""Name of every option, and its default."""
