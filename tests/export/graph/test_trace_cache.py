"""The cache of traced graphs: what it gives is what tracing gives, and nothing that happens to it fails a build."""

import dataclasses
import multiprocessing
import os
import time

import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.demo_model import DEMO_CHECKPOINT
from export.graph import stage, trace_cache
from export.graph.records import GraphRecord
from export.graph.trace_cache import cached, decode, encode, entry_key, source_digest, tool_versions
from model.checkpoint.directory import open_checkpoint
from model.layers import Linear
from runtime.bundle.graph_specs import TensorSpec

PARTS = ("float32", 1)


def bytes_of(model):
    return encode(model.clone())


def small_graph():
    """Two parameters and a constant on either side of them: the order of initializers matters."""
    x = ir.val("x", ir.DataType.FLOAT, ["B", 3])
    values = [ir.val(name, ir.DataType.FLOAT, [3]) for name in ("one", "weight", "two", "bias")]
    for value in (values[0], values[2]):
        value.const_value = ir.tensor([1.0, 2.0, 3.0], name=value.name)
    nodes = []
    for value in values:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0] if nodes else x, value]))
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=values, opset_imports={"": 23}, name="small")
    graph.outputs[0].name, graph.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(graph, ir_version=10)


def never():
    raise AssertionError("traced although there is an entry")


def entries(directory):
    return sorted(directory.glob("*.graph"))


def test_an_entry_is_what_tracing_gives(tmp_path):
    wanted = bytes_of(small_graph())
    assert bytes_of(cached(PARTS, small_graph, tmp_path)) == wanted
    found = cached(PARTS, never, tmp_path)
    assert bytes_of(found) == wanted
    assert list(found.graph.initializers) == ["one", "weight", "two", "bias"]
    assert [value.name for value in found.graph.inputs] == ["x"]
    assert [value.const_value is None for value in found.graph.initializers.values()] == [False, True, False, True]
    assert not found.metadata_props


def test_a_traced_module_survives(tmp_path):
    """The same serialized model from tracing, from a miss and from a hit, with no path of this machine in it."""
    from export.graph.trace import trace

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Linear(3, 4), Linear(4, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x))) / x.shape[0]

    with torch.device("meta"):
        module = Two().eval().requires_grad_(False)
    record = GraphRecord("two", (TensorSpec("x", "float32", ("B", 3)),), TensorSpec("y", "float32", ("B", 3)), {"B": 2})
    traced = trace(module, record)
    wanted = bytes_of(traced)
    assert bytes_of(cached(PARTS, lambda: trace(module, record), tmp_path)) == wanted
    assert bytes_of(cached(PARTS, never, tmp_path)) == wanted
    assert list(cached(PARTS, never, tmp_path).graph.initializers) == list(traced.graph.initializers)
    (file,) = entries(tmp_path)
    assert b"/home" not in file.read_bytes() and b"site-packages" not in file.read_bytes()
    assert all(value.const_value is None for name, value in traced.graph.initializers.items() if "weight" in name)


