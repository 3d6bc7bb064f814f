"""Messages show what was wrong, and never all of it: values come from strangers, and messages go into headers."""

import json

import numpy as np
import pytest

from runtime import Request, RequestError
from runtime.bundle.json_fields import DecodeError, decode
from runtime.bundle.manifest import Manifest
from runtime.console import describe
from runtime.errors import cut, shown
from runtime.request import KINDS
from runtime.sampling.schedule import parse_guidance

LONGEST = 400
"""Characters: a message lists what is possible, such as all presets."""
HUGE = {
    "text": "ä" * 100_000,
    "digits": "9" * 60_000,
    "bytes": b"x" * 100_000,
    "integer": 10**5000,
    "negative": -(10**5000),
    "list": [[["x" * 1000] * 1000] * 10],
    "object": {"x" * 100_000: "x" * 100_000},
    "array": np.zeros((1000, 1000)),
    "texts": ("x" * 100_000, "y" * 100_000),
}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
def test_a_value_is_shown_on_a_line(value):
    assert len(shown(value)) <= 60 and "\n" not in shown(value)


def test_small_values_are_shown_whole():
    assert [shown(value) for value in ("it's", 5, 1.5, None, [1, "a"])] == ['"it\'s"', "5", "1.5", "None", "[1, 'a']"]
    assert cut("abc", 3) == "abc" and cut("abcd", 3) == "ab…"


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("field", KINDS)
def test_no_field_echoes_a_whole_value(field, value):
    try:
        Request(**{"prompt": "x", field: value})
    except RequestError as error:
        assert len(str(error)) < LONGEST


@pytest.mark.parametrize("text", ["x" * 100_000, "7x5," * 50_000 + "y", "7x99999"], ids=["letters", "entries", "count"])
def test_schedules(text):
    with pytest.raises(RequestError) as refused:
        parse_guidance(text)
    assert len(str(refused.value)) < LONGEST


@pytest.mark.parametrize("value", [HUGE["text"], HUGE["list"], HUGE["object"]], ids=["text", "list", "object"])
def test_manifests(demo_bundle, value):
    whole = json.loads((demo_bundle / "manifest.json").read_text())
    for key in ("version", "name", "precision", "graphs", "files", "prompt", "rope"):
        try:
            Manifest.from_json(json.dumps(whole | {key: value}))
        except ValueError as error:
            assert len(describe(error)) <= 4000
    with pytest.raises(DecodeError) as refused:
        decode(value, Manifest, "the manifest")
    assert len(str(refused.value)) < LONGEST
