"""What a build reads that an earlier one has written. Damaged, it is as good as missing."""

import hashlib
import json
import shutil
from pathlib import Path
from random import Random
from types import SimpleNamespace

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from export.build.cost import _found as found_cost
from export.build.finished.ledger import LEDGER, Ledger
from export.build.finished.stock import Stock
from export.engine.files import REPORT
from export.engine.timing_cache import TIMING_CACHE, TimingCache
from export.graph import trace_cache
from export.verify import report_files
from runtime.bundle.graph_specs import GraphSpec
from runtime.bundle.json_fields import decode
from scripts.fuzz.case import Case, World
from scripts.fuzz.mutation import byte_strings, json_texts
from scripts.fuzz.strategies import replaced

_DIGEST = hashlib.sha256().digest_size


def ledger(world: World, folder: Path) -> Case:
    """``build.json`` of an unfinished bundle: its stages are taken, or built again, and nothing else happens."""
    unfinished, outside = folder / "unfinished", folder / "outside"
    file = unfinished / LEDGER
    examples = ((world.bundle / LEDGER).read_bytes(),)
    keys = {name: entry.key for name, entry in Ledger.read(world.bundle).finished.items()}

    def read() -> None:
        content = file.read_bytes()
        shutil.rmtree(unfinished)
        shutil.copytree(world.bundle, unfinished)
        file.write_bytes(content)
        outside.write_text("outside")
        stock = Stock(unfinished, folder / "bundle", (), fresh=False, quiet=True)
        found = stock.find(keys)
        stock.take(found)
        for name, one in found.items():
            decode(one.finished.spec, GraphSpec, name)
        if sorted(path.name for path in folder.iterdir()) != ["outside", "unfinished"]:
            raise AssertionError("a file was written outside of the bundle")
        if outside.read_text() != "outside":
            raise AssertionError("a file outside of the bundle was changed")

    return Case(file, examples, json_texts.mutated, read, may_refuse=False, strategy=replaced(examples))


def cost(world: World, folder: Path) -> Case:
    """What an earlier report says of the error of 8 bits."""
    file = folder / REPORT
    stages = {"dit_cond": {"error": 0.1, "times": [0.0], "errors": [0.1], "layers": [0.1], "worst": ["a"]}}
    examples = (json.dumps({"rounding": {"key": "00", "bound": 0.1, "stages": stages}}).encode(),)

    def read() -> None:
        found = found_cost(file, "00")
        if found is not None:
            json.dumps(found)

    return Case(file, examples, json_texts.mutated, read, may_refuse=False, strategy=replaced(examples))


def trace(world: World, folder: Path) -> Case:
    """A traced graph in the user's cache."""
    trace_cache.cached("a graph", _graph, folder)
    (file,) = folder.iterdir()
    examples = (file.read_bytes(),)

    def read() -> None:
        graph = trace_cache.cached("a graph", _graph, folder)
        if len(graph.graph) == 0:
            raise AssertionError("a damaged graph was taken")

    return Case(file, examples, _mutated_trace, read, may_refuse=False)


def timing_cache(world: World, folder: Path) -> Case:
    """What TensorRT measured of its kernels."""
    file, config = folder / TIMING_CACHE, SimpleNamespace()
    config.create_timing_cache = lambda content: SimpleNamespace(serialize=lambda: b"timings")
    config.set_timing_cache = lambda cache, ignore_mismatch: setattr(config, "cache", cache) or True
    config.get_timing_cache = lambda: config.cache
    cache = TimingCache(file)
    cache.attach(config)
    cache.keep(config)
    examples = (file.read_bytes(),)
    return Case(file, examples, byte_strings.mutated, lambda: TimingCache(file).attach(config), may_refuse=False)


def quality(world: World, folder: Path) -> Case:
    """A report of `export.verify`, which is replaced only if it is one."""
    directory = folder / "quality"
    file = directory / report_files.JSON
    directory.mkdir(parents=True, exist_ok=True)
    (directory / report_files.HTML).write_text("")
    examples = (json.dumps({"format": report_files.FORMAT, "version": 1, "entries": []}).encode(),)

    def read() -> None:
        report_files.check_output(directory, overwrite=True)

    return Case(file, examples, json_texts.mutated, read, (directory.name,), strategy=replaced(examples))


def _graph() -> ir.Model:
    """One product with a parameter that has no value, as traced graphs have them."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="node")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4])
    made = ir.from_proto(onnx.helper.make_model(helper.make_graph([node], "graph", [x, w], [y])))
    made.graph.initializers["w"] = made.graph.inputs.pop(1)
    return made


def _mutated_trace(random: Random, content: bytes) -> bytes:
    """A damaged entry; half of them have the hash of what they hold."""
    if random.random() < 0.5:
        return byte_strings.mutated(random, content)
    body = byte_strings.mutated(random, content[_DIGEST:])
    return hashlib.sha256(body).digest() + body
