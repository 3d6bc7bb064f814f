"""Let TensorRT take attention apart that it has no fused kernel for: the VAE's, one head of 512 or in float32.

Matches Attention with queries (B, heads, L, head size) and gives it the attribute ``TRT_decomposable``; without it the
engine's builder refuses the graph. Attention of the other stages must be a fused kernel, so there it stays as it is.
"""

import onnx_ir as ir

LARGEST_FUSED_HEAD = 256
"""Head size up to which TensorRT has a fused attention kernel; measured with TensorRT-RTX 1.7.1, where 264 has none."""
_ATTRIBUTE = "TRT_decomposable"


def allow_decomposition(model: ir.Model, stage: str, everywhere: bool = False) -> bool:
    """Mark the attentions of a VAE that no fused kernel computes; or `everywhere`, those of any stage.

    Returns:
        Whether the graph has changed.

    Raises:
        RuntimeError: another stage has such heads. TensorRT's own error would not name the layer.
    """
    changed = False
    for node in model.graph:
        if node.op_type != "Attention" or _ATTRIBUTE in node.attributes or not _is_unfused(node, stage):
            continue
        if not stage.startswith("vae_") and not everywhere:
            raise RuntimeError(
                f"{stage}: the attention {node.name} has heads of {_head_size(node)}, and TensorRT has fused kernels "
                f"for up to {LARGEST_FUSED_HEAD}; --attention decomposed takes it apart, which is slower and needs "
                "more memory"
            )
        node.attributes[_ATTRIBUTE] = ir.AttrInt64(_ATTRIBUTE, 1)
        changed = True
    return changed


def _is_unfused(node: ir.Node, stage: str) -> bool:
    queries, size = node.inputs[0], _head_size(node)
    if queries is None or size is None:
        return False
    # Of a VAE in float32, which it is in bundles of float16, also smaller heads have none.
    return size > LARGEST_FUSED_HEAD or (stage.startswith("vae_") and queries.dtype == ir.DataType.FLOAT)


def _head_size(node: ir.Node) -> int | None:
    """The size of the heads, if the graph says it."""
    queries = node.inputs[0]
    if queries is None or queries.shape is None or len(queries.shape) != 4:
        return None
    size = queries.shape[3]
    return size if isinstance(size, int) else None
