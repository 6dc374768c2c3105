"""Load batches with and without worker processes: same order, bad images named once, nothing left behind."""

import hashlib
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitprobe.errors import ArgumentError, InputError, VitprobeError
from vitprobe.inputs import images, loading
from vitprobe.inputs.images import Decoded, decode
from vitprobe.inputs.loading import ImageBatch, ImageLoader


@dataclass(frozen=True)
class Square:
    """Stand for an image made on the spot: 16 x 16 px of one grey, or as told."""

    grey: int
    size: tuple[int, int] = (16, 16)
    mode: str = "RGB"
    reason: str = ""

    @property
    def name(self) -> str:
        return f"square {self.grey}"

    def read(self) -> Decoded:
        if self.reason:
            raise InputError(self.reason)
        stream = io.BytesIO()
        Image.new("RGB", self.size, (self.grey,) * 3).convert(self.mode).save(stream, "PNG")
        return decode(stream.getvalue())


def to_tensor(image: Image.Image) -> Tensor:
    """Return (3, 8, 8) in 0..1."""
    pixels = np.array(image.resize((8, 8)), np.float32) / 255  # (8, 8, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def refuses_42(image: Image.Image) -> Tensor:
    if image.getpixel((0, 0))[0] == 42:
        raise ValueError("this one\nI do not like")
    return to_tensor(image)


def kills_its_process(image: Image.Image) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return to_tensor(image)


def squares(count: int, bad: tuple[int, ...] = ()) -> list[Square]:
    return [Square(grey, reason="damaged: bad luck" if grey in bad else "") for grey in range(count)]


def greys(batches: list[ImageBatch]) -> list[int]:
    return [round(float(image[0, 0, 0]) * 255) for batch in batches for image in batch.images]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_source_order(workers: int) -> None:
    items = squares(11)
    batches = list(ImageLoader(items, to_tensor, batch_size=4, workers=workers))
    assert [len(batch.names) for batch in batches] == [4, 4, 3]
    assert greys(batches) == list(range(11))
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (len(batch.names), 3, 8, 8)
        assert batch.names == tuple(items[index].name for index in batch.indices)
        assert batch.digests == tuple(items[index].read().digest for index in batch.indices)


def test_workers_change_nothing() -> None:
    items = squares(13, bad=(5,))
    loaders = [ImageLoader(items, to_tensor, batch_size=3, workers=workers) for workers in (0, 2)]
    alone, helped = (list(loader) for loader in loaders)
    assert len(alone) == len(helped)
    for one, other in zip(alone, helped, strict=True):
        assert (one.names, one.digests, one.indices) == (other.names, other.digests, other.indices)
        assert torch.equal(one.images, other.images)
    assert loaders[0].digest() == loaders[1].digest()
    assert loaders[0].skipped == loaders[1].skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_once_and_batches_never_empty(workers: int) -> None:
    loader = ImageLoader(squares(12, bad=(1, 4, 5, 6, 7)), to_tensor, batch_size=4, workers=workers)
    for _ in range(2):  # the counts start again
        batches = list(loader)
        assert [batch.indices for batch in batches] == [(0, 2, 3), (8, 9, 10, 11)]
        assert loader.skipped == [(f"square {grey}", "damaged: bad luck") for grey in (1, 4, 5, 6, 7)]
        assert loader.num_read == 7


