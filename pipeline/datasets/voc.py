"""Pascal VOC: an XML file for each photograph, with the objects' boxes.

    Annotations/NAME.xml   JPEGImages/NAME.jpg   ImageSets/Main/train.txt …      or an XML file beside each image

The first pixel of VOC is 1 and a box holds its last pixel: xmin ... xmax becomes xmin - 1 ... xmax. trainval without val is
train. A photograph that the lists do not name is set aside. Everingham et al., The Pascal Visual Object Classes Challenge 2012
Development Kit, section 4.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from pipeline.config import Data
from pipeline.datasets import objects
from pipeline.datasets.decode import Unreadable
from pipeline.datasets.objects import Annotated, Photograph
from pipeline.datasets.rows import Row, existing_folder, files, text
from pipeline.errors import DataError

LISTS = {"trainval": "train", "train": "train", "val": "val", "test": "test"}  # a later one wins


def rows(data: Data) -> Iterator[Row]:
    """The objects or photographs of the XML files under data.path. Raises DataError if there are none."""
    root = existing_folder(Path(data.path), "data.path")
    if next(xml_files(root), None) is None:
        raise DataError(
            f"data.path={data.path!r} holds no XML files",
            expected="Annotations/NAME.xml and JPEGImages/NAME.jpg, or XML files beside images",
            remedy="set data.path",
        )
    return objects.rows(data, partial(photographs, root))


def xml_files(root: Path) -> Iterator[Path]:
    """The XML files of a Pascal VOC data set."""
    folder = root / "Annotations"
    return (file for file in files(folder if folder.is_dir() else root) if file.suffix.lower() == ".xml")


def photographs(root: Path) -> Iterator[Photograph]:
    """The photographs that XML files under `root` describe."""
    splits = _splits(root)
    unseen = dict.fromkeys(splits)
    for file in xml_files(root):
        unseen.pop(file.stem, None)
        split = splits.get(file.stem) if splits else objects.split_of_folder(file, root)
        try:
            photograph = _photograph(file, root, split)
        except Unreadable as unreadable:
            photograph = Photograph(os.path.relpath(file, root), split=split, flaw=str(unreadable))
        listed = split or not splits
        yield photograph if listed else photograph._replace(flaw="named by no list in ImageSets/Main")
    for name in unseen:
        yield Photograph(name, split=splits[name], flaw="named in ImageSets/Main, but without an XML file")


def _photograph(file: Path, root: Path, split: str | None) -> Photograph:
    """What an XML file says. Raises Unreadable."""
    try:
        tree = ElementTree.fromstring(objects.content(file, root), ElementTree.XMLParser(target=_Plain()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: encodings
        raise Unreadable(f"no XML: {error}") from None
    if tree.tag != "annotation":
        raise Unreadable(f"an XML file of <{tree.tag}>, not of <annotation>")
    size = objects.frame(tree.findtext("size/width"), tree.findtext("size/height"))
    image = _image(file, root, (tree.findtext("filename") or "").strip())
    return Photograph(os.path.relpath(image, root), [_object(found) for found in tree.findall("object")], size, split)


class _Plain(ElementTree.TreeBuilder):
    """Refuses what annotations do not need: a DOCTYPE may define entities that grow without end, or name other files."""

    def doctype(self, _name: str, _pubid: str | None, _system: str | None) -> None:
        raise Unreadable("an XML file with a DOCTYPE")


def _object(found: ElementTree.Element) -> Annotated:
    label = (found.findtext("name") or "").strip()
    left, top, right, bottom = (objects.number(found.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    if right <= left or bottom <= top:  # a click without a drag; no object is one pixel wide
        left, top = left + 1, top + 1
    return objects.annotated(label, (left - 1, top - 1, right, bottom))


def _image(file: Path, root: Path, named: str) -> Path:
    """The image of an XML file: that of the same name, else the one that it names, which may not exist."""
    places = [root / "JPEGImages", root / "images", file.parent]
    for place in places:
        for suffix in objects.SUFFIXES:
            for own in (suffix, suffix.upper()):
                if (image := place / f"{file.stem}{own}").is_file():
                    return image
    named = named.replace("\\", "/").rpartition("/")[2] or file.stem
    return next((place / named for place in places if (place / named).is_file()), places[0] / named)


def _splits(root: Path) -> dict[str, str]:
    """The official split of each photograph, by its name; empty if there are no lists."""
    found = dict[str, str]()
    for name, split in LISTS.items():
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            try:
                lines = objects.content(file, root).decode("utf-8-sig").splitlines()
            except (Unreadable, UnicodeDecodeError) as error:
                raise DataError(f"{text(file)}: {error}", expected="a name on each line", remedy="correct it") from None
            found |= {line.split()[0]: split for line in lines if line.strip()}
    return found