def test_every_part_of_the_key_counts():
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    config = checkpoint.transformer
    other = dataclasses.replace(config, norm_eps=2 * config.norm_eps)
    versions = tool_versions()
    keys = [
        entry_key(("dit_cond", torch.float32, config), "a", versions),
        entry_key(("dit_cond", torch.float32, other), "a", versions),
        entry_key(("dit_uncond", torch.float32, config), "a", versions),
        entry_key(("dit_cond", torch.bfloat16, config), "a", versions),
        entry_key(("dit_cond", torch.float32, config), "b", versions),
        *(entry_key(("dit_cond", torch.float32, config), "a", versions | {name: "0"}) for name in versions),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == entry_key(("dit_cond", torch.float32, dataclasses.replace(config)), "a", dict(versions))
    assert {"python", "torch", "onnx", "onnx-ir", "onnxscript"} <= set(versions)


def test_source_counts_wherever_it_lies(tmp_path):
    """A file deep below, its name, and which of two roots it is in; other files do not count."""
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        (root / "deep" / "er").mkdir(parents=True)
        (root / "one.py").write_text("1")
    file = roots[0] / "deep" / "er" / "two.py"
    file.write_text("2")
    digests = [source_digest(roots)]
    file.write_text("3")
    digests.append(source_digest(roots))
    file = file.rename(file.with_name("three.py"))
    digests.append(source_digest(roots))
    file = file.rename(roots[1] / "deep" / "er" / "three.py")
    digests.append(source_digest(roots))
    assert len(set(digests)) == 4
    (roots[0] / "deep" / "notes.txt").write_text("x")
    assert source_digest(roots) == digests[-1]
    (roots[0] / "one.py").unlink()
    with pytest.raises(FileNotFoundError, match="no Python source"):
        source_digest(roots)


def test_changed_source_is_traced_again(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "model.py"
    source.write_text("1")
    monkeypatch.setattr(trace_cache, "_ROOTS", (tmp_path / "source",))
    cached(PARTS, small_graph, tmp_path / "graphs")
    cached(PARTS, never, tmp_path / "graphs")
    source.write_text("2")
    with pytest.raises(AssertionError, match="traced although"):
        cached(PARTS, never, tmp_path / "graphs")
    source.unlink()  # no source to tell one version from another: traced, and not kept
    assert bytes_of(cached(PARTS, small_graph, tmp_path / "graphs")) == bytes_of(small_graph())
    assert len(entries(tmp_path / "graphs")) == 1


def test_stages_use_it(tmp_path, monkeypatch):
    """By sizes, type and graph; the second process finds what the first has traced."""
    checkpoint, traced = open_checkpoint(DEMO_CHECKPOINT), []
    monkeypatch.setattr(stage, "_trace", lambda *args: traced.append(args[1:]) or small_graph())
    other = dataclasses.replace(
        checkpoint,
        transformer=dataclasses.replace(checkpoint.transformer, norm_eps=2 * checkpoint.transformer.norm_eps),
    )
    for _ in range(2):
        monkeypatch.setattr(stage, "_GRAPHS", {})
        stage._traced(checkpoint, "dit_cond", torch.float32, tmp_path)
        stage._traced(checkpoint, "dit_cond", torch.bfloat16, tmp_path)
        stage._traced(checkpoint, "dit_uncond", torch.float32, tmp_path)
        stage._traced(other, "dit_uncond", torch.float32, tmp_path)
    kinds = [("dit_cond", torch.float32), ("dit_cond", torch.bfloat16), *2 * [("dit_uncond", torch.float32)]]
    assert traced == kinds and len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", [b"", b"short", None, "flipped", "cut", "foreign"])
def test_damaged_entries_are_traced_again_and_replaced(tmp_path, damage):
    cached(PARTS, small_graph, tmp_path)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    broken = {
        None: bytes(len(whole)),
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "cut": whole[:-1],
        "foreign": trace_cache.hashlib.sha256(b"\xff\xff").digest() + b"\xff\xff",
    }
    file.write_bytes(damage if isinstance(damage, bytes) else broken[damage])
    with pytest.raises(AssertionError, match="traced although"):
        cached(PARTS, never, tmp_path)
    assert bytes_of(cached(PARTS, small_graph, tmp_path)) == bytes_of(small_graph())
    assert file.read_bytes() == whole
    cached(PARTS, never, tmp_path)


def test_the_least_recently_used_make_room(tmp_path):
    cached(0, small_graph, tmp_path)
    size = entries(tmp_path)[0].stat().st_size
    for part in range(1, 4):
        cached(part, small_graph, tmp_path)
    for age, part in enumerate((3, 2, 1)):  # 0 stays the oldest until it is read below
        os.utime(trace_cache._entry_file(tmp_path, part), (1000 - age, 1000 - age))
    os.utime(trace_cache._entry_file(tmp_path, 0), (1, 1))
    cached(0, never, tmp_path)
    cached(4, small_graph, tmp_path, limit=3 * size)
    assert set(entries(tmp_path)) == {trace_cache._entry_file(tmp_path, part) for part in (0, 3, 4)}
    abandoned, other = tmp_path / f".a.graph.{16 * '0'}", tmp_path / "not-ours"
    for file in (abandoned, other):
        file.write_bytes(b"x")
    cached(5, small_graph, tmp_path, limit=3 * size)
    assert not abandoned.exists() and other.exists() and len(entries(tmp_path)) == 3


def test_a_directory_that_cannot_be_written_costs_nothing_but_time(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level("DEBUG", logger=trace_cache.__name__):
        model = cached(PARTS, small_graph, tmp_path / "file" / "graphs")
    assert bytes_of(model) == bytes_of(small_graph())
    assert "cannot keep the traced graph" in caplog.text and {r.levelname for r in caplog.records} == {"DEBUG"}


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bytes_of(cached(PARTS, small_graph, None)) == bytes_of(small_graph())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the variable is of the other systems' convention")
def test_the_users_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert trace_cache.user_directory() == tmp_path / "ideogram4-trt" / "graphs"


def _write_for_a_while(directory, seconds):
    end = time.monotonic() + seconds
    content = encode(small_graph())
    while time.monotonic() < end:
        trace_cache._write(trace_cache._entry_file(directory, PARTS), content, 1 << 20)


def test_two_processes_write_one_entry(tmp_path):
    """Whoever reads meanwhile finds a whole entry: a torn one would be traced again, and `never` does not."""
    cached(PARTS, small_graph, tmp_path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_a_while, args=(tmp_path, 2.0)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert bytes_of(cached(PARTS, never, tmp_path)) == bytes_of(small_graph())
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads > 0 and len(list(tmp_path.iterdir())) == 1


def test_encoding_keeps_bytes():
    once = bytes_of(small_graph())
    assert bytes_of(decode(once)) == once
