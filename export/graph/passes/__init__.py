"""Changes of a traced graph, one in each file. `export.graph.stage` applies them in their order.

What the changes for TensorRT gave, in kernels of a block at the real width (4608, 18 heads of 256, sm89 and sm120,
TensorRT-RTX 1.7.1; ``tests/export/engine/test_plan.py`` holds the result):

| change | kernels per block |
|---|---|
| none | 14, and 4 pairs of stream signals |
| `row_scales`: the row scales behind the products | 13; the products write 2 bytes a value instead of 4 |
| queries and keys normed and rotated as one tensor (`model.transformer`) | 12 and a signal pair fewer |
| `join_products`: w1 and w3 as one product (sm120 does not do it by itself, sm89 does) | 11 |
| `single_rows`: no dequantised copies of the time's weights, 642 MB a step at full size | 11, no signals left |

and one kernel that the compiler splits off between blocks, so 12. The floor by counting is 9: four products, the
attention, and one element-wise kernel between each two of them. The arithmetic stays that of ONNX Runtime's form up to
the rounding of one product.

What the changes for ONNX Runtime 1.31 gave on a CPU is told by each: `norm_ones`, `rotations` and `group_norms` take
operators that it has kernels for.
"""
