"""Frozen features: where they are taken, and how they lie on disk, in a .npy file that is read as a memory map."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, OutputError
from vitprobe.recorder import Site

POINTS = ("auto", "final_norm", "resid_post")


def feature_site(backbone: Backbone, block: int, point: str = "auto") -> Site:
    """Return where features are taken: (B, T, D) after the final norm, or the residual stream after a block.

    ``auto``: after the final norm where all tokens pass one and ``block`` is the last, else ``resid_post``. Raises
    `ArgumentError` for a point or a block that the model does not have.
    """
    block, last = backbone.check_block(block), backbone.num_blocks - 1
    if point not in POINTS:
        raise ArgumentError(f"got point {point!r}; allowed are {', '.join(POINTS)}")
    if point == "final_norm" and backbone.final_norm is None:
        raise ArgumentError(
            f"{backbone.spec.name} has no norm that all its tokens pass after the last block; give auto"
        )
    if point == "final_norm" and block != last:
        raise ArgumentError(f"got final_norm of block {block}; it follows block {last} alone; give auto")
    has_norm = backbone.final_norm is not None and block == last
    return Site("final_norm") if has_norm and point != "resid_post" else Site("resid_post", block)


class FeatureFile:
    """Append rows of float32 to a .npy file whose number of rows is known at its end; it is open only meanwhile."""

    def __init__(self, path: Path, width: int) -> None:
        """Begin a file for rows of ``width`` numbers; its folder is made. Raises `OutputError` where it cannot be."""
        self.path, self.num_rows, self._width = path, 0, width
        with self._open("wb") as file:
            self._start = self._head(file)

    @contextmanager
    def _open(self, mode: str) -> Iterator[BinaryIO]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                yield file
        except OSError as error:
            raise OutputError(
                f"cannot write features to {self.path} ({error.strerror}); free the disk, or give another folder"
            ) from error

    def _head(self, file: BinaryIO) -> int:
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.num_rows, self._width)}
        np.lib.format.write_array_header_1_0(file, head)  # it leaves room for the first axis to grow
        return file.tell()

    def add(self, rows: np.ndarray) -> None:
        """Write rows (n, D). Raises `ArgumentError` where they are not finite, `OutputError` where the disk is full."""
        if bad := int((~np.isfinite(rows)).any(axis=1).sum()):
            raise ArgumentError(f"{bad} of {len(rows)} features are not finite; try float32, or check the weights")
        with self._open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype="<f4").data)
        self.num_rows += len(rows)

    def finish(self) -> np.ndarray:
        """Put the number of rows into the head and return all rows: (N, D) float32, a read-only memory map."""
        with self._open("r+b") as file:
            assert self._head(file) == self._start, "the head has outgrown its room"
        mode = "r" if self.num_rows else None  # a map of nothing cannot be made
        return np.load(self.path, mmap_mode=mode, allow_pickle=False)
