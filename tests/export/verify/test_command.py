"""The comparison of bundles with their checkpoint: the figures, the report, and what it refuses."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from support import peers

from calibration.plans import make_plans
from calibration.ranges import write_ranges
from calibration.record import calibrate
from export.build.command import build
from export.build.options import BuildOptions
from export.demo_model import DEMO_CHECKPOINT
from export.reporting.plot import Series, line_plot
from export.verify.command import main, verify
from export.verify.quality import (
    GridCheck,
    check_size,
    grid_checks,
    grid_ratio,
    picture_error,
    psnr,
    ssim,
    vector_error,
)
from export.verify.replay import sample
from export.verify.report_files import HTML, JSON, check_output
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from runtime.backend.ort import OrtGraph
from runtime.sampling.schedule import round_to_bfloat16

PROMPTS = ("a red circle on a blue background", "<script>alert(1)</script> & \"quotes\" 'too'")
QUICK = ("--checkpoint", str(DEMO_CHECKPOINT), "--quiet", "--preset", "V4_TURBO_12")
STEPS = 12
PICTURES = arrays(np.uint8, st.tuples(st.integers(7, 20), st.integers(7, 20), st.just(3)))


@pytest.fixture(scope="module")
def fp8_bundle(tmp_path_factory):
    """The demo model at W8A8, with ranges from a single prompt."""
    folder = tmp_path_factory.mktemp("fp8")
    ranges = calibrate(open_checkpoint(DEMO_CHECKPOINT), [PROMPTS[0]], steps=4, quiet=True)
    write_ranges(ranges, folder / "ranges.json")
    bundle, file = folder / "eight", folder / "ranges.json"
    build(BuildOptions(output=bundle, precision="fp8", calibration=file, quiet=True))
    return bundle


@pytest.fixture(scope="module")
def verified(demo_bundle, fp8_bundle, tmp_path_factory):
    """(report, its directory) of both bundles with two prompts."""
    output = tmp_path_factory.mktemp("verified") / "report"
    report = verify(
        [demo_bundle, fp8_bundle], DEMO_CHECKPOINT, output, texts=PROMPTS, preset="V4_TURBO_12", seed=5, quiet=True
    )
    return report, output


@pytest.fixture(scope="module")
def page(verified):
    return (verified[1] / HTML).read_text(encoding="utf-8")


def relative(report, bundle, stage):
    return [error.relative for calls in report.entries[bundle].measured.graphs[stage] for error in calls]


# The figures of bundles


@pytest.mark.parametrize("stage", ["text_encoder", "dit_cond", "dit_uncond"])
def test_float32_graphs_are_exact(verified, stage):
    """Two float32 implementations that add in another order; measured: below 1e-6."""
    calls = 1 if stage == "text_encoder" else STEPS
    errors = verified[0].entries[0].measured.graphs[stage]
    assert [len(of_prompt) for of_prompt in errors] == [calls, calls]
    assert all(error.relative <= 1e-5 and error.cosine >= 1 - 1e-9 for of_prompt in errors for error in of_prompt)


def test_float32_pictures_are_exact(verified):
    measured = verified[0].entries[0].measured
    decoded = [error for calls in measured.graphs["vae_decoder"] for error in calls]
    for error in (*decoded, *(picture.error for picture in measured.pictures)):
        assert error.max_difference <= 1 and error.psnr > 60 and error.ssim > 0.9999
    assert all(picture.latents.relative <= 1e-4 for picture in measured.pictures)


@pytest.mark.parametrize("stage", ["dit_cond", "dit_uncond"])
def test_float8_costs_what_three_bits_cost(verified, stage):
    """e4m3 has a relative step of 1/8, so an error of 1/8/sqrt(12) = 3.6 % per value; residual paths dilute it."""
    errors = relative(verified[0], 1, stage)
    assert len(errors) == 2 * STEPS and 1e-3 < max(errors) < 0.1
    assert min(errors) > 100 * max(relative(verified[0], 0, stage))


def test_float8_leaves_the_other_graphs_alone(verified):
    """The demo's weights are float8 codes already, so its text encoder loses nothing; the decoder stays float32."""
    assert max(relative(verified[0], 1, "text_encoder")) <= 1e-5
    assert all(
        error.max_difference <= 1 for calls in verified[0].entries[1].measured.graphs["vae_decoder"] for error in calls
    )
    for exact, quantized in zip(*(entry.measured.pictures for entry in verified[0].entries), strict=True):
        # Measured: 22 dB at the worst. The presets' guidance of 7 is strong for the demo and moves its shapes' edges.
        assert 18 < quantized.error.psnr < exact.error.psnr and quantized.error.ssim < exact.error.ssim
        assert quantized.latents.relative > exact.latents.relative


