"""The file of ranges: its text, and every way in which it can be wrong."""

import json
import subprocess
import sys
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from support.processes import ROOT

from calibration.static.ranges import (
    ALGORITHMS,
    Model,
    Prompts,
    Ranges,
    RangesError,
    TensorRange,
    check_ranges,
    read_ranges,
    write_ranges,
)

NAME = "dit_cond.layers.0.attention.qkv"
RANGES = Ranges(
    Model("demo", "0123456789abcdef"),
    "mse",
    99.99,
    Prompts(2, "ab" * 32),
    "V4_TURBO_12",
    12,
    256,
    512,
    7,
    {NAME: TensorRange(6.5, 4.25, 6.0, 852480)},
)
TEXT = """\
{
 "format": "ideogram4-ranges",
 "version": 1,
 "model": {
  "name": "demo",
  "fingerprint": "0123456789abcdef"
 },
 "algorithm": "mse",
 "percentile": 99.99,
 "prompts": {
  "count": 2,
  "sha256": "abababababababababababababababababababababababababababababababab"
 },
 "preset": "V4_TURBO_12",
 "steps": 12,
 "width": 256,
 "height": 512,
 "seed": 7,
 "tensors": {
  "dit_cond.layers.0.attention.qkv": {
   "amax": 6.5,
   "percentile": 4.25,
   "mse": 6.0,
   "values": 852480
  }
 }
}
"""
POSITIVE = st.floats(1e-30, 1e30)
TENSORS = st.dictionaries(
    st.text(), st.builds(TensorRange, POSITIVE, POSITIVE, POSITIVE, st.integers(1, 2**64 - 1)), max_size=5
)


def test_the_file_is_this_text(tmp_path):
    file = tmp_path / "ranges.json"
    write_ranges(RANGES, file)
    assert file.read_text(encoding="utf-8") == TEXT
    assert read_ranges(file) == RANGES
    assert list(tmp_path.iterdir()) == [file]


@given(TENSORS, st.text(), st.none() | st.text(), st.sampled_from(list(ALGORITHMS)), st.floats(0.1, 100))
def test_round_trip(tensors, name, preset, algorithm, percentile):
    ranges = replace(
        RANGES, tensors=tensors, model=Model(name, "f"), preset=preset, algorithm=algorithm, percentile=percentile
    )
    assert Ranges.from_json(ranges.to_json()) == ranges


def test_the_algorithm_chooses(tmp_path):
    found = {algorithm: replace(RANGES, algorithm=algorithm).range_of(NAME) for algorithm in ALGORITHMS}
    assert found == {"max": 6.5, "percentile": 4.25, "mse": 6.0}
    with pytest.raises(RangesError, match=r"there is no range for dit_cond\.layers\.9\.attention\.qkv"):
        RANGES.range_of("dit_cond.layers.9.attention.qkv")


def test_an_integer_is_a_number():
    """Editors and other programs write 6.0 as 6."""
    assert Ranges.from_json(TEXT.replace("6.0,", "6,")) == RANGES


def refused(tmp_path, text, message):
    file = tmp_path / "ranges.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RangesError) as caught:
        read_ranges(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (TEXT[:-20], "not JSON"),
        ("[" * 100_000, "the file is nested too deeply"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        ("[]", 'no "format": "ideogram4-ranges"'),
        ("{}", 'no "format": "ideogram4-ranges"'),
        (TEXT.replace("ideogram4-ranges", "ideogram4-bundle"), 'no "format": "ideogram4-ranges"'),
        (TEXT.replace('"version": 1', '"version": 2'), "the format version is 2, wanted 1"),
        (TEXT.replace('"version": 1', '"version": true'), "the format version is True, wanted 1"),
    ],
)
def test_other_files(tmp_path, text, message):
    refused(tmp_path, text, message)


