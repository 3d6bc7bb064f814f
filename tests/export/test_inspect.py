"""A bundle's engines on a page and in a terminal. The engines here are real lists of kernels without their plans."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from export.atomic_directory import file_spec
from export.engine.engines_page import engines_page
from export.engine.files import REPORT, engines_to_dict, kernels_path, kernels_to_json
from export.engine.listing import parse_kernels
from export.engine.report import Build, report
from export.engine.tables import TABLES, blocks
from export.inspect import inspect, main
from runtime.bundle.graph_specs import EngineSet, EngineSpec, Profile
from runtime.bundle.manifest import read_manifest
from runtime.constants import MANIFEST

DATA = Path(__file__).parent / "engine" / "data"
SETS = {"rtx-sm89-sm120": ("dit_cond", "vae_decoder"), "rtx-sm86": ("dit_cond",)}
STAGES = {"dit_cond": (4352, 900_000), "vae_decoder": (4096, 800_000)}
VOID = {"meta", "br", "img"}


def kernels(stage):
    return parse_kernels((DATA / f"{stage}.log").read_text(encoding="utf-8").split("\n"))


def reports():
    return {
        name: {
            stage: report(
                Build(
                    stage,
                    "rtx",
                    tuple(name.split("-")[1:]),
                    "1.7.1.116",
                    "fp8",
                    STAGES[stage][0],
                    7_000_000,
                    STAGES[stage][1],
                    1_500_000_000,
                    12.25,
                ),
                kernels(stage),
            )
            for stage in stages
        }
        for name, stages in SETS.items()
    }


def publish(bundle, manifest, **changes):
    """Give the bundle a manifest that lists all of its files."""
    paths = sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file())
    files = {path: file_spec(bundle / path) for path in paths if path != MANIFEST}
    (bundle / MANIFEST).write_text(replace(manifest, files=files, **changes).to_json(), encoding="utf-8")


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """The demo's bundle with two sets of engines, whose plans are a few bytes, and one engine without a report."""
    directory = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = read_manifest(directory)
    sets = {}
    for name, stages in SETS.items():
        specs = {}
        for stage in (*stages, "vae_encoder"):
            graph, plan = manifest.graphs[stage], f"engines/{name}/{stage}.plan"
            (directory / plan).parent.mkdir(parents=True, exist_ok=True)
            (directory / plan).write_bytes(b"plan" * 50_000)
            if stage in stages:
                (directory / kernels_path(name, stage)).write_text(kernels_to_json(kernels(stage)), encoding="utf-8")
            specs[stage] = EngineSpec(plan, "bfloat16", graph.inputs, graph.outputs, (Profile({}, 1),))
        sets[name] = EngineSet("rtx", tuple(name.split("-")[1:]), "1.7.1.116", "fp8", specs)
    data = {"all": {"bytes_share": 0.95}, **engines_to_dict(reports())}
    (directory / REPORT).write_text(json.dumps(data), encoding="utf-8")
    publish(directory, manifest, engines=sets)
    return directory


def row(text, table, stage):
    """The cells of a stage in the first table of that title."""
    lines = text[text.index(table) :].split("\n")
    return next(re.split(r" {2,}", line) for line in lines if line.startswith(stage))


def test_figures_of_every_engine(bundle, capsys):
    assert main([str(bundle)]) == 0
    text = capsys.readouterr().out
    assert row(text, "Plans and builds", "dit_cond") == [
        "dit_cond",
        "4,352",
        "7.0",
        "0.9",
        "+677.8%",
        "1.50",
        "12.2",
    ]
    assert row(text, "Kernels", "dit_cond") == [
        "dit_cond",
        "55",
        "11 to 12",
        "1",
        "0",
        "–",
        "37 kgen, 16 gemm, 2 runtime_fusion",
    ]
    assert row(text, "Matrix products", "dit_cond") == [
        "dit_cond",
        "16 fp8, 2 bf16 x fp8",
        "5 fp32 x fp8",
        "6.0",
        "95.2%",
        "1",
        "1",
        "0",
    ]
    assert row(text, "Attention", "dit_cond") == ["dit_cond", "4 fp8", "–", "38.8", "100.0%"]
    assert row(text, "Kernels", "vae_decoder")[5] == "3 bf16"
    assert row(text, "engine without a report", "vae_encoder") == ["vae_encoder", "bfloat16", "0.2"]
    assert row(text, "ONNX graph", "text_encoder")[1] == "float32"
    assert text.index("rtx-sm89-sm120: rtx 1.7.1.116, sm89, sm120, attention: fp8") < text.index("rtx-sm86: rtx")


def test_one_set_and_one_stage(bundle):
    text = inspect(bundle, engines="rtx-sm86", stage="dit_cond")
    assert "rtx-sm86" in text and "rtx-sm89-sm120" not in text and "vae_decoder" not in text


