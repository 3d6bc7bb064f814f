"""How much of a quantized model is float8."""

from export.graph.coded_share import share
from export.graph.recipe import Recipe
from model.checkpoint.directory import open_checkpoint


def test_share(peer):
    """Counted by hand for the smallest shape: one block of width 64, feed-forward 80, 4352 and 4096 rows."""
    checkpoint = open_checkpoint(peer("head64", "original-fp8")[1])
    block = 4 * 64 * 64 + 3 * 64 * 80
    once = 2 * 64 * 64 + 24 * 64 + 24 * 64 + 4 * 64 * 24
    per_row = 2 * 128 * 64
    for stage, rows in (("dit_cond", 4352), ("dit_uncond", 4096)):
        attention = 4 * rows**2 * 64
        got = share(checkpoint, stage, Recipe(activations=True, attention=False), base_bytes=4)
        rows_of_weights = (3 * 64 + 64 + 80 + 64 + 80) + (2 * 64 + 24 + 64 + 4 * 64) + (64 + 128)
        assert got.bytes_coded == block + once + per_row and got.bytes == got.bytes_coded + 4 * rows_of_weights
        assert got.operations == 2 * rows * (block + per_row) + 2 * once + attention
        assert got.operations_coded == 2 * rows * block
        assert share(checkpoint, stage, Recipe(True, True), 4).operations_coded == 2 * rows * block + attention
        assert share(checkpoint, stage, Recipe(False, False), 4).operations_coded == 0
