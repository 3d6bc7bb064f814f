"""Prompt to token ids with the bundle's tokenizer and its rendered chat template."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from runtime.bundle.manifest import PromptSpec
from runtime.errors import SAID, BundleError, RequestError, cut

MAX_BYTES = 1 << 16
"""Length of a prompt in UTF-8. The model takes 2048 tokens of 4 bytes or so, into which no text of this length fits.
Tokenizing 10 MB takes 16 s and 1.2 GB."""


def check_length(name: str, text: str) -> None:
    """Raise RequestError unless a prompt is short enough to be tokenized."""
    # A character has a byte or more: what is far too long is not encoded to be counted.
    size = len(text) if len(text) > MAX_BYTES else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RequestError(f"{name} has {size} bytes or more, wanted at most {MAX_BYTES}")


class PromptEncoder:
    """Wraps a prompt in the chat template's prefix and suffix and tokenizes it, without padding."""

    def __init__(self, tokenizer_file: Path, spec: PromptSpec) -> None:
        """Raises BundleError when `tokenizer_file` is missing or is not a tokenizer."""
        if not tokenizer_file.is_file():
            raise BundleError(f"the bundle's file {tokenizer_file} is missing; copy or build the bundle again")
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises the bare Exception class
            raise BundleError(f"{tokenizer_file} is not a tokenizers file: {cut(str(error), SAID)}") from error
        # A file may ask for both; the model has no padding, and a prompt that is too long is refused below.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.spec = spec

    def encode(self, prompt: str) -> np.ndarray:
        """Token ids (1, T) int64, the template's tokens included.

        Raises:
            RequestError: `prompt` is empty or blank, holds bytes that are not UTF-8 (lone surrogates), or has more
                bytes or tokens than the model takes.
        """
        check_length("the prompt", prompt)
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"the prompt is not valid UTF-8 at character {error.start}") from error
        if not prompt.strip():
            raise RequestError("the prompt is empty, wanted some text")
        text = self.spec.prefix + prompt + self.spec.suffix
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > self.spec.max_tokens:
            raise RequestError(
                f"the prompt has {len(ids)} tokens (the chat template's included), "
                f"wanted at most {self.spec.max_tokens}"
            )
        return np.array([ids], dtype=np.int64)