def test_all_bad_gives_no_batch() -> None:
    loader = ImageLoader(squares(3, bad=(0, 1, 2)), to_tensor)
    assert list(loader) == []
    assert (loader.num_read, len(loader.skipped)) == (0, 3)
    assert list(ImageLoader([], to_tensor)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_notes_are_counted_over_what_was_read(workers: int) -> None:
    items = [Square(1, size=(40, 2)), Square(2), Square(3, size=(2, 40)), Square(4, mode="L"), Square(5, reason="no")]
    loader = ImageLoader(items, to_tensor, workers=workers)
    list(loader)
    assert loader.notes == {images.NOTE_CROPPED: 2}
    loader = ImageLoader(items, to_tensor, workers=workers, bound=20)
    list(loader)
    assert loader.notes == {}


def test_digest_is_of_the_images_in_order() -> None:
    items = squares(5, bad=(2,))
    loader = ImageLoader(items, to_tensor, batch_size=2)
    list(loader)
    digests = [item.read().digest for item in items if not item.reason]
    assert loader.digest() == hashlib.sha256("".join(digests).encode()).hexdigest()
    running = [loader.digest() for _ in loader]
    assert running[0] != running[1] != running[2] == loader.digest()
    backwards = ImageLoader(items[::-1], to_tensor)
    list(backwards)
    assert backwards.digest() != loader.digest()


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_the_transform_refuses_is_skipped(workers: int) -> None:
    loader = ImageLoader(squares(50)[40:45], refuses_42, workers=workers)
    assert greys(list(loader)) == [40, 41, 43, 44]
    assert loader.skipped == [("square 42", "the transform failed: ValueError: this one I do not like")]


def _flat(image: Image.Image) -> Tensor:
    return torch.zeros(1, image.height, image.width)


def _own_size(image: Image.Image) -> Tensor:
    return torch.zeros(3, image.height, image.width)


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_of_the_wrong_kind_are_refused(workers: int) -> None:
    with pytest.raises(ArgumentError, match=r"^the transform gave \(1, 16, 16\); a tensor of shape \(3, H, W\)"):
        list(ImageLoader(squares(3), _flat, workers=workers))
    items = [Square(1), Square(2, size=(8, 8))]
    with pytest.raises(ArgumentError, match=r"sizes \(3, 8, 8\) and \(3, 16, 16\)"):
        list(ImageLoader(items, _own_size, workers=workers))
    assert len(list(ImageLoader(items, _own_size, workers=workers, batch_size=1))) == 2


def test_arguments_are_checked() -> None:
    for name, options in (("batch size", {"batch_size": 0}), ("bound", {"bound": 0}), ("workers", {"workers": -1})):
        with pytest.raises(ArgumentError, match=f"^{name} of "):
            ImageLoader(squares(1), to_tensor, **options)


def test_number_of_workers_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(6), raising=False)
    assert ImageLoader(squares(63), to_tensor).workers == 0
    assert ImageLoader(squares(64), to_tensor).workers == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(64))
    assert ImageLoader(squares(64), to_tensor).workers == loading.MAX_WORKERS
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(1))
    assert ImageLoader(squares(64), to_tensor).workers == 1
    assert ImageLoader(squares(2), to_tensor, workers=9).workers == 2


def test_more_workers_than_cores_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(1), raising=False)
    assert greys(list(ImageLoader(squares(4), to_tensor, workers=2, batch_size=2))) == [0, 1, 2, 3]


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(ImageLoader(squares(3), to_tensor))
    assert torch.equal(torch.rand(3), expected)


def test_iteration_that_is_given_up_leaves_no_process() -> None:
    loader = ImageLoader(squares(40), to_tensor, batch_size=2, workers=2)
    batches = iter(loader)
    assert greys([next(batches)]) == [0, 1]
    batches.close()
    assert multiprocessing.active_children() == []
    assert greys(list(loader)) == list(range(40))


def test_killed_worker_is_an_error_and_no_hang() -> None:
    began = time.monotonic()
    with pytest.raises(VitprobeError, match=r"was killed.*fewer workers"):
        list(ImageLoader(squares(4), kills_its_process, workers=2, batch_size=1))
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []


def _interrupts_itself(image: Image.Image) -> Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return to_tensor(image)


@pytest.fixture
def heeded_interrupt() -> Iterator[None]:
    """A shell starts what it runs in the background deaf to Ctrl-C: listen again, whoever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks on this system")
@pytest.mark.usefixtures("heeded_interrupt")
def test_ctrl_c_reaches_the_main_process_alone() -> None:
    """A terminal sends it to every process: workers must not write their own stack traces."""
    assert greys(list(ImageLoader(squares(4), _interrupts_itself, workers=2))) == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        for _ in ImageLoader(squares(4), to_tensor, workers=2, batch_size=1):
            os.kill(os.getpid(), signal.SIGINT)
    assert multiprocessing.active_children() == []


def test_files_of_many_kinds_by_workers(tmp_path: Path) -> None:
    """Read through the real items, started afresh in each worker, with one bad file among them."""
    from vitprobe.inputs.sources import open_inputs

    for number in range(6):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    source = open_inputs([str(tmp_path)])
    loader = ImageLoader(source.items, to_tensor, workers=2, batch_size=2)
    assert greys(list(loader)) == [0, 1, 2, 4, 5]
    assert loader.skipped == [
        (f"{tmp_path}/3.png", "not an image that can be read (first bytes b'version http')"),
    ]
