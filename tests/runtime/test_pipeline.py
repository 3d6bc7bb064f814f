"""The pipeline and ``trt-generate`` on the demo bundle. Runs where PyTorch is not installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.processes import ROOT, shell_code, start

from runtime import Pipeline
from runtime.cli.main import main
from runtime.errors import BundleError, NonFiniteError
from runtime.image.output_files import read_settings
from runtime.sampling.noise import randn
from runtime.sampling.schedule import PRESETS, schedule

FAST = {"steps": 2, "guidance": 3.0, "seed": 3}


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A copy of the demo bundle to damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def run(*arguments, bundle, output, capsys=None):
    return main(["--bundle", str(bundle), "--output", str(output), *map(str, arguments)])


def edit_manifest(bundle, change):
    file = bundle / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


# What comes out


def test_picture_and_what_was_used(pipeline):
    made = pipeline.generate("a red circle", width=320, height=256, **FAST)
    assert made.images.shape == (1, 256, 320, 3) and made.images.dtype == np.uint8
    assert made.images.std() > 10, "a flat picture"
    used = made.used
    assert (used["seed"], used["width"], used["height"], used["num_images"]) == (3, 320, 256, 1)
    assert used["sampling"]["guidance"] == (3.0, 3.0)
    assert used["text_tokens"] == pipeline.prompt.encode("a red circle").shape[1]
    assert (used["bundle"], used["precision"], used["backend"], used["device"]) == ("demo", "fp32", "ort", "cpu")


def test_same_seed_same_picture_other_seed_another(pipeline):
    first, again = (pipeline.generate("x", **FAST).images for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pipeline.generate("x", **FAST | {"seed": 4}).images)
    assert not np.array_equal(first, pipeline.generate("y z", **FAST).images)


def test_random_seed_is_told_and_reproduces(pipeline):
    made = pipeline.generate("x", steps=1)
    assert np.array_equal(pipeline.generate("x", steps=1, seed=made.used["seed"]).images, made.images)


def test_batch_is_drawn_like_torchs(pipeline):
    """Two pictures of one seed are one draw of shape (2, N, C), as in diffusers with one generator."""
    both = pipeline.generate("x", **FAST, num_images=2).images
    noise = randn((2, 64, 128), 3)
    for index in range(2):
        one = pipeline.generate("x", steps=2, guidance=3.0, noise=noise[index : index + 1]).images
        # Batched matrix products may round differently in the last bit.
        assert np.abs(one[0].astype(int) - both[index]).max() <= 1


def test_parts_are_the_whole(pipeline):
    text = pipeline.encode(pipeline.prompt.encode("x"))
    steps = schedule(PRESETS["V4_INSTANT_8"], 128, 128)
    *_, latents = pipeline.denoise(text, randn((1, 64, 128), 5), (8, 8), steps)
    whole = pipeline.generate("x", preset="V4_INSTANT_8", seed=5).images
    assert np.array_equal(pipeline.decode(latents, (8, 8)), whole)


def test_progress_is_reported(pipeline):
    seen = []
    pipeline.generate("x", steps=3, seed=0, on_step=lambda done, total, latents: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_unconditional_graph(demo_bundle):
    alone = Pipeline.load(demo_bundle, unconditional=False)
    assert "dit_uncond" not in alone.graphs
    with pytest.raises(ValueError, match="loaded without the unconditional transformer"):
        alone.generate("x", **FAST)
    plain = alone.generate("x", steps=2, guidance=1.0, seed=3).images
    assert np.array_equal(alone.generate("x", steps=2, seed=3, unconditional="off").images, plain)
    borrowed = alone.generate("x", **FAST, unconditional="conditional").images
    assert not np.array_equal(borrowed, plain)
    assert not np.array_equal(borrowed, Pipeline.load(demo_bundle).generate("x", **FAST).images)


def test_bundle_without_unconditional_graph(bundle, tmp_path, capsys):
    """A distilled checkpoint's bundle. The user chooses what guidance means; nothing is chosen in silence."""
    edit_manifest(bundle, lambda d: d["graphs"].pop("dit_uncond"))
    arguments = ("--prompt", "x", "--steps", 2, "--seed", 3, "--quiet")
    assert run(*arguments, bundle=bundle, output=tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert "this bundle has none; choose guidance 1 (--unconditional off)" in error
    for choice in (("--unconditional", "off"), ("--unconditional", "conditional"), ("--guidance", 1)):
        assert run(*arguments, *choice, bundle=bundle, output=tmp_path / f"{choice[1]}.png") == 0
    assert (tmp_path / "off.png").stat().st_size > 0
    off, one, borrowed = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("off", "1", "conditional"))
    assert np.array_equal(off, one) and not np.array_equal(off, borrowed)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("text_encoder", "the text encoder gave NaN"),
        ("dit_cond", "the conditional velocity has 8192 NaN or infinite values at step 1 of 2"),
        ("dit_uncond", "the unconditional velocity has 8192 NaN or infinite values at step 1 of 2"),
    ],
)
def test_nan_from_a_graph(demo_bundle, graph, message):
    broken = Pipeline.load(demo_bundle)
    real = broken.graphs[graph]
    broken.graphs[graph] = lambda **feeds: real(**feeds) * np.float32(np.nan)
    with pytest.raises(NonFiniteError, match=message):
        broken.generate("x", **FAST)


