"""Plans: which are refused, and with what words."""

import json

import numpy as np
import pytest
from support.engines.box import feeds, wanted
from support.engines.bundles import TOY
from support.engines.fake_enums import EngineValidity

from runtime.errors import BackendError, BundleError
from runtime.tensorrt import package as trt


def test_a_plan_that_tensorrt_refuses(box):
    plan = box.directory / "engines/toy/dit_cond.plan"
    plan.write_bytes(b"\x00" * 100)
    with pytest.raises(
        RuntimeError, match=r"TensorRT-RTX 1.7.1.116 failed loading dit_cond .*: the magic number does not match"
    ):
        box.open()


REBUILD = "build the bundle's engines again"


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        (1, BundleError, f"built by another version; install that version, or {REBUILD}$"),
        (2, BundleError, f"built for other GPUs; {REBUILD}, for this GPU$"),
        (3, BundleError, f"another version, it was built for other GPUs; install that version, or {REBUILD}$"),
        (4, BackendError, "the NVIDIA driver is too old for it; update the driver$"),
        (8, BackendError, "the CUDA runtime is too old for it; install the extra 'rtx' again$"),
        (20, BackendError, "the NVIDIA driver is too old for it; update the driver$"),
        (32, BundleError, f"it is no plan of TensorRT-RTX, or it is damaged; {REBUILD}$"),
        (
            64,
            BackendError,
            "the NVIDIA driver or the CUDA runtime is not installed properly; install the driver again$",
        ),
        (0, BackendError, "it gave no reason$"),
    ],
)
def test_a_plan_that_cannot_run_here(box, found, kind, words):
    """Seen in the plan's header, before anything is loaded; building again is advised only where it helps."""
    box.trt.validity = (EngineValidity.INVALID, found)
    with pytest.raises(kind, match=rf"TensorRT-RTX .* cannot run the plan .*text_encoder.plan: .*{words}"):
        box.open()
    assert not box.trt.loads and not box.cudart.allocated


@pytest.mark.parametrize("validity", [(EngineValidity.INVALID, 16), (EngineValidity.SUBOPTIMAL, 0)])
def test_no_reason_to_refuse(box, validity):
    """Memory was planned, with what streaming and staging save."""
    box.trt.validity = validity
    box.open()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("config", "failed configuring text_encoder"),
        ("context", "failed preparing text_encoder: no context"),
        ("address", "failed taking the address of input_ids for text_encoder: the address"),
    ],
)
def test_calls_that_tensorrt_refuses(box, call, message):
    """It returns None or False, and says why in its log."""
    box.trt.refused = {call}
    with pytest.raises(BackendError, match=message):
        box.open()["text_encoder"](input_ids=np.array([[1]], np.int64))


def test_copies_on_other_streams_are_waited_for(tensorrt_box):
    """Of a loaded engine's weights; the fake fails when an engine runs before they have arrived."""
    values = feeds()
    assert np.array_equal(tensorrt_box.open()["dit_cond"](**values), wanted(values))


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

    def reader(module, plan, callbacks):
        made = real(module, plan, callbacks)
        made.file.close()
        made.file = broken()
        return made

    monkeypatch.setattr(trt, "_plan_reader", reader)
    with pytest.raises(RuntimeError, match=r"reading the plan .* failed: \[Errno 5\] Input/output error"):
        box.open()
