"""What a build takes of earlier ones, and that it harms none of them."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from export import atomic_directory
from export.atomic_directory import file_spec
from export.build.finished.ledger import LEDGER, Finished, Ledger
from export.build.finished.stock import Stock
from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.description import describe
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.graph_specs import GraphSpec
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest

STAGES = ("dit_cond", "vae_decoder")
OTHERS = ("channels.safetensors",)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(folder, stage, key="k", content=b"weights"):
    """Have a finished stage in a folder, with its ledger."""
    paths = [f"onnx/{stage}.onnx", f"onnx/weights/{stage}.data"]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content + path.encode())
    spec = json.loads(json.dumps(asdict(GraphSpec(paths[0], "float32", (), ()))))
    finished = Finished(key, spec, {}, {path: file_spec(folder / path) for path in paths})
    Ledger(folder, Ledger.read(folder).finished).add(f"ort/{stage}", finished)
    return finished


@pytest.fixture(scope="module")
def described():
    return describe(open_checkpoint(DEMO_CHECKPOINT))


@pytest.fixture
def bundle(tmp_path, described):
    """A finished bundle with two stages and a file that belongs to none."""
    folder = tmp_path / "bundle"
    finished = [build(folder, stage) for stage in STAGES]
    (folder / "channels.safetensors").write_bytes(b"maxima")
    (folder / "tokenizer.json").write_bytes(b"{}")
    files = {path: spec for one in finished for path, spec in one.files.items()}
    files |= {name: file_spec(folder / name) for name in (LEDGER, "channels.safetensors", "tokenizer.json")}
    (folder / "manifest.json").write_text(replace(described, files=files).to_json())
    return folder


@pytest.fixture
def partial(tmp_path):
    (folder := tmp_path / ".bundle.partial").mkdir()
    return folder


def stock(partial, bundle, fresh=False):
    return Stock(partial, bundle, OTHERS, fresh, quiet=True)


def files(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


KEYS = {f"ort/{stage}": "k" for stage in STAGES}


def test_stages_of_the_replaced_bundle_get_second_names(partial, bundle):
    ours = stock(partial, bundle)
    found = ours.find(KEYS)
    assert found.keys() == KEYS.keys() and ours.copied_bytes(found) == 0
    ours.take(found)
    assert Ledger.read(partial).finished == Ledger.read(bundle).finished
    for stage in STAGES:
        path = f"onnx/weights/{stage}.data"
        assert (partial / path).samefile(bundle / path)


def test_our_own_come_first(partial, bundle):
    own = build(partial, "dit_cond", content=b"same length")
    found = stock(partial, bundle).find(KEYS)
    assert found["ort/dit_cond"].finished == own and found["ort/dit_cond"].folder == partial
    assert found["ort/vae_decoder"].folder == bundle


def test_other_keys_and_fresh_builds_take_nothing(partial, bundle):
    build(partial, "dit_cond")
    assert stock(partial, bundle).find({"ort/dit_cond": "other", "ort/text_encoder": "k"}) == {}
    assert stock(partial, bundle, fresh=True).find(KEYS) == {}
    assert stock(partial, bundle, fresh=True).files("channels.safetensors") == []


def test_a_damaged_stage_of_ours_is_taken_from_the_bundle(partial, bundle):
    build(partial, "dit_cond")
    (partial / "onnx/dit_cond.onnx").write_bytes(b"x" * (partial / "onnx/dit_cond.onnx").stat().st_size)
    assert stock(partial, bundle).find(KEYS)["ort/dit_cond"].folder == bundle


def test_what_is_in_the_way_goes(partial, bundle):
    """A stage of other options, whose files are second names of the bundle's: writing to them would ruin it."""
    for stage in STAGES:
        build(partial, stage, key="other")
        for path in (f"onnx/{stage}.onnx", f"onnx/weights/{stage}.data"):
            (partial / path).unlink()
            os.link(bundle / path, partial / path)
    for name in ("channels.safetensors", "onnx/weights/.half.copy", "engines/rtx-sm89/a.plan"):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(b"12345")
    ours = stock(partial, bundle)
    found = ours.find({"ort/dit_cond": "k"})
    assert ours.freed_bytes(found) == 10, "second names free nothing"
    ours.take(found)
    assert files(partial) == {"build.json", "channels.safetensors", "onnx/dit_cond.onnx", "onnx/weights/dit_cond.data"}
    assert not (partial / "engines").exists()
    assert Ledger.read(partial).finished.keys() == {"ort/dit_cond"}
    check_files(bundle, read_manifest(bundle).files)


def test_nothing_found_leaves_nothing(partial, bundle):
    build(partial, "dit_cond")
    stock(partial, bundle).take({})
    assert files(partial) == {"build.json"} and Ledger.read(partial).finished == {}


def test_a_ledger_appears_with_the_first_stage(partial, tmp_path):
    stock(partial, tmp_path / "none").take({})
    assert files(partial) == set()


def test_files_are_counted_that_must_be_copied(partial, bundle, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(atomic_directory.os, "link", refuse)
    ours = stock(partial, bundle)
    found = ours.find(KEYS)
    assert ours.copied_bytes(found) == sum((bundle / path).stat().st_size for path in files(bundle) if "onnx" in path)
    ours.take(found)
    assert not (partial / "onnx/dit_cond.onnx").samefile(bundle / "onnx/dit_cond.onnx")
    assert stock(partial, Path("/none")).find(KEYS).keys() == KEYS.keys()


def test_files_of_no_stage_are_compared_with_the_manifest(partial, bundle, capsys):
    name = "channels.safetensors"
    assert stock(partial, bundle).files(name) == [bundle / name]
    (partial / name).write_bytes(b"ours")
    assert stock(partial, bundle).files(name) == [partial / name, bundle / name]
    (bundle / name).write_bytes(b"maxime")
    assert stock(partial, bundle).files(name) == [partial / name]
    assert f"warning: {bundle / name} is missing or altered; nothing is taken from it" in capsys.readouterr().err


def test_an_altered_ledger_of_the_bundle(partial, bundle, capsys):
    """One that reads well: its key or a hash may be what is altered."""
    text = (bundle / LEDGER).read_text()
    (bundle / LEDGER).write_text(text.replace('"k"', '"l"'))
    assert stock(partial, bundle).find({"ort/dit_cond": "l"}) == {}
    message = f"warning: {bundle / LEDGER} is not what the manifest lists, so nothing is taken from the bundle"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", b"{}"])
def test_a_damaged_manifest_of_the_bundle(partial, bundle, capsys, content):
    (bundle / "manifest.json").write_bytes(content)
    assert stock(partial, bundle).find(KEYS) == {}
    assert f"warning: nothing is taken from {bundle}: " in capsys.readouterr().err


def test_no_bundle_and_an_empty_folder_are_no_problem(partial, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "none", tmp_path / "empty"):
        assert stock(partial, output).find(KEYS) == {}
    assert capsys.readouterr().err == ""
