"""Turn the bytes of one image file into 8-bit RGB, or say in one line why that cannot be done.

This file is the shared ground of `vitprobe.inputs`: what an item is, what decoding gives, how a name is made printable.
"""

import errno
import hashlib
import io
import os
import re
import stat
import struct
import unicodedata
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from vitprobe.errors import ArgumentError, InputError

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused, but for JPEGs that can be decoded at a half, a quarter or an eighth."""
MAX_DRAFT_PIXELS = 10 * MAX_PIXELS
"""Pixels of the largest JPEG that is decoded at a reduced size."""
MAX_BYTES = 2**30
"""Bytes of the largest file that is read into memory."""
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".jp2", ".avif",
})  # fmt: skip
"""File name suffixes, in lower case, that a folder or an archive is searched for."""
FORMATS = ("PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "JPEG2000", "AVIF")
"""Pillow's names of what is tried besides JPEG: no format that runs a program (EPS) or has no signature (TGA)."""

NOTE_ALPHA = "alpha composited over white"
NOTE_ANIMATION = "first frame of an animation"
NOTE_PAGES = "first page of several"
NOTE_16_BIT = "16-bit values scaled by their range"
NOTE_MIN_MAX = "values scaled from their minimum and maximum"
NOTE_CMYK = "CMYK converted without its colour profile"
NOTE_EXIF = "unreadable EXIF ignored"
NOTE_DRAFT = "JPEG read at reduced size"
NOTE_CROPPED = "extreme aspect cropped to the middle"

_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    EOFError, RuntimeError, BufferError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises on damaged data; its plug-ins hold no common class."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that sets the image upright."""


@dataclass(frozen=True)
class Decoded:
    """Hold one image as the transforms of a model expect it."""

    image: Image.Image
    """Mode RGB, 8 bits a channel, upright."""
    notes: tuple[str, ...]
    """What was done to it, in phrases that are the same for every image, so that they can be counted."""
    digest: str
    """SHA-256 of the file's bytes, in hexadecimal."""


class Item(Protocol):
    """Name one image and read it; items are picklable, so that worker processes can read them."""

    @property
    def name(self) -> str:
        """Return a printable name that tells the user which image this is."""

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""


def safe_name(name: str) -> str:
    """Return `name` on one printable line: control characters and undecodable bytes are written with backslashes."""
    if name.isprintable():
        return name
    keep = (char.isprintable() or unicodedata.category(char) == "Zs" for char in name)
    return "".join(
        char if kept else char.encode("unicode_escape").decode() for char, kept in zip(name, keep, strict=True)
    )


