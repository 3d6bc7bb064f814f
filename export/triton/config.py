"""The text of config.pbtxt: a complete one, so that the server need not ask the model (``auto_complete_config``)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from serving.settings import (
    BACKEND,
    BUNDLE,
    DEFAULT_SECONDS,
    DEFAULT_WORK,
    MEMORY,
    SECONDS,
    SELF_TEST,
    THREADS,
    UNLOAD,
    VERIFY,
    WORK,
)
from serving.tensors import INPUTS, PICTURE_OUTPUTS, PROGRESS_OUTPUTS, Tensor


@dataclass(frozen=True)
class ModelConfig:
    """What differs between the models of a repository."""

    name: str = "ideogram4"
    bundle: str = ""
    """Absolute, or relative to the version's directory."""
    stream: bool = False
    """Decoupled: progress, then the pictures."""
    max_batch: int = 4
    """Rows of one request, and pictures of waiting requests that run together."""
    instances: int = 1
    warmup: tuple[str, ...] = ("prompt", "steps")
    """Inputs of the warm-up request; see `export.triton.warmup`."""
    backend: str = "auto"
    threads: int | None = None
    """CPU threads for a graph; None for one per core."""
    verify: bool = True
    unload: bool = True
    """Ask the server to unload the model when its engine has failed."""
    self_test: bool = False
    """Run the bundle's self-test when the model is loaded."""
    dynamic_batching: bool = False
    """Hand waiting requests over together."""
    queue_delay: int | None = None
    """Microseconds to wait for more of them; None for 0."""
    queue_limit: int | None = None
    """Waiting requests beyond which more are refused; None for no limit."""
    queue_seconds: float | None = None
    """Seconds after which a waiting request is refused; None for no limit."""
    max_work: float = DEFAULT_WORK
    """See `serving.settings.Limits.work`."""
    max_seconds: float = DEFAULT_SECONDS
    """See `serving.settings.Limits.seconds`."""
    max_memory: float | None = None
    """Gigabytes that an instance may take; None for all that is free."""
    inputs: tuple[str, ...] = tuple(tensor.name for tensor in INPUTS)
    """That requests may have."""


def config_text(config: ModelConfig, kind: str | None = None) -> str:
    """``config.pbtxt`` of a model.

    Args:
        config: of the model.
        kind: of the instances, such as ``KIND_CPU``; None lets the server choose: GPUs if it has any, else the CPU.
    """
    outputs = (*PROGRESS_OUTPUTS, *PICTURE_OUTPUTS) if config.stream else PICTURE_OUTPUTS
    group = f"count: {config.instances}" + (f" kind: {kind}" if kind else "")
    parts = [
        f"name: {_quoted(config.name)}",
        'backend: "python"',
        f"max_batch_size: {config.max_batch}",
        _tensors("input", [tensor for tensor in INPUTS if tensor.name in config.inputs]),
        _tensors("output", outputs),
        f"instance_group [ {{ {group} }} ]",
        *(["model_transaction_policy { decoupled: true }"] if config.stream else []),
        *([_batching(config)] if config.dynamic_batching else []),
        *(_parameter(name, value) for name, value in _parameters(config).items()),
        _warmup(config.warmup),
    ]
    return "\n".join(parts) + "\n"


def _parameters(config: ModelConfig) -> dict[str, str]:
    threads = {} if config.threads is None else {THREADS: str(config.threads)}
    flags = {VERIFY: "auto" if config.verify else "off", UNLOAD: str(config.unload).lower()}
    if config.self_test:
        flags[SELF_TEST] = "true"
    limits = {WORK: f"{config.max_work:g}", SECONDS: f"{config.max_seconds:g}"}
    if config.max_memory is not None:
        limits[MEMORY] = f"{config.max_memory:g}"
    return {BUNDLE: config.bundle, BACKEND: config.backend} | flags | threads | limits


def _tensors(field: str, tensors: Sequence[Tensor]) -> str:
    lines = []
    for tensor in tensors:
        dims = ", ".join(map(str, tensor.dims))
        optional = " optional: true" if field == "input" and not tensor.required else ""
        lines.append(f"  {{ name: {_quoted(tensor.name)} data_type: {tensor.type} dims: [ {dims} ]{optional} }}")
    return f"{field} [\n" + ",\n".join(lines) + "\n]"


def _batching(config: ModelConfig) -> str:
    rules = [f"max_queue_size: {config.queue_limit}"] if config.queue_limit else []
    if config.queue_seconds:
        rules.append(f"default_timeout_microseconds: {round(config.queue_seconds * 1e6)}")
    policy = f" default_queue_policy {{ {' '.join(rules)} }}" if rules else ""
    return f"dynamic_batching {{ max_queue_delay_microseconds: {config.queue_delay or 0}{policy} }}"


def _parameter(name: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(name)} value {{ string_value: {_quoted(value)} }} }}"


def _warmup(names: Sequence[str]) -> str:
    """The warm-up request; the values are in files of these names."""
    types = {tensor.name: tensor.type for tensor in INPUTS}
    inputs = (
        f"    inputs {{ key: {_quoted(name)} "
        f"value {{ data_type: {types[name]} dims: [ 1 ] input_data_file: {_quoted(name)} }} }}\n"
        for name in names
    )
    return f'model_warmup [\n  {{\n    name: "one step" batch_size: 1\n{"".join(inputs)}  }}\n]'


def _quoted(text: str) -> str:
    """A protobuf text string; JSON's escapes are among its own."""
    return json.dumps(text, ensure_ascii=False)
