"""Images with a class for every pixel: CamVid, folders of images and masks, ADE20K.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vitprobe.errors import InputError
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_base import Request, TruthSource
from vitprobe.inputs.truth_files import NUMBERS, file_mask, folders, lines, listed, plane

PICTURES = (".jpg", ".jpeg", ".png")
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"
)  # fmt: skip
"""Classes 0 to 10 of the SegNet tutorial's CamVid (arXiv 1511.00561, section 4.1); 11 is void."""
ADE20K_CLASSES = 150
"""Of the scene parsing challenge of 2016; 0 is any other, and not counted (arXiv 1608.05442, section 3)."""


def open_camvid(request: Request) -> TruthSource:
    """Return CamVid as the SegNet tutorial lays it out. Raises InputError where it is not there."""
    return _open_folders(request, request.which("train", "test"), CAMVID, void=11)


def open_masks(request: Request) -> TruthSource:
    """Return images and masks of one's own; class numbers are those of the PNG files, 255 is void.

    Names are the lines of ``classes.txt`` in ROOT, else the numbers up to the largest that any split's masks hold.
    Raises InputError where they are not there.
    """
    held_out = next((name for name in ("test", "val") if (request.root / name).is_dir()), "test")
    part = request.which("train", held_out)
    request.folder(f"{part}/images")
    names = request.root / "classes.txt"
    if names.is_file():
        classes = tuple(lines(names))
    else:
        masks = [mask for name in folders(request.root) for mask in _pngs(request.root / name / "masks")]
        classes = tuple(str(number) for number in range(1 + max(map(_largest, masks), default=0)))
    return _open_folders(request, part, classes, void=255)


def open_ade20k(request: Request) -> TruthSource:
    """Return ADE20K as the scene parsing challenge distributes it: classes 1 to 150 stand from 0 on, 0 is void.

    Raises InputError where it is not there.
    """
    part = request.which("training", "validation")
    base = next((name for name in (".", "ADEChallengeData2016") if (request.root / name / "images").is_dir()), ".")
    images, masks = request.folder(f"{base}/images/{part}"), request.folder(f"{base}/annotations/{part}")
    table = request.root / base / "objectInfo150.txt"
    classes = _ade20k_names(table) if table.is_file() else tuple(str(1 + at) for at in range(ADE20K_CLASSES))
    return _opened(request, part, images, masks, classes, void=0, first=1)


def _open_folders(request: Request, part: str, classes: tuple[str, ...], *, void: int) -> TruthSource:
    images, masks = request.folder(f"{part}/images"), request.folder(f"{part}/masks")
    return _opened(request, part, images, masks, classes, void=void, first=0)


def _opened(
    request: Request, part: str, images: Path, masks: Path, classes: tuple[str, ...], *, void: int, first: int
) -> TruthSource:
    """Pair images with masks by name; number `first` stands for class 0."""
    there = {path.stem: path for path in _pngs(masks)}
    pictures = listed(images, PICTURES)
    pairs: Sequence[tuple[str, str]] = request.draw(
        [(str(path), str(there[path.stem])) for path in pictures if path.stem in there]
    )
    return TruthSource(
        name=request.title(part),
        items=[FileItem(image) for image, _ in pairs],
        mask_classes=classes,
        raw_mask=partial(file_mask, pairs, void, first, len(classes)),
        skipped=tuple((safe_name(str(path)), "no mask") for path in pictures if path.stem not in there),
    )


def _pngs(folder: Path) -> list[Path]:
    return listed(folder, (".png",)) if folder.is_dir() else []


def _largest(mask: Path) -> int:
    """Return the largest class number in a mask, 0 where all is void."""
    values = plane(mask, NUMBERS)
    return int(values[values != 255].max(initial=0))


def _ade20k_names(table: Path) -> tuple[str, ...]:
    """Return the first word for each class of ``objectInfo150.txt``: columns Idx, Ratio, Train, Val, Stuff, Name."""
    rows = [line.split("\t") for line in lines(table)]
    names = {row[0].strip(): row[-1].partition(",")[0].strip() for row in rows if len(row) > 1}
    try:
        return tuple(names[str(1 + at)] for at in range(ADE20K_CLASSES))
    except KeyError as error:
        raise InputError(f"{safe_name(str(table))}: no class {error.args[0]}; a table of 150 is needed") from None