def test_no_grid_in_the_demos_pictures(verified):
    checks = [c for e in verified[0].entries for p in e.measured.pictures for c in p.grid]
    assert [c.period for c in checks] == [16, 8] * 4 and not any(c.flagged for c in checks)


@pytest.mark.parametrize("time", ["float32", "bfloat16"])
def test_reference_rounds_the_time_as_the_bundle_does(time):
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    plans = make_plans(checkpoint, PROMPTS[:1], "V4_TURBO_12", None, None, None, 0)
    advanced = []
    (run,) = sample(checkpoint, plans, [time], "cpu", lambda: advanced.append(1))[time]
    wanted = [step.t if time == "float32" else round_to_bfloat16(step.t) for step in plans[0].steps]
    for stage in ("dit_cond", "dit_uncond"):
        assert [float(call.feeds["timestep"][0]) for call in run.calls[stage]] == wanted
    assert len(advanced) == STEPS and run.image.shape == (128, 128, 3)


def test_errors_do_not_pass_from_graph_to_graph(demo_bundle, tmp_path, monkeypatch):
    """A text encoder that is 10 % off: its own figures say so, the transformers' do not, the picture's do."""
    call = OrtGraph.__call__

    def spoiled(self, **feeds):
        output = call(self, **feeds)
        return output * np.float32(1.1) if self.name == "text_encoder" else output

    monkeypatch.setattr(OrtGraph, "__call__", spoiled)
    report = verify([demo_bundle], DEMO_CHECKPOINT, tmp_path / "r", texts=PROMPTS[:1], preset="V4_TURBO_12", quiet=True)
    assert relative(report, 0, "text_encoder") == [pytest.approx(0.1, rel=1e-4)]
    assert max(relative(report, 0, "dit_cond")) <= 1e-5
    assert report.entries[0].measured.pictures[0].latents.relative > 1e-4