def decode(data: bytes | Path) -> Decoded:
    """Return the image that `data` holds, upright, in 8-bit RGB; the content decides, not the file's name.

    Only the first frame or page is read, alpha is composited over white, 16-bit values are scaled by their range; each
    such step is noted. Raises InputError with a short reason that does not name the file.
    """
    raw = _contents(data) if isinstance(data, Path) else data
    if not raw:
        raise InputError("empty file")
    _refuse_large(len(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of large images; both are settled here
        try:
            image, notes = _decode(raw)
        except InputError:
            raise
        except MemoryError:
            raise InputError("needs more memory than there is") from None
        except Image.DecompressionBombError as error:
            raise InputError(_too_many_pixels(error)) from None
        except _DAMAGE as error:
            raise InputError(_damage(error)) from None
    return Decoded(image=image, notes=notes, digest=hashlib.sha256(raw).hexdigest())


def bounded(decoded: Decoded, limit: int = 8) -> Decoded:
    """Return `decoded` with its long side cropped, around the middle, to at most `limit` times its short side.

    This bounds the work of transforms that resize the short side: 2000 x 1 px would become 1,036,000 x 518 px. An image
    within the limit is returned untouched. Raises ArgumentError for a limit below 1.
    """
    if limit < 1:
        raise ArgumentError(f"limit of the aspect: {limit}; give 1 or more")
    width, height = decoded.image.size
    keep_width, keep_height = min(width, limit * height), min(height, limit * width)
    if (keep_width, keep_height) == (width, height):
        return decoded
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    cropped = decoded.image.crop((left, top, left + keep_width, top + keep_height))
    return replace(decoded, image=cropped, notes=(*decoded.notes, NOTE_CROPPED))


def why_not_readable(path: Path | str) -> str | None:
    """Return why `path` cannot be opened as a file, or None where it can: pipes and devices would hang a reader."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return os_reason(error, path)
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    return f"{kind}, not a file"


def os_reason(error: OSError | ValueError, path: Path | str) -> str:
    """Return a short reason for `error`, which came of opening `path`; the path is not in it."""
    if isinstance(error, FileNotFoundError):
        return "broken link" if os.path.islink(path) else "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read"
    if isinstance(error, OSError):
        return "a loop of links" if error.errno == errno.ELOOP else (error.strerror or type(error).__name__).lower()
    return "a name that no file can have"


def _contents(path: Path) -> bytes:
    reason = why_not_readable(path)
    if reason is not None:
        raise InputError(reason)
    try:
        with open(path, "rb") as file:
            _refuse_large(os.fstat(file.fileno()).st_size)
            return file.read()
    except OSError as error:
        raise InputError(os_reason(error, path)) from None


def _refuse_large(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise InputError(f"{num_bytes:,} bytes; at most {MAX_BYTES:,} are read")


def _decode(raw: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    notes: list[str] = []
    with _opened(raw) as image:
        _limit_pixels(image, notes)
        image.load()
        rgb = _upright(_rgb(image, notes), image, notes)
        if _has_more(image):
            notes.append(NOTE_PAGES if image.format == "TIFF" else NOTE_ANIMATION)
    return rgb, tuple(notes)


def _opened(raw: bytes) -> Image.Image:
    if raw.startswith(b"\xff\xd8\xff"):
        # Not through Image.open: it refuses large JPEGs, which can be decoded at a reduced size.
        return JpegImagePlugin.JpegImageFile(io.BytesIO(raw))
    if raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8X":  # Pillow's opener makes room for the whole canvas
        width, height = (1 + int.from_bytes(raw[at : at + 3], "little") for at in (24, 27))
        _refuse_pixels(width * height)
    Image.init()
    try:
        return Image.open(io.BytesIO(raw), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        raise InputError(f"not an image that can be read (first bytes {raw[:12]!r})") from None


def _limit_pixels(image: Image.Image, notes: list[str]) -> None:
    width, height = image.size
    pixels = width * height
    if not pixels:
        raise InputError("an image without pixels")
    if pixels <= MAX_PIXELS:
        return
    # A progressive JPEG keeps all its coefficients in memory whatever size it is decoded at.
    if image.format == "JPEG" and not image.info.get("progressive") and pixels <= MAX_DRAFT_PIXELS:
        scale = next(s for s in (2, 4, 8) if pixels <= 0.99 * MAX_PIXELS * s * s)  # sides are rounded up
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
    if image.size[0] * image.size[1] > MAX_PIXELS:
        _refuse_pixels(pixels)
    notes.append(NOTE_DRAFT)


def _refuse_pixels(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise InputError(f"{pixels:,} pixels; at most {MAX_PIXELS:,} are read")


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return a copy in 8-bit RGB, whatever the mode."""
    if image.mode[0] in "IF":
        return _from_wide(image, notes)
    if image.mode == "CMYK":
        notes.append(NOTE_CMYK)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getextrema()[3][0] < 255:  # an alpha channel that hides nothing is not worth a note
        notes.append(NOTE_ALPHA)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_wide(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale grey values of more than 8 bits to 0..255: 16-bit ones by their range, wider ones by what they hold."""
    values = np.asarray(image)  # (rows, cols)
    if image.mode.startswith("I") and values.min() >= 0 and values.max() <= 65535:  # older Pillow: 16-bit PNG is "I"
        notes.append(NOTE_16_BIT)
        grey = (values.astype(np.uint32) + 128) // 257  # 65535 -> 255
    else:
        notes.append(NOTE_MIN_MAX)
        values = values.astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        grey = np.rint((values - low) * (255.0 / (high - low) if high > low else 0.0))
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _upright(rgb: Image.Image, image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn `rgb` as the EXIF data of `image`, already loaded, ask (Pillow turns TIFF by itself when it loads)."""
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        notes.append(NOTE_EXIF)
        return rgb
    return rgb if method is None else rgb.transpose(method)


def _has_more(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DAMAGE:
        return True  # there is something after the first frame, though it is damaged


def _too_many_pixels(error: Image.DecompressionBombError) -> str:
    found = re.search(r"(\d+) pixels", str(error))
    return f"{int(found[1]):,} pixels; at most {MAX_PIXELS:,} are read" if found else "too many pixels"


def _damage(error: Exception) -> str:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return f"{'truncated' if 'truncated' in text.lower() else 'damaged'}: {text}"
