"""The pipeline and ``trt-generate`` on engines: the demo bundle with a fake TensorRT whose engines are its own ONNX
graphs, so that the pictures are known."""

import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.fake_cuda import FakeCudart
from support.fake_tensorrt import FakeTensorRT, stage

from runtime import Pipeline
from runtime.backend.ort import opener
from runtime.bundle.manifest import read_manifest
from runtime.cli.main import main
from runtime.tensorrt import cuda, engines
from runtime.tensorrt import package as trt
from runtime.tensorrt.memory_plan import OVERHEAD

FAST = {"steps": 3, "guidance": 3.0, "seed": 3}
WEIGHTS = {"text_encoder": 9_000_000, "dit_cond": 9_300_000, "dit_uncond": 9_000_000, "vae_decoder": 100_000}
TILES = {"vae_encoder": 100_000, "vae_decoder_tile": 100_000, "vae_encoder_tile": 100_000}
ACTIVATIONS = 1_000_000
FREE = {"resident": 40_000_000, "staged": 25_000_000, "swapped": 15_000_000}
"""Bytes beside the plan's overhead with which each level is the first that fits."""


class EngineBundle:
    """The demo bundle with engines beside its graphs, and the machine that runs them."""

    def __init__(self, source, directory, monkeypatch, weights=WEIGHTS):
        self.weights = weights
        self.directory = Path(shutil.copytree(source, directory))
        (self.directory / "engines").mkdir()
        manifest = read_manifest(self.directory)
        open_graph = opener(self.directory, "cpu", 1)
        graphs = {name: open_graph(name, manifest.graphs[name]) for name in weights}
        stages = {name: stage_of(name, manifest.graphs[name], graph) for name, graph in graphs.items()}
        self.edit(lambda data: data.update(engines={"rtx-sm89": self.engine_set(data)}))
        self.cudart = FakeCudart(total=FREE["resident"] + OVERHEAD)
        self.trt = FakeTensorRT(self.cudart, stages)
        monkeypatch.setattr(cuda, "load_cudart", lambda: self.cudart)
        monkeypatch.setattr(trt, "load_package", lambda backend: self.trt)
        monkeypatch.setattr(engines, "cache_directory", lambda: directory.parent / "kernels")

    def edit(self, change):
        file = self.directory / "manifest.json"
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    def engine_set(self, data):
        specs = {}
        for name, weights in self.weights.items():
            path = f"engines/{name}.plan"
            text = json.dumps({"stage": name, "weights": weights}).ljust(weights).encode()
            (self.directory / path).write_bytes(text)
            data["files"][path] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            graph = data["graphs"][name]
            sizes = {
                size: RANGES[size] for tensor in graph["inputs"] for size in tensor["shape"] if isinstance(size, str)
            }
            specs[name] = {
                "plan": path,
                "compute": "bfloat16",
                "inputs": graph["inputs"],
                "outputs": graph["outputs"],
                "sizes": sizes,
                "activation_bytes": ACTIVATIONS,
            }
        return {
            "backend": "rtx",
            "targets": ["sm89"],
            "version": "1.7.1.116",
            "attention": "base",
            "graphs": specs,
            "weight_streaming": False,
        }


def size_range(minimum, optimum, maximum):
    return {"minimum": minimum, "optimum": optimum, "maximum": maximum}


RANGES = {
    "B": size_range(1, 1, 2),
    "T": size_range(1, 64, 2048),
    "N": size_range(64, 64, 1024),
    "L": size_range(65, 128, 3072),
    "grid_h": size_range(8, 8, 32),
    "grid_w": size_range(8, 8, 32),
    **dict.fromkeys(("H", "W"), size_range(128, 128, 512)),
    **{f"{part}_{axis}": size_range(8, 24, 24) for part in ("tile", "thumb") for axis in "hw"},
    **{f"{part}_{axis}": size_range(128, 384, 384) for part in ("tile", "thumb") for axis in "HW"},
}
"""Pictures of 128 to 512 pixels on each side, and tiles of up to 384."""


