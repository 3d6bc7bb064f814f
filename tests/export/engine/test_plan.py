"""Engines, really built by TensorRT-RTX for Ada and Blackwell without either, and what they are made of.

The kernels are those of TensorRT-RTX 1.7.1.116, which the test environment pins. A number that is smaller than the
stated one after a change is good news: state it.
"""

import json
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tensorrt_rtx
from support.processes import make_checkpoint, shell_code, start

from export.build.command import main
from export.build.ledger import LEDGER
from export.build.preflight import scratch_bytes
from export.demo_model import DEMO_CHECKPOINT
from export.engine.builder import build_plan
from export.engine.plan import EngineOptions, build_engine
from export.engine.sizes import Limits, size_ranges
from export.engine.targets import TARGETS
from export.graph import weights
from export.graph.precision import precision_of
from export.graph.recipe import Recipe
from export.graph.records import stage_of
from export.graph.stage import StageOptions, export_stage, stage_graph
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest

BOTH = ("sm89", "sm120")
BLOCK_KERNELS = {"fp8": 12, "base": 12}
"""Kernels of a transformer block at the real width, by the attention's type; see `export.graph.passes`."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint of two blocks of the real width: 4608, 18 heads of 256."""
    directory = tmp_path_factory.mktemp("wide") / "checkpoint"
    parts = ("transformer", "text_encoder", "vae")
    return open_checkpoint(make_checkpoint(directory, "--size", "wide", "--parts", *parts))


def stage_options(checkpoint, stage, attention, precision="fp8", linked=True, base="bf16"):
    types = precision_of(precision, base if precision.startswith("fp8") else None, "rtx")
    recipe = Recipe(types.activations_fp8, types.activations_fp8 and attention == "fp8")
    points = recipe.points(stage, checkpoint.transformer.num_layers)
    return StageOptions(types, recipe, dict.fromkeys(points, 8.0), "trt", linked)


def engine(checkpoint, stage, folder, attention="fp8", targets=BOTH, precision="fp8"):
    """The report of an engine of one stage."""
    sizes = size_ranges(Limits(256, 1024, 2048, 2048), 16)
    options = stage_options(checkpoint, stage, attention, precision)
    return build_engine(checkpoint, stage, options, EngineOptions("rtx", targets, sizes), folder, quiet=True)


@pytest.mark.parametrize("targets", [BOTH, ("sm89",), ("sm120",)], ids="+".join)
@pytest.mark.parametrize("attention", ["fp8", "base"])
def test_blocks_of_the_real_width(wide, tmp_path, attention, targets):
    spec, files, report = engine(wide, "dit_cond", tmp_path, attention, targets)
    assert set(report["block_kernels"]) == {BLOCK_KERNELS[attention]}
    assert report["synchronisations"] == 0 and report["streams"] == 1
    assert report["qkv_products"] == report["gate_products"] == 1
    assert report["attentions"]["types"] == {"fp8" if attention == "fp8" else "bf16": 2}
    assert report["unfused"]["types"] == {}
    assert report["products"]["types"]["fp8"] == 2 * 4, "qkv, o, w13 and w2 of two blocks"
    assert report["copies"] == 0, "no weight is written back in 16 bits"
    products = report["products"]
    assert products["operations_fp8"] / products["operations"] > 0.99
    plan = tmp_path / spec.plan
    assert plan.stat().st_size == files[spec.plan].size < 1.02 * report["build"]["weight_bytes"]


def test_weight_streaming_changes_no_kernel(wide, tmp_path):
    sizes = size_ranges(Limits(256, 1024, 2048, 2048), 16)
    options = stage_options(wide, "dit_cond", "fp8")
    reports = []
    for streaming in (False, True):
        made = EngineOptions("rtx", BOTH, sizes, streaming)
        reports.append(build_engine(wide, "dit_cond", options, made, tmp_path / str(streaming), quiet=True)[2])
    assert reports[0]["block_kernels"] == reports[1]["block_kernels"] and reports[1]["copies"] == 0


