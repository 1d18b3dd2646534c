"""Memory while images are decoded is bounded by what decode.py allows, whatever a file holds and however many threads read.

Each file is as bad as it may be and is decoded by three threads at a time in a process of its own, with limits of a sixteenth,
so that the test is quick; what it measures is the growth of that process's peak, C libraries included.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.toy import ROOT
from pipeline.datasets import decode

SIDE = 2048
PIXELS, BYTES = SIDE * SIDE, decode.MAX_BYTES // 16
EACH = 24  # bytes for each of these pixels that all threads together may take to decode
HELD = 8  # and for the files that are open
THREADS = 3
Growth = Callable[..., list[int | str | list[int]]]
PROGRAM = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipeline.datasets import decode

decode.MAX_PIXELS, decode.MAX_BYTES = map(int, sys.argv[1:])
decode.ROOM, decode.OPEN = decode.Room(decode.MAX_PIXELS), decode.Room(decode.MAX_BYTES)

def told(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def decoded(file):
    try:
        with decode.opened(Path(file)) as image:
            return list(decode.bring_to_form(image, 512, 3, "pad").shape)
    except decode.Unreadable as reason:
        return str(reason)

def measure(file, small, threads):
    with decode.strict_pillow(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(decoded, [small] * threads))  # what Pillow imports and the threads themselves take once
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is
        before = told("VmRSS")
        ends = list(pool.map(decoded, [file] * threads))
        print(json.dumps([told("VmHWM") - before, *ends]), flush=True)

for line in sys.stdin:
    if not (child := os.fork()):
        measure(*json.loads(line))
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"a measurement ended with status {status}")
"""