def at(data, path, value):
    *parents, last = path
    for key in parents:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["sampler"], "euler", "the file has the unknown key 'sampler'"),
        (["model", "size"], 9, "model has the unknown key 'size'"),
        (["tensors", NAME, "min"], 1, f"tensors.{NAME} has the unknown key 'min'"),
        (["model"], "demo", "model is 'demo', wanted an object"),
        (["tensors"], [], "tensors is [], wanted an object"),
        (["tensors", NAME], 6.5, f"tensors.{NAME} is 6.5, wanted an object"),
        (["steps"], 12.5, "steps is 12.5, wanted int"),
        (["steps"], True, "steps is True, wanted int"),
        (["preset"], 12, "preset is 12, wanted str | None"),
        (["tensors", NAME, "amax"], "6.5", f"tensors.{NAME}.amax is '6.5', wanted float"),
        (["tensors", NAME, "amax"], 10**400, f"tensors.{NAME}.amax is an integer of 1329 bits"),
        (["algorithm"], "entropy", "algorithm is 'entropy', wanted one of max, percentile, mse"),
        (["percentile"], 0, "percentile is 0.0, wanted a number above 0, at most 100"),
        (["percentile"], 100.5, "percentile is 100.5, wanted a number above 0, at most 100"),
        (["tensors", NAME, "amax"], 0, f"{NAME} has the range 0.0 (max), wanted a positive number"),
        (["tensors", NAME, "amax"], -6.5, f"{NAME} has the range -6.5 (max), wanted a positive number"),
        (["tensors", NAME, "mse"], float("nan"), f"{NAME} has the range nan (mse), wanted a positive number"),
        (["tensors", NAME, "percentile"], float("inf"), f"{NAME} has the range inf (percentile), wanted a positive"),
        (["tensors", NAME, "amax"], 1e-40, f"{NAME} has the range 1e-40 (max), wanted a positive number within"),
        (["tensors", NAME, "amax"], 1e39, f"{NAME} has the range 1e+39 (max), wanted a positive number within"),
        (["tensors", NAME, "values"], 0, f"{NAME} was measured on 0 values, wanted at least 1"),
    ],
)
def test_wrong_values(tmp_path, path, value, message):
    data = json.loads(TEXT)
    at(data, path, value)
    refused(tmp_path, json.dumps(data), message)


@pytest.mark.parametrize("path", [["model"], ["seed"], ["prompts", "count"], ["tensors", NAME, "values"]])
def test_missing_keys(tmp_path, path):
    data = json.loads(TEXT)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    refused(tmp_path, json.dumps(data), f"{'.'.join(path[:-1]) or 'the file'} lacks the key {path[-1]!r}")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_ranges(tmp_path / "ranges.json")


def test_of_this_checkpoint(measured, checkpoint):
    check_ranges(measured, checkpoint)
    check_ranges(Ranges.from_json(measured.to_json()), checkpoint)


def test_of_another_checkpoint(measured, peer, distilled):
    from model.checkpoint.directory import open_checkpoint

    other = open_checkpoint(peer("head64", "diffusers")[1])
    wanted = rf"measured on checkpoint \(fingerprint {measured.model.fingerprint}\), which is not the model checkpoint"
    with pytest.raises(RangesError, match=wanted):
        check_ranges(measured, other)
    with pytest.raises(RangesError, match="which is not the model distilled"):
        check_ranges(measured, distilled)


def test_missing_and_unexpected_tensors(measured, checkpoint):
    names = list(measured.tensors)
    some = {name: measured.tensors[name] for name in names[5:]}
    listed = rf"missing for 5 \({names[0]}, {names[1]}, {names[2]}, …\) of the 42 tensors"
    with pytest.raises(RangesError, match=listed):
        check_ranges(replace(measured, tensors=some), checkpoint)
    more = measured.tensors | {"dit_cond.layers.3.attention.qkv": measured.tensors[names[0]]}
    with pytest.raises(
        RangesError, match=r"for 1 \(dit_cond\.layers\.3\.attention\.qkv\) tensors that checkpoint does"
    ):
        check_ranges(replace(measured, tensors=more), checkpoint)


def test_an_unwritten_file_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "ranges.json"
    file.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.atomic_files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_ranges(RANGES, file)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_reading_needs_neither_torch_nor_numpy():
    code = "import sys, calibration.static.ranges; print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