def test_an_engine_from_stitched_weights_is_the_engine_from_a_copy(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    _, stitched, _ = engine(checkpoint, "dit_cond", tmp_path / "stitched", targets=("sm89",))
    monkeypatch.setattr(weights, "can_stitch", lambda parts: len(parts) == 1)
    _, copied, _ = engine(checkpoint, "dit_cond", tmp_path / "copied", targets=("sm89",))
    name = "engines/rtx-sm89/dit_cond.plan"
    assert stitched[name].size == copied[name].size
    one, other = (np.fromfile(tmp_path / kind / name, np.uint8) for kind in ("stitched", "copied"))
    # The builder numbers some things anew each time: of eight plans of this graph, four with either kind of weights,
    # any two differed in 0 to 61 bytes. The smallest joined weight has tens of thousands.
    assert np.count_nonzero(one != other) <= 256


def test_nearly_nothing_is_written_for_the_builder(wide, monkeypatch):
    types, recipe = precision_of("fp8", None, "rtx"), Recipe(True, True)
    held = sum(part.nbytes for part in wide.stored("dit_cond"))
    assert scratch_bytes(wide, "dit_cond", types, recipe) < 1e-3 * held, "norms, in float32"
    monkeypatch.setattr(weights, "can_stitch", lambda parts: len(parts) == 1)
    assert scratch_bytes(wide, "dit_cond", types, recipe) > 0.3 * held, "w1 and w3 of every block"


def test_tensorrt_needs_the_gpu(tmp_path, capsys):
    assert main(["--backend", "tensorrt", "--precision", "fp8", "--output", str(tmp_path / "bundle")]) == 1
    assert "--backend tensorrt builds for the GPU in the machine, and" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def rtx_bundle(tmp_path_factory):
    """The demo's bundle with ONNX graphs and engines side by side, made by the command."""
    directory = tmp_path_factory.mktemp("rtx") / "bundle"
    arguments = ["--precision", "fp8", "--backend", "ort", "rtx", "--target", *BOTH, "--output", str(directory)]
    assert main([*arguments, "--quiet"]) == 0
    return directory


def test_bundle_holds_graphs_and_engines(rtx_bundle):
    manifest = read_manifest(rtx_bundle)
    check_files(rtx_bundle, manifest.files)
    (engines,) = manifest.engines.values()
    assert (engines.backend, engines.targets, engines.version) == ("rtx", BOTH, "1.7.1.116")
    assert engines.attention == "fp8" and manifest.quantization.attention == "base"
    assert set(engines.graphs) == manifest.stages == set(manifest.graphs), "the graphs for tiles are among them"
    assert {spec.compute for spec in engines.graphs.values()} == {"bfloat16"}
    decoder = engines.graphs["vae_decoder"]
    assert decoder.sizes["grid_h"].minimum == manifest.sizes.minimum // 16 and decoder.activation_bytes > 0
    for stage in ("vae_decoder", "vae_encoder"):
        whole, tile = engines.graphs[stage], engines.graphs[f"{stage}_tile"]
        unit = 16 if stage == "vae_decoder" else 1
        assert {(s.minimum * unit, s.maximum * unit) for s in tile.sizes.values()} == {(128, 1152)}
        assert 0 < tile.activation_bytes < whole.activation_bytes


def test_engines_of_the_demo(rtx_bundle):
    report = json.loads((rtx_bundle / "report.json").read_text())["engines"]["rtx-sm89-sm120"]
    for stage in ("dit_cond", "dit_uncond"):
        assert report[stage]["copies"] == 0 and report[stage]["gate_products"] == report[stage]["qkv_products"] == 1
        assert set(report[stage]["attentions"]["types"]) == {"fp8"}
        assert report[stage]["products"]["types"]["fp8"] == 6 * 4
    assert report["text_encoder"]["copies"] == 0
    assert report["text_encoder"]["attentions"]["types"] == {"bf16": 36}


def test_a_second_build_takes_everything_from_the_first(rtx_bundle, tmp_path, capsys):
    """Nothing is traced or built: the files are the old ones under second names."""
    copy = Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))
    before = {f: (copy / f).stat().st_ino for f in read_manifest(copy).files if f.endswith((".plan", ".data"))}
    arguments = ["--precision", "fp8", "--backend", "ort", "rtx", "--target", *BOTH, "--output", str(copy)]
    assert main([*arguments, "--overwrite"]) == 0
    assert capsys.readouterr().err.count("unchanged, taken from an earlier build") == 14
    assert {f: (copy / f).stat().st_ino for f in before} == before
    check_files(copy, read_manifest(copy).files)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8-weight-only"])
def test_other_precisions(tmp_path, precision):
    """Attention is one kernel in each; `build_engine` fails otherwise."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    targets = ("sm75",) if precision == "fp16" else ("sm86",) if precision == "bf16" else BOTH
    _, _, report = engine(checkpoint, "dit_uncond", tmp_path, "base", targets, precision)
    assert report["attentions"]["types"] == {
        "fp16" if precision == "fp16" else "bf16": checkpoint.transformer.num_layers
    }
    assert report["copies"] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["vae_decoder_tile", "vae_encoder_tile"])
def test_tiles_are_built(tmp_path, stage, precision):
    """Both attentions, which TensorRT-RTX would crash on if they read the same keys."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    targets = ("sm86",) if precision == "fp16" else ("sm89",)
    spec, files, report = engine(checkpoint, stage, tmp_path, "base", targets, precision)
    # With --precision fp16 the VAE computes in float32, for which there is no fused attention.
    assert report["attentions"]["types"] == ({"bf16": 2} if precision == "bf16" else {})
    assert report["copies"] == 0 and set(files) == {spec.plan, spec.plan.replace(".plan", ".kernels.json")}


