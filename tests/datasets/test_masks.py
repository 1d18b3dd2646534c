"""Masks: which image one belongs to, what is made of it, and what is set aside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.making import params
from pipeline.core.prepared import Prepared
from pipeline.errors import DataError
from pipeline.stages import prepare

OUT, SIDE = Path("prepared"), 16
N = 6  # images of each of two classes


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for label in ("good", "scratch"):
            for i in range(N):
                image = np.random.default_rng([len(split), len(label), i]).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
                write(Path("raw", split, label, f"{i}.png"), image)


def write(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def spot(i: int, value: int = 255) -> np.ndarray:
    """The mask of image i."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2 + i : 5 + i, 3:9] = value
    return mask


def prepared(**data: Any) -> Prepared:
    shutil.rmtree(OUT, ignore_errors=True)
    values = {"source": "folder", "path": "raw", "image_size": SIDE, "channels": 1, "regions": "masks", **data}
    prepare.run(params(data=values), OUT)
    return Prepared(OUT)


def masks(made: Prepared) -> dict[str, np.ndarray]:
    """The region of each train row that has one, bool (h, w)."""
    rows = made.train()
    found = dict(zip(rows.column("sample_id"), rows.regions().numpy()[:, 0] > 0, strict=True))
    origins = dict(zip(rows.column("sample_id"), rows.column("region_origin"), strict=True))
    assert all((origins[name] == "given") == bool(mask.any()) for name, mask in found.items())
    return {name: mask for name, mask in found.items() if mask.any()}


PLACES: dict[str, tuple[str, Callable[[int], str]]] = {
    "the image's path": ("masks", lambda i: f"masks/train/scratch/{i}.png"),
    "its class": ("masks", lambda i: f"masks/scratch/{i}_mask.png"),
    "an ending": ("ground_truth", lambda i: f"ground_truth/train/scratch/{i}-mask.png"),
    "another format": ("masks", lambda i: f"masks/train/scratch/{i}.bmp"),
    "beside the image": ("*_mask", lambda i: f"train/scratch/{i}_mask.png"),
    "beside it, with a suffix": ("*_mask.png", lambda i: f"train/scratch/{i}_mask.png"),
    "beside it, with another suffix": ("*.bmp", lambda i: f"train/scratch/{i}.bmp"),
}


@pytest.mark.parametrize("how", PLACES)
def test_a_mask_is_found_by_the_path_of_its_image_and_is_no_image(how: str) -> None:
    regions, name = PLACES[how]
    for i in range(4):
        write(Path("raw", name(i)), spot(i))
    made = prepared(regions=regions)
    assert made.classes == ["good", "scratch"] and sum(made.info["counts"]["test"].values()) == 2 * N
    labels = dict(zip(made.train().column("sample_id"), made.train().column("label"), strict=True))
    found = masks(made)
    assert 2 <= len(found) <= 4 and {labels[name] for name in found} == {"scratch"}
    for name, mask in found.items():
        assert np.array_equal(mask, spot(int(Path(name).stem)) > 0)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((SIDE, SIDE), np.uint8), "empty: no pixel belongs to the object"),
        (np.full((SIDE, SIDE + 2), 255, np.uint8), f"{SIDE + 2} x {SIDE} pixels, its image has {SIDE} x {SIDE}"),
        (None, "not a PNG, JPEG, TIFF, BMP or WebP image"),
    ],
)
def test_a_mask_that_does_not_fit_is_set_aside_and_its_image_is_kept(mask: np.ndarray | None, reason: str) -> None:
    for i in range(N):
        write(Path(f"raw/masks/train/scratch/{i}.png"), spot(i))
    odd = Path("raw/masks/train/scratch/0.png")
    odd.write_bytes(b"torn") if mask is None else write(odd, mask)
    made = prepared()
    assert made.info["set_aside"] == [{"path": "train/scratch/0.png", "reason": f"its mask is set aside: {reason}"}]
    assert sum(made.info["counts"][side]["scratch"] for side in ("train", "val", "test")) == 2 * N
    assert 0 < len(masks(made)) < N


def test_a_link_out_of_the_folder_is_no_mask(tmp_path: Path) -> None:
    for i in range(N):
        write(Path(f"raw/masks/train/scratch/{i}.png"), spot(i))
    write(Path("elsewhere.png"), spot(0))
    link = Path("raw/masks/train/scratch/0.png")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.png")
    reason = "its mask is set aside: a link out of the folder"
    assert prepared().info["set_aside"] == [{"path": "train/scratch/0.png", "reason": reason}]


def test_a_mask_goes_through_what_its_image_goes_through() -> None:
    """Brought to half the size, padded, turned by EXIF data; a hair of one pixel does not vanish."""
    for i in range(N):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 32), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying, shown upright: 20 wide, 32 high
        image.save(f"raw/train/scratch/{i}.jpg", exif=exif)
        Path(f"raw/train/scratch/{i}.png").unlink()
        hair = np.zeros((32, 20), np.uint8)
        hair[4 : 4 + 2 * i + 2, 7] = 255
        write(Path(f"raw/masks/train/scratch/{i}.png"), hair)
    found = masks(prepared())
    assert found
    for name, mask in found.items():
        i = int(Path(name).stem)
        y, x = mask.nonzero()
        assert set(x.tolist()) == {6} and (y.min(), y.max()) == (2, 2 + i)  # three pixels of padding on either side


def test_what_counts_as_the_object() -> None:
    """Any class of a mask of classes, and of a JPEG what is more white than black."""
    for i in range(N):
        write(Path(f"raw/masks/train/scratch/{i}.png"), spot(i, value=1 + i))
    assert all(mask.sum() == 18 for mask in masks(prepared()).values())
    for i in range(N):
        Path(f"raw/masks/train/scratch/{i}.png").unlink()
        Image.fromarray(spot(i)).save(f"raw/masks/train/scratch/{i}.jpg", quality=60)
    assert all(np.array_equal(mask, spot(int(Path(name).stem)) > 0) for name, mask in masks(prepared()).items())


@pytest.mark.parametrize(
    ("regions", "found"),
    [
        ("nowhere", r"data\.regions='\S*nowhere' does not exist"),
        ("masks", "2 masks, and none has the name"),
        ("*_no", "no masks"),
    ],
)
def test_masks_of_nothing_are_refused(regions: str, found: str) -> None:
    for name in ("a", "b"):
        write(Path(f"raw/masks/{name}.png"), spot(0))
    with pytest.raises(DataError, match=found):
        prepared(regions=regions)
