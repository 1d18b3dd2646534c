"""Every kind of file comes to one form; what does not is set aside with its reason."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.making import picture
from pipeline.datasets.decode import MAX_PIXELS, Unreadable, bring_to_form, opened, strict_pillow


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    buffer.seek(0)
    return buffer


def formed(file: io.BytesIO | Path, size: int = 16, channels: int = 1, resize: str = "pad") -> np.ndarray:
    with strict_pillow(), opened(file) as image:
        return bring_to_form(image, size, channels, resize)


def png_header(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes that claims to be width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_declared_size_keeps_its_pixels_in_every_lossless_format(kind, options, channels):
    image = picture(0, channels=channels)
    pixels = np.asarray(image)
    expected = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    assert np.array_equal(formed(stored(image, kind, **options), channels=channels), expected)


def test_jpeg_is_close_to_its_original():
    image = picture(0)
    difference = formed(stored(image, "JPEG", quality=90))[0].astype(int) - np.asarray(image)
    assert 0 < np.abs(difference).mean() < 4


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257], [257 * 100, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert formed(stored(Image.fromarray(values), kind), size=2).tolist() == [[[0, 1], [100, 255]]]


def test_32_bit_integers_within_16_bits_are_scaled_and_others_refused():
    values = np.array([[0, 65535], [514, 257]], dtype=np.int32)
    assert formed(stored(Image.fromarray(values), "TIFF"), size=2).tolist() == [[[0, 255], [2, 1]]]
    with pytest.raises(Unreadable, match="70000"):
        formed(stored(Image.fromarray(values + 4465), "TIFF"), size=2)


def test_floats_are_zero_to_one_or_refused():
    values = np.array([[0.0, 1.0], [0.2, 0.6]], dtype=np.float32)
    assert formed(stored(Image.fromarray(values), "TIFF"), size=2).tolist() == [[[0, 255], [51, 153]]]
    for bad in (values * 2, np.where(values == 1, np.nan, values).astype(np.float32)):
        with pytest.raises(Unreadable, match="mode F"):
            formed(stored(Image.fromarray(bad), "TIFF"), size=2)


def test_transparent_parts_show_white_in_every_mode():
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = [10, 20, 30, 255]
    assert formed(stored(Image.fromarray(rgba)), size=2, channels=3).transpose(1, 2, 0).tolist() == [
        [[10, 20, 30], [255, 255, 255]],
        [[255, 255, 255], [255, 255, 255]],
    ]
    la = Image.fromarray(np.dstack([np.full((2, 2), 7, np.uint8), np.array([[255, 0], [0, 0]], np.uint8)]))
    assert formed(stored(la), size=2).tolist() == [[[7, 255], [255, 255]]]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert formed(stored(palette), size=2, channels=3)[:, 0, 0].tolist() == [200, 100, 50]
    assert formed(stored(palette, transparency=1), size=2, channels=3)[:, 0, 0].tolist() == [255, 255, 255]


def test_one_bit_and_cmyk():
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    assert formed(stored(bits), size=2).tolist() == [[[255, 0], [0, 255]]]
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = formed(stored(cmyk, "TIFF"), channels=3)[:, 8, 8].tolist()
    assert red == 0 and green == 255 and blue == 255


def test_exif_rotation_is_carried_out():
    image = picture(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look right
    turned = formed(stored(image, "PNG", exif=exif))
    assert np.array_equal(turned[0], np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (3, 2), (200, 100), (1, 500)])
@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
def test_any_size_becomes_the_declared_one(size, resize):
    assert formed(stored(picture(1, 64).resize(size)), 16, 3, resize).shape == (3, 16, 16)


def test_pad_repeats_the_edge_and_keeps_the_aspect():
    wide = np.full((8, 16), 50, dtype=np.uint8)
    wide[-1] = 200
    padded = formed(stored(Image.fromarray(wide)))[0]
    assert np.array_equal(padded[4:12], wide) and (padded[:4] == 50).all() and (padded[12:] == 200).all()


def test_reduction_is_antialiased():
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    reduced = formed(stored(Image.fromarray(stripes)), size=8)
    assert (np.abs(reduced.astype(int) - 128) < 12).all()


def test_a_large_jpeg_reduced_while_decoding_stays_the_same_picture():
    large = picture(2, 16).resize((640, 640), Image.Resampling.BICUBIC)
    difference = formed(stored(large, "JPEG", quality=95)).astype(int) - formed(stored(large))
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("size", [(1 << 13, (1 << 13) + 1), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.fault(16, "decompression bombs, before a pixel is decoded")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(Unreadable, match=r"pixels"):
        formed(png_header(*size))


def test_a_bomb_is_refused_outside_of_strict_pillow_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Unreadable, match="pixels"), opened(png_header(12_000, 12_000)):
            pass


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.fault(16, "every format cut")
def test_a_truncated_file_is_refused_with_a_reason(kind):
    whole = stored(picture(5, 64), kind).getvalue()
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(Unreadable) as caught:
            formed(io.BytesIO(whole[: int(len(whole) * share)]), 64)
        assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO"])
@pytest.mark.fault(16, "formats that are not on the list")
def test_other_formats_are_refused(kind):
    with pytest.raises(Unreadable, match="not a PNG"):
        formed(stored(picture(1), kind))


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    odd = [tmp_path / name for name in ("a" * 5000, "empty.png/in", "a\0b")]
    for file in (tmp_path / "none.png", tmp_path, tmp_path / "empty.png", *odd):
        with pytest.raises(Unreadable):
            formed(file)


def test_damaged_bytes_end_in_a_picture_or_a_reason():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        whole = stored(picture(6, 32), kind).getvalue()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(0, 256)
            try:
                assert formed(io.BytesIO(bytes(damaged))).shape == (1, 16, 16)
            except Unreadable as reason:
                assert str(reason)


@pytest.mark.fault(3, "a disk or a mount that fails while an image is read stops the run: it is no fault of the image")
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_no_fault_of_the_image(number):
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)), opened(Failing(stored(picture(1)).getvalue())):
        pass