def stage_of(name, spec, graph):
    names = {size: (tensor.name, axis) for tensor in spec.inputs for axis, size in enumerate(tensor.shape)}

    def shape(shapes):
        sizes = {size: shapes[tensor][axis] for size, (tensor, axis) in names.items() if isinstance(size, str)}
        for tokens, pixels in (("grid_h", "H"), ("grid_w", "W"), ("tile_h", "tile_H"), ("tile_w", "tile_W")):
            sizes = {tokens: sizes.get(pixels, 0) // 16, pixels: 16 * sizes.get(tokens, 0)} | sizes
        return tuple(sizes.get(size, size) for size in spec.outputs[0].shape)

    inputs, output = {tensor.name: tensor.dtype for tensor in spec.inputs}, spec.outputs[0]
    return stage(graph, inputs, output.name, shape, output.dtype)


@pytest.fixture
def bundle(demo_bundle, tmp_path, monkeypatch):
    return EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch)


def run(*arguments, bundle, output):
    return main(["--bundle", str(bundle.directory), "--output", str(output), *map(str, arguments)])


@pytest.mark.parametrize("level", FREE)
def test_pictures_are_those_of_the_graphs(bundle, level):
    """Bit for bit: the same functions on the same bytes, through staging, constants and changes of shape."""
    bundle.cudart.used = FREE["resident"] - FREE[level]
    pipeline = Pipeline.load(bundle.directory)
    assert (pipeline.backend, pipeline.device) == ("rtx", "cuda:0")
    assert pipeline.opened.choice.memory.level == level
    peer = Pipeline.load(bundle.directory, backend="ort")
    for prompt, size in (("a red circle", (256, 256)), ("x", (512, 256))):
        options = FAST | {"width": size[0], "height": size[1]}
        made, wanted = (one.generate(prompt, **options) for one in (pipeline, peer))
        assert np.array_equal(made.images, wanted.images)
        assert (made.used["backend"], made.used["device"]) == ("rtx", "cuda:0")
    pipeline.close()
    assert not bundle.cudart.allocated


def test_more_pictures_than_the_engines_take_at_once(bundle):
    """Three pictures, two at a time: ONNX Runtime may round a batch's products differently in the last bit."""
    pipeline, peer = Pipeline.load(bundle.directory), Pipeline.load(bundle.directory, backend="ort")
    made, wanted = (one.generate("x", **FAST, num_images=3).images for one in (pipeline, peer))
    assert np.abs(made.astype(int) - wanted).max() <= 1


def test_text_and_rotations_are_uploaded_once_a_picture(bundle):
    pipeline = Pipeline.load(bundle.directory)
    pipeline.generate("x", **FAST)
    once = 1 + (3 + 2) + 1  # token ids; text and rotations of both transformers; the decoder's latents
    assert bundle.cudart.count("upload") == once + 3 * 2 * 2  # latents and time, for both, in three steps


def test_without_guidance_the_unconditional_engine_is_not_loaded(bundle):
    pipeline = Pipeline.load(bundle.directory, unconditional=False)
    pipeline.generate("x", steps=1, guidance=1.0, seed=0)
    assert len(bundle.trt.loads) == 3


def test_a_bundle_of_engines_only(bundle, tmp_path, capsys):
    bundle.edit(lambda data: data.update(graphs={}))
    assert run("--prompt", "x", "--steps", 1, bundle=bundle, output=tmp_path / "a.png") == 0
    assert (
        "demo fp32 on rtx (cuda:0): rtx engines for sm89 on Fake RTX 4090 (sm89); resident" in capsys.readouterr().err
    )
    assert run("--prompt", "x", "--backend", "ort", bundle=bundle, output=tmp_path / "b.png") == 1
    assert "holds no ONNX graphs for ONNX Runtime, but rtx engines for sm89" in capsys.readouterr().err
    bundle.cudart.gpus = 0
    assert run("--prompt", "x", bundle=bundle, output=tmp_path / "b.png") == 1
    error = capsys.readouterr().err
    assert (
        "this machine has no NVIDIA GPU that CUDA can use (no CUDA-capable device is detected); the bundle's" in error
    )
    assert "the bundle holds no ONNX graphs: python -m export.build --backend ort makes one" in error
    assert not (tmp_path / "b.png").exists()


