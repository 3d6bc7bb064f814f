"""One product of several with the same input."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run, whole_numbers

from export.graph.passes.join_products import groups, join_products
from model.checkpoint.sources import Known

W1, W3, W13 = (f"layers.0.feed_forward.{name}.weight" for name in ("w1", "w3", "w13"))
QKV = [f"encoder.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
HALF = ir.DataType.FLOAT16


def product(graph, x, name, rows, dtype=FLOAT, cast=False, perm=(1, 0)):
    """x (2, 3, 4) by a weight (rows, 4) that is transposed first."""
    weight = graph.parameter(name, rows, 4, dtype=dtype)
    turned = graph.add("Transpose", weight, name=f"{name}_t", shape=(4, rows), dtype=dtype, perm=list(perm))
    result = graph.add("MatMul", x, turned, name=f"{name}_matmul", shape=(2, 3, rows), dtype=dtype)
    if cast:
        result = graph.add("Cast", result, name=f"{name}_cast", shape=(2, 3, rows), to=FLOAT.value)
    return result


def ends(graph, *values):
    """Something that reads each value, so that none is an output itself."""
    return [graph.add("Neg", value, name=f"end_{i}", shape=value.shape) for i, value in enumerate(values)]


def sources_of(sizes):
    return {name: Known(torch.from_numpy(whole_numbers(i, rows, 4))) for i, (name, rows) in enumerate(sizes.items())}


def values_of(sources):
    return {name: source.read().numpy() for name, source in sources.items()}


@pytest.mark.parametrize("sizes", [{W1: 5, W3: 5}, dict(zip(QKV, (6, 2, 3), strict=True))], ids=["w13", "qkv"])
def test_products_of_one_input_become_one(sizes):
    graph, sources = SmallGraph(), sources_of(sizes)
    x = graph.input("x", 2, 3, 4)
    model = graph.model(*ends(graph, *(product(graph, x, name, rows) for name, rows in sizes.items())))
    feeds = {"x": whole_numbers(9, 2, 3, 4)}
    wanted = run(model, feeds, values_of(sources))
    joined = join_products(model, sources)
    (whole,) = joined
    assert joined == {whole: tuple(sizes)} and whole in sources
    assert operators(model) == ["Transpose", "MatMul", "Split"] + ["Neg"] * len(sizes)
    assert not set(sizes) & set(model.graph.initializers)
    assert list(model.graph.initializers[whole].shape) == [sum(sizes.values()), 4] == list(sources[whole].shape)
    # Whole numbers: the sums are exact.
    assert all(map(np.array_equal, run(model, feeds, values_of(sources)), wanted))


def test_one_cast_in_front_of_the_split():
    graph, sources = SmallGraph(), sources_of({W1: 5, W3: 5})
    x = graph.input("x", 2, 3, 4, dtype=HALF)
    parts = [product(graph, x, name, 5, HALF, cast=True) for name in (W1, W3)]
    model = graph.model(*ends(graph, *parts))
    feeds = {"x": whole_numbers(9, 2, 3, 4).astype(np.float16)}

    def result():
        return run(model, feeds, {name: value.astype(np.float16) for name, value in values_of(sources).items()})

    wanted = result()
    assert join_products(model, sources) == {W13: (W1, W3)}
    assert operators(model) == ["Transpose", "MatMul", "Cast", "Split", "Neg", "Neg"]
    assert all(map(np.array_equal, result(), wanted))


def test_the_second_may_be_computed_first():
    """What reads it then stands before the first, and still finds its part."""
    graph, sources = SmallGraph(), sources_of({W1: 5, W3: 5})
    x = graph.input("x", 2, 3, 4)
    third = product(graph, x, W3, 5)
    outputs = ends(graph, third)
    outputs.append(graph.add("Abs", product(graph, x, W1, 5), name="last", shape=(2, 3, 5)))
    model, feeds = graph.model(*outputs), {"x": whole_numbers(9, 2, 3, 4)}
    wanted = run(model, feeds, values_of(sources))
    assert join_products(model, sources) == {W13: (W1, W3)}
    assert all(map(np.array_equal, run(model, feeds, values_of(sources)), wanted))


def other_input(graph, x):
    return ends(graph, product(graph, x, W1, 5), product(graph, graph.input("y", 2, 3, 4), W3, 5))


def missing(graph, x):
    return ends(graph, product(graph, x, W1, 5))


def read_twice(graph, x):
    parts = product(graph, x, W1, 5), product(graph, x, W3, 5)
    return [*ends(graph, *parts), graph.add("Neg", graph.parameters[W3], name="other", shape=(5, 4))]


def one_cast(graph, x):
    return ends(graph, product(graph, x, W1, 5), product(graph, x, W3, 5, cast=True))


def not_transposed(graph, x):
    return ends(graph, product(graph, x, W1, 4, perm=(0, 1)), product(graph, x, W3, 4, perm=(0, 1)))


def on_the_left(graph, x):
    turned = graph.add("Transpose", graph.parameter(W3, 3, 4), name="t", shape=(4, 3), perm=[1, 0])
    return ends(graph, product(graph, x, W1, 5), graph.add("MatMul", turned, x, name="m", shape=(2, 4, 4)))


@pytest.mark.parametrize("build", [other_input, missing, read_twice, one_cast, not_transposed, on_the_left])
def test_near_misses_stay(build):
    graph, sources = SmallGraph(), sources_of({W1: 5, W3: 5})
    model = graph.model(*build(graph, graph.input("x", 2, 3, 4)))
    before, known = picture(model), dict(sources)
    assert join_products(model, sources) == {}
    assert picture(model) == before and sources == known


@pytest.mark.parametrize("cast", [False, True])
def test_results_of_the_graph_stay(cast):
    graph, sources = SmallGraph(), sources_of({W1: 5, W3: 5})
    x = graph.input("x", 2, 3, 4)
    model = graph.model(product(graph, x, W1, 5, cast=cast), *ends(graph, product(graph, x, W3, 5, cast=cast)))
    before = picture(model)
    assert join_products(model, sources) == {} and picture(model) == before


def test_groups_by_their_first_weight():
    assert list(groups([W3, W1, "a.norm.weight"])) == [(W13, [W1, W3])]
    assert list(groups([W3, *QKV[1:]])) == []
