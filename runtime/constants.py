"""Protocol numbers shared by the packages. This file imports nothing."""

IMAGE_POSITION_OFFSET = 65536
"""First coordinate of the image tokens on all three RoPE axes; text tokens count up from 0 and never reach it."""

DEFAULT_BUNDLE = "ideogram4-bundle"
"""Directory, relative to the working directory, that ``export.build`` writes and ``trt-generate`` reads by default."""

BUNDLE_VARIABLE = "IDEOGRAM4_BUNDLE"
"""Environment variable with the bundle directory for ``trt-generate``; ``--bundle`` wins over it."""

TILE_GRAPHS = {"vae_decoder": "vae_decoder_tile", "vae_encoder": "vae_encoder_tile"}
"""The VAE's graphs for whole pictures, and those for tiles of one."""

NEGATIVE_GRAPH = "dit_negative"
"""A second copy of the graph ``dit_cond``, on another device, for negative prompts; no bundle has a file of its own for
it."""

MANIFEST = "manifest.json"
"""Name of the manifest in a bundle. It is written last: a directory that has one is complete."""

LARGEST_NUMBER = 1e4
"""Bound on guidance, mu and std: far beyond any use, and far from where float32 or exp overflow."""
