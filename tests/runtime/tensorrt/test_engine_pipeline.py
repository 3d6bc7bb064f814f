"""The pipeline and ``trt-generate`` on engines that compute what the demo's graphs compute."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.engines.demo import FAST, FREE, LARGE_RANGES, RANGES, EngineBundle, run

from runtime import Pipeline, loading
from runtime.bundle import integrity


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


def test_pictures_of_each_profile_are_those_of_the_graphs(demo_bundle, tmp_path, monkeypatch):
    """Sizes that go back and forth between two profiles, with different ones for the stages of one picture."""
    made = EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch, profiles=(RANGES, LARGE_RANGES))
    pipeline, peer = Pipeline.load(made.directory), Pipeline.load(made.directory, backend="ort")
    for size in ((128, 128), (512, 384), (128, 512), (512, 512), (128, 128)):
        options = FAST | {"width": size[0], "height": size[1]}
        images = [one.generate("a red circle", **options).images for one in (pipeline, peer)]
        assert np.array_equal(*images)
    decoders = [context for context in made.trt.contexts if context.stage == "vae_decoder"]
    assert len(decoders) == 2, "one side of 128 is in the first profile only, and 512 in both"
    pipeline.close()
    assert not made.cudart.allocated


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


def test_too_little_memory_is_an_error(bundle, tmp_path, capsys):
    """Nothing runs on the CPU for that unless it is asked for."""
    bundle.cudart.used = bundle.cudart.total - 10**6
    arguments = ("--prompt", "x", "--steps", 1)
    assert run(*arguments, bundle=bundle, output=tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert "0.0 GB of device memory are free; close other programs that use the GPU" in error
    assert error.endswith("; --backend ort runs it on any machine\n") and not bundle.trt.loads
    assert run(*arguments, "--backend", "ort", bundle=bundle, output=tmp_path / "a.png") == 0


def test_threads_may_share_a_pipeline(bundle):
    """Each has its own pictures, as if it had been alone."""
    with Pipeline.load(bundle.directory) as pipeline:
        wanted = {seed: pipeline.generate("x", **FAST | {"seed": seed}).images for seed in range(4)}
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda seed: pipeline.generate("x", **FAST | {"seed": seed % 4}).images, range(12)))
    assert all(np.array_equal(images, wanted[number % 4]) for number, images in enumerate(made))


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


def test_engines_are_hashed_and_graphs_that_they_replace_are_not(bundle, monkeypatch):
    hashed, sha256 = [], integrity.sha256
    monkeypatch.setattr(integrity, "sha256", lambda file: hashed.append(file.name) or sha256(file))
    monkeypatch.setattr(loading, "cache_directory", lambda: None)
    Pipeline.load(bundle.directory, unconditional=False)
    assert sorted(hashed) == ["dit_cond.plan", "text_encoder.plan", "tokenizer.json", "vae_decoder.plan"]