def test_the_command_says_what_it_took_and_why(bundle, tmp_path, capsys):
    arguments = ("--prompt", "x", "--steps", 1, "--overwrite")
    output = tmp_path / "a.png"
    for options, wanted in [
        ((), "on rtx (cuda:0): rtx engines for sm89 on Fake RTX 4090 (sm89); resident: needs 0.6 GB of 0.6 GB free"),
        (("--memory", "staged"), "(sm89); staged: needs"),
        (("--device", "cpu"), "on ort (cpu): the CPU is asked for"),
        (("--backend", "ort"), "on ort (cpu): as asked for"),
    ]:
        assert run(*arguments, *options, bundle=bundle, output=output) == 0
        assert wanted in capsys.readouterr().err
    bundle.cudart.gpus = 0
    assert run(*arguments, bundle=bundle, output=output) == 0
    assert "on ort (cpu): this machine has no NVIDIA GPU that CUDA can use" in capsys.readouterr().err


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_neither_engines_nor_onnx_on_the_gpu_that_was_asked_for(bundle, tmp_path, capsys):
    assert run("--prompt", "x", "--device", "cuda:1", bundle=bundle, output=tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert "this onnxruntime has no CUDA provider" in error
    assert "; not on engines: this machine has 1 CUDA device, and there is no cuda:1" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", 768, "--height", 256), "a picture of 768x256 is outside of what the engines were built for"),
        (("--unconditional", "conditional"), "--unconditional conditional runs the conditional transformer without"),
        (("--backend", "tensorrt"), "the bundle holds no tensorrt engines, but rtx engines for sm89"),
        (("--backend", "rtx", "--device", "cpu"), "device is 'cpu', and rtx runs on GPUs only"),
        (("--backend", "rtx", "--device", "cuda:1"), "this machine has 1 CUDA device, and there is no cuda:1"),
    ],
)
def test_found_before_anything_is_loaded(bundle, tmp_path, capsys, arguments, message):
    assert run("--prompt", "x", *arguments, bundle=bundle, output=tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not bundle.trt.loads and not bundle.cudart.allocated and not (tmp_path / "a.png").exists()


def test_the_library_checks_sizes_too(bundle):
    pipeline = Pipeline.load(bundle.directory)
    with pytest.raises(ValueError, match=r"width in image tokens is 48, and the vae_decoder of .* takes 8 to 32"):
        pipeline.generate("x", width=768, height=256)
    assert not bundle.trt.runs


def test_damaged_plans(bundle, tmp_path, capsys):
    plan = bundle.directory / "engines/dit_cond.plan"
    content = plan.read_bytes()
    plan.write_bytes(content[:-1])
    assert run("--prompt", "x", bundle=bundle, output=tmp_path / "a.png") == 1
    assert "dit_cond.plan has 9299999 bytes, wanted 9300000: it is truncated or altered" in capsys.readouterr().err
    plan.write_bytes(content[:-1] + b"\n")
    assert run("--prompt", "x", bundle=bundle, output=tmp_path / "a.png") == 1
    assert "dit_cond.plan is altered: SHA-256" in capsys.readouterr().err


def test_an_engine_of_another_version(bundle, tmp_path, capsys):
    bundle.trt.__version__ = "1.8.0.5"
    assert run("--prompt", "x", "--backend", "rtx", bundle=bundle, output=tmp_path / "a.png") == 1
    assert "were built by version 1.7.1.116, and 1.8.0.5 is installed" in capsys.readouterr().err
    assert run("--prompt", "x", "--steps", 1, bundle=bundle, output=tmp_path / "a.png") == 0
    assert "on ort (cpu): the rtx engines for sm89 were built by version 1.7.1.116" in capsys.readouterr().err


def test_of_many_prompts_only_the_one_that_engines_cannot_make_fails(bundle, tmp_path, capsys):
    lines = [{"prompt": "x", "output": "a.png"}, {"prompt": "x", "output": "b.png", "width": 768, "height": 256}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "out").mkdir()
    arguments = ("--prompt-file", tmp_path / "jobs.jsonl", "--steps", 1)
    assert run(*arguments, bundle=bundle, output=tmp_path / "out") == 1
    assert "a picture of 768x256 is outside of what the engines were built for" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*.png")] == ["a.png"]


@pytest.fixture
def tiled(demo_bundle, tmp_path, monkeypatch):
    """A bundle whose engines are all that a build makes, tiles included."""
    return EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch, WEIGHTS | TILES)


