"""Stream training batches: the same bits after a resume, by any number of workers, in one process or several."""

import io
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitprobe.errors import ArgumentError, InputError, VitprobeError
from vitprobe.inputs import stream as streams
from vitprobe.inputs import workers as processes
from vitprobe.inputs.augment import multi_crop_transform
from vitprobe.inputs.images import Decoded
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.stream import ItemStream, TrainBatch


@dataclass(frozen=True)
class Square:
    """Stand for an image made on the spot: 16 x 16 px of one grey, or as told."""

    grey: int
    reason: str = ""
    side: int = 16

    @property
    def name(self) -> str:
        return f"square {self.grey}"

    def read(self) -> Decoded:
        if self.reason:
            raise InputError(self.reason)
        return Decoded(Image.new("RGB", (self.side, self.side), (self.grey,) * 3), (), "")


def squares(count: int, bad: tuple[int, ...] = ()) -> Labelled:
    items = [Square(grey, reason="bad luck" if grey in bad else "") for grey in range(count)]
    labels = np.arange(count) % 3
    return Labelled("squares", items, labels, ("a", "b", "c"), [f"grey {grey}" for grey in range(count)], ())


def noisy(image: Image.Image) -> Tensor:
    """Give (3, 4, 5): the grey, and beside it a draw from each of the three generators."""
    grey = image.getpixel((0, 0))[0]
    draws = torch.tensor([grey, random.random(), np.random.rand(), torch.rand(1), torch.randn(1)])
    return draws.expand(3, 4, 5)


def refuses_grey_3(image: Image.Image) -> Tensor:
    if image.getpixel((0, 0))[0] == 3:
        raise ValueError("this one\nI do not like")
    return noisy(image)


def kills_its_worker(image: Image.Image) -> Tensor:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return noisy(image)


def stream(labelled: Labelled, transform=noisy, **options) -> ItemStream:
    return ItemStream(labelled, transform, **{"batch_size": 6, "seed": 0, "workers": 0, **options})


def greys(batches: list[TrainBatch]) -> list[int]:
    return [round(float(view[0, 0, 0])) for batch in batches for view in batch.views[0]]


def same(one: TrainBatch, other: TrainBatch) -> bool:
    """Whether two batches hold the same bits."""
    views = len(one.views) == len(other.views) and all(map(torch.equal, one.views, other.views))
    return views and torch.equal(one.indices, other.indices) and one.captions == other.captions


def test_a_batch_holds_what_is_known_of_its_images() -> None:
    batch = next(stream(squares(10)).batches(0, 1))
    assert (batch.views[0].shape, batch.views[0].dtype) == ((6, 3, 4, 5), torch.float32)
    indices = batch.indices.tolist()
    assert greys([batch]) == indices
    assert batch.labels.tolist() == [index % 3 for index in indices]
    assert batch.captions == tuple(f"grey {index}" for index in indices)
    assert dict(batch.truth) == {}
    moved = batch.to("cpu")
    assert same(moved, batch) and torch.equal(moved.labels, batch.labels)
    bare = next(stream(Labelled("bare", squares(4).items, None, (), None, ())).batches(0, 1))
    assert (bare.labels, bare.captions) == (None, None)


def test_each_epoch_takes_each_image_once_in_an_order_of_its_own() -> None:
    found = greys(list(stream(squares(20), batch_size=8).batches(0, 10)))  # 4 epochs of 20
    epochs = [found[at : at + 20] for at in range(0, 80, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 4
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(20))}) == 5
    assert found != greys(list(stream(squares(20), batch_size=8, seed=1).batches(0, 10)))