@pytest.mark.parametrize("stage", ["dit_cond", "text_encoder", "vae_decoder", "vae_decoder_tile", "vae_encoder_tile"])
def test_both_forms_compute_the_same(tmp_path, stage):
    """TensorRT's form differs in joined products, row scales behind them and sums for single rows: not in the result.

    In float32, where ONNX Runtime can run it; with the attention in the base type, since float8's is TensorRT's own
    operator. The order of sums differs, and a float8 code that falls on the other side of a tie moves the result by a
    step; on these weights none does.
    """
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    random = np.random.default_rng(3)
    feeds = {
        "dit_cond": {
            "latents": random.standard_normal((2, 12, 128)),
            "timestep": np.array([0.3, 0.8]),
            "rope_cos": np.cos(random.random((17, 64))),
            "rope_sin": np.sin(random.random((17, 64))),
            "text": random.standard_normal((2, 5, checkpoint.transformer.hidden_size)),
        },
        "text_encoder": {"input_ids": random.integers(0, 1000, (1, 9))},
        "vae_decoder": {"latents": random.standard_normal((1, 3, 4, 128))},
        "vae_decoder_tile": {
            "latents": random.standard_normal((1, 3, 4, 128)),
            "thumbnail": random.standard_normal((1, 5, 2, 128)),
        },
        "vae_encoder_tile": {
            "image": random.integers(0, 256, (1, 48, 64, 3), dtype=np.uint8),
            "thumbnail": random.integers(0, 256, (1, 80, 32, 3), dtype=np.uint8),
        },
    }[stage]
    feeds = {name: a if a.dtype in (np.int64, np.uint8) else a.astype(np.float32) for name, a in feeds.items()}
    results = []
    for form in ("ort", "trt"):
        options = stage_options(checkpoint, stage, "base", "fp8-weight-only", linked=False, base="fp16")
        options = replace(options, form=form, precision=replace(options.precision, compute="float32"))
        for made in dict.fromkeys((stage_of(stage), stage)):  # a graph for tiles finds its weights in the whole one's
            spec, _ = export_stage(checkpoint, made, options, tmp_path / form, quiet=True)
        model = ir.load(tmp_path / form / spec.onnx)
        for node in model.graph:  # TensorRT's own, which ONNX Runtime refuses
            node.attributes.pop("TRT_decomposable", None)
        ir.save(model, tmp_path / form / spec.onnx)
        session_options = onnxruntime.SessionOptions()
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(tmp_path / form / spec.onnx, session_options)
        results.append(session.run(None, feeds)[0].astype(np.float64))
    bound = 1 if stage.startswith("vae_decoder") else 1e-5 * np.abs(results[0]).max()  # a byte may round the other way
    assert np.abs(results[0] - results[1]).max() <= bound
    assert np.abs(results[0]).max() > 0


def test_documented_differences_are_the_only_ones():
    """Operators of the two forms, counted."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    options = stage_options(checkpoint, "dit_uncond", "base")
    counts = {}
    for form in ("ort", "trt"):
        operators = [node.op_type for node in stage_graph(checkpoint, "dit_uncond", replace(options, form=form)).graph]
        counts[form] = {kind: operators.count(kind) for kind in set(operators)}
    layers = checkpoint.transformer.num_layers
    rows = layers + 4  # adaln_modulation of every block and of the end, adaln_proj, two of the time embedding
    assert counts["ort"]["MatMul"] + counts["ort"]["Gemm"] - counts["trt"]["MatMul"] - counts["trt"].get("Gemm", 0) == (
        layers + rows
    ), "w1 and w3 are one product, and single rows are sums"
    assert counts["trt"]["ReduceSum"] == rows
    assert counts["trt"]["Attention"] == counts["ort"]["Attention"] == layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp8", "--target", "sm90"), "--target 'sm90' is not known, wanted some of sm75, sm80, sm86"),
        (("--precision", "fp8", "--target", "sm86"), r"sm86 (Ampere: RTX 30) cannot compute in float8"),
        (("--precision", "fp8-weight-only", "--target", "sm80"), "Choose --precision fp16 or bf16 for it"),
        (("--precision", "bf16", "--target", "sm75"), "sm75 (Turing: RTX 20) cannot compute in bfloat16"),
        (
            (
                "--precision",
                "fp32",
            ),
            "--precision fp32 is for ort; the fused kernels of rtx want fp8, bf16 or fp16",
        ),
        (("--precision", "fp8", "--base", "fp32"), "--base fp32 is for ort"),
        (("--precision", "bf16", "--min-size", "100"), "--min-size is 100, wanted a multiple of 16 from 128 to 2048"),
        (("--precision", "bf16", "--min-size", "1024"), "--min-size 1024, --opt-size 128 and --max-size 2048 are not"),
        (("--precision", "bf16", "--max-batch", "0"), "--max-batch is 0, wanted 1 to 64"),
        (("--precision", "bf16", "--weights", "link"), "--weights link goes with --backend ort"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, arguments, message):
    assert main(["--backend", "rtx", "--output", str(tmp_path / "bundle"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_package_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(["--backend", "rtx", "--precision", "bf16", "--output", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert "TensorRT-RTX is not installed" in error and "install the extra 'rtx'" in error
    assert list(tmp_path.iterdir()) == []


def test_every_target_is_one_of_the_package():
    assert all(hasattr(tensorrt_rtx.ComputeCapability, name.upper()) for name in TARGETS)


@pytest.fixture
def small_graph(tmp_path):
    """The demo's unconditional transformer in TensorRT's form, and the shapes to build it for."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    options = stage_options(checkpoint, "dit_uncond", "base", "bf16", linked=False)
    spec, _ = export_stage(checkpoint, "dit_uncond", options, tmp_path, quiet=True)
    shapes = {"latents": (1, 64, 128), "timestep": (1,), "rope_cos": (64, 64), "rope_sin": (64, 64)}
    return tmp_path / spec.onnx, {name: (shape, shape, shape) for name, shape in shapes.items()}


