"""What table 2 a leaves open of dense linear probes, and what is said of the choices."""

from dataclasses import dataclass

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.probes.dense_sample import PIXELS
from vitprobe.probes.feature_file import POINTS

EIGEN = (slice(45, 471), slice(41, 601))
"""Rows and columns of a 480 x 640 image that count in the evaluation of BTS (Lee et al., arXiv 1907.10326)."""
EIGEN_SIZE = (480, 640)
MASKS = (
    "not the published protocol: DINOv2's is a linear layer with batch norm, 40,000 steps of AdamW on augmented crops "
    "of 512 px, tested at the images' own size; here logistic regression on drawn pixels, C chosen on a fifth of the "
    "training images, at the model's image size and crop, on one block"
)
DEPTH = (
    "not the published protocol: DINOv2's is a linear layer on CLS and patches, upsampled, to 256 bins of depth, "
    "trained on augmented images and tested at their own size; here ridge regression on patches alone, alpha chosen on "
    "a fifth of the training images, at the model's image size and crop, on one block"
)
EIGEN_NOTES = {
    True: "rows 45 to 470 and columns 41 to 600 of test images count, as in BTS, as far as the model's crop has them",
    False: "every measured pixel of the model's crop counts; published numbers are of the crop of BTS: eigen_crop=true",
}
MEAN_IOU = "mean IoU: sums over all test images, then the mean over the classes that truth or prediction has"
DRAWN = (
    "drawn pixels: each labelled pixel of an image is as likely, so the objective is the pixel-wise one, with outputs "
    "repeated over a patch; outputs are upsampled bilinearly in the test"
)


@dataclass(frozen=True)
class DenseOptions:
    """Hold what the paper leaves open of dense linear probes."""

    tokens_per_image: int = PIXELS
    """Labelled pixels drawn of each training image, with the features of their patches."""
    point: str = "auto"
    """``final_norm``, ``resid_post``, or ``auto``: after the final norm where the model has one and the block is its
    last."""
    examples: int = 4
    """Test images that figures show, and results hold; 0 for none, where pictures must not be passed on."""

    def __post_init__(self) -> None:
        for name, least in (("tokens_per_image", 1), ("examples", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; give a whole number from {least} on")
        if self.point not in POINTS:
            raise ArgumentError(f"got point {self.point!r}; allowed are {', '.join(POINTS)}")


@dataclass(frozen=True)
class MaskOptions(DenseOptions):
    """Add what only segmentation leaves open."""

    c: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Inverse strengths of the L2 term that are tried, in scikit-learn's sense."""
    solver: str = "torch"
    """``torch`` reads features in parts, ``sklearn`` holds all in memory; the objective is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(one, int | float) and one > 0 for one in self.grid):
            raise ArgumentError(f"got c {self.c!r}; give a number over 0, or several with commas")
        if self.solver not in ("torch", "sklearn"):
            raise ArgumentError(f"got solver {self.solver!r}; allowed are torch and sklearn")

    @property
    def grid(self) -> tuple[float, ...]:
        """Every C, also where one alone was given."""
        return self.c if isinstance(self.c, tuple) else (self.c,)


@dataclass(frozen=True)
class DepthOptions(DenseOptions):
    """Add what only depth leaves open."""

    min_depth: float = 1e-3
    """Depths under it are not measured, and predictions are cut there."""
    max_depth: float | None = None
    """Depths over it are not measured, and predictions are cut there; none for no such limit."""
    eigen_crop: bool = False
    """Whether only rows 45 to 470 and columns 41 to 600 of 480 x 640 test images count, as in BTS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [one for one in (self.min_depth, self.max_depth) if one is not None]
        if not all(isinstance(one, int | float) for one in numbers) or not 0 < self.limits[0] < self.limits[1]:
            got = f"depths from {self.min_depth} to {self.max_depth}"
            raise ArgumentError(f"got {got}; give two numbers over 0, the larger last, or none for max_depth")
        if not isinstance(self.eigen_crop, bool):
            raise ArgumentError(f"got eigen_crop {self.eigen_crop!r}; allowed are true and false")

    @property
    def limits(self) -> tuple[float, float]:
        """(least, largest) depth."""
        return self.min_depth, np.inf if self.max_depth is None else self.max_depth


def eigen_crop(depths: np.ndarray) -> np.ndarray:
    """Forget the depths (480, 640) outside the crop of BTS. Raises `ArgumentError` for another size."""
    if depths.shape != EIGEN_SIZE:
        got = "{} x {} px".format(*depths.shape)
        raise ArgumentError(f"got depths of {got}; eigen_crop is for 480 x 640, those of nyud: leave it out")
    kept = np.full_like(depths, np.nan)
    kept[EIGEN] = depths[EIGEN]
    return kept
