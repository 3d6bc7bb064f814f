"""Keep products within float16 whose inputs have no known range: the attention's and the feed-forward's last ones.

    x -> Cast to float16 -> MatMul(Transpose(W)) -> Cast to float32
    x * (1 / max|x|) -> Cast -> MatMul(Transpose(W)) -> Cast -> Mul(max|x|)

with one maximum for each token. The input of the MatMul is at most 1, so its result is at most the largest sum of
magnitudes of a row of W, which for a weight of any use is far below 65504; before, the outputs of the six-layer demo
already reached 23 % of it. In TensorRT this costs no kernel, as `export.graph.passes.token_scales` has it.
"""

import onnx_ir as ir

from export.graph.passes.editing import cast_behind, only_reader, transposes
from export.graph.passes.token_scales import multiply_behind, scale_tokens

_PRODUCTS = ("attention.o", "feed_forward.w2", "self_attn.o_proj", "mlp.down_proj")
"""Modules whose input is neither normed nor otherwise bounded."""


def bound_products(model: ir.Model) -> bool:
    """Scale the tokens that enter the float16 products of a block whose range is not known.

    Returns:
        Whether the graph has changed: not where these products are in another type, or quantized.
    """
    found = [(name, _product(model.graph, name)) for name in model.graph.initializers]
    changed = False
    for name, product in found:
        if product is None:
            continue
        x = product.inputs[0]
        assert x is not None
        point = name.removesuffix(".weight")
        scaled, largest = scale_tokens(model.graph, x, point, product)
        cast = ir.node("Cast", [scaled], attributes={"to": ir.DataType.FLOAT16.value}, name=f"{point}_token_.float16")
        cast.outputs[0].name, cast.outputs[0].type = f"{point}_token_.float16", ir.TensorType(ir.DataType.FLOAT16)
        cast.outputs[0].shape = x.shape
        model.graph.insert_before(product, cast)
        product.replace_input_with(0, cast.outputs[0])
        multiply_behind(model.graph, product, largest, f"{point}_token_.scaled")
        changed = True
    return changed


def _product(graph: ir.Graph, name: str) -> ir.Node | None:
    """The float16 product x W^T of a weight of `_PRODUCTS`, whose result is cast to float32."""
    if not name.removesuffix(".weight").endswith(_PRODUCTS):
        return None
    weight = graph.initializers[name]
    transpose = only_reader(weight)
    if weight.dtype != ir.DataType.FLOAT16 or transpose is None or not transposes(transpose):
        return None
    product = only_reader(transpose.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is None:
        return None
    return product if cast_behind(product.outputs[0]) is not None else None
