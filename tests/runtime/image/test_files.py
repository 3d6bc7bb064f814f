"""Picture files of every kind that cameras and programs write, and how they are fitted."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from runtime.bundle.manifest import SizeSpec
from runtime.image.files import read_mask, read_rgb
from runtime.image.resize import geometry, target_size

SIZES = SizeSpec(multiple=16, minimum=256, maximum=2048, default=1024, max_aspect=6.0)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FOUR = np.array([[RED, GREEN, BLUE], [WHITE, (10, 20, 30), (40, 50, 60)]], np.uint8)  # 2 rows, 3 columns


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_formats(tmp_path, format):
    file = tmp_path / "a"
    Image.fromarray(FOUR).save(file, format, **({"lossless": True} if format == "WEBP" else {}))
    got = read_rgb(file)
    assert got.dtype == np.uint8 and np.array_equal(got, FOUR)


def test_jpeg(tmp_path):
    Image.new("RGB", (32, 16), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    got = read_rgb(tmp_path / "a.jpg")
    assert got.shape == (16, 32, 3) and np.abs(got.astype(int) - (200, 100, 50)).max() <= 3  # JPEG's own rounding


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation(tmp_path, orientation, undo):
    """The file holds the picture turned the other way, as cameras store it (EXIF 2.3, tag 274)."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(undo(FOUR))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), FOUR)


def test_transparency_lies_over_white(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [0, 0, 0, 255]]], np.uint8), "RGBA").save(
        tmp_path / "a.png"
    )
    got = read_rgb(tmp_path / "a.png")
    assert got[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]
    Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8), "LA").save(tmp_path / "b.png")
    assert read_rgb(tmp_path / "b.png")[0].tolist() == [[255] * 3, [0] * 3]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_rgb(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_greyscale_and_one_bit(tmp_path):
    Image.fromarray(np.array([[0, 77, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png")[0].tolist() == [[0] * 3, [77] * 3, [255] * 3]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert read_rgb(tmp_path / "b.png")[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale(tmp_path, format):
    levels = np.array([[0, 128, 129, 32896, 65535]], np.uint16)  # 257 levels of 65535 make one of 255
    Image.fromarray(levels).save(tmp_path / "a", format)
    assert read_rgb(tmp_path / "a")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_colour(tmp_path):
    """Pillow does not write such files, so this one is put together by hand."""
    row = b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 0, 257)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in parts:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(data)
    assert read_rgb(tmp_path / "a.png")[0].tolist() == [[0, 128, 255], [255, 0, 1]]


def test_cmyk(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_rgb(tmp_path / "a.tif")[0, 0].tolist() == [255, 0, 0]


def test_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "a.gif")[0, 0].tolist() == list(RED)


def test_mask(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False, False, True, True]]


def test_refused_files(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "wide.tif")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (
        ("float.tif", "has floating-point pixels, wanted 8 or 16 bits"),
        ("wide.tif", "has levels from 70000 to 70000, wanted 0 to 65535"),
        ("a.eps", "is not a picture that can be read"),
        ("empty.png", "is not a picture that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rgb(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_rgb(tmp_path / "none.png")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb(tmp_path, side):
    """A few bytes that claim to be a hundred million pixels, or billions; nothing is unpacked."""
    body = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(body)) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    data = b"IDAT" + zlib.compress(b"\0")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk)
    with pytest.raises(ValueError, match=r"a\.png is too large: "):
        read_rgb(tmp_path / "a.png")


# Fitting


@pytest.mark.parametrize(
    ("given", "width", "height", "fit", "wanted"),
    [
        ((512, 320), None, None, None, (512, 320)),
        ((512, 320), 1024, None, None, (1024, 640)),
        ((512, 320), None, 640, None, (1024, 640)),
        ((512, 320), 256, 256, "crop", (256, 256)),
        ((1000, 700), None, None, "crop", (992, 704)),
        ((4000, 3000), None, None, "stretch", (2048, 1536)),
        ((100, 60), None, None, "pad", (432, 256)),
        ((1000, 667), 512, None, "crop", (512, 336)),
    ],
)
def test_target_size(given, width, height, fit, wanted):
    assert target_size(SIZES, given, width, height, fit) == wanted


@pytest.mark.parametrize(
    ("given", "width", "height", "fit", "message"),
    [
        ((1000, 700), None, None, None, "is 1000x700, .* width is 1000, wanted a multiple of 16.*give --width"),
        ((1000, 667), 512, None, None, "would be 512x342: height is 342, wanted a multiple"),
        ((2048, 128), None, None, "crop", "is more elongated than 6 to 1"),
        ((512, 512), 100, None, "crop", "width is 100, wanted 256 to 2048"),
    ],
)
def test_target_size_refuses(given, width, height, fit, message):
    with pytest.raises(ValueError, match=message):
        target_size(SIZES, given, width, height, fit)


def test_same_size_is_untouched():
    random = np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8)
    assert np.array_equal(geometry((96, 64), (96, 64), None).picture(random), random)


def test_same_aspect_is_scaled_without_a_fit():
    assert geometry((1000, 667), (512, 342), None).picture(np.zeros((667, 1000, 3), np.uint8)).shape == (342, 512, 3)
    with pytest.raises(ValueError, match="is 1000x667 and the result 512x352, which is another aspect ratio"):
        geometry((1000, 667), (512, 352), None)


def test_crop_keeps_the_middle():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    made = geometry((300, 100), (100, 100), "crop").picture(picture)
    assert made.shape == (100, 100, 3) and made.min() == 255


def test_pad_repeats_the_edge_and_opens_the_mask():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[0], picture[-1] = RED, BLUE
    placed = geometry((300, 100), (300, 300), "pad")
    made = placed.picture(picture)
    assert made.shape == (300, 300, 3) and np.array_equal(made[100:200], picture)
    assert (made[:100] == RED).all() and (made[200:] == BLUE).all()
    mask = placed.mask(np.zeros((100, 300), bool))
    assert mask[:100].all() and mask[200:].all() and not mask[100:200].any()


def test_stretch_takes_everything():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    made = geometry((64, 64), (256, 64), "stretch").picture(picture)
    assert made.shape == (64, 256, 3) and not made[:, :112].any() and (made[:, 144:] == 255).all()  # Lanczos reaches 12
