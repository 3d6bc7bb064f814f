"""``python -m export.triton``: what it writes and refuses. The server itself is tested in tests/triton_server."""

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.processes import ROOT

from export.triton.__main__ import main
from export.triton.warmup import warmup_inputs
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest
from serving.tensors import INPUTS, PICTURE_OUTPUTS, PROGRESS_OUTPUTS

CODE = ("runtime", "serving")


def run(bundle, output, *arguments):
    return main([str(bundle), "--output", str(output), "--quiet", *map(str, arguments)])


@pytest.fixture(scope="module")
def repository(demo_bundle, tmp_path_factory):
    output = tmp_path_factory.mktemp("triton") / "models"
    assert run(demo_bundle, output, "--stream", "--name", "i4", "--instances", 3, "--threads", 2) == 0
    return output


def text(repository, model, file="config.pbtxt"):
    return (repository / model / file).read_text()


def test_all_files_are_there(repository, demo_bundle):
    assert {entry.name for entry in repository.iterdir()} == {"README.md", "i4", "i4_stream"}
    bundle = repository / "i4" / "1" / "bundle"
    for path in (*read_manifest(demo_bundle).files, "manifest.json"):
        assert (bundle / path).read_bytes() == (demo_bundle / path).read_bytes()
    for model, source in (("i4", "unary.py"), ("i4_stream", "stream.py")):
        version = repository / model / "1"
        assert (version / "model.py").read_bytes() == (ROOT / "serving" / source).read_bytes()
        for package in CODE:
            ours = sorted((ROOT / package).rglob("*.py"))
            copied = sorted(file for file in (version / package).rglob("*") if not file.is_dir())
            assert ours and copied == sorted(version / f.relative_to(ROOT) for f in ours)
            assert all((version / f.relative_to(ROOT)).read_bytes() == f.read_bytes() for f in ours)
        assert (repository / model / "warmup" / "prompt").read_bytes() == b"\x07\x00\x00\x00warm-up"
        assert (repository / model / "warmup" / "steps").read_bytes() == b"\x01\x00\x00\x00"
    assert not (repository / "i4_stream" / "1" / "bundle").exists()


def test_configuration(repository):
    unary, stream = text(repository, "i4"), text(repository, "i4_stream")
    for spec in (*INPUTS, *PICTURE_OUTPUTS):
        line = rf'name: "{spec.name}" data_type: {spec.type} dims: \[ {", ".join(map(str, spec.dims))} \]'
        optional = " optional: true" if spec in INPUTS and spec.name != "prompt" else ""
        assert re.search(line + optional + r" \}", unary) and re.search(line + optional + r" \}", stream)
    assert all(f'"{spec.name}"' in stream and f'"{spec.name}"' not in unary for spec in PROGRESS_OUTPUTS)
    assert "decoupled: true" in stream and "decoupled" not in unary
    assert "max_batch_size: 4" in unary and "max_batch_size: 1" in stream
    assert "instance_group [ { count: 3 } ]" in unary and "dynamic_batching" not in unary
    assert parameters(unary) == {
        "bundle": "bundle",
        "backend": "auto",
        "verify": "auto",
        "unload_when_failed": "true",
        "threads": "2",
        "max_megapixel_steps": "1000",
        "max_seconds": "600",
    }
    assert parameters(stream)["bundle"] == "../../i4/1/bundle"
    cpu = text(repository, "i4", "configs/cpu.pbtxt")
    assert cpu == unary.replace("count: 3", "count: 3 kind: KIND_CPU")


def parameters(config):
    return dict(re.findall(r'parameters \{ key: "(\w+)" value \{ string_value: "([^"]*)" \} \}', config))


