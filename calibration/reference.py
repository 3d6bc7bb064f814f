"""The runtime's pipeline with torch modules in place of a bundle's graphs.

Calibration so goes through the runtime's own prompt encoding, noise, schedule and guidance, and the transformers see
what they see in deployment.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from calibration.streaming import loaded
from model.checkpoint.description import describe, prompt_spec, tokenizer_file
from model.checkpoint.directory import Checkpoint
from model.checkpoint.tensor_files import CheckpointError
from runtime.bundle.graph_specs import GraphSpec
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError, RequestError
from runtime.graph import Call, Graph
from runtime.pipeline import Pipeline
from runtime.prompt.tokens import PromptEncoder

DEVICES = ("cpu", "cuda")
_PROBE = "a small green square"
"""A prompt that every tokenizer must have tokens for."""


@dataclass(frozen=True)
class TorchGraph:
    """A stage as the runtime calls it: numpy arrays in, a numpy array out."""

    module: nn.Module
    device: str

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            tensors = {
                name: torch.from_numpy(np.require(array, requirements="W")).to(self.device)
                for name, array in feeds.items()
            }
            return self.module(**tensors).cpu().numpy()


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    """The manifest of a float8 bundle as far as sampling goes: float8 bundles round the time to bfloat16.

    CheckpointError as for `model.checkpoint.description.describe`.
    """
    no_file = GraphSpec("", "float32", (), ())
    graphs = {stage: no_file for stage in checkpoint.sources if stage != "vae_encoder"}
    return replace(describe(checkpoint), timestep_dtype="bfloat16", graphs=graphs)


def prompt_encoder(checkpoint: Checkpoint) -> PromptEncoder:
    """The checkpoint's tokenizer and chat template.

    Raises:
        CheckpointError: one of them is missing or cannot be read, or the tokens are not those of the text encoder.
    """
    file = tokenizer_file(checkpoint)
    try:
        spec = prompt_spec(checkpoint)
        encoder = PromptEncoder(file, spec)
        own = encoder.encode(_PROBE).size - len(encoder.tokenizer.encode(spec.prefix + spec.suffix))
    except BundleError as error:  # which names the file
        raise CheckpointError(str(error)) from error
    except RequestError as error:
        raise CheckpointError(f"{file}: with the chat template, {error}") from error
    last, size = max(encoder.tokenizer.get_vocab().values(), default=-1), checkpoint.text_encoder.vocab_size
    if last >= size:
        raise CheckpointError(f"{file} has the token {last}, wanted tokens below {size}, the text encoder's vocab_size")
    if own < 1:
        raise CheckpointError(f"{file} has no tokens for {_PROBE!r} beside those of the chat template")
    return encoder


def check_device(device: str) -> None:
    """Raise ValueError or RuntimeError unless modules can run there."""
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, wanted one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device is cuda, but PyTorch finds no CUDA device here; use cpu")


@dataclass(frozen=True)
class _Recorder:
    """A graph that keeps its calls."""

    graph: Graph
    calls: list[Call]

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        output = self.graph(**feeds)
        self.calls.append(Call(feeds, output))
        return output


def recording(pipeline: Pipeline, calls: dict[str, list[Call]]) -> Pipeline:
    """The same pipeline with the calls of its graphs appended to `calls`, by stage."""
    graphs = {stage: _Recorder(graph, calls.setdefault(stage, [])) for stage, graph in pipeline.graphs.items()}
    return Pipeline(pipeline.manifest, dict(graphs), pipeline.prompt, pipeline.backend, pipeline.device)


def torch_pipeline(checkpoint: Checkpoint, stages: Iterable[str], device: str) -> Pipeline:
    """A pipeline with these stages only, in float32; stages that the checkpoint does not have are left out.

    Of stages that are large for this machine one block is in memory at a time; see `calibration.streaming`.
    """
    present = [stage for stage in stages if stage in checkpoint.sources]
    graphs = {stage: TorchGraph(loaded(checkpoint, stage, device), device) for stage in present}
    return Pipeline(manifest_of(checkpoint), graphs, prompt_encoder(checkpoint), "torch", device)