def test_overflow_in_the_sum_of_the_passes(demo_bundle):
    """Each velocity is finite, what guidance makes of them is not."""
    broken = Pipeline.load(demo_bundle)
    real = broken.graphs["dit_cond"]
    broken.graphs["dit_cond"] = lambda **feeds: np.sign(real(**feeds)) * np.float32(3e38)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NonFiniteError, match=r"the latents overflow float32 at step 1 of 2 .*, with guidance 3.0"),
    ):
        broken.generate("x", **FAST)


def test_float16_and_bfloat16_bundles_round_the_time(demo_bundle):
    pipeline = Pipeline.load(demo_bundle)
    object.__setattr__(pipeline.manifest, "timestep_dtype", "bfloat16")
    times = []
    real = pipeline.graphs["dit_cond"]
    pipeline.graphs["dit_cond"] = lambda **feeds: times.append(float(feeds["timestep"][0])) or real(**feeds)
    pipeline.generate("x", steps=2, guidance=1.0, seed=0)
    assert times[0] == 0.00012302398681640625  # bfloat16 of 1.234e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "a\udc80"}, "the prompt is not valid UTF-8 at character 1"),
        ({"prompt": "a " * 2048}, r"the prompt has \d{4} tokens .* wanted at most 2048"),
        ({"width": 100}, "width is 100, wanted 128 to 2048"),
        ({"height": 300}, "height is 300, wanted a multiple of 16, such as 288"),
        ({"num_images": 0}, "num_images is 0, wanted 1 to 64"),
        ({"seed": -1}, "seed is -1"),
        ({"unconditional": "none"}, "unconditional is 'none', wanted one of graph, conditional, off"),
        ({"unconditional": "off"}, "guidance 3.0 needs an unconditional pass"),
        ({"noise": np.zeros((1, 5, 128), np.float32)}, r"shape \(1, 5, 128\), wanted \(B, 64, 128\)"),
        ({"noise": np.zeros((2, 64, 128), np.float32)}, "the noise is for 2 pictures, wanted 1"),
    ],
)
def test_refused_arguments(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**{"prompt": "x", **FAST, **arguments})


def test_longest_prompt_runs(pipeline):
    """2048 tokens, the template's included; one more is refused."""
    template = pipeline.prompt.encode("a").shape[1] - 1
    assert pipeline.prompt.encode("a" + " a" * (2047 - template)).shape[1] == 2048
    with pytest.raises(ValueError, match="has 2049 tokens"):
        pipeline.prompt.encode("a" + " a" * (2048 - template))


# Bundles that are not right


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda b: (b / "onnx/dit_cond.onnx").write_bytes(b"x"), "dit_cond.onnx has 1 bytes, wanted"),
        (lambda b: os.truncate(b / "onnx/weights/dit_cond.data", 1000), "dit_cond.data has 1000 bytes, wanted"),
        (lambda b: flip(b / "onnx/weights/dit_cond.data"), "dit_cond.data is altered: SHA-256"),
        (lambda b: flip(b / "onnx/dit_cond.onnx"), "dit_cond.onnx is altered: SHA-256"),
        (lambda b: (b / "onnx/extra.data").write_bytes(b"x"), "extra.data is not in its manifest"),
        (lambda b: relink(b / "onnx/weights/dit_cond.data"), "dit_cond.data is missing"),
        (lambda b: edit_manifest(b, lambda d: d["sizes"].update(multiple=0)), "are not in order"),
        (lambda b: edit_manifest(b, lambda d: d["rope"].update(theta=0)), "wanted even and above 0"),
        (lambda b: edit_manifest(b, lambda d: d.update(version=9)), "format version is 9"),
        (lambda b: edit_manifest(b, lambda d: d.update(later=9)), "unknown key 'later'"),
        (lambda b: edit_manifest(b, lambda d: d["files"].update({"../a": {"size": 1, "sha256": ""}})), "'../a'"),
        (lambda b: edit_manifest(b, lambda d: d["files"].update({"/a": {"size": 1, "sha256": ""}})), "'/a'"),
        (lambda b: edit_manifest(b, lambda d: d["graphs"].pop("vae_decoder")), "has no graph vae_decoder"),
        (lambda b: (b / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizers file"),
        (lambda b: (b / "manifest.json").write_bytes(b"\xff{}"), "is not UTF-8"),
    ],
)
def test_damaged_bundle(bundle, tmp_path, capsys, damage, message):
    damage(bundle)
    assert run("--prompt", "x", bundle=bundle, output=tmp_path / "o.png") == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("trt-generate: error: ") and "Traceback" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


