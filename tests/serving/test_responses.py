"""Pictures to the arrays of a response, and what Triton tells an instance about itself."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.image.output_files import png
from serving.batching import Picture
from serving.responses import reply, wanted_outputs
from serving.settings import Limits, Settings, device_of, read_settings
from serving.tensors import INPUTS, PICTURE_OUTPUTS

ALL = {spec.name for spec in PICTURE_OUTPUTS}
PICTURES = [
    Picture(np.full((2, 3, 3), value, np.uint8), {"prompt": "ü", "seed": 5, "index": index})
    for index, value in enumerate((10, 20))
]


@pytest.mark.parametrize(
    ("requested", "png_parameter", "wanted"),
    [
        (ALL, False, {"image", "seed", "metadata"}),  # what Triton says when nothing is listed
        (ALL | {"step", "total_steps"}, False, {"image", "seed", "metadata"}),
        (ALL, True, {"seed", "metadata", "image_png_base64"}),
        ({"image_png"}, False, {"image_png"}),
        ({"image"}, True, {"image"}),
        (ALL - {"image_png_base64"}, False, ALL - {"image_png_base64"}),
        ({"step"}, False, set()),
    ],
)
def test_wanted_outputs(requested, png_parameter, wanted):
    assert wanted_outputs(requested, png_parameter) == wanted


def test_reply():
    arrays = reply(PICTURES, ALL)
    assert set(arrays) == ALL
    assert arrays["image"].dtype == np.uint8 and arrays["image"].shape == (2, 2, 3, 3)
    assert arrays["image"][:, 0, 0, 0].tolist() == [10, 20]
    assert arrays["seed"].dtype == np.int64 and arrays["seed"].tolist() == [[5], [5]]
    assert [json.loads(text) for text in arrays["metadata"][:, 0]] == [picture.used for picture in PICTURES]
    files = [png(picture.image, picture.used) for picture in PICTURES]
    assert arrays["image_png"].shape == (2, 1) and arrays["image_png"][:, 0].tolist() == files
    assert [base64.b64decode(text) for text in arrays["image_png_base64"][:, 0]] == files


def test_reply_makes_only_what_is_wanted():
    assert reply(PICTURES[:1], {"seed"}).keys() == {"seed"}
    assert reply(PICTURES[:1], {"image"})["image"].shape == (1, 2, 3, 3)


def args(parameters, kind="CPU", device="0", inputs=tuple(spec.name for spec in INPUTS)):
    entries = {name: {"string_value": value} for name, value in parameters.items()}
    offered = [{"name": name} for name in inputs]
    return {
        "model_config": json.dumps({"max_batch_size": 4, "parameters": entries, "input": offered}),
        "model_name": "m",
        "model_instance_kind": kind,
        "model_instance_device_id": device,
        "model_repository": "/models/m",
        "model_version": "1",
    }


def test_settings():
    assert read_settings(args({"bundle": "bundle"})) == Settings(
        Path("/models/m/1/bundle"), "auto", "cpu", None, "auto", True, Limits(4, 1000.0, 600.0)
    )
    given = {"bundle": "/b", "backend": "ort", "threads": "3", "verify": "off", "unload_when_failed": "false"}
    assert read_settings(args(given, "GPU", "2")) == Settings(Path("/b"), "ort", "cuda:2", 3, "off", False, Limits(4))
    given = {"bundle": "/b", "max_megapixel_steps": "12.5", "max_seconds": "90", "max_memory_gb": "11.5"}
    assert read_settings(args(given)).limits == Limits(4, 12.5, 90.0)
    assert read_settings(args(given)).memory == 11_500_000_000
    assert read_settings(args(given, inputs=("prompt", "seed"))).inputs == {"prompt", "seed"}
    assert read_settings(args({"bundle": "../../other/1/bundle"})).bundle == Path("/models/other/1/bundle")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "config.pbtxt of m lacks the parameter 'bundle'"),
        ({"bundle": "b", "threads": "two"}, "the parameter 'threads' is 'two', wanted a number of CPU threads"),
        ({"bundle": "b", "verify": "yes"}, "the parameter 'verify' is 'yes', wanted one of auto, full, off"),
        *(
            ({"bundle": "b", name: value}, f"the parameter '{name}' is '{value}', wanted a number above 0")
            for name in ("max_megapixel_steps", "max_seconds", "max_memory_gb")
            for value in ("0", "-1", "nan", "inf", "many", "")
        ),
        ({"bundle": "b", "unload_when_failed": ""}, "the parameter 'unload_when_failed' is '', wanted true or false"),
    ],
)
def test_settings_that_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        read_settings(args(parameters))


def test_each_instance_has_its_device():
    assert [device_of("GPU", "0"), device_of("GPU", "3"), device_of("CPU", "0"), device_of("MODEL", "0")] == [
        "cuda:0",
        "cuda:3",
        "cpu",
        "cpu",
    ]
