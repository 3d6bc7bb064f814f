"""Prompts that are far too long are refused by their length, before anything looks into them."""

import json

import pytest
from support.command_line import names, write

from runtime import Pipeline, Request, RequestError
from runtime.cli.main import main
from runtime.prompt import reading
from runtime.prompt.reading import PromptReader
from runtime.prompt.tokens import MAX_BYTES

LONG = "a " * (5 << 20)
REFUSED = f"bytes or more, wanted at most {MAX_BYTES}"


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


@pytest.fixture
def untouched(pipeline, monkeypatch):
    """A tokenizer and a JSON reader that must not be asked."""

    def touched(*_, **__):
        raise AssertionError("somebody looked into the text")

    class Tokenizer:
        encode = touched

    monkeypatch.setattr(pipeline.prompt, "tokenizer", Tokenizer())
    for name in ("examine", "read_json"):
        monkeypatch.setattr(reading, name, touched)


@pytest.mark.parametrize("text", [LONG, "{" + LONG, "ä" * (MAX_BYTES // 2 + 1), "\udc80" * (MAX_BYTES // 2)])
@pytest.mark.usefixtures("untouched")
def test_everywhere_a_prompt_enters(pipeline, text):
    reader = PromptReader("error", False, print)
    for call in (
        lambda: pipeline.generate(text),
        lambda: Request("x", negative_prompt=text),
        lambda: pipeline.prompt.encode(text),
        lambda: reader.prompt(text),
        lambda: reader.caption_text(text),
    ):
        with pytest.raises(RequestError, match=REFUSED) as raised:
            call()
        assert len(str(raised.value)) < 120


@pytest.mark.parametrize("text", ["a" * MAX_BYTES, "ä" * (MAX_BYTES // 2)])
def test_the_longest_prompt_is_tokenized(pipeline, text):
    with pytest.raises(RequestError, match=r"has \d+ tokens"):
        pipeline.prompt.encode(text)


def test_the_command(demo_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    caption = {"compositional_deconstruction": {"background": LONG, "elements": []}}
    write("p.txt", LONG)
    write("p.jsonl", {"prompt": LONG}, {"prompt": "x", "negative_prompt": LONG}, {"caption": caption})
    write("c.json", json.dumps(caption))
    for option, file, count in (
        ("--prompt-file", "p.txt", 1),
        ("--prompt-file", "p.jsonl", 3),
        ("--caption", "c.json", 1),
    ):
        assert main(["--bundle", str(demo_bundle), option, file]) == 1
        error = capsys.readouterr().err
        assert error.count(REFUSED) == count and len(error) < 1000
    assert names(tmp_path) == ["c.json", "p.jsonl", "p.txt"]
