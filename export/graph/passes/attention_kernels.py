"""Let TensorRT take attention apart that it has no fused kernel for: the VAE's.

Matches Attention with queries (B, heads, L, head size) and gives it the attribute ``TRT_decomposable``; without it the
engine's builder refuses the graph where it has no fused kernel, and with it it still takes one that it has. The VAE's
has one head of 512, or is in float32; and of a small head there is none where all pictures are small (one of 32, up to
256 positions, TensorRT-RTX 1.7.1). Attention of the other stages must be a fused kernel, so there it stays as it is.
"""

import onnx_ir as ir

LARGEST_FUSED_HEAD = 256
"""Head size up to which TensorRT has a fused attention kernel; measured with TensorRT-RTX 1.7.1, where 264 has none."""
_ATTRIBUTE = "TRT_decomposable"


def allow_decomposition(model: ir.Model, stage: str, everywhere: bool = False) -> bool:
    """Mark the attentions of a VAE; or `everywhere`, those of any stage whose heads no fused kernel takes.

    Returns:
        Whether the graph has changed.

    Raises:
        RuntimeError: another stage has such heads. TensorRT's own error would not name the layer.
    """
    changed = False
    for node in model.graph:
        size = _head_size(node)
        if node.op_type != "Attention" or _ATTRIBUTE in node.attributes or size is None:
            continue
        if size <= LARGEST_FUSED_HEAD and not stage.startswith("vae_"):
            continue
        if not stage.startswith("vae_") and not everywhere:
            raise RuntimeError(
                f"{stage}: the attention {node.name} has heads of {size}, and TensorRT has fused kernels "
                f"for up to {LARGEST_FUSED_HEAD}; --attention decomposed takes it apart, which is slower and needs "
                "more memory"
            )
        node.attributes[_ATTRIBUTE] = ir.AttrInt64(_ATTRIBUTE, 1)
        changed = True
    return changed


def has_fused_kernel(node: ir.Node) -> bool:
    """Whether TensorRT has one kernel for an attention, as far as its heads and its type tell."""
    size, queries = _head_size(node), node.inputs[0]
    return (
        size is not None and size <= LARGEST_FUSED_HEAD and queries is not None and queries.dtype != ir.DataType.FLOAT
    )


def _head_size(node: ir.Node) -> int | None:
    """The size of the heads, if the graph says it."""
    queries = node.inputs[0] if node.inputs else None
    if queries is None or queries.shape is None or len(queries.shape) != 4:
        return None
    size = queries.shape[3]
    return size if isinstance(size, int) else None
