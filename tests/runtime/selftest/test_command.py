"""``trt-generate --self-test``: what it prints, and how it ends."""

import json
import shutil

import numpy as np
import pytest
from support.tampering import Tampered, with_output

from runtime.cli.main import main
from runtime.selftest.contents import SELF_TEST, encode, read_self_test


@pytest.fixture
def wrong(demo_bundle, tmp_path):
    """A bundle whose decoder should give something else."""
    bundle = Tampered(demo_bundle, tmp_path / "bundle")
    bundle.self_test(lambda test: with_output(test, "vae_decoder", lambda image: 255 - image))
    return bundle.directory


def test_a_table(demo_bundle, capsys):
    assert main(["--self-test", "--bundle", str(demo_bundle), "--backend", "ort"]) == 0
    said = capsys.readouterr()
    head, titles, *rows = said.out.splitlines()
    assert "on ort (cpu)" in head and "relative error" in titles and said.err == ""
    assert all(row.endswith("ok") for row in rows)
    assert {"dit_cond", "dit_uncond", "text_encoder", "vae_decoder"} <= {row.split()[0] for row in rows}


def test_a_failure_is_named(wrong, capsys):
    assert main(["--self-test", "--bundle", str(wrong), "--verify", "off"]) == 1
    said = capsys.readouterr()
    assert "trt-generate: error: the self-test failed for vae_decoder (1 of 13 comparisons)" in said.err
    assert [row.split()[0] for row in said.out.splitlines() if "FAILED: it is off by" in row] == ["vae_decoder"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_json(wrong, quiet, capsys):
    assert main(["--self-test", "--bundle", str(wrong), "--verify", "off", "--json", *quiet]) == 1
    data = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in data["rows"]}
    assert not data["passed"] and data["where"].startswith("ort (cpu)")
    assert not rows["vae_decoder"]["passed"] and rows["vae_decoder"]["error"] > rows["vae_decoder"]["tolerance"]
    good = rows["dit_cond"]
    assert good["passed"] and 0 < good["error"] <= good["tolerance"] and 0.999 < good["cosine"] < 1.001
    assert good["seconds"] > 0


def test_json_has_no_infinity(demo_bundle, tmp_path, capsys):
    bundle = Tampered(demo_bundle, tmp_path / "bundle")
    bundle.self_test(lambda test: with_output(test, "vae_encoder", np.zeros_like))
    assert main(["--self-test", "--bundle", str(bundle.directory), "--verify", "off", "--json"]) == 1
    data = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    (row,) = [row for row in data["rows"] if not row["passed"]]
    assert (row["name"], row["error"]) == ("vae_encoder", None) and "off by inf" in row["problem"]


def test_a_bundle_without_one(demo_bundle, tmp_path, capsys):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    (bundle / SELF_TEST).unlink()
    assert main(["--self-test", "--bundle", str(bundle)]) == 1
    assert "has no selftest.npz; python -m export.build writes one" in capsys.readouterr().err


def test_two_devices_are_refused(demo_bundle, capsys):
    assert main(["--self-test", "--bundle", str(demo_bundle), "--devices", "cpu,cpu"]) == 1
    assert "--devices does not go with --self-test" in capsys.readouterr().err


def test_a_prompt_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--self-test", "--prompt", "x"])
    assert ended.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_pictures_that_differ(demo_bundle, monkeypatch, capsys):
    """Random noise stands in for a graph that is not deterministic."""
    from runtime.selftest import run

    random = np.random.default_rng(0)
    monkeypatch.setattr(run, "_picture", lambda *_: random.integers(0, 256, (1, 8, 8, 3), np.uint8))
    assert main(["--self-test", "--bundle", str(demo_bundle), "--backend", "ort"]) == 1
    assert "failed for same picture twice" in capsys.readouterr().err


def test_what_is_written_is_read(demo_bundle, tmp_path):
    test = read_self_test(demo_bundle)
    (tmp_path / SELF_TEST).write_bytes(encode(test))
    again = read_self_test(tmp_path)
    assert (again.key, again.picture, again.facts, again.tolerances) == (
        test.key,
        test.picture,
        test.facts,
        test.tolerances,
    )
    for graph, calls in test.calls.items():
        for one, other in zip(calls, again.calls[graph], strict=True):
            assert np.array_equal(one.output, other.output) and one.feeds.keys() == other.feeds.keys()
    assert encode(again) == encode(test)


def test_it_is_small(demo_bundle):
    assert (demo_bundle / SELF_TEST).stat().st_size < 1e6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda about: about.update(version=2), "the version is 2, this runtime reads 1"),
        (lambda about: about.pop("calls"), "about lacks the key 'calls'"),
        (lambda about: about["calls"].update(dit_cond=[{"inputs": {}, "output": "x"}]), "lacks the array 'x'"),
    ],
)
def test_a_damaged_description(demo_bundle, tmp_path, change, told, capsys):
    with np.load(demo_bundle / SELF_TEST) as archive:
        arrays = dict(archive)
    about = json.loads(arrays["about"].tobytes())
    change(about)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    bundle = Tampered(demo_bundle, tmp_path / "bundle")
    np.savez(bundle.directory / SELF_TEST, **arrays)
    assert main(["--self-test", "--bundle", str(bundle.directory), "--verify", "off"]) == 1
    assert told in capsys.readouterr().err


def test_infinity_is_no_small_error():
    """Where zeros are expected."""
    from runtime.selftest.rows import cosine, relative_error

    assert relative_error(np.ones(2), np.zeros(2)) == np.inf and relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.array([3, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert cosine(np.array([1, 0]), np.array([0, 1])) == 0 and cosine(np.zeros(2), np.ones(2)) == 0
