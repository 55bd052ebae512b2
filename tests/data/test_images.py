from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detkt.base.errors import InputError
from detkt.data.images import Decoding, check_strip, inspect_image, picture_suffixes, read_image, read_image_size

ORIENTATION = 274
RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def refusal(path, *decoding):
    with pytest.raises(InputError) as caught:
        read_image(path, None, *decoding)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def save(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def with_orientation(path, pixels, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return save(path, pixels, exif=exif, **options)


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_image(save(tmp_path / "a.png", RGB))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


def test_grey_and_binary(tmp_path):
    image = read_image(save(tmp_path / "a.png", RGB[..., 0]))
    np.testing.assert_array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))
    binary = read_image(save(tmp_path / "b.png", Image.fromarray(RGB[..., 0] > 127)))
    np.testing.assert_array_equal(binary[..., 1], (RGB[..., 0] > 127) * np.uint8(255))


def test_cmyk_jpeg(tmp_path):
    colours = np.zeros((16, 48, 3), dtype=np.uint8)
    colours[:, :16], colours[:, 16:32], colours[:, 32:] = (255, 0, 0), (0, 255, 0), (40, 40, 200)
    image = read_image(save(tmp_path / "a.jpg", Image.fromarray(colours).convert("CMYK"), quality=95, subsampling=0))
    assert np.abs(image.astype(int) - colours).max() <= 6


def test_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "L").convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert read_image(save(tmp_path / "a.png", picture)).tolist() == [
        [[255, 0, 0], [0, 255, 0]],
        [[0, 0, 255], [0, 255, 0]],
    ]
    transparent = read_image(save(tmp_path / "b.png", picture, transparency=1))
    assert transparent.tolist() == [[[255, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]


def test_alpha_is_laid_over_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
    image = read_image(save(tmp_path / "a.png", rgba))
    # 51 / 255 = 1/5 of the colour and 4/5 of white.
    assert image.tolist() == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    grey_alpha = read_image(save(tmp_path / "b.png", np.array([[[90, 255], [90, 0]]], dtype=np.uint8)))
    assert grey_alpha[0, :, 2].tolist() == [90, 255]


def test_transparent_colour_of_an_rgb_png(tmp_path):
    path = save(tmp_path / "a.png", np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8), transparency=(1, 2, 3))
    assert read_image(path).tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "big-endian.tiff"])
def test_16_bit_grey_is_scaled_not_cut_off(tmp_path, name):
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65406, 65535]], dtype=np.uint16)
    picture = Image.fromarray(values)
    if name.startswith("big"):
        picture = Image.frombytes("I;16B", (4, 2), values.astype(">u2").tobytes())
    image = read_image(save(tmp_path / name, picture))
    assert image[..., 0].tolist() == [[0, 0, 1, 1], [128, 156, 254, 255]]  # value / 257, rounded
    assert image.shape == (2, 4, 3)
    assert (image == image[..., :1]).all()


