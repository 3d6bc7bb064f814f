"""Write the demo checkpoint: the released file layout, fp8 codes and row scales, tiny sizes, random weights.

    python scripts/make_demo.py --output export/demo

The weights come from a seed and have learned nothing, so its pictures are textures. The tokenizer is a byte-level BPE
in Qwen's file format, trained on the few lines below.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from export.checksums import SUMS
from model.autoencoder import AutoencoderConfig, DecoderStage, EncoderStage
from model.fp8 import quantize_rows
from model.text_encoder import TextEncoderConfig, TextStage
from model.transformer import Ideogram4Transformer, TransformerConfig
from runtime.integrity import sha256

TEXT = TextEncoderConfig(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=128, vocab_size=1024
)
TRANSFORMER = TransformerConfig(
    num_layers=4, num_attention_heads=2, attention_head_dim=64, intermediate_size=256, adaln_dim=64,
    llm_features_dim=TEXT.features, mrope_section=(12, 10, 10),
)  # fmt: skip
AUTOENCODER = AutoencoderConfig(block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8)

DERIVED = ("inv_freq", "frequencies", "latent_stats.mean", "latent_stats.std")
"""Parameters that no checkpoint holds."""

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
COLORS = "red green blue yellow orange purple white black grey brown pink cyan"
SHAPES = "circle square triangle star heart ring cross diamond"
CORPUS = [
    *(f"a {size} {color} {shape} at the {place} of a {ground} background"
      for size in ("small", "large") for color in COLORS.split() for shape in SHAPES.split()
      for place in ("top left", "top right", "bottom left", "bottom right", "center") for ground in COLORS.split()),
    '{"high_level_description":"","style_description":{"aesthetics":"","lighting":"","medium":"","art_style":""},',
    '"compositional_deconstruction":{"background":"","elements":[{"type":"obj","bbox":[0,0,1000,1000],"desc":""},',
    '{"type":"text","bbox":[100,200,300,400],"text":"","desc":"","color_palette":["#FF0000"]}]}}',
    "A photo of a cat holding a sign that says hello world. The quick brown fox jumps over the lazy dog.",
]  # fmt: skip


def make_tokenizer(folder: Path) -> None:
    """Train the tokenizer and write it as transformers does."""
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
        vocab_size=TEXT.vocab_size - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 262144, "add_prefix_space": False, "unk_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", config)


def randomize(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give matrices a variance of 1 / inputs and vectors their neutral value, slightly disturbed."""
    for name, parameter in module.named_parameters():
        if name.endswith(DERIVED):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = float(name.endswith("weight")) + 0.1 * noise
    return module


def save_fp8(module: nn.Module, folder: Path, config: dict, stem: str = "diffusion_pytorch_model") -> None:
    """Write a module as the release does: Linear weights as codes and scales, everything else in bfloat16."""
    tensors = {name: tensor.detach().bfloat16().contiguous() for name, tensor in module.state_dict().items()
               if not name.endswith(DERIVED)}  # fmt: skip
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            codes, scale = quantize_rows(part.weight.detach())
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = codes, scale
    _save(tensors, folder, config, stem)


def _save(tensors: dict[str, torch.Tensor], folder: Path, config: dict, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)


def _write_json(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def make_demo(output: Path, seed: int) -> None:
    """Write the whole checkpoint directory."""
    generator = torch.Generator().manual_seed(seed)
    make_tokenizer(output / "tokenizer")
    text = randomize(TextStage(TEXT, TRANSFORMER), generator)
    text_config = {key: value for key, value in asdict(TEXT).items() if key != "rope_theta"}
    text_config |= {"model_type": "qwen3_vl_text", "attention_bias": False, "hidden_act": "silu",
                    "rope_parameters": {"rope_theta": TEXT.rope_theta, "rope_type": "default",
                                        "mrope_interleaved": True, "mrope_section": [6, 5, 5]}}  # fmt: skip
    config = {"model_type": "qwen3_vl", "ideogram_fp8_weight_only": True, "text_config": text_config}
    tower = nn.ModuleDict({"language_model": text.encoder})
    save_fp8(tower, output / "text_encoder", config, "model")
    transformer_config = asdict(TRANSFORMER)
    for folder in ("transformer", "unconditional_transformer"):
        transformer = randomize(Ideogram4Transformer(TRANSFORMER), generator)
        # Both files of the release hold the text projection, though only the conditional transformer uses it.
        transformer.llm_cond_norm, transformer.llm_cond_proj = text.llm_cond_norm, text.llm_cond_proj
        save_fp8(transformer, output / folder, transformer_config)
    parts = (DecoderStage(AUTOENCODER), EncoderStage(AUTOENCODER))
    tensors = {}
    for part in parts:
        del part.latent_stats
        tensors |= {name: t.detach().bfloat16() for name, t in randomize(part, generator).state_dict().items()}
    _save(
        tensors, output / "vae", {"_class_name": "AutoencoderKLFlux2", **asdict(AUTOENCODER)}, "diffusion_pytorch_model"
    )
    _write_json(output / "model_index.json", {"_class_name": "Ideogram4Pipeline", "sizes": {"default": 256}})
    sums = [f"{sha256(file)}  {file.relative_to(output)}\n" for file in sorted(output.rglob("*.safetensors"))]
    (output / SUMS).write_text("".join(sums), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="directory to write; it must not exist")
    parser.add_argument("--seed", type=int, default=4, help="of the weights (default: %(default)s)")
    args = parser.parse_args()
    if args.output.exists():
        print(f"make_demo: error: {args.output} exists; remove it first", file=sys.stderr)
        return 1
    make_demo(args.output, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
