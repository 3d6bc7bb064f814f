"""What Triton tells a model instance about itself: where the bundle is, and what to run it on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import shown
from runtime.loading import VERIFY as CHECKS
from serving.tensors import INPUTS

BUNDLE, BACKEND, THREADS, VERIFY, UNLOAD = "bundle", "backend", "threads", "verify", "unload_when_failed"
WORK, SECONDS, MEMORY = "max_megapixel_steps", "max_seconds", "max_memory_gb"
SELF_TEST = "self_test"
"""Names of the parameters in config.pbtxt."""


DEFAULT_WORK = 1000.0
"""Five pictures of 2048 x 2048, or twenty of 1024 x 1024, in the 48 steps of the longest preset."""
DEFAULT_SECONDS = 600.0


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for."""

    together: int
    """Pictures that run together, at most: ``max_batch_size``."""
    work: float = DEFAULT_WORK
    """Width x height x steps of all pictures of a request, in millions."""
    seconds: float = DEFAULT_SECONDS
    """That a request may take, from when the model gets it; then it is stopped behind its step."""


@dataclass(frozen=True)
class Settings:
    """How an instance loads its pipeline."""

    bundle: Path
    backend: str
    device: str
    threads: int | None
    """CPU threads for a graph; None for one per core."""
    verify: str
    """How the bundle's files are checked before loading: one of `runtime.loading.VERIFY`."""
    unload: bool
    """Whether the model asks the server to unload it when its engine has failed."""
    limits: Limits
    memory: int | None = None
    """Bytes that the instance may take; None for all that is free."""
    inputs: frozenset[str] = frozenset(spec.name for spec in INPUTS)
    """That requests may have."""
    self_test: bool = False
    """Whether the model runs the bundle's self-test when it is loaded, and fails to load with it."""


def read_settings(args: Mapping[str, str]) -> Settings:
    """Settings from what Triton passes to ``initialize``.

    The parameter ``bundle`` is absolute or relative to the model version's directory.

    Raises:
        ValueError: a parameter of config.pbtxt is missing or is not of the wanted form.
    """
    config = json.loads(args["model_config"])
    parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
    if BUNDLE not in parameters:
        raise ValueError(f"config.pbtxt of {args['model_name']} lacks the parameter {BUNDLE!r}, the bundle's directory")
    version = Path(args["model_repository"], args["model_version"])
    return Settings(
        _path(version, parameters[BUNDLE]),
        parameters.get(BACKEND, "auto"),
        device_of(args["model_instance_kind"], args["model_instance_device_id"]),
        _threads(parameters.get(THREADS, "")),
        _choice(parameters, VERIFY, CHECKS),
        _flag(parameters, UNLOAD),
        Limits(
            max(1, config["max_batch_size"]),
            _amount(parameters, WORK, DEFAULT_WORK),
            _amount(parameters, SECONDS, DEFAULT_SECONDS),
        ),
        round(_amount(parameters, MEMORY, math.nan) * 1e9) if MEMORY in parameters else None,
        frozenset(entry["name"] for entry in config["input"]),
        _flag(parameters, SELF_TEST, "false"),
    )


def _path(folder: Path, bundle: str) -> Path:
    try:
        return (folder / bundle).resolve()
    except ValueError as error:  # NUL, and halves of characters
        raise ValueError(f"the parameter {BUNDLE!r} is {shown(bundle)}, wanted a directory: {error}") from error


def _threads(text: str) -> int | None:
    if not text:
        return None
    # Longer ones are no number of threads, and Python refuses to read those of thousands of digits.
    if not (text.isdecimal() and text.isascii() and len(text) < 10):
        raise ValueError(f"the parameter {THREADS!r} is {shown(text)}, wanted a number of CPU threads")
    return int(text)


def _choice(parameters: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The value of a parameter; the first of `choices` where it is missing."""
    value = parameters.get(name, choices[0])
    if value not in choices:
        raise ValueError(f"the parameter {name!r} is {shown(value)}, wanted one of {', '.join(choices)}")
    return value


def _amount(parameters: Mapping[str, str], name: str, default: float) -> float:
    """A number above 0."""
    value = parameters.get(name, str(default))
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ValueError(f"the parameter {name!r} is {shown(value)}, wanted a number above 0")
    return number


def _flag(parameters: Mapping[str, str], name: str, default: str = "true") -> bool:
    value = parameters.get(name, default)
    if value not in ("true", "false"):
        raise ValueError(f"the parameter {name!r} is {shown(value)}, wanted true or false")
    return value == "true"


def device_of(kind: str, device_id: str) -> str:
    """The runtime's name of an instance's device: ``cuda:N`` for an instance on GPU N, else ``cpu``."""
    return f"cuda:{device_id}" if kind == "GPU" else "cpu"