def test_16_bit_rgb_png(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.array([65535, 32896, 0], dtype=">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 128, 0]]]


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tiff", np.ones((2, 2), dtype=np.float32))
    assert "floating point" in refusal(path)


# What a viewer shows of a stored array for each orientation (EXIF 2.32, section 4.6.4): e.g. 6 = "row 0 is the right
# side, column 0 the top", so the picture must be turned clockwise.
UPRIGHT = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(RGB, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    path = with_orientation(tmp_path / f"a.{suffix}", RGB, orientation)
    expected = UPRIGHT[orientation]
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_size(path) == (expected.shape[1], expected.shape[0])


def test_exif_orientation_of_a_jpeg(tmp_path):
    pixels = np.full((32, 64, 3), 255, dtype=np.uint8)
    pixels[:16, :16] = 0  # top left as stored, top right once turned clockwise
    image = read_image(with_orientation(tmp_path / "a.jpg", pixels, 6))
    assert image.shape == (64, 32, 3)
    assert image[:14, 18:].max() < 20
    assert image[:14, :14].min() > 235


def test_stated_size_decides_whether_exif_counts(tmp_path):
    path = with_orientation(tmp_path / "a.png", RGB, 6)  # stored 9 x 6, upright 6 x 9
    np.testing.assert_array_equal(read_image(path, (6, 9)), UPRIGHT[6])
    np.testing.assert_array_equal(read_image(path, (9, 6)), RGB)
    np.testing.assert_array_equal(read_image(path, (50, 50)), UPRIGHT[6])
    assert [read_image_size(path, size) for size in ((6, 9), (9, 6), (50, 50))] == [(6, 9), (9, 6), (6, 9)]


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_stated_size_decides_where_it_can_and_the_setting_elsewhere(tmp_path, suffix, orientation):
    path = with_orientation(
        tmp_path / f"a.{suffix}", RGB, orientation, **({"lossless": True} if suffix == "webp" else {})
    )
    square = with_orientation(
        tmp_path / f"b.{suffix}", RGB[:6, :6], orientation, **({"lossless": True} if suffix == "webp" else {})
    )
    upright = UPRIGHT[orientation]
    turned, stored = Decoding("apply"), Decoding("ignore")
    sideways = orientation >= 5
    for decoding in (turned, stored):
        expected = upright if decoding is turned else RGB
        np.testing.assert_array_equal(read_image(path, None, decoding), expected)
        assert inspect_image(path, None, decoding) == (expected.shape[1::-1], True)
        if sideways:  # 9 x 6 as stored, 6 x 9 upright
            np.testing.assert_array_equal(read_image(path, (9, 6), decoding), RGB)
            np.testing.assert_array_equal(read_image(path, (6, 9), decoding), upright)
            assert inspect_image(path, (9, 6), decoding) == ((9, 6), False)
            assert inspect_image(path, (6, 9), decoding) == ((6, 9), False)
        else:
            np.testing.assert_array_equal(read_image(path, (9, 6), decoding), expected)
            assert inspect_image(path, (9, 6), decoding) == ((9, 6), True)
        assert inspect_image(square, (6, 6), decoding) == ((6, 6), True)
    assert (read_image(square, (6, 6), turned) != read_image(square, (6, 6), stored)).any()


def test_damaged_exif_does_not_lose_the_picture(tmp_path):
    path = save(tmp_path / "a.png", RGB, exif=b"Exif\0\0 this is no TIFF header")
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp"])
def test_truncated_file(tmp_path, suffix):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", pixels)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refusal(path)
    if suffix == "jpg":
        for lost in (1, 2, 10, len(data) - 30):  # from the end-of-image mark alone to all but the header's start
            path.write_bytes(data[:-lost])
            refusal(path)
        path.write_bytes(data[: len(data) // 2])
        assert "truncated" in refusal(path)


def test_what_is_no_picture(tmp_path):
    path = tmp_path / "a.jpg"
    assert "No such file" in refusal(path)
    path.write_bytes(b"")
    assert "not a picture" in refusal(path)
    path.write_text("<html>404 not found</html>")
    assert "not a picture" in refusal(path)
    assert "Is a directory" in refusal(tmp_path)
    with pytest.raises(InputError, match="not a picture"):
        read_image_size(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "a.png").write_bytes(data)
    assert "has 3,600,000,000 pixels, and 178,956,970 are the most" in refusal(tmp_path / "a.png")
    assert "raise that limit (data.max_pixels" in refusal(tmp_path / "a.png")


def test_the_most_pixels_are_a_setting(tmp_path):
    path = save(tmp_path / "a.png", Image.new("1", (14000, 14000)))
    assert "has 196,000,000 pixels" in refusal(path)
    assert read_image_size(path, None, Decoding(max_pixels=2e8)) == (14000, 14000)
    assert "has 196,000,000 pixels" in refusal(path)  # the setting is not one for all
    small = save(tmp_path / "b.png", RGB)
    assert "has 54 pixels, and 53 are the most" in refusal(small, Decoding(max_pixels=53))
    assert read_image(small, None, Decoding(max_pixels=54)).shape == RGB.shape


@pytest.mark.parametrize(("size", "refused"), [((50, 1), False), ((51, 1), True), ((8, 2000), True), ((1, 1), False)])
def test_strips(size, refused):
    if not refused:
        check_strip("a.png", *size)
        return
    with pytest.raises(InputError, match=f"a.png: the picture is {size[0]} x {size[1]} pixels, a strip"):
        check_strip("a.png", *size)


def test_suffixes_are_those_that_pillow_decodes():
    suffixes = picture_suffixes()
    assert suffixes[:3] == (".jpg", ".jpeg", ".png")
    assert {".bmp", ".tif", ".webp", ".jp2", ".ppm", ".jfif", ".tga"} <= set(suffixes)
    assert not {".eps", ".ps", ".pdf", ".mpg", ".xml", ".txt"} & set(suffixes)
