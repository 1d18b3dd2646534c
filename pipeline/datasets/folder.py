"""Class folders, with or without train, val and test above them.

    path/CLASS/…/image.jpg      or      path/train/CLASS/…/image.jpg, path/test/CLASS/…

Rows are ordered by name. Hidden files and READMEs are ignored; every other file is a row (a file that is not an image is set
aside with its reason). Links are not followed out of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.config import Data
from pipeline.datasets.decode import reader
from pipeline.datasets.masks import is_mask
from pipeline.datasets.rows import SPLITS, Row, existing_folder, files, text
from pipeline.errors import DataError


def rows(data: Data) -> Iterator[Row]:
    """The images under data.path, but for masks. Raises DataError if there are none or a class folder is empty."""
    return walk(Path(data.path), "data.path", partial(is_mask, data))


def walk(root: Path, key: str, passed_over: Callable[[Path], bool] = lambda relative: False) -> Iterator[Row]:
    """The images of the class folders under `root`; `key` is its name in params.yaml.

    `passed_over` says of a path relative to `root` whether it is none of them.
    """
    top = [folder for folder in _folders(existing_folder(root, key)) if not passed_over(folder.relative_to(root))]
    names = [folder.name.lower() for folder in top]
    classes: list[tuple[str | None, Path]]
    if "train" in names and set(names) <= set(SPLITS):
        classes = [(SPLITS[part.name.lower()], folder) for part in top for folder in _folders(part)]
    else:
        classes = [(None, folder) for folder in top]
    if not classes:
        raise DataError(
            f"{key}={str(root)!r} holds no class folders",
            expected="a folder of images for each class, with or without train and test above them",
            remedy=f"sort the images into folders named after their classes, or set {key}",
        )
    for split, folder in classes:
        empty = True
        for file in files(folder):
            relative = file.relative_to(root)
            if passed_over(relative):
                continue
            empty = False
            yield Row(text(relative), text(file.stem), text(folder.name), reader(file, root), split)
        if empty:
            raise DataError(
                f"class folder {text(folder)!r} is empty",
                expected="at least two images",
                remedy="add images or remove the folder",
            )


def _folders(parent: Path) -> list[Path]:
    found = sorted(entry.name for entry in os.scandir(parent) if not entry.name.startswith(".") and entry.is_dir())
    for name in found:
        if (parent / name).is_symlink():
            raise DataError(f"{text(parent / name)!r} is a link", expected="a folder", remedy="put the folder itself there")
    return [parent / name for name in found]