def test_full_disk_leaves_no_plan(small_graph, tmp_path, monkeypatch):
    """Writing fails half-way, as on a disk that fills up."""
    onnx, shapes = small_graph
    real = Path.open

    class Full:
        def __init__(self, stream):
            self.stream, self.left = stream, 100_000

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.stream.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

    def opened(file, *arguments, **named):
        stream = real(file, *arguments, **named)
        return Full(stream) if arguments == ("xb",) else stream

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match=r"cannot write x.plan: No space left on device"):
        build_plan(onnx, tmp_path / "x.plan", "rtx", ("sm89",), shapes)
    assert not (tmp_path / "x.plan").exists()


def test_attention_without_a_fused_kernel_is_named():
    """A head of 288, which the graph of the VAE may have and no other."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    wider = replace(checkpoint.transformer, attention_head_dim=288, mrope_section=(48, 48, 48))
    changed = replace(checkpoint, transformer=wider)
    name = "layers.0.node_scaled_dot_product_attention"
    message = f"dit_uncond: the attention {name} has heads of 288, and TensorRT has fused kernels"
    with pytest.raises(RuntimeError, match=message):
        stage_graph(changed, "dit_uncond", stage_options(changed, "dit_uncond", "base", "bf16"))


def test_refused_graph_has_the_builders_reason(small_graph, tmp_path):
    """A profile whose rope tables do not fit the latents."""
    onnx, shapes = small_graph
    wrong = shapes | {"rope_cos": ((65, 64),) * 3}
    with pytest.raises(RuntimeError, match=r"TensorRT-RTX cannot build dit_uncond: .*(rope_cos|dimension|broadcast)"):
        build_plan(onnx, tmp_path / "x.plan", "rtx", ("sm89",), wrong)
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda sent: sent.name)
def test_killed_build_goes_on_where_it_was(tmp_path, sent, capsys):
    """After its first finished stage; the second run takes it over and leaves nothing but the bundle."""
    command = [sys.executable, "-m", "export.build", "--output", tmp_path / "bundle"]
    process = start(command)
    ledger = tmp_path / ".bundle.partial" / LEDGER
    deadline = time.monotonic() + 300
    while not ledger.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert shell_code(process) == 128 + sent and "Traceback" not in error
    assert "text_encoder" in ledger.read_text() and not (tmp_path / "bundle").exists()
    assert main(["--output", str(tmp_path / "bundle")]) == 0
    again = capsys.readouterr().err
    assert "ort/text_encoder" in again and "unchanged, taken" in again
    check_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle").files)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_interrupt_inside_the_builder(wide, tmp_path):
    """Two seconds into an engine's build. Python must not end before the builder has, which would abort the process."""
    command = [
        sys.executable,
        "-m",
        "export.build",
        "--checkpoint",
        wide.directory,
        "--precision",
        "fp8-weight-only",
        "--backend",
        "rtx",
        "--output",
        tmp_path / "bundle",
    ]
    process = start(command)
    shown = ""
    while not re.search(r"dit_cond: .* \d+/\d+", shown):
        part = process.stderr.read(64)
        assert part, shown
        shown += part
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert shell_code(process) == 130, error[-2000:]
    assert error.endswith("export.build: interrupted\n") and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