@pytest.mark.parametrize("level", ["resident", "staged"])
def test_tiles_are_those_of_the_graphs(tiled, level):
    """Both ways through the VAE, in four tiles each, bit for bit."""
    tiled.cudart.used = FREE["resident"] - FREE[level]
    pipeline, peer = Pipeline.load(tiled.directory), Pipeline.load(tiled.directory, backend="ort")
    assert pipeline.opened.choice.memory.level == level
    image = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)
    made, wanted = (one.generate("x", **FAST, image=image, vae_tile=256) for one in (pipeline, peer))
    assert np.array_equal(made.images, wanted.images) and made.used["vae_tile"] == 256
    assert (tiled.trt.runs.count("vae_decoder_tile"), tiled.trt.runs.count("vae_decoder")) == (6, 0)
    pipeline.close()
    assert not tiled.cudart.allocated


def test_the_thumbnail_is_uploaded_once_a_picture(tiled):
    pipeline = Pipeline.load(tiled.directory)
    latents = np.random.default_rng(0).standard_normal((1, 32 * 32, 128)).astype(np.float32)
    before = tiled.cudart.count("upload")
    pipeline.decode(latents, (32, 32), 256)
    assert tiled.cudart.count("upload") - before == 9 + 1, "nine tiles and a thumbnail"


def test_tiles_are_loaded_when_they_are_needed(tiled, tmp_path):
    """By the command: what no picture needs is not even opened. By the library: with their own step."""
    opened = tiled.trt.loads
    assert run("--prompt", "x", "--steps", 1, bundle=tiled, output=tmp_path / "a.png") == 0
    assert len(opened) == 4
    opened.clear()
    tile = ("--vae-tile", 256, "--height", 512)
    assert run("--prompt", "x", "--steps", 1, *tile, bundle=tiled, output=tmp_path / "b.png") == 0
    assert len(opened) == 4 and tiled.trt.runs[-1] == "vae_decoder_tile"
    pipeline = Pipeline.load(tiled.directory, memory="staged")
    pipeline.generate("x", **FAST)
    assert pipeline.graphs["vae_decoder"].residency.loaded == ("vae_encoder", "vae_decoder")
    pipeline.generate("x", **FAST, height=512, vae_tile=256)
    assert pipeline.graphs["vae_decoder"].residency.loaded == ("vae_decoder_tile", "vae_encoder_tile")


def test_tiles_that_engines_do_not_take(tiled, tmp_path, capsys):
    arguments = ("--prompt", "x", "--height", 512, "--vae-tile", 400)
    assert run(*arguments, bundle=tiled, output=tmp_path / "a.png") == 1
    assert "the height of a tile is 400 pixels, and the vae_decoder_tile of the rtx" in capsys.readouterr().err
    assert not tiled.trt.loads and not (tmp_path / "a.png").exists()


def test_a_bundle_without_engines_for_tiles(bundle, tmp_path, capsys):
    """As earlier versions built them: large pictures are decoded whole, and tiles that are asked for are an error."""
    assert run("--prompt", "x", "--height", 512, "--vae-tile", 256, bundle=bundle, output=tmp_path / "a.png") == 1
    assert "vae tile is 256, and this bundle has no graphs for tiles; build it again" in capsys.readouterr().err