def test_a_resumed_run_goes_on_to_the_last_bit_whatever_the_workers() -> None:
    whole = list(stream(squares(20)).batches(0, 9))
    assert len(whole) == 9
    for first, workers in ((4, 0), (0, 2), (5, 2), (2, 3)):
        rest = list(stream(squares(20), workers=workers).batches(first, 9))
        assert len(rest) == 9 - first
        assert all(map(same, rest, whole[first:])), (first, workers)
    draws = torch.cat([batch.views[0][:, 0, 0, 1:] for batch in whole])  # (54, 4): no two positions alike
    assert all(len(column.unique()) == 54 for column in draws.T)
    assert not same(next(stream(squares(20), seed=1).batches(0, 1)), whole[0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world: int) -> None:
    whole = list(stream(squares(20)).batches(0, 4))
    parts = [list(stream(squares(20), rank=rank, world=world).batches(0, 4)) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share.views[0] for share in shares]), batch.views[0])
        assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_larger_than_what_a_worker_hands_over(workers: int) -> None:
    big = list(stream(squares(90), batch_size=75, workers=workers).batches(0, 2))
    small = list(stream(squares(90), batch_size=1).batches(0, 150))
    assert [len(batch.indices) for batch in big] == [75, 75]
    assert torch.equal(torch.cat([b.views[0] for b in big]), torch.cat([b.views[0] for b in small]))


def test_where_nothing_can_be_inherited_pipes_carry_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = list(stream(squares(90), batch_size=75, workers=2).batches(0, 2))
    monkeypatch.setattr(streams, "can_inherit", lambda: False)
    piped = list(stream(squares(90), batch_size=75, workers=2).batches(0, 2))
    assert all(map(same, shared, piped))


def test_what_workers_give_stays_as_it_was() -> None:
    """A batch is the caller's own: later batches use the same slots, and must not write into it."""
    kept, later = [], stream(squares(90), batch_size=40, workers=2)
    for batch in later.batches(0, 12):
        kept.append((batch.views[0], batch.views[0].clone()))
    assert all(torch.equal(one, copy) for one, copy in kept)


def test_outer_generators_are_left_alone() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    list(stream(squares(20)).batches(0, 3))
    list(stream(squares(20), workers=2).batches(0, 3))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_once_and_the_next_takes_their_place(workers: int) -> None:
    whole = stream(squares(20, bad=()), batch_size=5)
    order = greys(list(whole.batches(0, 9)))
    bad = (order[3], order[4])
    broken = stream(squares(20, bad=bad), batch_size=5, workers=workers)
    found = list(broken.batches(0, 8))
    expected = [next(grey for grey in order[at:] if grey not in bad) for at in range(40)]
    assert greys(found) == expected
    assert [index for batch in found for index in batch.indices.tolist()] == expected
    assert found[0].labels.tolist() == [grey % 3 for grey in expected[:5]]
    assert broken.skipped == [(f"square {grey}", "bad luck") for grey in bad]
    draws = [torch.cat([batch.views[0][:, 0, 0, 1:] for batch in batches]) for batches in (found, whole.batches(0, 8))]
    assert torch.equal(*draws)  # each is augmented as its own position is


def test_an_image_that_the_transform_refuses_is_replaced() -> None:
    one = stream(squares(20), refuses_grey_3)
    assert 3 not in greys(list(one.batches(0, 4)))
    assert one.skipped == [("square 3", "the transform failed: ValueError: this one I do not like")]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_the_run(workers: int) -> None:
    list(stream(squares(20, bad=(1, 2)), workers=workers).batches(0, 10))  # a tenth
    with pytest.raises(InputError, match=r"^3 of the 20 images of squares .* such as square \d: bad luck; at most 10%"):
        list(stream(squares(20, bad=(1, 2, 3)), workers=workers).batches(0, 10))
    with pytest.raises(InputError, match=r"25 of the 1,000 .* 20 of them in a row"):  # long before a tenth is met
        list(stream(squares(1000, bad=tuple(range(1000))), workers=workers).batches(0, 1))


