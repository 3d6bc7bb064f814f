"""A byte-level BPE tokenizer in Qwen's file format, trained on captions: each word of the grammar is one token."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.captions import corpus
from training.sizes import TEXT

# Qwen2's pattern: contractions, words with one leading character, single digits, punctuation, white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
PREFIX, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
"""What the template writes around a prompt."""
# Other text that people will try, so that it is not split into single bytes; and all keys of JSON captions.
OTHER_TEXT = (
    '{"high_level_description":"","style_description":{"aesthetics":"","lighting":"","photo":"","medium":"",'
    '"art_style":"","color_palette":[]},"compositional_deconstruction":{"background":"","elements":[]}}',
    "A photo of a cat holding a sign that says hello world. The quick brown fox jumps over the lazy dog. "
    "An oil painting of a house by the lake, an orange sky, a pink flower, a grey mountain in the middle.",
)


def make_tokenizer() -> Tokenizer:
    """Train the tokenizer; the result depends on nothing but the captions' grammar."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT.vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PREFIX + SUFFIX, *corpus(), *OTHER_TEXT], trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that transformers writes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 262144,
        "add_prefix_space": False,
        "unk_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def token_ids(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    """Ids of prompts inside the chat template, as the runtime makes them."""
    texts = [PREFIX + prompt + SUFFIX for prompt in prompts]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
