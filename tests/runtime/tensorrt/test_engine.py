"""Plans: which are refused, and with what words."""

import json

import pytest
from support.engines.bundles import TOY
from support.engines.fake_tensorrt import EngineValidity

from runtime.errors import BundleError
from runtime.tensorrt import package as trt


def test_a_plan_that_tensorrt_refuses(box):
    plan = box.directory / "engines/toy/dit_cond.plan"
    plan.write_bytes(b"\x00" * 100)
    with pytest.raises(
        RuntimeError, match=r"TensorRT-RTX 1.7.1.116 failed loading dit_cond .*: the magic number does not match"
    ):
        box.open()


@pytest.mark.parametrize(
    ("found", "words"),
    [(1, "version mismatch"), (2, "unsupported cc"), (3, "version mismatch, unsupported cc"), (0, "gave no reason")],
)
def test_a_plan_that_cannot_run_here(box, found, words):
    """Seen in the plan's header, before anything is loaded."""
    box.trt.validity = (EngineValidity.INVALID, found)
    with pytest.raises(BundleError, match=rf"cannot run the plan .*: .*{words}; build the bundle's engines again"):
        box.open()
    assert not box.trt.loads and not box.cudart.allocated


def test_memory_was_planned_and_is_no_reason(box):
    box.trt.validity = (EngineValidity.INVALID, 16)
    box.open()


def test_a_plan_with_other_tensors(box):
    plan = {"stage": "dit_cond", "weights": 1, "profiles": [{}]}
    (box.directory / "engines/toy/dit_uncond.plan").write_text(json.dumps(plan))
    with pytest.raises(BundleError, match=r"the plan .*dit_uncond.plan has the tensors .*'text'.*, the manifest"):
        box.open()


def test_a_plan_with_other_types(box, monkeypatch):
    monkeypatch.setattr(TOY["dit_uncond"], "dtype", "bfloat16")
    with pytest.raises(BundleError, match=r"the plan .*dit_uncond.plan has velocity as .*7, the manifest as .*0"):
        box.open()


def test_a_plan_with_other_profiles(box):
    (box.directory / "engines/toy/vae_decoder.plan").write_text(
        json.dumps({"stage": "vae_decoder", "weights": 1, "profiles": [{}, {}]})
    )
    with pytest.raises(BundleError, match=r"the plan .*vae_decoder.plan has 2 profiles, the manifest 1"):
        box.open()


def test_a_plan_that_cannot_be_read(box, monkeypatch):
    def fail(self, size):
        raise OSError(5, "Input/output error")

    broken = type("Broken", (), {"read": fail, "seek": lambda self, *a: 0, "close": lambda self: None})
    real = trt._plan_reader

    def reader(module, plan):
        made = real(module, plan)
        made.file.close()
        made.file = broken()
        return made

    monkeypatch.setattr(trt, "_plan_reader", reader)
    with pytest.raises(RuntimeError, match=r"reading the plan .* failed: \[Errno 5\] Input/output error"):
        box.open()