def test_warm_up_of_a_bundle_without_an_unconditional_transformer(demo_bundle, tmp_path):
    """Its default guidance cannot be had, so the warm-up asks for none."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "b"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["dit_uncond"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert run(bundle, tmp_path / "r") == 0
    assert 'input_data_file: "unconditional"' in text(tmp_path / "r", "ideogram4")
    assert (tmp_path / "r" / "ideogram4" / "warmup" / "unconditional").read_bytes() == b"\x03\x00\x00\x00off"


def test_batching_and_a_bundle_elsewhere(demo_bundle, tmp_path):
    options = ("--dynamic-batching", "--queue-delay", 500, "--queue-limit", 7, "--max-batch", 2, "--no-verify")
    limits = ("--queue-seconds", 2.5, "--max-work", 50, "--max-seconds", 30)
    assert run(demo_bundle, tmp_path / "r", "--bundle-path", "/data/b", "--no-unload", *options, *limits) == 0
    config = text(tmp_path / "r", "ideogram4")
    policy = "default_queue_policy { max_queue_size: 7 default_timeout_microseconds: 2500000 }"
    assert f"dynamic_batching {{ max_queue_delay_microseconds: 500 {policy} }}" in config
    given = parameters(config)
    assert (given["max_megapixel_steps"], given["max_seconds"]) == ("50", "30")
    assert "more than 50 million pixels x steps" in " ".join((tmp_path / "r" / "README.md").read_text().split())
    assert (given["bundle"], given["verify"], given["unload_when_failed"]) == ("/data/b", "off", "false")
    assert not (tmp_path / "r" / "ideogram4" / "1" / "bundle").exists()
    assert "which is at `/data/b`" in (tmp_path / "r" / "README.md").read_text()


def test_offered_inputs_and_memory(demo_bundle, tmp_path):
    options = ("--inputs", "seed", "steps", "seed", "--max-memory", 11.5, "--bundle-path", "/b")
    assert run(demo_bundle, tmp_path / "r", *options) == 0
    config = text(tmp_path / "r", "ideogram4")
    inputs = config[config.index("input [") : config.index("output [")]
    assert re.findall(r'name: "(\w+)"', inputs) == ["prompt", "steps", "seed"]
    assert parameters(config)["max_memory_gb"] == "11.5"
    readme = (tmp_path / "r" / "README.md").read_text()
    assert "Offered here: `prompt`, `seed`, `steps`." in readme and "at most 11.5 GB" in readme


@pytest.mark.parametrize(
    ("inputs", "without", "wanted"),
    [
        (("seed",), False, ["prompt"]),
        (("steps",), False, ["prompt", "steps"]),
        (("steps",), True, ["prompt"]),
        (("steps", "guidance"), True, ["prompt", "guidance", "steps"]),
        (("steps", "guidance", "unconditional"), True, ["prompt", "unconditional", "steps"]),
    ],
)
def test_the_warm_up_has_only_offered_inputs(demo_bundle, inputs, without, wanted):
    manifest = read_manifest(demo_bundle)
    if without:
        manifest = replace(manifest, graphs={n: g for n, g in manifest.graphs.items() if n != "dit_uncond"})
    assert list(warmup_inputs(manifest, ("prompt", *inputs))) == wanted


def test_readme_is_complete(repository):
    readme = (repository / "README.md").read_text()
    assert "$" not in re.sub(r'"\$PWD"', "", readme), "a placeholder is left"
    for word in ("--shm-size", "/v2/models/i4/ready", "i4_stream", "No TensorRT", "numpy"):
        assert word.lower() in readme.lower(), word


def test_the_code_needs_what_the_readme_says(repository):
    """The standard library, numpy, tokenizers, pillow, a backend's package, and each other."""
    allowed = {"numpy", "tokenizers", "PIL", "tqdm", "triton_python_backend_utils", *CODE}
    backends = {"ort.py": {"onnxruntime"}, "package.py": {"tensorrt", "tensorrt_rtx"}, "cuda.py": {"cuda"}}
    for file in (repository / "i4_stream" / "1").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            assert roots <= allowed | backends.get(file.name, set()), file.name


