"""Sizes of the demo's networks: the released architecture, small in width."""

from model.autoencoder import AutoencoderConfig
from model.text_encoder import TextEncoderConfig
from model.transformer import TransformerConfig

TEXT = TextEncoderConfig(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=128, vocab_size=1024
)
TRANSFORMER = TransformerConfig(
    num_layers=6,
    num_attention_heads=2,
    attention_head_dim=64,
    intermediate_size=384,
    adaln_dim=64,
    llm_features_dim=TEXT.features,
    rope_theta=10_000,
    mrope_section=(12, 10, 10),
)
AUTOENCODER = AutoencoderConfig(block_out_channels=(16, 32, 48, 64), layers_per_block=1, norm_num_groups=8)
