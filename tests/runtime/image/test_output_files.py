"""Pictures as files: the format that the suffix says, with the settings inside."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from runtime.errors import RequestError
from runtime.image.output_files import MAX_EXIF, TEXT_KEY, check_settings, check_suffix, encode, read_settings

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
SETTINGS = {"prompt": 'grün, 日本, \U0001f600 and "quotes"', "seed": 2**63, "sampling": {"guidance": [7.0, 1.5]}}


@pytest.mark.parametrize(
    ("name", "kind", "exact"),
    [
        ("a.png", "PNG", True),
        ("a.PNG", "PNG", True),
        ("a.webp", "WEBP", True),
        ("a.jpg", "JPEG", False),
        ("a.b.JPEG", "JPEG", False),
    ],
)
def test_the_suffix_says_the_format(tmp_path, name, kind, exact):
    file = tmp_path / name
    check_suffix(file)
    smooth = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 1, 3))
    for picture in (PICTURE, smooth):
        file.write_bytes(encode(picture, SETTINGS, file))
        with Image.open(file) as image:
            assert image.format == kind and image.size == (48, 32)
            assert not exact or np.array_equal(np.asarray(image), picture)
        assert read_settings(file) == SETTINGS
    with Image.open(file) as image:
        assert np.abs(np.asarray(image).astype(int) - smooth).max() <= 4  # what JPEG makes of a ramp at quality 95
    file.write_bytes(encode(PICTURE, None, file))
    with pytest.raises(ValueError, match="holds no settings"):
        read_settings(file)


@pytest.mark.parametrize("name", ["a", "a.gif", "a.tiff", ".png", "png", "a.png.txt"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(RequestError, match=rf"the output {name} has no suffix that says .* wanted \.png, \.jpg"):
        check_suffix(Path(name))


def test_webp_that_pillow_cannot_write_is_refused(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(RequestError, match="this installation of Pillow cannot write"):
        check_suffix(Path("a.webp"))
    check_suffix(Path("a.png"))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_long_settings(tmp_path, suffix):
    file, settings = tmp_path / f"a{suffix}", {"prompt": "x" * (3 * MAX_EXIF)}
    check_settings(file, settings)
    file.write_bytes(encode(PICTURE, settings, file))
    assert read_settings(file) == settings


def test_settings_that_jpeg_cannot_hold_are_refused(tmp_path):
    file = tmp_path / "a.jpg"
    longest = {"prompt": "x" * (MAX_EXIF - len('{"prompt": ""}'))}
    check_settings(file, longest)
    file.write_bytes(encode(PICTURE, longest, file))
    assert read_settings(file) == longest
    with pytest.raises(RequestError, match=f"have {MAX_EXIF + 1} bytes, and a JPEG file holds {MAX_EXIF}: choose .png"):
        check_settings(file, {"prompt": longest["prompt"] + "x"})


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", ""], ids=["deep", "cut", "a list", "empty"])
def test_settings_of_a_stranger_are_refused(tmp_path, text):
    file, info = tmp_path / "a.png", PngImagePlugin.PngInfo()
    info.add_itxt(TEXT_KEY, text)
    Image.fromarray(PICTURE).save(file, pnginfo=info)
    with pytest.raises(ValueError, match=f"{file}"):
        read_settings(file)
