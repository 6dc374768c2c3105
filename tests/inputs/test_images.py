"""Decode images of every kind that Pillow can write, and files that are not images."""

import hashlib
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs import images
from vitprobe.inputs.images import bounded, decode, safe_name

WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def colours() -> Image.Image:
    """Return 48 x 32 px in four flat quarters that are told apart in every orientation, even as a JPEG."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:] = (200, 30, 30), (30, 200, 30)
    pixels[16:, :24], pixels[16:, 24:] = (30, 30, 200), (220, 220, 40)
    return Image.fromarray(pixels)


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size, with a valid header and hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


UPRIGHT_TO_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how a camera that was held so stores an upright scene."""


@pytest.mark.parametrize("orientation", UPRIGHT_TO_STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_sets_an_image_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = UPRIGHT_TO_STORED[orientation]
    stored = colours() if method is None else colours().transpose(method)
    got = decode(encoded(stored, kind, exif=exif)).image
    assert got.size == (48, 32)
    assert np.abs(array(got) - array(colours())).mean() < 8


def test_broken_exif_does_not_cost_the_image() -> None:
    decoded = decode(encoded(colours(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    assert decoded.image.size == (48, 32)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB"])
def test_modes_without_alpha_match_pillow(mode: str) -> None:
    image = noise(mode)
    decoded = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert decoded.image.mode == "RGB"
    assert np.array_equal(array(decoded.image), array(image.convert("RGB")))
    assert decoded.notes == ((images.NOTE_CMYK,) if mode == "CMYK" else ())


def test_cmyk_jpeg_has_its_colours_and_is_not_inverted() -> None:
    decoded = decode(encoded(colours().convert("CMYK"), "JPEG", quality=95))
    assert decoded.notes == (images.NOTE_CMYK,)
    assert np.abs(array(decoded.image) - array(colours())).mean() < 8


def test_palette_with_transparency_shows_white() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    decoded = decode(encoded(image, transparency=0))
    assert decoded.notes == (images.NOTE_ALPHA,)
    assert decoded.image.getpixel((0, 0)) == WHITE
    assert decoded.image.getpixel((1, 0)) == (200, 100, 50)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(mode: str) -> None:
    image = Image.new(mode, (3, 1), 0)
    dark = (0, 0, 0) if mode == "RGBA" else (0,)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*dark, alpha))
    decoded = decode(encoded(image))
    values = [decoded.image.getpixel((x, 0)) for x in range(3)]
    assert values[0] == WHITE
    assert values[1][0] == pytest.approx(127, abs=1)
    assert values[2] == (0, 0, 0)
    assert decoded.notes == (images.NOTE_ALPHA,)


def test_opaque_alpha_is_no_note() -> None:
    decoded = decode(encoded(colours().convert("RGBA")))
    assert decoded.notes == ()
    assert np.array_equal(array(decoded.image), array(colours()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_by_its_range(kind: str) -> None:
    values = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    by_hand = b"P5 5 1 65535 " + values.astype(">u2").tobytes()  # older Pillow writes no 16-bit PPM
    decoded = decode(by_hand if kind == "PPM" else encoded(Image.fromarray(values), kind))
    assert array(decoded.image)[0, :, 0].tolist() == [0, 1, 4, 128, 255]
    assert decoded.notes == (images.NOTE_16_BIT,)


def test_16_bit_big_endian_and_dark_images_are_not_stretched() -> None:
    big_endian = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 2570, 25700))
    assert array(decode(encoded(big_endian, "TIFF")).image)[0, :, 0].tolist() == [10, 100]


def test_16_bit_data_in_mode_i_as_older_pillow_opens_it() -> None:
    notes: list[str] = []
    got = images._rgb(Image.fromarray(np.array([[0, 25700, 65535]], np.int32)), notes)
    assert array(got)[0, :, 0].tolist() == [0, 100, 255]
    assert notes == [images.NOTE_16_BIT]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-1.0, 0.0, 1.0, np.nan, np.inf]], np.float32), [0, 128, 255, 0, 255]),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
        (np.array([[7.0, 7.0]], np.float32), [0, 0]),
    ],
)
def test_wide_values_are_scaled_by_their_extremes(values: np.ndarray, expected: list[int]) -> None:
    decoded = decode(encoded(Image.fromarray(values), "TIFF"))
    assert array(decoded.image)[0, :, 0].tolist() == expected
    assert decoded.notes == (images.NOTE_MIN_MAX,)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_is_read_and_noted(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert decoded.image.getpixel((4, 4)) == (255, 0, 0)
    assert decoded.notes == ((images.NOTE_PAGES if kind == "TIFF" else images.NOTE_ANIMATION),)


def test_tiny_and_extreme_images() -> None:
    one = decode(encoded(Image.new("RGB", (1, 1), "red")))
    assert bounded(one) is one
    line = np.zeros((1, 2000, 3), np.uint8)
    line[0, :, 0] = np.arange(2000) // 8
    wide = decode(encoded(Image.fromarray(line)))
    assert wide.image.size == (2000, 1)
    for image, size in ((wide.image, (8, 1)), (wide.image.transpose(Image.Transpose.ROTATE_90), (1, 8))):
        cropped = bounded(images.Decoded(image=image, notes=("x",), digest=wide.digest))
        assert cropped.image.size == size
        assert cropped.notes == ("x", images.NOTE_CROPPED)
        assert {int(value) for value in array(cropped.image)[..., 0].flat} <= {124, 125}  # the middle
    assert bounded(wide, 2000) is wide
    with pytest.raises(ArgumentError, match="give 1 or more"):
        bounded(wide, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_truncated_files_are_refused(kind: str, keep: float) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(InputError, match=r"truncated|damaged|not an image"):
        decode(data[: int(len(data) * keep)])
    assert decode(data).image.size == (64, 48)


def test_truncated_jpeg_says_so() -> None:
    data = encoded(noise(), "JPEG")
    with pytest.raises(InputError, match=r"^truncated: "):
        decode(data[: len(data) // 2])


def test_damaged_files_are_refused_in_one_line() -> None:
    """Overwrite and cut files of all kinds at random: an image or an InputError, never anything else."""
    rng = np.random.default_rng(1)
    files = [encoded(noise(size=(20, 15)), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "ICO")]
    num_refused = 0
    for round_ in range(300):
        data = bytearray(files[round_ % len(files)])
        for at in rng.integers(0, min(len(data), 200), 4):
            data[at] = rng.integers(0, 256)
        try:
            decode(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
        except InputError as error:
            num_refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 200
    assert num_refused > 50


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(colours(), "JPEG"))
    assert decode(path).image.size == (48, 32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^empty file$"),
        (b"hello, this is text", r"^not an image that can be read \(first bytes b'hello, this '\)$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
    ],
)
def test_other_content_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        decode(data)


@pytest.mark.parametrize(("side", "pixels"), [(20_000, "400,000,000"), (12_000, "144,000,000")])
def test_decompression_bombs_are_refused(side: int, pixels: str) -> None:
    data = png_header(side, side)
    assert len(data) < 200
    with pytest.raises(InputError, match=f"^{pixels} pixels; at most 100,000,000 are read$"):
        decode(data)


def test_webp_that_claims_a_huge_canvas_is_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0" + b"\2\0\0\0" + (15_999).to_bytes(3, "little") * 2 + bytes(8)
    monkeypatch.setattr(Image, "open", lambda *_a, **_k: pytest.fail("opened"))
    with pytest.raises(InputError, match="256,000,000 pixels"):
        decode(data)


def test_large_jpegs_are_read_at_reduced_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(colours().resize((480, 320)), "JPEG")
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", 40_000)
    monkeypatch.setattr(images, "MAX_DRAFT_PIXELS", 400_000)
    decoded = decode(data)
    assert decoded.image.size == (240, 160)
    assert decoded.notes == (images.NOTE_DRAFT,)
    assert np.abs(array(decoded.image.resize((48, 32))) - array(colours())).mean() < 12
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="153,600 pixels; at most 40,000"):
        decode(encoded(colours().resize((480, 320)), "JPEG", progressive=True))
    with pytest.raises(InputError, match="153,600 pixels; at most 40,000"):
        decode(encoded(colours().resize((480, 320)), "PNG"))
    monkeypatch.setattr(images, "MAX_DRAFT_PIXELS", 100_000)
    with pytest.raises(InputError, match="153,600 pixels; at most 40,000"):
        decode(data)


def test_jpeg_beyond_pillows_own_limit_is_read() -> None:
    data = encoded(Image.new("L", (14_000, 14_000), 90), "JPEG")
    decoded = decode(data)
    assert decoded.image.size == (7_000, 7_000)
    assert decoded.image.getpixel((3_000, 3_000)) == (90, 90, 90)


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise()))
    for data in (path, path.read_bytes()):
        with pytest.raises(InputError, match="bytes; at most 100 are read"):
            decode(data)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    expected = {
        tmp_path / "pipe.jpg": "a pipe, not a file",
        tmp_path: "a folder, not a file",
        Path("/dev/zero"): "a device, not a file",
        tmp_path / "broken.jpg": "broken link",
        tmp_path / "loop.jpg": "a loop of links",
        tmp_path / "none.jpg": "no such file",
        Path("nul\0.jpg"): "a name that no file can have",
        tmp_path / ("x" * 300): "file name too long",
    }
    for path, reason in expected.items():
        with pytest.raises(InputError) as caught:
            decode(path)
        assert str(caught.value) == reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(colours()))
    path.chmod(0)
    with pytest.raises(InputError, match=r"^no permission to read$"):
        decode(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
@pytest.mark.parametrize("name", [b"a b.png", b"new\nline.png", b"-dash.png", b"\xff\xfe.png", "é☃.png".encode()])
def test_odd_file_names_are_read(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(encoded(colours()))
    assert decode(path).image.size == (48, 32)
    shown = safe_name(path.name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_safe_name_keeps_what_can_be_printed() -> None:
    assert safe_name("é☃ a/b.png") == "é☃ a/b.png"
    assert safe_name("new\nline\udcff\u202f.png") == "new\\nline\\udcff\u202f.png"


def test_digest_is_of_the_bytes() -> None:
    data = encoded(colours())
    assert decode(data).digest == hashlib.sha256(data).hexdigest()
    assert decode(data).digest != decode(encoded(colours(), "BMP")).digest
