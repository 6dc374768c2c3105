"""PASCAL VOC 2007 and 2012 as distributed: boxes, a class for each image, and masks where they are asked for.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from vitprobe.errors import InputError
from vitprobe.inputs.archives import one_line
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_base import Request, TruthSource
from vitprobe.inputs.truth_files import below, contents, file_boxes, file_mask, lines, listed

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
MASK_CLASSES = ("background", *CLASSES)
"""Classes 0 to 20 of SegmentationClass; 255 is void."""
SEGMENTATION = "segmentation"
"""The word for SPLIT that takes the images with masks: ImageSets/Segmentation/train.txt and val.txt."""
MAX_XML_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class _Annotated:
    """Hold what one XML file says."""

    boxes: np.ndarray
    """(G, 4) float64, ends exclusive."""
    names: tuple[str, ...]
    """(G,) class of each."""


def open_voc(request: Request) -> TruthSource:
    """Return VOC's images of a list with their boxes, difficult ones kept, as LOST keeps them (arXiv 2109.14279).

    Corners are xmin - 1, ymin - 1, xmax, ymax: the files count pixels from 1, ends inclusive. VOC has several classes
    an image, and the paper (arXiv 2309.16588, Table 1) does not say how it made them one: here, label ``class`` is that
    of the largest box. SPLIT is a name in ImageSets/Main, or ``segmentation``: the images that have masks, with them.
    Raises InputError where the set is not there, or nothing is left to train on beside SPLIT.
    """
    year = request.name.removeprefix("voc")
    base = next((name for name in (f"VOC{year}", f"VOCdevkit/VOC{year}") if (request.root / name).is_dir()), ".")
    pictures = request.folder(f"{base}/JPEGImages")
    has_masks = request.part == SEGMENTATION
    part = ("train" if request.split == "train" else "val") if has_masks else request.which("train", "val")
    table = request.file(f"{base}/ImageSets/{'Segmentation' if has_masks else 'Main'}/{part}.txt")
    folders = {".jpg": pictures, ".xml": request.folder(f"{base}/Annotations")}
    if has_masks:
        folders[".png"] = request.folder(f"{base}/SegmentationClass")
    rows, skipped = _paths(table, folders)
    rows = request.draw(rows)
    kept, told, broken = [], [], []
    for row in rows:
        try:
            told.append(_annotated(row[".xml"]))
            kept.append(row)
        except InputError as error:
            broken.append((safe_name(str(row[".jpg"])), str(error)))
    if not kept:
        raise InputError(f"{safe_name(request.text)}: no annotation can be read; {broken[0][1]}")
    paths = [str(row[".jpg"]) for row in kept]
    pairs = [(str(row[".jpg"]), str(row[".png"])) for row in kept] if has_masks else []
    return TruthSource(
        name=request.title(f"{SEGMENTATION} {part}" if has_masks else part),
        items=[FileItem(path) for path in paths],
        labels={"class": np.array([_label(one) for one in told], np.int64)},
        classes={"class": CLASSES},
        mask_classes=MASK_CLASSES if has_masks else (),
        raw_boxes=partial(file_boxes, paths, [one.boxes for one in told]),
        raw_mask=partial(file_mask, pairs, 255, 0, len(MASK_CLASSES)) if has_masks else None,
        skipped=(*skipped, *broken),
    )


def _paths(table: Path, folders: dict[str, Path]) -> tuple[list[dict[str, Path]], list[tuple[str, str]]]:
    """Return the files of each image of a list, by suffix, and (image, reason) where one is missing.

    A list of one class (``dog_val``) says -1 where the class is not in the image: those are left out.
    """
    there = {path for suffix, folder in folders.items() for path in listed(folder, (suffix,))}
    rows, skipped = [], []
    for line in lines(table):
        name, *flag = line.split()
        if flag[:1] == ["-1"]:
            continue
        row = {suffix: below(folder, name + suffix, table) for suffix, folder in folders.items()}
        if lost := [path for path in row.values() if path not in there]:
            skipped.append((safe_name(str(row[".jpg"])), f"no {safe_name(lost[0].name)} in {lost[0].parent.name}"))
        else:
            rows.append(row)
    return rows, skipped


def _annotated(path: Path) -> _Annotated:
    shown = safe_name(path.name)
    try:
        objects = read_xml(path).findall("object")
        names = tuple((one.findtext("name") or "").strip() for one in objects)
        corners = [
            [float(one.findtext(f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")] for one in objects
        ]
    except (TypeError, ValueError):
        raise InputError(f"{shown}: an object without a box of four numbers") from None
    boxes = np.array(corners, np.float64).reshape(-1, 4) - (1, 1, 0, 0)  # (G, 4)
    if not np.isfinite(boxes).all() or (boxes[:, :2] >= boxes[:, 2:]).any():
        raise InputError(f"{shown}: a box that ends before it begins")
    if unknown := [name for name in names if name not in CLASSES]:
        raise InputError(f"{shown}: class {unknown[0]!r}, which VOC has not")
    return _Annotated(boxes, names)


def _label(one: _Annotated) -> int:
    """Return the class of the largest box, the first of those as large; -1 without boxes."""
    sides = one.boxes[:, 2:] - one.boxes[:, :2]  # (G, 2)
    return CLASSES.index(one.names[int(sides.prod(1).argmax())]) if one.names else -1


def read_xml(path: Path) -> Element:
    """Return the root of a small XML file. A document type, which is where entities are declared, is refused.

    Raises InputError where the file cannot be read, is no XML, or declares a document type.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_declared: object) -> None:
        raise InputError(f"{safe_name(path.name)}: declares a document type, which no annotation needs")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(contents(path, MAX_XML_BYTES), True)
        return builder.close()
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{safe_name(path.name)}: no XML that can be read: {one_line(error)}") from None
