"""Attentions that read the same keys."""

import numpy as np
import pytest
from support.small_graphs import SmallGraph, operators, picture, run

from export.graph.passes.reversed_keys import reverse_shared_keys

ROUNDING = 1e-6
"""The sums over the keys run in another order. Measured: up to 1.2e-7; keys without their values' order give 0.1."""


def operand(graph, name, length):
    return graph.input(name, 2, 1, length, 4)


def attention(graph, queries, keys, values, *others, name, **attributes):
    return graph.add("Attention", queries, keys, values, *others, name=name, shape=queries.shape, **attributes)


def feeds(model):
    random = np.random.default_rng(0)
    return {value.name: random.standard_normal(tuple(value.shape), np.float32) for value in model.graph.inputs}


def sharing(graph, readers=2, **attributes):
    keys, values = operand(graph, "k", 5), operand(graph, "v", 5)
    queries = [operand(graph, f"q{i}", 3 + i) for i in range(readers)]
    return [attention(graph, q, keys, values, name=f"a{i}", **attributes) for i, q in enumerate(queries)]


@pytest.mark.parametrize("readers", [2, 3])
def test_all_but_the_first_read_them_backwards(readers):
    graph = SmallGraph()
    model = graph.model(*sharing(graph, readers))
    wanted = run(model, feeds(model))
    assert reverse_shared_keys(model)
    assert operators(model) == ["Attention"] + ["Slice", "Slice", "Attention"] * (readers - 1)
    first, *others = (node for node in model.graph if node.op_type == "Attention")
    assert [value.name for value in first.inputs] == ["q0", "k", "v"]
    for i, node in enumerate(others, 1):
        assert [value.name for value in node.inputs] == [f"q{i}", f"a{i}_reversed_1", f"a{i}_reversed_2"]
    for got, value in zip(run(model, feeds(model)), wanted, strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=ROUNDING)
    assert not reverse_shared_keys(model), "they are other tensors now"


def test_keys_that_are_a_result_of_the_graph_stay_in_their_order():
    graph = SmallGraph()
    keys = graph.add("Neg", operand(graph, "x", 5), name="keys", shape=(2, 1, 5, 4))
    values = operand(graph, "v", 5)
    results = [attention(graph, operand(graph, f"q{i}", 3), keys, values, name=f"a{i}") for i in range(2)]
    model = graph.model(*results, keys)
    wanted = run(model, feeds(model))
    assert reverse_shared_keys(model) and [value.name for value in model.graph.outputs] == ["a0", "a1", "keys"]
    got = run(model, feeds(model))
    assert np.array_equal(got[2], wanted[2])
    np.testing.assert_allclose(got[1], wanted[1], rtol=0, atol=ROUNDING)


def alone(graph):
    return sharing(graph, readers=1)


def causal(graph):
    return sharing(graph, is_causal=1)


def masked(graph):
    keys, values, mask = operand(graph, "k", 5), operand(graph, "v", 5), graph.input("mask", 3, 5)
    return [attention(graph, operand(graph, f"q{i}", 3), keys, values, mask, name=f"a{i}") for i in range(2)]


def other_keys(graph):
    values = operand(graph, "v", 5)
    return [
        attention(graph, operand(graph, f"q{i}", 3), operand(graph, f"k{i}", 5), values, name=f"a{i}") for i in range(2)
    ]


@pytest.mark.parametrize("build", [alone, causal, masked, other_keys])
def test_near_misses_stay(build):
    graph = SmallGraph()
    model = graph.model(*build(graph))
    before = picture(model)
    assert not reverse_shared_keys(model) and picture(model) == before