@pytest.fixture(scope="module")
def measured() -> Iterator[Callable[[Path, Path, int], str]]:
    """Measures a file in a process of its own, which is a fork: what they need is imported once."""
    if sys.platform != "linux":
        pytest.skip("peaks are read from /proc")
    large = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # what is freed is given back, as with blocks of the real size
    words = [sys.executable, "-c", PROGRAM, str(PIXELS), str(BYTES)]
    with subprocess.Popen(
        words, cwd=ROOT, env=os.environ | large, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def measure(file: Path, small: Path, threads: int) -> str:
            assert process.stdin is not None and process.stdout is not None
            print(json.dumps([str(file), str(small), threads]), file=process.stdin, flush=True)
            return process.stdout.readline()

        yield measure
    assert process.returncode == 0


def worst() -> dict[str, Callable[[], bytes]]:
    """The files, each made when it is asked for."""
    grain = np.arange(PIXELS, dtype=np.uint32).reshape(SIDE, SIDE)

    def of(mode: str) -> Image.Image:
        if mode == "I;16":
            return Image.fromarray((grain % 60000).astype(np.uint16))
        if mode == "I":
            return Image.fromarray((grain % 60000).astype(np.int32))
        if mode == "F":
            return Image.fromarray((grain % 255 / 255).astype(np.float32))
        if mode == "LAB":
            return Image.new("LAB", (SIDE, SIDE))
        flat = Image.fromarray((grain % 251).astype(np.uint8))
        return Image.merge(mode, [flat] * len(mode)) if mode in ("RGB", "RGBA", "CMYK") else flat.convert(mode)

    def saved(kind: str, mode: str, **options: object) -> Callable[[], bytes]:
        def make() -> bytes:
            buffer, own = io.BytesIO(), dict(options)
            if own.pop("turned", False):
                own["exif"] = Image.Exif()
                own["exif"][0x0112] = 6
            if own.pop("moving", False):
                own |= {"save_all": True, "append_images": [of(mode).rotate(90)] * 2}
            of(mode).save(buffer, kind, **own)
            return buffer.getvalue()

        return make

    return {
        "PNG grey, turned": saved("PNG", "L", turned=True, compress_level=1),
        "PNG palette, transparent": saved("PNG", "P", transparency=1, compress_level=1),
        "PNG alpha, turned": saved("PNG", "RGBA", turned=True, compress_level=1),
        "PNG 16 bits": saved("PNG", "I;16", compress_level=1),
        "PNG moving": saved("PNG", "RGBA", moving=True, compress_level=1),
        "PNG text": lambda: png(chunk(b"tEXt", b"a\0" + b"b" * (BYTES - 200))),
        "PNG unknown chunk": lambda: png(chunk(b"prVt", bytes(BYTES - 200))),
        "JPEG progressive": saved("JPEG", "RGB", progressive=True, turned=True),
        "JPEG progressive, CMYK": saved("JPEG", "CMYK", progressive=True),
        "TIFF alpha, turned": saved("TIFF", "RGBA", compression="tiff_lzw", tiffinfo={0x0112: 6}),
        "TIFF 32 bits": saved("TIFF", "I", compression="tiff_adobe_deflate"),
        "TIFF float": saved("TIFF", "F", compression="tiff_adobe_deflate"),
        "TIFF LAB": saved("TIFF", "LAB", compression="tiff_lzw"),
        "TIFF frames": saved("TIFF", "RGBA", moving=True, compression="tiff_lzw"),
        "TIFF tile": lambda: tiff(SIDE),
        "BMP": saved("BMP", "RGB"),
        "WEBP alpha, turned": saved("WEBP", "RGBA", lossless=True, method=0, turned=True),
        "WEBP moving": saved("WEBP", "RGBA", lossless=True, method=0, moving=True),
    }  # fmt: skip


def too_much() -> dict[str, Callable[[], bytes]]:
    """Files of a few pixels that unfold beyond all limits."""
    zeros = zlib.compress(bytes(16 * PIXELS), 9)
    some = zlib.compress(bytes((1 << 20) - 1), 9)
    return {
        "text": lambda: png(chunk(b"tEXt", b"a\0" + b"b" * BYTES)),
        "unknown chunk": lambda: png(chunk(b"prVt", bytes(BYTES))),
        "profile": lambda: png(chunk(b"iCCP", b"a\0\0" + zeros)),
        "compressed text": lambda: png(chunk(b"zTXt", b"a\0\0" + zeros)),
        "many compressed texts": lambda: png(chunk(b"zTXt", b"a\0\0" + some) * 500),
        "tile": lambda: tiff(SIDE * 2),
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(extra: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG of 8 x 8 with more chunks before its pixels and behind them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(bytes(72))) + behind + chunk(b"IEND", b"")


def tiff(side: int) -> bytes:
    """A TIFF of 8 x 8 in one tile of side x side, four values a pixel."""
    data = zlib.compress(b"\1" * (4 * side * side), 9)
    bits, tags = (
        8 + len(data),
        {256: 8, 257: 8, 258: 0, 259: 8, 262: 2, 277: 4, 322: side, 323: side, 324: 8, 325: len(data), 338: 2},
    )
    entries = [struct.pack("<HHII", tag, *((3, 4, bits) if tag == 258 else (4, 1, value))) for tag, value in tags.items()]
    folder = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", bits + 8) + data + struct.pack("<HHHH", 8, 8, 8, 8) + folder


@pytest.fixture
def growth(measured: Callable[[Path, Path, int], str], tmp_path: Path) -> Growth:
    """Of the bytes of a file: bytes by which the peak grew, and the end of each thread."""

    def growth(data: bytes, threads: int = THREADS) -> list[int | str | list[int]]:
        (tmp_path / "image").write_bytes(data)
        (tmp_path / "small").write_bytes(png())
        found: list[int | str | list[int]] = json.loads(measured(tmp_path / "image", tmp_path / "small", threads))
        return found

    return growth


@pytest.mark.fault(16, "the worst file of every format that is allowed, by three threads at a time: memory within the limit")
@pytest.mark.parametrize("name", list(worst()))
def test_what_is_allowed_stays_within_the_limit(name: str, growth: Growth, points: Callable[[int], None]) -> None:
    grown, *ends = growth(worst()[name]())
    assert name == "PNG text" or ends == [[3, 512, 512]] * 3, ends
    assert isinstance(grown, int) and grown < EACH * PIXELS + (1 << 22), f"{grown / PIXELS:.1f} bytes a pixel"
    points(1)


@pytest.mark.fault(16, "files that hold much beside their pixels, by twelve threads at a time: memory within the limit")
@pytest.mark.parametrize("kind", [b"tEXt", b"prVt"])
@pytest.mark.parametrize("place", ["extra", "behind"])
@pytest.mark.parametrize("share", [1, 2, 12])
def test_what_stands_beside_pixels_stays_within_the_limit(
    kind: bytes, place: str, share: int, growth: Growth, points: Callable[[int], None]
) -> None:
    beside = chunk(kind, b"a\0" + b"b" * (BYTES // share - 200))
    grown, *ends = growth(png(**{place: beside}), 12)
    assert ends == [[3, 512, 512]] * 12, ends
    assert isinstance(grown, int) and grown < (EACH + HELD) * PIXELS + 12 * (1 << 20), f"{grown / PIXELS:.1f} bytes a pixel"
    points(1)


@pytest.mark.fault(16, "texts, profiles, chunks and tiles that unfold beyond all limits: set aside at once")
@pytest.mark.parametrize("name", list(too_much()))
def test_what_unfolds_is_set_aside(name: str, growth: Growth, points: Callable[[int], None]) -> None:
    grown, *ends = growth(too_much()[name]())
    assert isinstance(grown, int) and grown < 1 << 26 and all(isinstance(end, str) for end in ends), (grown, ends)
    points(1)