def relink(file):
    file.rename(file.parents[2] / "elsewhere.data")
    file.symlink_to("../../elsewhere.data")


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_verify_off_skips_the_hashes(bundle, tmp_path):
    flip(bundle / "onnx/weights/dit_cond.data")
    assert (
        run("--prompt", "x", "--steps", 1, "--verify", "off", "--quiet", bundle=bundle, output=tmp_path / "o.png") == 0
    )


def test_graph_that_is_no_onnx(bundle, tmp_path, capsys):
    (bundle / "onnx/dit_cond.onnx").write_bytes(b"nonsense")
    edit_manifest(bundle, lambda d: d["files"]["onnx/dit_cond.onnx"].update(size=8))
    assert run("--prompt", "x", "--verify", "off", bundle=bundle, output=tmp_path / "o.png") == 1
    assert "ONNX Runtime cannot load graph dit_cond" in capsys.readouterr().err


def test_bfloat16_on_a_cpu(bundle):
    edit_manifest(bundle, lambda d: d["graphs"]["dit_cond"].update(compute="bfloat16"))
    with pytest.raises(
        RuntimeError, match="computes in bfloat16, which ONNX Runtime cannot run on a CPU; use --device"
    ):
        Pipeline.load(bundle)


def test_devices(demo_bundle):
    with pytest.raises(ValueError, match="device is 'tpu', wanted auto, cpu, cuda or cuda:N"):
        Pipeline.load(demo_bundle, device="tpu")
    with pytest.raises(ValueError, match="backend is 'x', wanted one of auto, ort, rtx, tensorrt"):
        Pipeline.load(demo_bundle, backend="x")


def test_cuda_where_there_is_none(demo_bundle):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeError, match=r"has no CUDA provider \(it has .*CPUExecutionProvider.*'ort-gpu'"):
        Pipeline.load(demo_bundle, device="cuda")


def test_bundle_error_is_a_value_error():
    assert issubclass(BundleError, ValueError)


# The command


