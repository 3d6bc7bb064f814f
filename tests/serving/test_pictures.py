"""Pictures in requests: what is decoded, and what is refused."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from runtime import RequestError
from serving import pictures
from serving.pictures import read_picture

PIXELS = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)


def encoded(pixels=PIXELS, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_files_raw_and_in_base64(kind):
    raw = encoded(kind=kind)
    forms = [raw, base64.b64encode(raw), base64.encodebytes(raw), b"data:image/png;base64," + base64.b64encode(raw)]
    for form in forms:
        assert np.array_equal(read_picture("image", form), PIXELS)


def test_a_mask_is_where_it_is_white():
    mask = read_picture("mask", encoded(np.array([[0, 127, 128, 255]], np.uint8)))
    assert mask.dtype == bool and mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "the input 'image' is not a picture that can be read, wanted PNG"),
        (b"hello there", "the input 'image' is (not a picture|neither a picture nor base64)"),
        (b"\x89PNG\r\n\x1a\n", "the input 'image' is (not a picture|damaged)"),
        (encoded()[:80], "the input 'image' is damaged"),
        (b"abc", "the input 'image' is neither a picture nor base64 of one"),
    ],
)
def test_refused(value, message):
    with pytest.raises(RequestError, match=message):
        read_picture("image", value)


def test_white_space_is_refused_at_once():
    """A pattern that tries every split of it would not come back."""
    with pytest.raises(RequestError, match="the input 'image' is not a picture that can be read"):
        read_picture("image", b" " * 2_000_000 + b"!")


def test_limits(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 34)
    with pytest.raises(RequestError, match="the input 'image' is 7x5, wanted at most 34 pixels"):
        read_picture("image", encoded())
    monkeypatch.setattr(pictures, "MAX_BYTES", 20)
    for value in (encoded(), base64.b64encode(encoded())):
        with pytest.raises(RequestError, match=r"the input 'image' has \d+ bytes, wanted at most 20"):
            read_picture("image", value)
