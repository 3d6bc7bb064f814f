"""The tokenizer's chat template, rendered once into what stands before and after a prompt.

The box then needs no template engine. Only templates that put the prompt into the text unchanged can be split so;
that is checked with two prompts.
"""

from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.checkpoint.tensor_files import CheckpointError, read_json
from runtime.errors import SAID, cut

_PROBES = ("\ue000first probe\ue001", "\ue000second\nprobe\ue001")


def prompt_affixes(tokenizer: Path) -> tuple[str, str]:
    """Prefix and suffix of a prompt according to the chat template in a tokenizer folder.

    Raises:
        CheckpointError: there is no template, it fails, or it changes the prompt.
    """
    template = chat_template(tokenizer)
    affixes = set()
    for probe in _PROBES:
        rendered = render(template, probe, tokenizer)
        if rendered.count(probe) != 1:
            raise CheckpointError(f"{tokenizer}: the chat template does not contain the prompt exactly once, unchanged")
        prefix, _, suffix = rendered.partition(probe)
        affixes.add((prefix, suffix))
    if len(affixes) != 1:
        raise CheckpointError(f"{tokenizer}: the chat template writes different text around different prompts")
    return affixes.pop()


def chat_template(tokenizer: Path) -> str:
    """The template's source: ``chat_template.jinja``, ``chat_template.json``, or a key of the tokenizer's config."""
    if (file := tokenizer / "chat_template.jinja").is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file} is not UTF-8 text: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (file := tokenizer / name).is_file():
            template = read_json(file).get("chat_template")
            if isinstance(template, list):  # several named templates
                named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
                template = named[0].get("template") if named else None
            if isinstance(template, str):
                return template
    raise CheckpointError(
        f"{tokenizer} has no chat template; wanted chat_template.jinja, or the key chat_template in "
        "chat_template.json or tokenizer_config.json (Qwen3-VL's serves)"
    )


def render(template: str, prompt: str, tokenizer: Path) -> str:
    """The text for one user message, in the environment that transformers gives its templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        # A template is a program of the checkpoint's: it can fail in any of these ways.
        raise CheckpointError(f"{tokenizer}: the chat template fails: {cut(str(error), SAID)}") from error


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