def archive(folder: Path, kind: str) -> Path:
    """Write 12 images as files, in a Parquet file or in a tar shard; returns what will go."""
    images = []
    for red in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (red, 0, 0)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    if kind == "parquet":
        pq.write_table(pa.table({"image": images}), folder / "a.parquet", row_group_size=5)
        return folder / "a.parquet"
    with tarfile.open(folder / "a.tar", "w") if kind == "tar" else io.BytesIO() as shard:
        for red, data in enumerate(images):
            if kind == "tar":
                info = tarfile.TarInfo(f"{red}.png")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
            else:
                (folder / f"{red}.png").write_bytes(data)
    return folder / ("a.tar" if kind == "tar" else "7.png")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["files", "parquet", "tar"])
def test_a_vanished_file_ends_the_run(tmp_path: Path, kind: str, workers: int) -> None:
    path = archive(tmp_path, kind)
    found = open_labelled([str(tmp_path)], need="nothing")
    reds = greys(list(stream(found, workers=workers).batches(0, 4)))
    assert Counter(reds) == dict.fromkeys(range(12), 2)
    shutil.move(path, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"^{path}.*: gone since the images were listed; put it back"):
        list(stream(found, workers=workers).batches(0, 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_of_the_wrong_kind_are_refused(workers: int) -> None:
    for transform, says in (
        (lambda image: torch.zeros(1, 4, 4), r"^the transform gave \(1, 4, 4\); a tensor of shape \(3, H, W\)"),
        (lambda image: (torch.zeros(3, 4, 4), 1), "^the transform gave int; a tensor"),
        (lambda image: 5, "^the transform gave int; a tensor .* or a tuple"),
        (lambda image: torch.zeros(3, 4, 4 + image.getpixel((0, 0))[0] % 2), r"\(3, 4, 4\) .* \(3, 4, 5\); one size"),
    ):
        with pytest.raises(ArgumentError, match=says):
            list(stream(squares(20), transform, workers=workers).batches(0, 2))
    mixed = Labelled("mixed", [Square(n, side=8 + 8 * (n < 40)) for n in range(80)], None, (), None, ())
    with pytest.raises(ArgumentError, match="one size is needed"):  # also where each worker meets one size alone
        own = stream(mixed, lambda image: torch.zeros(3, *image.size), batch_size=64, workers=workers)
        list(own.batches(0, 1))


def test_multi_crop_gives_several_views() -> None:
    crops = multi_crop_transform(16, 8, 3, (0.4, 1.0), (0.1, 0.4), (0.5,) * 3, (0.2,) * 3)
    alone, helped = (list(stream(squares(20), crops, workers=workers).batches(1, 3)) for workers in (0, 2))
    assert [tuple(view.shape) for view in alone[0].views] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 3
    assert all(map(same, alone, helped))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 7, "world": 2}, "batch size of 7 for 2 processes; give a multiple of 2"),
        ({"batch_size": 0}, "batch size of 0"),
        ({"world": 2, "rank": 2}, "process 2 of 2; give 0 to 1"),
        ({"seed": -1}, "seed -1"),
        ({"workers": -1}, "-1 workers"),
    ],
)
def test_arguments_are_checked(options: dict[str, int], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        stream(squares(4), **options)
    with pytest.raises(ArgumentError, match="no image in squares"):
        stream(squares(0))
    with pytest.raises(ArgumentError, match="batches 3 to 2"):
        stream(squares(4)).batches(3, 2)
    assert list(stream(squares(4)).batches(2, 2)) == []


def test_number_of_workers_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _pid: range(12), raising=False)
    assert stream(squares(63), workers=None).workers == 0
    assert stream(squares(64), workers=None).workers == 11
    assert stream(squares(64), workers=None, world=2, rank=1).workers == 5


@pytest.fixture
def no_children() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_children")
def test_killed_worker_is_an_error_and_no_hang() -> None:
    began = time.monotonic()
    with pytest.raises(VitprobeError, match=r"was killed.*fewer workers"):
        list(stream(squares(20), kills_its_worker, workers=2).batches(0, 3))
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("no_children")
def test_iteration_that_is_given_up_leaves_no_process() -> None:
    batches = stream(squares(20), workers=2).batches(0, 1000)
    next(batches)
    batches.close()
