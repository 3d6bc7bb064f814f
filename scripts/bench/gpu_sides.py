"""One side of the GPU benchmark, in a process of its own so that its memory is its own.

``python -m scripts.bench.gpu_sides ours|diffusers JSON`` prints what `Measured` holds as JSON; scripts/bench/gpu.py
calls it.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from export.memory import Peak
from runtime.console import guard
from runtime.pipeline import Pipeline
from runtime.prompt.feature_cache import FeatureCache
from runtime.tensorrt.cuda import Device, load_cudart
from scripts.bench.gpu_results import Measured, Run

HEADROOM = 6 * 10**9
"""Bytes that diffusers' activations may take beside the weights, when it is decided what to offload."""


@dataclass(frozen=True)
class Task:
    """What a side measures."""

    source: str
    """Bundle, or diffusers' checkpoint."""
    prompt: str
    size: int
    """Width and height in pixels."""
    runs: tuple[Run, ...]
    warmups: int
    repeats: int
    seed: int
    device: str
    output: str
    """PNG of the last picture."""
    backend: str = "auto"
    """Ours only, as `memory`."""
    memory: str = "auto"
    tokens: int = 0
    """diffusers only: tokens to pad prompts to. The prompt's own number is its best case."""

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task that `dataclasses.asdict` and JSON made a text of."""
        data = json.loads(text)
        runs = tuple(Run(**run | {"guidance": tuple(run["guidance"])}) for run in data.pop("runs"))
        return cls(runs=runs, **data)


def measure_ours(task: Task, used: Callable[[], int]) -> Measured:
    """Our runtime on the bundle `task.source`."""
    with Peak(used) as peak:
        started = time.perf_counter()
        pipeline = Pipeline.load(
            task.source, backend=task.backend, device=task.device, memory=task.memory, vae_graphs=("vae_decoder",)
        )
        measured = Measured(pipeline.where, load_seconds=time.perf_counter() - started)
        measured.tokens = pipeline.prompt.encode(task.prompt).shape[1]
        for stage, graph in pipeline.graphs.items():
            pipeline.graphs[stage] = timed(graph, measured.stages[stage], lambda: None)

        def picture(run: Run) -> Any:
            pipeline.features = FeatureCache()  # the peer reads the prompt for every picture, too
            return pipeline.generate(
                task.prompt,
                width=task.size,
                height=task.size,
                steps=len(run.guidance),
                guidance=run.guidance,
                mu=run.mu,
                std=run.std,
                seed=task.seed,
            ).images[0]

        last = _pictures(task, measured, picture)
        pipeline.close()
    Image.fromarray(last).save(task.output)
    measured.peak_bytes = peak.grown
    return measured


def measure_diffusers(task: Task, used: Callable[[], int], dtype: str = "bfloat16") -> Measured:
    """`diffusers.Ideogram4Pipeline` on the checkpoint `task.source`, with weights offloaded if they do not fit."""
    import torch

    synchronize = torch.cuda.synchronize if task.device != "cpu" else lambda: None
    with Peak(used) as peak:
        started = time.perf_counter()
        pipeline = load_diffusers(Path(task.source), getattr(torch, dtype))
        offload = _place(pipeline, task.device)
        measured = Measured(f"{dtype} on {task.device}, {offload}", load_seconds=time.perf_counter() - started)
        measured.tokens = task.tokens
        parts = {"dit_cond": pipeline.transformer, "dit_uncond": pipeline.unconditional_transformer}
        for stage, module in parts.items():
            _time_module(module, measured.stages[stage], synchronize)
        pipeline.encode_prompt = timed(pipeline.encode_prompt, measured.stages["text_encoder"], synchronize)
        pipeline.vae.decode = timed(pipeline.vae.decode, measured.stages["vae_decoder"], synchronize)

        def picture(run: Run) -> Any:
            return pipeline(
                task.prompt,
                height=task.size,
                width=task.size,
                num_inference_steps=len(run.guidance),
                mu=run.mu,
                std=run.std,
                guidance_schedule=list(run.guidance),
                max_sequence_length=task.tokens,
                generator=torch.Generator().manual_seed(task.seed),
            ).images[0]

        last = _pictures(task, measured, picture)
    last.save(task.output)
    measured.peak_bytes = peak.grown
    return measured


def check_diffusers(checkpoint: Path | None) -> None:
    """Raise an error unless the peer can run here, and the checkpoint, if it is there already, is one that it reads."""
    try:
        import diffusers  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(f"the peer is not installed ({error}); install the extra 'test'") from error
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} sees no CUDA; install a build of it for CUDA")
    if checkpoint is not None and not (checkpoint / "text_encoder" / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint in diffusers' layout: it has no text_encoder")


def timed(function: Callable[..., Any], calls: list[float], synchronize: Callable[[], object]) -> Callable[..., Any]:
    """The function, noting the milliseconds of each call, all work on the GPU included."""

    def run(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        started = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize()
        calls.append(1000 * (time.perf_counter() - started))
        return result

    return run


def load_diffusers(directory: Path, dtype: Any) -> Any:
    """The pipeline from a checkpoint in diffusers' layout; one without a vision tower gets a tiny, unused one."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Ideogram4Pipeline,
        Ideogram4Transformer2DModel,
    )
    from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLModel

    config = json.loads((directory / "text_encoder" / "config.json").read_text())
    width = config["text_config"]["hidden_size"]
    tiny = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": width,
        "deepstack_visual_indexes": [],
    }
    vision = config.get("vision_config") or tiny
    text = Qwen3VLModel.from_pretrained(
        directory / "text_encoder",
        config=Qwen3VLConfig(text_config=config["text_config"], vision_config=vision),
        dtype=dtype,
    )
    load = {
        part: Ideogram4Transformer2DModel.from_pretrained(directory / part, torch_dtype=dtype)
        for part in ("transformer", "unconditional_transformer")
    }
    pipeline = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2.from_pretrained(directory / "vae", torch_dtype=dtype),
        text_encoder=text,
        tokenizer=AutoTokenizer.from_pretrained(directory / "tokenizer"),
        **load,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pictures(task: Task, measured: Measured, picture: Callable[[Run], Any]) -> Any:
    """Warm up with the first run, then take the times of all runs; the last picture."""
    for _ in range(task.warmups):
        picture(task.runs[0])
    for calls in measured.stages.values():
        calls.clear()
    last = None
    for run in task.runs:
        measured.pictures[run.name] = []
        for _ in range(task.repeats):
            started = time.perf_counter()
            last = picture(run)
            measured.pictures[run.name].append(time.perf_counter() - started)
    return last


