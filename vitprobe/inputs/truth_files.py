"""Read what stands beside images: lists of names, masks and depths in PNG files, the size of an image's file.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image

from vitprobe.errors import InputError
from vitprobe.inputs.archives import one_line
from vitprobe.inputs.images import FORMATS, MAX_PIXELS, SUFFIXES, os_reason, safe_name, why_not_readable

MAX_LIST_BYTES = 2**28
"""Bytes of the largest list of names that is read: that of ImageNet's images has 60 MB."""
NUMBERS = ("L", "P", "1")
"""Pillow's modes of PNG files that hold class numbers."""
MILLIMETRES = ("I;16", "I;16B", "I")
"""Pillow's modes of PNG files of 16 bits."""
_SLACK = 2.0
"""Pixels by which a box may stand over its image's edge: annotators' and roundings'."""
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip
"""What Pillow raises on damaged files."""
_TURNS = {
    1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
    5: (True, False, False), 6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip
"""EXIF orientation -> whether pixels are transposed, then mirrored left to right, then turned upside down."""


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without blanks around them.

    Raises InputError, naming the file, where it is missing, too large or no text.
    """
    return [line for line in (line.strip() for line in text(path).splitlines()) if line]


def text(path: Path, most: int = MAX_LIST_BYTES) -> str:
    """Return a text file of at most `most` bytes. Raises InputError as `lines` does."""
    try:
        return contents(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{safe_name(str(path))}: not a text file in UTF-8") from None


def contents(path: Path, most: int) -> bytes:
    """Return the bytes of a file of at most `most` bytes. Raises InputError, naming the file, where it cannot."""
    shown = safe_name(str(path))
    if reason := why_not_readable(path):
        raise InputError(f"{shown}: {reason}")
    try:
        if (size := os.path.getsize(path)) > most:
            raise InputError(f"{shown}: {size:,} bytes; at most {most:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{shown}: {os_reason(error, path)}") from None


def below(folder: Path, name: str, said_by: Path) -> Path:
    """Return the path of a file named relative to `folder` by a list; a slash in front is taken for no more.

    Raises InputError for a name that leads out of the folder.
    """
    parts = PurePosixPath(name.lstrip("/")).parts
    if not parts or ".." in parts or "\0" in name:
        raise InputError(f"{safe_name(str(said_by))}: {safe_name(name)!r} leads out of {safe_name(str(folder))}")
    return folder.joinpath(*parts)


def listed(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[Path]:
    """Return the files in a folder with these suffixes, in lower case, hidden ones left out, sorted by name.

    Raises InputError, naming the folder, where it cannot be read.
    """
    allowed = frozenset(suffixes)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{safe_name(str(folder))}: {os_reason(error, folder)}") from None
    return [folder / name for name in names if os.path.splitext(name)[1].lower() in allowed]


def folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, hidden ones left out, sorted; none where it is not there."""
    if not folder.is_dir():
        return []
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{safe_name(str(folder))}: {os_reason(error, folder)}") from None


@dataclass(frozen=True)
class Header:
    """Hold what the header of an image's file says of its pixels."""

    size: tuple[int, int]
    """(height, width) as the pixels lie in the file."""
    orientation: int
    """By EXIF, 1 to 8; 1 is upright."""

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the image as `vitprobe.inputs.images.decode` gives it."""
        return self.size[::-1] if _TURNS[self.orientation][0] else self.size

    def turn(self, values: np.ndarray) -> np.ndarray:
        """Return values (h, w) of the pixels as they lie in the file, set upright with the image."""
        is_transposed, is_mirrored, is_upside_down = _TURNS[self.orientation]
        values = values.T if is_transposed else values
        values = values[:, ::-1] if is_mirrored else values
        return values[::-1] if is_upside_down else values

    def turn_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (G, 4) of the image as it lies in the file, set upright with it."""
        is_transposed, *flips = _TURNS[self.orientation]
        made = boxes[:, [1, 0, 3, 2]] if is_transposed else boxes.copy()
        for axis, side in enumerate(self.upright[::-1]):  # x and width, y and height
            if flips[axis]:
                made[:, [axis, axis + 2]] = side - made[:, [axis + 2, axis]]
        return made


def read_header(path: Path) -> Header:
    """Return the size and orientation of an image's file. Raises InputError, naming it, where it cannot be read."""
    with _opened(path, ("JPEG", *FORMATS)) as image:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except _DAMAGE:  # as `images` does, which ignores it then
            orientation = 1
        return Header(image.size[::-1], orientation if orientation in _TURNS else 1)


def file_boxes(paths: Sequence[str], boxes: Sequence[np.ndarray], index: int) -> tuple[tuple[int, int], np.ndarray]:
    """Return (height, width) of one image, upright, and its boxes (G, 4); bound to lists, this is a `raw_boxes`.

    Boxes are of the pixels as they lie in the file. Raises InputError, naming the image, where it cannot be read, or is
    smaller than its boxes.
    """
    header, found = read_header(Path(paths[index])), boxes[index]
    height, width = header.size
    if len(found) and (found[:, 2].max() > width + _SLACK or found[:, 3].max() > height + _SLACK):
        far = f"{found[:, 2].max():g}, {found[:, 3].max():g}"
        raise InputError(
            f"{safe_name(paths[index])}: {height} x {width} pixels, but its boxes reach to x, y = {far}; "
            "image and annotation do not belong together"
        )
    return header.upright, header.turn_boxes(found)


def file_mask(pairs: Sequence[tuple[str, str]], void: int, first: int, num_classes: int, index: int) -> np.ndarray:
    """Return the class of each pixel of one image, (h, w) int64, -1 where void; bound to a list, a `raw_mask`.

    `pairs` are paths of image and mask; number `first` stands for class 0. Raises InputError, naming the file, where it
    cannot be read, is of another size than its image, or holds a number that is no class.
    """
    image, path = (Path(one) for one in pairs[index])
    values = upright(plane(path, NUMBERS), path, image).astype(np.int64)  # (h, w)
    classes = np.where(values == void, -1, values - first)
    wrong = (values != void) & ((classes < 0) | (classes >= num_classes))
    if wrong.any():
        raise InputError(
            f"{safe_name(str(path))}: class number {values[wrong][0]}; allowed are {first} to "
            f"{first + num_classes - 1}, and {void} for void"
        )
    return classes


def upright(values: np.ndarray, path: Path, image: Path) -> np.ndarray:
    """Return values (h, w) of `path`, one for each pixel of the file `image` as they lie there, upright.

    Values that fit the upright image alone are upright already. Raises InputError, naming the files, where they do not
    fit.
    """
    header = read_header(image)
    if values.shape == header.size:
        return header.turn(values)
    if values.shape == header.upright:
        return values
    (height, width), (rows, cols) = header.size, values.shape
    raise InputError(
        f"{safe_name(str(path))}: {rows} x {cols} pixels, but its image {safe_name(image.name)} has "
        f"{height} x {width}; image and annotation do not belong together"
    )


def plane(path: Path, modes: Sequence[str]) -> np.ndarray:
    """Return the numbers of a PNG file with one a pixel, (h, w), of Pillow's `modes`.

    Raises InputError, naming the file, where it cannot be read or holds something else.
    """
    shown = safe_name(str(path))
    with _opened(path, ("PNG",)) as image:
        if (pixels := image.size[0] * image.size[1]) > MAX_PIXELS:
            raise InputError(f"{shown}: {pixels:,} pixels; at most {MAX_PIXELS:,} are read")
        if image.mode not in modes:
            bits = "16-bit" if modes == MILLIMETRES else "8-bit"
            raise InputError(f"{shown}: a picture of mode {image.mode}; a PNG of one {bits} number a pixel is needed")
        try:
            values = np.asarray(image)
        except _DAMAGE as error:
            raise InputError(f"{shown}: damaged: {one_line(error)}") from None
    return values // _stretch(path) if image.mode == "L" else values


def _stretch(path: Path) -> int:
    """Return by what Pillow multiplies the numbers of a grey PNG of 2 or 4 bits a pixel; 1 for 8 bits."""
    with open(path, "rb") as file:
        bits = file.read(25)[24]  # after the signature, length, name, width and height of the first chunk
    return 255 // (2**bits - 1) if bits < 8 else 1


def _opened(path: Path, formats: Sequence[str]) -> Image.Image:
    shown = safe_name(str(path))
    if reason := why_not_readable(path):
        raise InputError(f"{shown}: {reason}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of large images, which are settled below
            Image.init()
            image = Image.open(path, formats=[name for name in formats if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        raise InputError(f"{shown}: not a {'PNG' if formats == ('PNG',) else 'picture'} that can be read") from None
    except _DAMAGE as error:
        raise InputError(f"{shown}: {one_line(error)}") from None
    return image
