"""The README of a model repository, for those who run the server."""

from importlib import resources
from string import Template

from export.triton.config import ModelConfig
from export.triton.repository import BUNDLE_FOLDER, VERSION, Repository
from runtime.bundle.manifest import Manifest
from serving.tensors import INPUTS

TITLE = "# Ideogram 4 for Triton Inference Server"
"""First line; a directory whose README begins so is a model repository that was made here."""


def readme_text(repository: Repository, manifest: Manifest) -> str:
    """README.md for this repository and the bundle that it serves."""
    name = repository.model.name
    template = resources.files("export.triton").joinpath("operators.md").read_text(encoding="utf-8")
    if repository.copies_bundle:
        where = f"inside, in `{name}/{VERSION}/{BUNDLE_FOLDER}`"
    else:
        where = f"at `{repository.model.bundle}`, where every server must find it"
    load = " ".join(f"--load-model={model.name}" for model in repository.models)
    return Template(template).substitute(
        title=TITLE,
        name=name,
        bundle=manifest.name,
        precision=manifest.precision,
        where=where,
        load=load,
        models=_models(repository),
        engines=_engines(manifest),
        instances=repository.model.instances,
        batching=_batching(repository),
        max_batch=repository.model.max_batch,
        max_work=f"{repository.model.max_work:g}",
        max_seconds=f"{repository.model.max_seconds:g}",
        memory=_memory(repository.model),
        offered=_offered(repository.model),
    )


def _models(repository: Repository) -> str:
    lines = [f"* `{repository.model.name}`: a request, then its pictures."]
    if repository.stream:
        lines.append(f"* `{repository.models[1].name}`: progress after every step, then the pictures (gRPC, SSE).")
    return "\n".join(lines)


def _engines(manifest: Manifest) -> str:
    if not manifest.engines:
        return "The bundle holds no TensorRT engines; ONNX Runtime runs it, and no TensorRT is needed."
    lines = [
        f"* `{name}`: {engines.backend} {engines.version} for {', '.join(engines.targets)}"
        for name, engines in manifest.engines.items()
    ]
    text = "\n".join(lines)
    return (
        f"The bundle holds engines, and only the very version that built them loads them:\n\n{text}\n\n"
        "Install that version's Python package in the image; the TensorRT that the image itself has is not used."
    )


def _memory(model: ModelConfig) -> str:
    if model.max_memory is None:
        return "The parameter `max_memory_gb` in `config.pbtxt` (`--max-memory`) says how much each may take."
    return f"Each takes at most {model.max_memory:g} GB (`max_memory_gb` in `config.pbtxt`)."


def _offered(model: ModelConfig) -> str:
    if len(model.inputs) == len(INPUTS):
        return "All of them are offered here."
    return f"Offered here: {', '.join(f'`{name}`' for name in model.inputs)}."


def _batching(repository: Repository) -> str:
    model = repository.model
    if not model.dynamic_batching:
        return "Off: waiting requests run one after another."
    text = f"On: requests are collected for up to {model.queue_delay or 0} microseconds."
    if model.queue_limit:
        text += f" More than {model.queue_limit} waiting ones are refused (UNAVAILABLE)."
    if model.queue_seconds:
        text += f" One that has waited for {model.queue_seconds:g} seconds is refused (UNAVAILABLE)."
    if (model.queue_limit or model.queue_seconds) and model.instances == 1:
        text += " With such a limit and one instance Triton 2.51 delays some requests by up to half a second."
    return text
