"""NYU Depth V2: lists of image and depth files as BTS lays them out (arXiv 1907.10326), or the labelled MATLAB file.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitprobe.errors import InputError
from vitprobe.inputs.archives import one_line
from vitprobe.inputs.images import Decoded, os_reason, safe_name, why_not_readable
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_base import Request, TruthSource
from vitprobe.inputs.truth_files import MILLIMETRES, below, lines, plane, upright

FARTHEST = 10.0
"""Metres that the camera measures; what is farther counts as not measured, as in BTS and DINOv2 (arXiv 2304.07193)."""
MAT, MAT_SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
LISTS = ("nyudepthv2_{}_files_with_gt.txt", "nyu_{}.txt")
"""Names of the lists, in BTS and in what was made of it."""
FOLDERS = {
    "train": ("sync", "train", "."),
    "test": ("official_splits/test", "test", "."),
}
"""Where the files of a list may lie in ROOT."""


def open_nyud(request: Request) -> TruthSource:
    """Return NYU Depth V2 with depths in metres; 0 and more than 10 m are not measured.

    Raises InputError where it is not there, or a list leads out of ROOT; and where the MATLAB file is, but not h5py.
    """
    part = request.which("train", "test")
    if part not in FOLDERS:
        raise InputError(f"{safe_name(request.text)}: no split {part!r}; nyud has train and test")
    names = [name.format(part) for name in LISTS]
    tables = [request.root / folder / name for folder in (".", "train_test_inputs") for name in names]
    table = next((path for path in tables if path.is_file()), None)
    if table is not None:
        return _open_list(request, part, table)
    if (request.root / MAT).is_file():
        return _open_mat(request, part)
    raise request.missing(f"file {tables[0]}, and no {MAT}")


def _open_list(request: Request, part: str, table: Path) -> TruthSource:
    """Pair images and depths: each line of a list is an image, its depth (``None`` for none) and a focal length."""
    rows, skipped = [], []
    pairs = [[*line.split(), ""][:2] for line in lines(table)]
    base = _base(request.root, part, [image for image, _ in pairs], table)
    for pair in pairs:
        paths = [str(below(base, name, table)) for name in pair if name not in ("", "None")]
        lost = next((path for path in paths if not os.path.isfile(path)), None)
        if lost is not None or len(paths) < 2:
            reason = "no depth" if lost is None else f"no such file: {safe_name(lost)}"
            skipped.append((safe_name(pair[0]), reason))
        else:
            rows.append((paths[0], paths[1]))
    if not rows:
        raise request.missing(f"pair of files of {table.name} in {base}")
    rows = request.draw(rows)
    return TruthSource(
        name=request.title(part),
        items=[FileItem(image) for image, _ in rows],
        depth_unit="m",
        raw_depth=partial(_file_depth, rows),
        skipped=tuple(skipped),
    )


def _base(root: Path, part: str, images: Sequence[str], table: Path) -> Path:
    """Return the folder that a list's names are relative to: the first where one of a few images is."""
    few = images[:: max(1, len(images) // 8)]
    there = (root / name for name in FOLDERS[part])
    return next((one for one in there if any(below(one, name, table).is_file() for name in few)), root)


def _file_depth(rows: Sequence[tuple[str, str]], index: int) -> np.ndarray:
    image, path = (Path(one) for one in rows[index])
    values = upright(plane(path, MILLIMETRES), path, image)  # (h, w)
    return _measured(values.astype(np.float32) / 1000)


def _measured(metres: np.ndarray) -> np.ndarray:
    return np.where((metres > 0) & (metres <= FARTHEST), metres, np.float32(np.nan))


@dataclass(frozen=True)
class MatItem:
    """Point at one image of the labelled MATLAB file."""

    path: str
    row: int

    @property
    def name(self) -> str:
        """Return `path#row`."""
        return f"{safe_name(self.path)}#{self.row}"

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read. The digest is of its pixels."""
        with _mat(self.path) as file:
            pixels = np.ascontiguousarray(file["images"][self.row].transpose(2, 1, 0))  # (h, w, 3); MATLAB's order
        if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
            raise InputError(f"images of {pixels.shape[2]} channels of {pixels.dtype}; 3 of uint8 are needed")
        return Decoded(
            Image.fromarray(pixels), (), hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        )


def _open_mat(request: Request, part: str) -> TruthSource:
    path = str(request.root / MAT)
    rows = _mat_rows(request.file(MAT_SPLITS), part)
    with _mat(path) as file:
        shapes = file["images"].shape, file["depths"].shape
    if shapes[0][:1] + shapes[0][2:] != shapes[1] or not 0 <= min(rows) <= max(rows) < shapes[0][0]:
        raise InputError(f"{safe_name(path)}: images {shapes[0]} and depths {shapes[1]} do not fit {MAT_SPLITS}")
    rows = request.draw(rows)
    return TruthSource(
        name=request.title(part),
        items=[MatItem(path, row) for row in rows],
        depth_unit="m",
        raw_depth=partial(_mat_depth, path, rows),
    )


def _mat_rows(path: Path, part: str) -> list[int]:
    from scipy.io import loadmat

    try:
        numbers = loadmat(path, variable_names=[f"{part}Ndxs"])[f"{part}Ndxs"]
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise InputError(f"{safe_name(str(path))}: no {part}Ndxs in it: {one_line(error)}") from None
    rows = [int(number) - 1 for number in np.ravel(numbers)]  # MATLAB counts from 1
    if not rows:
        raise InputError(f"{safe_name(str(path))}: no image in {part}Ndxs")
    return rows


def _mat_depth(path: str, rows: Sequence[int], index: int) -> np.ndarray:
    with _mat(path) as file:
        return _measured(np.ascontiguousarray(file["depths"][rows[index]].T.astype(np.float32)))  # (h, w)


@contextmanager
def _mat(path: str) -> Iterator[Any]:
    """Open the MATLAB file, which is HDF5, for one reading: open files do not survive the fork of a worker."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{safe_name(path)}: reading it takes h5py, which is not installed: pip install h5py"
        ) from None
    if reason := why_not_readable(path):
        raise InputError(f"{safe_name(path)}: {reason}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{safe_name(path)}: not the labelled data set: {one_line(error)}") from None
    except OSError as error:
        reason = os_reason(error, path) if error.errno else f"damaged, or no HDF5: {one_line(error)}"
        raise InputError(f"{safe_name(path)}: {reason}") from None