def test_distilled_checkpoint(demo_bundle, tmp_path):
    """Without guidance the unconditional graph does not run, and nothing is said about it."""
    checkpoint = peers.copy(DEMO_CHECKPOINT, tmp_path / "distilled")
    shutil.rmtree(checkpoint / "unconditional_transformer")
    bundle = peers.copy(demo_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["fingerprint"] = fingerprint(open_checkpoint(checkpoint))
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    report = verify([bundle], checkpoint, tmp_path / "r", texts=PROMPTS[:1], preset="V4_INSTANT_8", quiet=True)
    assert list(report.entries[0].measured.graphs) == ["text_encoder", "dit_cond", "vae_decoder"]
    assert len(relative(report, 0, "dit_cond")) == 8 and report.entries[0].measured.pictures[0].error.psnr > 60
    page = (tmp_path / "r" / HTML).read_text(encoding="utf-8")
    assert len(Page(page).named("img")) == 3 and "dit_uncond" not in page


# The report


def test_json(verified):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((verified[1] / JSON).read_text(encoding="utf-8"), parse_constant=refuse)
    assert list(data) == [
        "format",
        "version",
        "checkpoint",
        "device",
        "preset",
        "steps",
        "guidance",
        "width",
        "height",
        "prompts",
        "time_rounding",
        "grid_flag",
        "bundles",
    ]
    assert (data["format"], data["version"], data["checkpoint"]) == ("ideogram4-quality", 1, "demo")
    assert (data["preset"], data["steps"], len(data["guidance"])) == ("V4_TURBO_12", STEPS, STEPS)
    assert [(p["prompt"], p["seed"]) for p in data["prompts"]] == [(PROMPTS[0], 5), (PROMPTS[1], 6)]
    assert len(data["time_rounding"]) == 2 and data["time_rounding"][0].keys() == {"max_difference", "psnr", "ssim"}
    exact, quantized = data["bundles"]
    assert (exact["precision"], exact["timestep_dtype"], exact["quantization"]) == ("fp32", "float32", None)
    assert (quantized["label"], quantized["precision"], quantized["timestep_dtype"]) == ("eight", "fp8", "bfloat16")
    assert quantized["quantization"] == {"activations": "max", "attention": "base", "keep_base": []}
    assert 0 < quantized["bytes"] < exact["bytes"]
    for bundle in data["bundles"]:
        graphs = bundle["graphs"]
        assert {stage: [len(calls) for calls in plans] for stage, plans in graphs.items()} == {
            "text_encoder": [1, 1],
            "dit_cond": [STEPS] * 2,
            "dit_uncond": [STEPS] * 2,
            "vae_decoder": [1, 1],
        }
        assert graphs["dit_cond"][0][0].keys() == {"relative", "cosine"}
        assert graphs["vae_decoder"][0][0].keys() == {"max_difference", "psnr", "ssim"}
        for picture in bundle["pictures"]:
            assert picture.keys() == {"max_difference", "psnr", "ssim", "latents", "grid"}
            assert [check.keys() for check in picture["grid"]] == [{"period", "ratio", "reference", "flagged"}] * 2


class Page(HTMLParser):
    """Tags of a page; fails on one that is closed wrongly."""

    VOID = frozenset({"meta", "img", "circle", "line", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "a", "use", "image"} & {
        t for t, _ in parsed.tags
    }
    for tag, attributes in parsed.tags:
        assert not {"href", "xlink:href", "srcset", "onload", "onclick", "onerror"} & attributes.keys()
        assert "src" not in attributes or (tag == "img" and attributes["src"].startswith("data:image/png;base64,"))
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page


def test_page_shows_all_pictures(verified, page):
    """Of each prompt: two references (two types of time), their difference, two bundles and their differences."""
    images = Page(page).named("img")
    assert len(images) == 2 * 7 and all(i["alt"] and i["width"] == i["height"] == "128" for i in images)
    assert sum("difference × " in i["alt"] for i in images) == 2 * 3


def test_page_says_it_in_words(verified, page):
    text = Page(page).text
    assert all(stage in text for stage in ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder"))
    assert "V4_TURBO_12" in text and "5 to 6" in text and "weights + activations (max)" in text
    assert PROMPTS[1] in text and "relative velocity error" in text and "none" in text
    assert page.count('class="line"') == 2 * 4  # four lines, and the four of the legend


def test_table_on_standard_output(demo_bundle, tmp_path, capsys):
    arguments = ["--prompt", *PROMPTS[:1], "--output", str(tmp_path / "report"), *QUICK]
    assert main([str(demo_bundle), *arguments]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "demo, V4_TURBO_12 (12 steps), 128x128, prompts: 1, seeds from 0; reference: PyTorch in float32"
    assert err == "" and [line.split()[0] for line in lines[3:7]] == [
        "text_encoder",
        "dit_cond",
        "dit_uncond",
        "vae_decoder",
    ]
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [HTML, JSON]
    assert main([str(demo_bundle), *arguments, "--overwrite"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


def test_overwriting_takes_only_what_the_command_made(verified, tmp_path):
    report = Path(shutil.copytree(verified[1], tmp_path / "report"))
    with pytest.raises(FileExistsError, match="choose another --output or add --overwrite"):
        check_output(report, overwrite=False)
    check_output(report, overwrite=True)
    (report / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / HTML).write_text("mine")
    (tmp_path / "other" / JSON).write_text('{"format": "another"}')
    for name in ("report", "empty", "file", "other"):
        with pytest.raises(FileExistsError, match="is not a report; it is not overwritten"):
            check_output(tmp_path / name, overwrite=True)


def test_plot_of_zeros_and_of_one_step():
    zeros = line_plot([Series("exact", "#000", False, [0.0, 0.0])], "step", "error")
    assert "<circle" in zeros and "NaN" not in zeros and "inf" not in zeros
    gap = line_plot([Series("gap", "#000", True, [1e-3, 1e-3, 0.0, 1e-2])], "step", "error")
    path = re.search(r' d="([^"]*)"/>', gap[gap.index('class="line"') :])[1]
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert "10<tspan" in line_plot([Series("<b>", "#000", False, [1.0])], "x", "y < z")
    assert "<b>" not in line_plot([Series("<b>", "#000", False, [1.0])], "x", "y < z")


# What is refused


def refused(capsys, tmp_path, message, *arguments):
    """The command fails with `message` in one line and leaves `tmp_path` as it was."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["--output", str(tmp_path / "report"), *QUICK, *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("export.verify: error: ") and message in err and err.count("\n") == 1 and out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "prompt 1 of 1: the prompt is empty"),
        (["--prompt", "fine", ""], "prompt 2 of 2: the prompt is empty"),
        (["--prompt", "\ud800"], "not valid UTF-8 at character 0"),
        (["--prompt", "a " * 3000], "wanted at most 2048"),
        (["--prompts", "0"], "--prompts is 0, wanted 1 to "),
        (["--prompts", "100000"], "--prompts is 100000, wanted 1 to "),
        (["--preset", "V5"], "preset is 'V5', wanted one of V4_QUALITY_48"),
        (["--preset", "V4_FAST_20"], "preset V4_FAST_20 has no guidance"),
        (["--seed", "-1"], "seed is -1"),
        (["--width", "250"], "width is 250"),
        (["--height", "300"], "height is 300, wanted a multiple of 16"),
        (["--checkpoint", "nowhere"], "there is no checkpoint directory nowhere"),
    ],
)
def test_bad_options(demo_bundle, tmp_path, capsys, arguments, message):
    refused(capsys, tmp_path, message, demo_bundle, *arguments)


def test_prompts_and_prompt_exclude_each_other(demo_bundle, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(demo_bundle), "--output", str(tmp_path / "r"), *QUICK, "--prompts", "1", "--prompt", "a"])
    assert stopped.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_bundles_that_are_not_there(demo_bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path, "there is no bundle directory", demo_bundle, tmp_path / "none")
    refused(capsys, tmp_path, "holds no manifest.json", tmp_path / "empty")
    refused(capsys, tmp_path, "is given twice", demo_bundle, demo_bundle / "." / "onnx" / "..")


def test_output(demo_bundle, tmp_path, capsys):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    refused(capsys, tmp_path, "exists; choose another --output or add --overwrite", demo_bundle)
    refused(capsys, tmp_path, "is not a report; it is not overwritten", demo_bundle, "--overwrite")
    refused(capsys, tmp_path, "for the report does not exist", demo_bundle, "--output", tmp_path / "no" / "report")


def test_bundle_of_another_model(demo_bundle, peer, tmp_path, capsys):
    checkpoint = peer("head32", "diffusers")[1]
    message = f"the bundle {demo_bundle} was not made from the checkpoint {checkpoint}: its"
    refused(capsys, tmp_path, message, demo_bundle, "--checkpoint", checkpoint)


def test_float8_bundle_of_another_model_of_the_same_sizes(fp8_bundle, tmp_path, capsys):
    """Only the fingerprint can tell."""
    checkpoint = peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")
    file = checkpoint / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["embed_image_indicator.weight"] += 1
    save_file(tensors, file)
    refused(capsys, tmp_path, "its fingerprint is ", fp8_bundle, "--checkpoint", checkpoint)


def spoil(manifest, *path, value=None):
    """Set, or without a value remove, what is at `path` in a manifest."""
    for key in path[:-1]:
        manifest = manifest[key]
    if value is None:
        del manifest[path[-1]]
    else:
        manifest[path[-1]] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: spoil(m, "rope", "theta", value=1e5), "its rope is RopeSpec(head_dim=64, theta=100000.0"),
        (lambda m: spoil(m, "sizes", "multiple", value=32), "its sizes is SizeSpec(multiple=32"),
        (
            lambda m: spoil(m, "latent_channels", value=64) or m.update(preview=None),
            "its latent_channels is 64, the checkpoint's 128",
        ),
        (lambda m: spoil(m, "latent_stats", value="bn" if m["latent_stats"] != "bn" else "constants"), "latent_stats"),
        (lambda m: spoil(m, "prompt", "prefix", value="x"), "its prompt is PromptSpec("),
        (lambda m: spoil(m, "files", "tokenizer.json", "sha256", value="0" * 64), "its tokenizer is 000"),
        (lambda m: spoil(m, "graphs", "dit_uncond"), "has no graph dit_uncond, which the comparison needs"),
        (lambda m: spoil(m, "graphs", "dit_cond", "outputs", 0, "shape", 2, value=64), "its graph dit_cond is "),
        (lambda m: spoil(m, "rope"), "manifest.json: the manifest lacks the key 'rope'"),
    ],
    ids=["rope", "sizes", "channels", "stats", "prompt", "tokenizer", "no graph", "graph", "damaged"],
)
def test_manifest_of_another_model(demo_bundle, tmp_path, capsys, change, message):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = json.loads((demo_bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(capsys, tmp_path, message, bundle)


def test_damaged_bundle_is_found_before_the_reference_runs(demo_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.verify.command.sample", lambda *arguments: pytest.fail("the reference ran"))
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    file = bundle / "onnx/weights/dit_cond.data"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    refused(capsys, tmp_path, "dit_cond.data", demo_bundle, bundle)


def test_bundle_that_gives_nan_and_the_report_before_it(verified, demo_bundle, tmp_path, capsys, monkeypatch):
    report = Path(shutil.copytree(verified[1], tmp_path / "report"))
    before = (report / JSON).read_bytes()
    call = OrtGraph.__call__
    monkeypatch.setattr(OrtGraph, "__call__", lambda self, **feeds: call(self, **feeds) * np.float32(math.nan))
    refused(
        capsys,
        tmp_path,
        f"the bundle {demo_bundle}: text_encoder gave NaN or infinite values",
        demo_bundle,
        "--overwrite",
        "--prompt",
        "a",
    )
    assert (report / JSON).read_bytes() == before


# The figures themselves


@given(PICTURES)
def test_equal_pictures(picture):
    assert psnr(picture, picture) == math.inf and ssim(picture, picture) == 1.0
    assert picture_error(picture, picture).max_difference == 0


@given(PICTURES, st.randoms(use_true_random=False))
def test_psnr_and_ssim_are_symmetric(picture, random):
    other = np.array([random.randrange(256) for _ in range(picture.size)], np.uint8).reshape(picture.shape)
    assert psnr(picture, other) == psnr(other, picture)
    assert ssim(picture, other) == pytest.approx(ssim(other, picture), abs=1e-12)
    assert -1 <= ssim(picture, other) <= 1


@given(st.integers(1, 255), st.integers(0, 254))
def test_psnr_of_an_offset(offset, value):
    """A difference of d everywhere: 20 log10(255 / d)."""
    offset = min(offset, 255 - value)
    picture = np.full((9, 8, 3), value, np.uint8)
    assert psnr(picture + np.uint8(offset), picture) == pytest.approx(20 * math.log10(255 / offset))


@given(PICTURES, st.randoms(use_true_random=False))
def test_ssim_is_the_mean_over_windows(picture, random):
    """The paper's formula, window by window, with numpy's own covariance."""
    noise = np.array([random.randrange(-40, 41) for _ in range(picture.size)]).reshape(picture.shape)
    other = np.clip(picture + noise, 0, 255).astype(np.uint8)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(picture.shape[0] - 6):
        for column in range(picture.shape[1] - 6):
            for channel in range(3):
                x, y = (p[row : row + 7, column : column + 7, channel].astype(float).ravel() for p in (picture, other))
                (vx, cov), (_, vy) = np.cov(x, y)
                mx, my = x.mean(), y.mean()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(picture, other) == pytest.approx(np.mean(values), abs=1e-9)


@given(arrays(np.float32, 16, elements=st.floats(-8, 8, width=32)), st.floats(0.125, 8))
def test_vector_error_of_a_multiple(vector, factor):
    vector[0] = 1.0
    error = vector_error(vector * factor, vector)
    assert error.relative == pytest.approx(abs(factor - 1), abs=1e-5) and error.cosine == pytest.approx(1, abs=1e-9)
    assert vector_error(-vector, vector).cosine == pytest.approx(-1)


def test_vector_error_of_zeros():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert (vector_error(zero, zero).relative, vector_error(zero, zero).cosine) == (0, 1)
    assert (vector_error(one, zero).relative, vector_error(one, zero).cosine) == (math.inf, 0)
    assert (vector_error(zero, one).relative, vector_error(zero, one).cosine) == (1, 0)


@pytest.mark.parametrize("function", [psnr, ssim, vector_error, picture_error])
def test_shapes_that_differ(function):
    with pytest.raises(ValueError, match=r"the shapes \(8, 9, 3\) and \(9, 8, 3\) differ"):
        function(np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8))


def scene(seed, height, width):
    """Soft shades and noise of a few grey levels: neither edges nor a grid."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / 256
    shades = 128 + 50 * np.sin(random.uniform(2, 6) * x + y) + 30 * np.cos(random.uniform(2, 6) * y - x)
    return np.clip(shades[..., None] + random.randn(height, width, 3) * 3, 0, 255).astype(np.uint8)


def with_grid(picture, period, depth, shift=0, axes=(0, 1)):
    """Every `period`-th line darker by `depth`."""
    lined = picture.astype(int)
    for axis in axes:
        np.moveaxis(lined, axis, 0)[shift::period] -= depth
    return np.clip(lined, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 256), (272, 320), (512, 256)], ids=str)
def test_grid_check_is_silent_without_a_grid(size):
    """Chance decides about single pictures, so these are always the same ones; one in a hundred thousand would fail."""
    scenes = [scene(seed, *size) for seed in range(60)]
    assert not any(c.flagged for one, other in pairwise(scenes) for c in grid_checks(one, other))


@given(
    st.integers(0, 10**6),
    st.sampled_from([(256, 256), (272, 320), (512, 256)]),
    st.integers(0, 15),
    st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_grid_check_fires_on_a_grid(seed, size, shift, axes):
    """Lines four grey levels deep, about as deep as the noise, on either axis, wherever they begin."""
    clean = scene(seed, *size)
    check = grid_checks(with_grid(clean, 16, 4, shift, axes), clean)[0]
    assert (check.period, check.flagged) == (16, True)


def test_grid_of_latent_pixels():
    clean = scene(3, 256, 256)
    sixteen, eight = grid_checks(with_grid(clean, 8, 4), clean)
    assert eight.flagged and not sixteen.flagged


def test_steps_at_the_borders_of_tokens():
    """Each token a little brighter or darker than it should be."""
    clean = scene(4, 256, 256)
    offsets = np.kron(np.random.RandomState(0).randn(16, 16) * 4, np.ones((16, 16)))[..., None]
    assert grid_checks(np.clip(clean + offsets, 0, 255).astype(np.uint8), clean)[0].flagged


def test_grid_that_the_reference_has_too():
    tiles = with_grid(scene(5, 256, 256), 16, 20)
    assert not any(check.flagged for check in grid_checks(with_grid(scene(6, 256, 256), 16, 20), tiles))


def test_flag_has_a_floor():
    """Four times nothing is still nothing."""
    assert not GridCheck(16, 31.9, 0.01).flagged and GridCheck(16, 32.1, 0.01).flagged
    assert not GridCheck(16, 399.0, 100.0).flagged and GridCheck(16, 401.0, 100.0).flagged


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_picture_has_no_grid(value):
    assert grid_ratio(np.full((96, 80, 3), value, np.uint8), 16) == pytest.approx(1)


def test_smallest_picture():
    check_size(80, 80)
    assert grid_ratio(scene(0, 80, 80), 16) > 0 < grid_ratio(scene(0, 80, 80), 8)
    with pytest.raises(ValueError, match="the picture has 96x64 pixels, wanted at least 80 on both sides"):
        check_size(96, 64)
    with pytest.raises(ValueError, match="wanted at least 7x7 for SSIM"):
        ssim(np.zeros((6, 9, 3), np.uint8), np.zeros((6, 9, 3), np.uint8))
