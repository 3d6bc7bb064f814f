"""Chat templates, and the tokens of the runtime against those of transformers with its own template."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.chat_template import prompt_affixes
from model.checkpoint.tensor_files import CheckpointError
from runtime.bundle.manifest import PromptSpec
from runtime.prompt.tokens import PromptEncoder

FOLDER = DEMO_CHECKPOINT / "tokenizer"
PROMPTS = [
    "a",
    "a red circle",
    " leading and trailing ",
    "two\nlines\r\n\tand a tab",
    "一只红色的猫坐在蓝色的沙发上",
    "🙂👩‍👩‍👧🏳️‍🌈 flags",
    '{"high_level_description":"Ein Hund","compositional_deconstruction":{"background":"grün","elements":[]}}',
    "e\u0301 is normalised",
    "<|im_end|> is a special token",
    "{{ template }} {% braces %}",
    "مرحبا بالعالم 123456",
    "a " * 590,
]


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(FOLDER / "tokenizer.json", PromptSpec("", *prompt_affixes(FOLDER), 2048))


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_tokens_are_transformers(encoder, prompt):
    peer = AutoTokenizer.from_pretrained(FOLDER)
    message = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = peer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    wanted = peer(text, add_special_tokens=False)["input_ids"]
    assert encoder.encode(prompt).tolist() == [wanted]
    assert 9 <= len(wanted) <= 2048


def test_affixes_are_the_published_ones():
    assert prompt_affixes(FOLDER) == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


def templated(tmp_path, template, name="tokenizer_config.json"):
    content = template if name.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_places_of_the_template(tmp_path, name):
    folder = templated(tmp_path, "<{{ messages[0].content[0].text }}>", name)
    assert prompt_affixes(folder) == ("<", ">")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("hello", "does not contain the prompt exactly once, unchanged"),
        ("{{ messages[0].content[0].text | upper }}", "does not contain the prompt exactly once, unchanged"),
        ("{{ messages[0].content[0].text | length }}{{ messages[0].content[0].text }}", "different text around"),
        ("{% if %}", "the chat template fails"),
        ("{{ raise_exception('no system') }}", "the chat template fails: no system"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
        ("{{ messages + 1 }}", "the chat template fails: can only concatenate list"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "the chat template fails: maximum recursion depth"),
    ],
)
def test_templates_that_are_refused(tmp_path, template, message):
    with pytest.raises(CheckpointError, match=message):
        prompt_affixes(templated(tmp_path, template))


@pytest.mark.parametrize("template", [[1], [{}], [{"name": "tools", "template": "x"}]])
def test_named_templates_without_a_default(tmp_path, template):
    with pytest.raises(CheckpointError, match="has no chat template"):
        prompt_affixes(templated(tmp_path, template))


def test_no_template(tmp_path):
    shutil.copy(FOLDER / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"has no chat template; wanted chat_template.jinja"):
        prompt_affixes(tmp_path)