def _place(pipeline: Any, device: str) -> str:
    """Move the weights to the device, or as many at a time as fit; what was done, in words."""
    if device == "cpu":
        return "nothing offloaded"
    import torch

    parts = (pipeline.text_encoder, pipeline.transformer, pipeline.unconditional_transformer, pipeline.vae)
    sizes = [sum(p.numel() * p.element_size() for p in part.parameters()) for part in parts]
    free = torch.cuda.mem_get_info(device)[0] - HEADROOM
    if sum(sizes) <= free:
        pipeline.to(device)
        return "nothing offloaded"
    if max(sizes) <= free:
        pipeline.enable_model_cpu_offload(device=device)
        return "one model on the GPU at a time (enable_model_cpu_offload)"
    pipeline.enable_sequential_cpu_offload(device=device)
    return "one layer on the GPU at a time (enable_sequential_cpu_offload)"


def _time_module(module: Any, calls: list[float], synchronize: Callable[[], object]) -> None:
    """Note the milliseconds of each forward pass; hooks see what offloading adds, too."""
    started: list[float] = []

    def before(module: Any, inputs: Any) -> None:
        synchronize()
        started.append(time.perf_counter())

    def after(module: Any, inputs: Any, output: Any) -> None:
        synchronize()
        calls.append(1000 * (time.perf_counter() - started.pop()))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def main(argv: Sequence[str]) -> int:
    """Measure one side and print the result."""

    def job() -> None:
        side, task = argv[0], Task.from_json(argv[1])
        cudart = load_cudart()
        device = Device(cudart, int(task.device.partition(":")[2] or 0))

        def used() -> int:
            """Counted from an unknown zero; only differences are used. The sampling thread must choose the device."""
            device.activate()
            return -device.free_bytes()

        measure = {"ours": measure_ours, "diffusers": measure_diffusers}[side]
        print(json.dumps(asdict(measure(task, used))))

    return guard("scripts.bench.gpu", job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