@pytest.fixture
def two(bundle):
    """The bundle on a machine with two GPUs."""
    bundle.cudart.gpus = 2
    return bundle


def meeting(barrier, function):
    """The function, which waits for another thread first."""

    def run(**feeds):
        barrier.wait()
        return function(**feeds)

    return run


def test_two_devices(two):
    """Each transformer with its own device current, at the same time: each waits for the other one. Bit for bit."""
    barrier = threading.Barrier(2, timeout=20)
    for name in ("dit_cond", "dit_uncond"):
        real = two.trt.stages[name].function
        two.trt.stages[name].function = meeting(barrier, real)
    pipeline = Pipeline.load(two.directory, devices=("cuda:0", "cuda:1"))
    on = {name: graph.device.index for name, graph in pipeline.graphs.items()}
    assert on == {"text_encoder": 1, "dit_cond": 0, "dit_uncond": 1, "vae_decoder": 0}
    assert pipeline.graphs["dit_cond"].engine.package is not pipeline.graphs["dit_uncond"].engine.package
    made = pipeline.generate("a red circle", **FAST)
    assert np.array_equal(
        made.images, Pipeline.load(two.directory, backend="ort").generate("a red circle", **FAST).images
    )
    assert (made.used["backend"], made.used["device"]) == ("rtx", "cuda:0,cuda:1")
    assert two.cudart.allocated_on(0) and two.cudart.allocated_on(1)
    pipeline.close()
    assert not two.cudart.allocated and not two.cudart.pinned


def test_memory_of_two_devices(two):
    """The conditional transformer and the VAE fit together; the text encoder must go before the other transformer."""
    two.cudart.used = FREE["resident"] - 12_000_000
    pipeline = Pipeline.load(two.directory, devices=("cuda:0", "cuda:1"))
    assert "resident: needs" in pipeline.where and "staged: needs" in pipeline.where
    pipeline.generate("x", **FAST)
    loaded = {name: graph.residency.loaded for name, graph in pipeline.graphs.items()}
    assert loaded["dit_cond"] == ("dit_cond", "vae_decoder") and loaded["dit_uncond"] == ("dit_uncond",)
    pipeline.close()
    assert not two.cudart.allocated


def test_what_the_first_device_holds_goes_when_the_second_fails(two):
    plan = two.directory / "engines/dit_uncond.plan"
    plan.write_bytes(b"x" * len(plan.read_bytes()))
    with pytest.raises(RuntimeError, match=r"failed loading dit_uncond from .*: the magic number does not match"):
        Pipeline.load(two.directory, devices=("cuda:1", "cuda:0"), verify=False)
    assert not two.cudart.allocated and two.cudart.count("malloc") > 0


def test_two_devices_by_the_command(two, tmp_path, capsys):
    arguments = ("--prompt", "x", "--steps", 1, "--devices", "0,1")
    assert run(*arguments, bundle=two, output=tmp_path / "a.png") == 0
    assert "on rtx (cuda:0,cuda:1): rtx engines for sm89 on Fake RTX 4090" in capsys.readouterr().err
    for gpus, capability, message in (
        (1, (8, 9), "cuda:1: this machine has 1 CUDA device, and there is no cuda:1"),
        (2, {0: (8, 9), 1: (7, 5)}, "cuda:1: the GPU Fake RTX 4090 is sm75, and the bundle's rtx engines are for sm89"),
    ):
        two.cudart.gpus, two.cudart.capability = gpus, capability
        loads = len(two.trt.loads)
        assert run(*arguments, "--backend", "rtx", bundle=two, output=tmp_path / "b.png") == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and len(two.trt.loads) == loads
    assert not two.cudart.allocated
    assert run("--prompt", "x", "--devices", "0,1", "--width", 768, bundle=two, output=tmp_path / "b.png") == 1
    assert not (tmp_path / "b.png").exists()
