"""One request, one answer, over HTTP and gRPC, on the real server."""

import base64
import io
import json
import re
import urllib.request

import numpy as np
import pytest
from PIL import Image
from support.triton_requests import PROTOCOLS, ask, connect, metrics, wait_for

from runtime.cli.main import main
from scripts.triton.client import infer_inputs, triton

EVERYTHING = ("image", "seed", "metadata", "image_png")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_picture_is_the_one_that_trt_generate_makes(server, demo_bundle, tmp_path, protocol):
    """Byte for byte: the file and the pixels, through the command itself and with its default preset."""
    file = tmp_path / "a.png"
    arguments = ["--bundle", str(demo_bundle), "--prompt", "ein roter Kreis 🙂", "--seed", "8", "--output", str(file)]
    assert main([*arguments, "--quiet", "--threads", "1"]) == 0
    made = ask(server, protocol, outputs=EVERYTHING, prompt="ein roter Kreis 🙂", seed=8)
    assert made["image_png"][0, 0] == file.read_bytes()
    assert np.array_equal(made["image"][0], np.asarray(Image.open(file)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_types_and_shapes(server, protocol):
    """Triton itself does not compare what a model returns with its configuration."""
    made = ask(server, protocol, outputs=EVERYTHING, prompt="x", steps=1, width=320, height=256, num_images=2)
    assert made["image"].dtype == np.uint8 and made["image"].shape == (2, 256, 320, 3)
    assert made["seed"].dtype == np.int64 and made["seed"].shape == (2, 1)
    assert made["metadata"].shape == made["image_png"].shape == (2, 1)


def test_default_outputs_are_all_but_the_png_forms(server):
    assert set(ask(server, prompt="x", steps=1)) == {"image", "seed", "metadata"}
    assert set(ask(server, prompt="x", steps=1, outputs=("image_png",))) == {"image_png"}
    assert set(ask(server, prompt="x", steps=1, outputs=EVERYTHING)) == set(EVERYTHING)


@pytest.mark.parametrize(
    "inputs",
    [
        {"preset": "V4_TURBO_12"},
        {"steps": 3},
        {"steps": 3, "guidance": 7.1},
        {"steps": 3, "guidance": (7.0, 3.3, 1.0)},
        {"preset": "V4_INSTANT_8", "mu": 0.3, "std": 1.1, "width": 320, "height": 272},
        {"steps": 2, "unconditional": "conditional"},
        {"steps": 2, "unconditional": "off"},
        {"steps": 2, "num_images": 3},
        {"steps": 2, "negative_prompt": "a dog"},
        {"steps": 3, "guidance_interval": (0.1, 0.8), "uncond_every": 2},
        {"steps": 1, "width": 512, "height": 512, "vae_tile": "256"},
    ],
    ids=str,
)
def test_every_input_means_what_it_means_to_the_pipeline(server, pipeline, inputs):
    made = ask(server, prompt="two cats", seed=2**33 + 5, **inputs)
    wanted = pipeline.generate("two cats", seed=2**33 + 5, **inputs)
    assert np.array_equal(made["image"], wanted.images)
    for index, text in enumerate(made["metadata"][:, 0]):
        assert json.loads(text) == json.loads(json.dumps(wanted.used | {"index": index}))


def picture(width=160, height=128, kind="PNG"):
    """A file's content: a gradient."""
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pictures_are_files_as_bytes(server, pipeline, protocol):
    buffer = io.BytesIO()
    Image.fromarray(np.tri(128, 160, dtype=bool)).save(buffer, "PNG")
    fields = {"image": picture(), "mask": buffer.getvalue(), "strength": 0.5, "mask_feather": 4, "steps": 2}
    made = ask(server, protocol, prompt="x", seed=1, **fields)
    assert np.array_equal(made["image"], pipeline.generate("x", seed=1, **fields).images)


def test_pictures_in_json_are_base64(server, pipeline):
    fields = {"strength": 0.5, "steps": 1, "fit": "crop", "width": 128}
    question = {"prompt": "x", "seed": 1, "png": True, "image": base64.b64encode(picture()).decode(), **fields}
    url = f"http://{server.http}/v2/models/ideogram4/generate"
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        made = Image.open(io.BytesIO(base64.b64decode(json.load(answer)["image_png_base64"])))
    assert np.array_equal(made, pipeline.generate("x", seed=1, image=picture(), **fields).images[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": b"GIF89a"}, "the input 'image' is (damaged|not a picture|neither a picture)"),
        ({"image": picture(4112, 4096, "BMP")}, "the input 'image' has 50528310 bytes, wanted at most 33554432"),
        ({"mask": picture()}, "a mask needs an image to start from"),
        ({"negative_prompt": "y", "unconditional": "off"}, "negative_prompt and unconditional 'off' exclude"),
    ],
    ids=["damaged", "large", "mask alone", "both"],
)
def test_refused_fields(server, fields, message):
    with pytest.raises(triton("grpc")[1], match=message) as refusal:
        ask(server, "grpc", prompt="x", **fields)
    assert "INVALID_ARGUMENT" in str(refusal.value.status())


def test_random_seed_is_told_and_reproduces(server):
    first = ask(server, prompt="x", steps=1)
    again = ask(server, prompt="x", steps=1, seed=int(first["seed"][0, 0]))
    other = ask(server, prompt="x", steps=1)
    assert np.array_equal(first["image"], again["image"])
    assert first["seed"][0, 0] != other["seed"][0, 0]


def test_rows_are_prompts(server, pipeline):
    """Three prompts in one request, each with its own seed; the second and third run together."""
    made = ask(server, prompt=["x", "a cat", "a cat"], seed=[1, 2, 3], steps=[2, 2, 2])
    for row, (prompt, seed) in enumerate((("x", 1), ("a cat", 2), ("a cat", 3))):
        assert np.array_equal(made["image"][row], pipeline.generate(prompt, seed=seed, steps=2).images[0])
    assert made["seed"].tolist() == [[1], [2], [3]]


REFUSED = [
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": " \n"}, "the prompt is empty"),
    ({"prompt": "caf\udce9"}, "the input 'prompt' is not UTF-8 text: byte 3 is invalid"),
    ({"prompt": "a " * 2048}, r"the prompt has \d{4} tokens .* wanted at most 2048"),
    ({"prompt": "x", "preset": "V4_TURBO_12", "steps": 3}, "fixes the number of steps"),
    ({"prompt": "x", "preset": "NOPE"}, "preset is 'NOPE', wanted one of V4_QUALITY_48"),
    ({"prompt": "x", "preset": "V4_TURBO_12", "guidance": (7.0, 7.0, 7.0)}, "has 3 entries, wanted one for each of 12"),
    ({"prompt": "x", "steps": 0}, "the number of steps is 0, wanted 1 to 1000"),
    ({"prompt": "x", "steps": 1001}, "the number of steps is 1001"),
    ({"prompt": "x", "width": 250}, "width is 250"),
    ({"prompt": "x", "height": 300}, "height is 300, wanted a multiple of 16, such as 288"),
    ({"prompt": "x", "width": 2048, "height": 256}, "more elongated"),
    ({"prompt": "x", "num_images": 0}, "num_images is 0, wanted 1 to 64"),
    ({"prompt": "x", "num_images": 65}, "num_images is 65, wanted 1 to 64"),
    ({"prompt": "x", "seed": -1}, "seed is -1"),
    ({"prompt": "x", "steps": 3, "guidance": 1e39}, "guidance is inf, wanted a number of at most 10000"),
    ({"prompt": "x", "steps": 3, "guidance": float("nan")}, "guidance is nan, wanted a number"),
    ({"prompt": "x", "steps": 3, "std": 0.0}, "std is 0.0, wanted a number above 0"),
    ({"prompt": "x", "steps": 3, "mu": 1e9}, "mu is 1000000000.0, wanted a number of at most"),
    ({"prompt": "x", "unconditional": "none"}, "unconditional is 'none', wanted one of graph, conditional, off"),
    ({"prompt": "x", "steps": 2, "unconditional": "off", "guidance": 3.0}, "needs an unconditional pass"),
    ({"seed": 3, "steps": 1}, "the input 'prompt' is missing|expected .* inputs"),
    ({"prompt": ["x", "x"], "steps": [1, 1], "width": [256, 320]}, "row 1 asks for 320x128 and row 0 for 256x128"),
    ({"prompt": ["x", ""], "steps": [1, 1]}, "row 1: the prompt is empty"),
    ({"prompt": ["x"] * 5}, "batch-size must be <= 4"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bad_input_is_invalid_argument(server, protocol, pipeline):
    client, refusal = triton(protocol)
    code = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    with connect(server, protocol) as connection:
        for inputs, message in REFUSED:
            with pytest.raises(refusal) as caught:
                connection.infer("ideogram4", infer_inputs(client, inputs))
            assert re.search(message, caught.value.message()), (inputs, caught.value.message())
            assert caught.value.status() == code, inputs
            assert "Traceback" not in caught.value.message() and ".py" not in caught.value.message()
    made = ask(server, protocol, prompt="x", seed=1, steps=1)  # the model is none the worse for it
    assert np.array_equal(made["image"], pipeline.generate("x", seed=1, steps=1).images)


def test_plain_json_gets_a_png(server, pipeline):
    """What curl can send: the generate endpoint, which cannot choose outputs."""
    answer = generate(server, {"prompt": "x", "seed": 4, "steps": 1, "png": True})
    assert set(answer) >= {"image_png_base64", "seed", "metadata"} and "image" not in answer
    picture = urllib.request.urlopen(f"data:image/png;base64,{answer['image_png_base64']}").read()
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(picture))), pipeline.generate("x", seed=4, steps=1).images[0]
    )
    assert "image" in generate(server, {"prompt": "x", "steps": 1})


def generate(server, question):
    url = f"http://{server.http}/v2/models/ideogram4/generate"
    with urllib.request.urlopen(url, data=json.dumps(question).encode()) as answer:
        return json.loads(answer.read())


def test_metrics_count_requests_by_how_they_ended(server):
    def counts():
        page = metrics(server)
        pattern = r'ideogram4_requests_total\{model="ideogram4",outcome="(\w+)"\} (\d+)'
        own = {name: int(value) for name, value in re.findall(pattern, page)}
        [total] = re.findall(r'nv_inference_request_success\{model="ideogram4",version="1"\} (\d+)', page)
        return own["ok"], own["refused"], own["failed"], int(total)

    def settled():
        """A request is counted after its answer has left: by the model first, by the server then."""
        wait_for(lambda: sum(counts()[:3]) == counts()[3])
        return counts()

    before = settled()
    ask(server, prompt="x", steps=1)
    with pytest.raises(triton("http")[1]):
        ask(server, prompt="", steps=1)
    wanted = [a + added for a, added in zip(before, (1, 1, 0, 2), strict=True)]
    wait_for(lambda: counts()[3] >= wanted[3])
    assert list(settled()) == wanted
