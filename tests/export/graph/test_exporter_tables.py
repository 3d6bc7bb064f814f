"""What the exporter looks up for each model: once while tracing, as ever outside of it."""

from torch._export import utils as composites
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graph.exporter_tables import looked_up_once
from export.graph.trace import OPSET


def test_the_registry_is_one_and_the_exporters_own():
    with looked_up_once():
        first = ONNXRegistry.from_torchlib(opset_version=OPSET)
        assert ONNXRegistry.from_torchlib(opset_version=OPSET) is first
    with looked_up_once():
        assert ONNXRegistry.from_torchlib(opset_version=OPSET) is first
    own = ONNXRegistry.from_torchlib(opset_version=OPSET)
    assert own is not first and own.opset_version == first.opset_version == OPSET
    assert list(own.functions) == list(first.functions) and len(own.functions) > 400


def test_composite_operators_are_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(composites, "_materialize_cpp_cia_ops", lambda: asked.append(1))
    with looked_up_once():
        found = composites._collect_all_valid_cia_ops()
        assert composites._collect_all_valid_cia_ops() == found
    assert len(asked) == 1
    assert composites._collect_all_valid_cia_ops() == found and len(asked) > 2