def test_every_kernel_is_listed(bundle):
    text = inspect(bundle, engines="rtx-sm86", stage="dit_cond", kernels=True)
    listing = text[text.index("kernels of dit_cond, rtx-sm86") :].split("\n")
    assert len(listing) == 2 + 56
    gemm = next(line for line in listing if line.startswith("gemm"))
    assert "FP8 [FP8,Float,Float] -> BFloat16" in gemm and "dit_cond.layers.0.attention.qkv_dequantized" in gemm


def test_json(bundle, capsys):
    assert main([str(bundle), "--json", "--set", "rtx-sm89-sm120"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["engines"]) == {"rtx-sm89-sm120"}
    assert data["engines"]["rtx-sm89-sm120"]["vae_encoder"] is None
    assert data["engines"]["rtx-sm89-sm120"]["dit_cond"]["block_kernels"] == [11, 11, 12]
    assert data["graphs"]["dit_cond"]["compute"] == "float32" and "kernels" not in data
    assert data["graphs"]["dit_cond"]["bytes"] > 800_000, "weights included"
    listed = json.loads(inspect(bundle, "rtx-sm86", "dit_cond", kernels=True, as_json=True))["kernels"]
    assert [(entry["set"], entry["stage"], len(entry["kernels"])) for entry in listed] == [("rtx-sm86", "dit_cond", 56)]


def test_bundle_without_engines(demo_bundle, capsys):
    assert main([str(demo_bundle)]) == 0
    text = capsys.readouterr().out
    assert re.search(r": demo, fp32, [\d.]+ MB$", text.split("\n")[0])
    assert re.search(r"^vae_decoder +float32 +[\d.]+$", text, re.MULTILINE)
    assert json.loads(inspect(demo_bundle, as_json=True))["engines"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "rtx-sm75"), "--set is 'rtx-sm75', the bundle has rtx-sm89-sm120, rtx-sm86"),
        (("--stage", "unet"), "--stage is 'unet', the bundle has dit_cond, dit_uncond, text_encoder, vae_decod"),
        (("--kernels",), "keeps no list of the kernels of vae_encoder in rtx-sm89-sm120"),
    ],
)
def test_options_that_ask_for_what_is_not_there(bundle, capsys, options, message):
    assert main([str(bundle), *options]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_kernels_of_a_bundle_without_engines(demo_bundle, capsys):
    assert main([str(demo_bundle), "--kernels"]) == 1
    assert "has no engines whose kernels could be listed" in capsys.readouterr().err
    assert main([str(demo_bundle), "--set", "rtx-sm89"]) == 1
    assert "--set is 'rtx-sm89', the bundle has none" in capsys.readouterr().err


def test_no_bundle(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 1
    assert "there is no bundle directory" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "holds no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (REPORT, b"{", "report.json is not JSON"),
        (REPORT, b'{"engines": {"rtx-sm86": {"dit_cond": 1}}}', "rtx-sm86: dit_cond: it is 1, wanted an object"),
        (REPORT, b"\xff", "report.json is not UTF-8 text"),
        (REPORT, None, "report.json is missing; copy or build the bundle again"),
        (kernels_path("rtx-sm86", "dit_cond"), b"[]", "dit_cond.kernels.json is not a JSON object"),
        (kernels_path("rtx-sm86", "dit_cond"), None, "dit_cond.kernels.json is missing"),
    ],
)
def test_damaged_files(bundle, capsys, path, content, message):
    (bundle / path).unlink()
    if content is not None:
        (bundle / path).write_bytes(content)
    assert main([str(bundle), "--kernels", "--set", "rtx-sm86", "--stage", "dit_cond"]) == 1
    assert message in capsys.readouterr().err


class Reader(HTMLParser):
    """The page's text, and whether every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.rows, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_page_holds_every_figure_and_nothing_from_outside():
    page = engines_page("<b>demo</b>", reports())
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [] and reader.links == []
    assert "default-src 'none'" in page and "<script" not in page and "<b>demo" not in page
    for engines, stages in reports().items():
        assert engines in reader.text
        for stage, measured in stages.items():
            for table in TABLES:
                assert [stage, *table.cells(measured)] in [cells[-len(table.columns) - 1 :] for cells in reader.rows]
    assert "TensorRT-RTX 1.7.1.116 for sm89 and sm120, attention in fp8" in reader.text


def test_page_marks_what_is_not_good():
    good = engines_page("demo", {"rtx-sm89": {"dit_cond": reports()["rtx-sm86"]["dit_cond"]}})
    assert 'class="bad"' not in good and '<span class="good">0</span>' in good
    unshaped = report(reports()["rtx-sm86"]["dit_cond"].build, kernels("unshaped"))
    bad = engines_page("demo", {"rtx-sm89": {"dit_cond": unshaped}})
    assert bad.count('class="bad"') == 2, "w1 and w3 apart, and a copy"


def test_blocks_in_words():
    measured = reports()["rtx-sm86"]["dit_cond"]
    assert [blocks(replace(measured, block_kernels=b)) for b in ((11, 12, 11), (12, 12), ())] == ["11 to 12", "12", "–"]
