"""Tokens are the prompt's alone, whatever else a tokenizer file asks for."""

import json

import numpy as np

from runtime.bundle.manifest import PromptSpec
from runtime.prompt.tokens import PromptEncoder


def test_padding_and_truncation_of_the_file_are_ignored(demo_bundle, tmp_path):
    """As by transformers, which pads and truncates only when it is told to."""
    stored = json.loads((demo_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    stored["padding"] = {
        "strategy": {"Fixed": 32},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    stored["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    changed = tmp_path / "tokenizer.json"
    changed.write_text(json.dumps(stored), encoding="utf-8")
    spec = PromptSpec("tokenizer.json", "a ", "", 2048)
    plain, odd = (PromptEncoder(file, spec) for file in (demo_bundle / "tokenizer.json", changed))
    ids = plain.encode("red circle on a blue background")
    assert 3 < ids.size < 32
    assert np.array_equal(odd.encode("red circle on a blue background"), ids)