def test_overwrite_replaces_only_its_own(demo_bundle, tmp_path, capsys):
    output = tmp_path / "r"
    assert run(demo_bundle, output, "--bundle-path", "/b") == 0
    assert run(demo_bundle, output, "--bundle-path", "/b") == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert run(demo_bundle, output, "--bundle-path", "/c", "--name", "new", "--overwrite") == 0
    assert {entry.name for entry in output.iterdir()} == {"README.md", "new"}
    (output / "someone_elses" / "1").mkdir(parents=True)
    assert run(demo_bundle, output, "--bundle-path", "/b", "--overwrite") == 1
    assert "is not a model repository; it is not overwritten" in capsys.readouterr().err
    assert (output / "someone_elses").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "a b"), "--name is 'a b', wanted letters, digits, - and _"),
        (("--name", "../a"), "--name is '../a'"),
        (("--name", ""), "--name is ''"),
        (("--instances", 0), "--instances is 0, wanted 1 to 64"),
        (("--max-batch", 65), "--max-batch is 65, wanted 1 to 64"),
        (("--threads", -1), "--threads is -1, wanted 1 to 1024"),
        (("--bundle-path", "b"), "--bundle-path is 'b', wanted an absolute path on the server"),
        (("--queue-delay", 5), "--queue-delay, --queue-limit and --queue-seconds go with --dynamic-batching"),
        (("--queue-seconds", 5), "--queue-delay, --queue-limit and --queue-seconds go with --dynamic-batching"),
        (("--inputs", "prompt", "size"), "--inputs has 'size', wanted some of prompt, negative_prompt"),
        (("--max-memory", 0), "--max-memory is 0.0, wanted 0.1 to"),
        (("--max-work", 4.9), "--max-work is 4.9, wanted 5 to"),
        (("--max-seconds", "nan"), "--max-seconds is nan, wanted 1 to"),
        (("--queue-limit", 0, "--dynamic-batching"), "--queue-limit is 0, wanted 1 to 1000000"),
        (("--queue-delay", -1, "--dynamic-batching"), "--queue-delay is -1, wanted 0 to"),
    ],
)
def test_refused_options(demo_bundle, tmp_path, capsys, arguments, message):
    assert run(demo_bundle, tmp_path / "r", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("export.triton: error: ") and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", [".", "models", "onnx/models", "../bundle/models", "link/models", "link"])
@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--bundle-path", "/b", "--overwrite")])
def test_the_bundle_is_never_written_to(demo_bundle, tmp_path, capsys, monkeypatch, output, more):
    """Neither where it is called so, nor through a link to it."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    monkeypatch.chdir(bundle)
    (tmp_path / "link").symlink_to(bundle)
    before = sorted(tmp_path.rglob("*"))
    assert run(bundle, output.replace("link", str(tmp_path / "link")), *more) == 1
    where = "is" if output in (".", "link") else "lies inside"
    assert f" {where} the bundle {bundle}, which is only read; choose another --output" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_around_the_bundle_is_not_replaced(demo_bundle, tmp_path, capsys):
    """Its removal would take the bundle along, which with --bundle-path is not even copied."""
    models = tmp_path / "models"
    assert run(demo_bundle, models) == 0
    bundle = models / "ideogram4" / "1" / "bundle"
    assert run(bundle, models, "--bundle-path", "/b", "--overwrite") == 1
    assert f"the output {models} lies around the bundle {bundle}, which is only read" in capsys.readouterr().err
    check_files(bundle, read_manifest(bundle).files)


def test_bundles_that_are_not_right(demo_bundle, tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "r") == 1
    assert "there is no bundle directory" in capsys.readouterr().err
    broken = Path(shutil.copytree(demo_bundle, tmp_path / "b"))
    (broken / "tokenizer.json").write_text("{}")
    assert run(broken, tmp_path / "r") == 1
    assert "tokenizer.json has 2 bytes, wanted" in capsys.readouterr().err
    assert run(demo_bundle, tmp_path / "no" / "where") == 1
    assert "does not exist" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_the_command_does_not_load_torch(demo_bundle, tmp_path):
    code = (
        "import json, sys; from export.triton.__main__ import main; "
        f"assert main([{str(demo_bundle)!r}, '--output', {str(tmp_path / 'r')!r}, '--quiet']) == 0; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "model", "calibration"} & set(json.loads(done.stdout))
