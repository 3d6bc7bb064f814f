"""What a ledger says, and ledgers that say nothing because they are damaged."""

import json
from dataclasses import asdict

import pytest

from export.build.finished.ledger import LEDGER, Finished, Ledger
from runtime.bundle.graph_specs import EngineSpec, GraphSpec, Profile
from runtime.bundle.manifest import FileSpec

GRAPH = json.loads(json.dumps(asdict(GraphSpec("onnx/dit_cond.onnx", "float32", (), ()))))
ENTRY = Finished("k", GRAPH, {}, {"onnx/dit_cond.onnx": FileSpec(1, "0" * 64)})


def written(folder, **changes):
    """A ledger with one entry, of which something is changed."""
    Ledger(folder).add("ort/dit_cond", ENTRY)
    data = json.loads((folder / LEDGER).read_text())
    data["ort/dit_cond"] = {k: v for k, v in (data["ort/dit_cond"] | changes).items() if v is not None}
    return json.dumps(data).encode()


def test_what_is_noted_is_read(tmp_path):
    Ledger(tmp_path).add("ort/dit_cond", ENTRY)
    read = Ledger.read(tmp_path)
    assert read.finished == {"ort/dit_cond": ENTRY} and read.problem == ""


def test_no_ledger_is_no_problem(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert Ledger.read(folder) == Ledger(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda f: b"", "it is not JSON: Expecting value"),
        (lambda f: written(f)[:-9], "it is not JSON: "),
        (lambda f: b"\xff\xfe", "'utf-8' codec can't decode byte 0xff"),
        (lambda f: b"[" * 100_000, "it is nested too deeply, wanted at most 100 levels"),
        (lambda f: b'{"a": ' * 200 + b"1" + b"}" * 200, "it is nested too deeply, wanted at most 100 levels"),
        (lambda f: b"[]", "it is [], wanted an object"),
        (lambda f: b'{"ort/dit_cond": []}', "'ort/dit_cond' is [], wanted key, spec, report and files"),
        (lambda f: b'{"ort/dit_cond": null}', "'ort/dit_cond' is None, wanted"),
        (lambda f: written(f, key=None), "wanted key, spec, report and files"),
        (lambda f: written(f, spec=None), "wanted key, spec, report and files"),
        (lambda f: written(f, report=None), "wanted key, spec, report and files"),
        (lambda f: written(f, files=None), "wanted key, spec, report and files"),
        (lambda f: written(f, more=1), "wanted key, spec, report and files"),
        (lambda f: written(f, key=7), "wanted key, spec, report and files"),
        (lambda f: written(f, files=[]), "wanted key, spec, report and files"),
        (lambda f: written(f, spec=[]), "wanted key, spec, report and files"),
        (lambda f: written(f, report="x"), "wanted key, spec, report and files"),
        (lambda f: written(f, spec={}), "ort/dit_cond lacks the key 'onnx'"),
        (lambda f: written(f, spec=GRAPH | {"compute": "int4"}), "compute is 'int4', wanted"),
        (lambda f: written(f, files={"onnx/dit_cond.onnx": 1}), "onnx/dit_cond.onnx is 1, wanted an object"),
        (lambda f: written(f, files={"onnx/dit_cond.onnx": {"size": "1", "sha256": ""}}), "size is '1', wanted int"),
        (lambda f: written(f, files={}), "'ort/dit_cond' lacks the file 'onnx/dit_cond.onnx'"),
        (
            lambda f: written(f, files={"../x": asdict(FileSpec(1, ""))}),
            "build.json lists the path '../x', wanted a plain",
        ),
        (lambda f: written(f, files={"/etc/passwd": asdict(FileSpec(1, ""))}), "lists the path '/etc/passwd', wanted"),
        (lambda f: written(f).replace(b"ort/", b"rtx-sm89/"), "rtx-sm89/dit_cond has the unknown key 'codes'"),
    ],
)
def test_damaged_ledgers_are_as_good_as_none(tmp_path, content, reason):
    """Not JSON, wrong types, missing keys, deep nesting, paths that lead out of the bundle: all with a reason."""
    (tmp_path / LEDGER).write_bytes(content(tmp_path))
    read = Ledger.read(tmp_path)
    assert read.finished == {}
    assert read.problem.startswith(
        f"{tmp_path / LEDGER} is damaged or of another version, so nothing is taken from it: "
    )
    assert reason in read.problem


def test_an_engine_without_its_report(tmp_path):
    """The build's last step would stumble over it."""
    spec = json.loads(json.dumps(asdict(EngineSpec("a.plan", "bfloat16", (), (), (Profile({}, 0),)))))
    Ledger(tmp_path).add("rtx-sm89/dit_cond", Finished("k", spec, {}, {"a.plan": FileSpec(1, "")}))
    assert "rtx-sm89/dit_cond: it lacks the key 'build'" in Ledger.read(tmp_path).problem


def test_a_ledger_that_is_a_folder(tmp_path):
    (tmp_path / LEDGER).mkdir()
    assert "Is a directory" in Ledger.read(tmp_path).problem