def test_command_writes_a_png_with_its_settings(demo_bundle, tmp_path, capsys):
    output = tmp_path / "a.png"
    assert (
        run("--prompt", "ein roter Kreis 🙂", "--steps", 2, "--seed", 8, "--json", bundle=demo_bundle, output=output)
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == [str(output)] and printed["seed"] == 8
    settings = read_settings(output)
    assert settings["prompt"] == "ein roter Kreis 🙂" and settings["sampling"]["guidance"] == [3.0, 3.0]
    made = Pipeline.load(demo_bundle).generate("ein roter Kreis 🙂", steps=2, seed=8).images[0]
    assert np.array_equal(np.asarray(Image.open(output)), made)
    assert output.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_command_writes_several(demo_bundle, tmp_path):
    arguments = ("--prompt", "x", "--steps", 1, "--num-images", 3, "--quiet")
    assert run(*arguments, bundle=demo_bundle, output=tmp_path / "a.png") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-0.png", "a-1.png", "a-2.png"]


def test_command_reads_the_prompt_from_a_file(demo_bundle, tmp_path):
    (tmp_path / "p.txt").write_text("a blue star\n", encoding="utf-8")
    arguments = ("--prompt-file", tmp_path / "p.txt", "--steps", 1, "--quiet")
    assert run(*arguments, bundle=demo_bundle, output=tmp_path / "a.png") == 0
    assert read_settings(tmp_path / "a-0001.png")["prompt"] == "a blue star"


def test_command_takes_the_bundle_from_the_environment(demo_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEOGRAM4_BUNDLE", str(demo_bundle))
    assert main(["--prompt", "x", "--steps", "1", "--quiet"]) == 0
    assert (tmp_path / "ideogram4.png").is_file()
    monkeypatch.delenv("IDEOGRAM4_BUNDLE")
    assert main(["--prompt", "x", "--output", "b.png"]) == 1
    assert "there is no bundle directory ideogram4-bundle; python -m export.build makes one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt-file", "missing.txt"), "No such file or directory: missing.txt"),
        (("--prompt", "x", "--preset", "V4_TURBO_12", "--steps", 3), "fixes the number of steps"),
        (("--prompt", "x", "--preset", "NOPE"), "preset is 'NOPE', wanted one of V4_QUALITY_48"),
        (("--prompt", "x", "--preset", "V4_TURBO_12", "--guidance-schedule", "7x3"), "has 3 entries, wanted one for"),
        (("--prompt", "x", "--guidance-schedule", "7;3"), "guidance schedule '7;3' has the entry '7;3'"),
        (("--prompt", "x", "--width", 250), "width is 250"),
        (("--prompt", "x", "--num-images", 0), "num_images is 0, wanted 1 to 64"),
        (("--prompt", "x", "--num-images", 10**9), "num_images is 1000000000, wanted 1 to 64"),
        (("--prompt", "x", "--threads", -2), "threads is -2"),
        (("--prompt", "x", "--threads", 10**14), "threads is 100000000000000, wanted 1 to 1024"),
        (("--prompt", "x", "--steps", 3, "--guidance", "1e39"), "guidance is 1e+39, wanted a number of at most 10000"),
        (("--prompt", "x", "--steps", 3, "--guidance", "nan"), "guidance is nan, wanted a number"),
        (("--prompt", "x", "--output", "no/where/a.png"), "output directory no/where does not exist"),
        (("--prompt", "x", "--output", "."), "the output . is a directory"),
    ],
)
def test_command_refuses(demo_bundle, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--bundle", str(demo_bundle), *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("trt-generate: error: ")
    assert list(tmp_path.iterdir()) == []


def test_command_keeps_an_existing_file(demo_bundle, tmp_path, capsys):
    output = tmp_path / "a.png"
    output.write_bytes(b"mine")
    assert run("--prompt", "x", bundle=demo_bundle, output=output) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"
    assert run("--prompt", "x", "--steps", 1, "--overwrite", "--quiet", bundle=demo_bundle, output=output) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_only_plain_files_are_overwritten(demo_bundle, tmp_path, capsys):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to("target")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("link.png", "pipe.png"):
        assert run("--prompt", "x", "--overwrite", bundle=demo_bundle, output=tmp_path / name) == 1
        assert "is a link or a device, wanted a plain file" in capsys.readouterr().err
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_prompt_file_that_is_not_utf8(demo_bundle, tmp_path, capsys):
    (tmp_path / "p").write_bytes(b"caf\xe9")
    assert run("--prompt-file", tmp_path / "p", bundle=demo_bundle, output=tmp_path / "a.png") == 1
    assert "is not UTF-8 text: byte 3 is invalid" in capsys.readouterr().err


def test_prompt_argument_that_is_not_utf8(demo_bundle, tmp_path):
    command = [sys.executable, "-m", "runtime", "--bundle", str(demo_bundle), "--output", str(tmp_path / "a.png")]
    done = subprocess.run([*command, "--prompt", b"caf\xe9"], capture_output=True, cwd=ROOT)
    assert done.returncode == 1 and b"the prompt is not valid UTF-8 at character 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_directory_that_cannot_be_written(tmp_path, capsys):
    """Found before anything is loaded: the bundle named here does not even exist."""
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # not even root creates files there
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    assert run("--prompt", "x", bundle=tmp_path / "none", output=folder / "a.png") == 1
    assert f"cannot write to {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupt_leaves_nothing(demo_bundle, tmp_path, sent, code):
    command = [sys.executable, "-m", "runtime", "--bundle", demo_bundle, "--output", tmp_path / "a.png"]
    process = start([*command, "--prompt", "x", "--steps", 1000])
    assert process.stderr
    for line in iter(process.stderr.readline, ""):
        if "fp32 on ort" in line:  # loaded; the thousand steps begin
            break
    time.sleep(0.3)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert shell_code(process) == code and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up(demo_bundle, tmp_path):
    """A limit on the size of files stands in for a full disk: the write fails half-way in the same place."""
    limit = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from runtime.cli.main import main"
    )
    arguments = ["--bundle", str(demo_bundle), "--output", str(tmp_path / "a.png"), "--prompt", "x", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", f"{limit}; sys.exit(main({arguments!r}))"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "trt-generate: error: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []
