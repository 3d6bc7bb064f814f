"""Files of a bundle, and what a box remembers of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.atomic_directory import file_spec
from export.engine.files import REPORT, engines_to_dict, kernels_path, kernels_to_json
from export.engine.kernels import Kernel, Tensor
from export.engine.report import Build, report
from export.inspect import inspect
from export.triton.config import ModelConfig
from export.triton.readme import readme_text
from export.triton.repository import Repository
from export.triton.warmup import warmup_inputs
from runtime.backend.opening import choose_backend
from runtime.bundle.graph_specs import EngineSet, EngineSpec, Profile, SizeRange
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.bundle.verified import Verified
from runtime.constants import MANIFEST
from runtime.image.preview import preview_image
from runtime.loading import graphs_to_load
from runtime.pipeline import Pipeline
from runtime.plan import Plan, make_plan
from runtime.prompt.tokens import PromptEncoder
from runtime.request import Request
from scripts.fuzz.case import Case, World
from scripts.fuzz.mutation import json_texts
from scripts.fuzz.strategies import replaced

_SET, _STAGE = "rtx-sm89", "dit_cond"
_SMALL = Request("a red circle", width=256, height=256, steps=1, seed=1, guidance=3.0)
_KERNELS = (
    Kernel(
        "node_linear_5_myl0_8",
        "gemm",
        0,
        (Tensor("x", "FP8", (1, -1, 32)),),
        (Tensor("layers.0.attention.qkv.weight", "FP8", (96, 32)),),
        (Tensor("y", "BFloat16", (1, -1, 96)),),
        ("node_linear_5",),
    ),
)
_BUILD = Build(_STAGE, "rtx", ("sm89",), "1.7.1.116", "base", 300, 50_000, 35_000, 10**9, 1.5)


def manifest(world: World, folder: Path) -> Case:
    """``manifest.json``: what reading, checking, planning and inspecting make of it."""
    bundle = _with_engines(world, folder)
    file = bundle / MANIFEST
    examples = ((world.bundle / MANIFEST).read_bytes(), file.read_bytes())

    def read() -> None:
        found = read_manifest(bundle)
        if Manifest.from_json(found.to_json()) != found:
            raise AssertionError("what was read is not what is written of it")
        check_files(bundle, found.files, hashes=False)
        encoder = PromptEncoder(bundle / found.prompt.tokenizer, found.prompt)
        plan = make_plan(found, encoder, Request("a red circle", seed=1))
        _draw_preview(found, plan)
        graphs = graphs_to_load(bundle, found, None, True, False)
        choose_backend(found, graphs, device="cpu")
        inspect(bundle)
        inspect(bundle, as_json=True)
        readme_text(Repository(ModelConfig(), True), found)
        warmup_inputs(found, ModelConfig().inputs)

    return Case(file, examples, json_texts.mutated, read, (MANIFEST, bundle.name), strategy=replaced(examples))


def pipeline(world: World, folder: Path) -> Case:
    """The same, as far as a picture in one step."""
    bundle = _copy(world, folder)
    file = bundle / MANIFEST

    def read() -> None:
        with Pipeline.load(bundle, verify="off", threads=1) as loaded:
            loaded.generate(_SMALL)

    return Case(file, (file.read_bytes(),), json_texts.mutated, read)


def tokenizer(world: World, folder: Path) -> Case:
    """``tokenizer.json``, which the tokenizers library reads."""
    bundle = _copy(world, folder)
    spec = read_manifest(bundle).prompt
    file = bundle / spec.tokenizer

    def read() -> None:
        encoder = PromptEncoder(file, spec)
        for text in ("a red circle", "é \U0001f600 <|im_start|>", "0" * 300):
            encoder.encode(text)

    return Case(file, (file.read_bytes(),), json_texts.mutated, read, (file.name,))


def verified(world: World, folder: Path) -> Case:
    """What was verified before. A file that is damaged is as good as none."""
    files = read_manifest(world.bundle).files
    entries = {path: [spec.size, 1, 1, 1, spec.sha256] for path, spec in files.items()}
    examples = (json.dumps(entries).encode(),)
    file = Verified(folder, world.bundle).file
    if file is None:
        raise RuntimeError("nothing is remembered without a cache directory")

    def read() -> None:
        check_files(world.bundle, files, verified=Verified(folder, world.bundle))

    return Case(file, examples, json_texts.mutated, read, may_refuse=False, strategy=replaced(examples))


def engine_report(world: World, folder: Path) -> Case:
    """``report.json`` of a bundle with engines."""
    return _inspected(_with_engines(world, folder), REPORT)


def kernels(world: World, folder: Path) -> Case:
    """A list of an engine's kernels."""
    return _inspected(_with_engines(world, folder), kernels_path(_SET, _STAGE))


def _inspected(bundle: Path, path: str) -> Case:
    file = bundle / path

    def read() -> None:
        for as_json in (False, True):
            inspect(bundle)
            inspect(bundle, stage=_STAGE, kernels=True, as_json=as_json)

    examples = (file.read_bytes(),)
    return Case(file, examples, json_texts.mutated, read, (file.name,), strategy=replaced(examples))


def _copy(world: World, folder: Path) -> Path:
    """The world's bundle, for a case to spoil."""
    return Path(shutil.copytree(world.bundle, folder / "bundle"))


def _with_engines(world: World, folder: Path) -> Path:
    """The same with a set of engines, which share a plan of a few bytes."""
    bundle = _copy(world, folder)
    found = read_manifest(bundle)
    plan = f"engines/{_SET}/{_STAGE}.plan"
    contents = {
        plan: b"plan",
        REPORT: json.dumps(engines_to_dict({_SET: {_STAGE: report(_BUILD, _KERNELS)}})).encode(),
        kernels_path(_SET, _STAGE): kernels_to_json(_KERNELS).encode(),
    }
    for path, content in contents.items():
        (bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle / path).write_bytes(content)
    profiles = (Profile({"T": SizeRange(1, 300, 2048)}, 10**8),)
    specs = {
        name: EngineSpec(plan, "bfloat16", graph.inputs, graph.outputs, profiles)
        for name, graph in found.graphs.items()
    }
    engines = {_SET: EngineSet("rtx", ("sm89",), "1.7.1.116", "base", specs)}
    files = found.files | {path: file_spec(bundle / path) for path in contents}
    (bundle / MANIFEST).write_text(replace(found, engines=engines, files=files).to_json(), encoding="utf-8")
    return bundle


def _draw_preview(found: Manifest, plan: Plan) -> None:
    if found.preview is not None:
        rows, columns = plan.grid
        preview_image(np.zeros((rows * columns, found.latent_channels), np.float32), plan.grid, found.preview)
