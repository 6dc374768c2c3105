"""What a patch looks like, measured on its pixels and on its embedding: pure functions on tensors."""

import torch
from torch import Tensor, nn

from vitprobe.tokens import TokenLayout

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
FLAT = 0.02
"""Contrast (5 grey levels of 255) below which a patch is flat: the noise of sensors and JPEG is not ranked.
Without it a patch picked among the many flat ones of a plain background ranks as high as their share of the image."""


def neighbour_cosine(patches: Tensor, layout: TokenLayout) -> Tensor:
    """Compute the mean cosine of each patch with its 2 to 4 neighbours on the grid: (B, P, D) -> (B, P) float32.

    On patch embeddings before positions are added, this is the measure of Darcet et al. (arXiv 2309.16588, section 2.1,
    figure 5a): near 1 where a patch repeats its surroundings. nan on a grid of one patch.
    """
    x = nn.functional.normalize(layout.to_grid(patches.float()), dim=-1)  # (B, rows, cols, D)
    total, number = x.new_zeros(x.shape[:-1]), x.new_zeros(x.shape[1:3])
    for dim in (1, 2):
        size = x.shape[dim]
        cosine = (x.narrow(dim, 0, size - 1) * x.narrow(dim, 1, size - 1)).sum(-1)
        for start in (0, 1):  # each pair counts for both of its patches
            total.narrow(dim, start, size - 1).add_(cosine)
            number.narrow(dim - 1, start, size - 1).add_(1)
    return layout.from_grid(total / number)


def patch_contrast(pixels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Compute the standard deviation of luminance inside each patch: (B, 3, H, W) in [0, 1] -> (B, P)."""
    weights = pixels.new_tensor(LUMINANCE).view(1, 3, 1, 1)
    luminance = (pixels.float() * weights).sum(1)  # (B, H, W)
    height, width = patch_size
    cells = luminance.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # (B, rows, h, cols, w)
    return cells.std(dim=(2, 4), correction=0).flatten(1)


def rank_within_image(values: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """Compute, of the patches of an image that differ from a patch, the share that are lower: (B, P) -> (B, P) float32.

    0.5 is what a patch picked at random has on average. Ties (closer than ``tolerance``) are left out, so that a patch
    of a plain sky ranks 0 in contrast however large the sky is. 0.5 where no patch differs.
    """
    steps = (values.double() / tolerance).round()
    ordered = steps.sort(dim=1).values.contiguous()
    lower = torch.searchsorted(ordered, steps.contiguous(), right=False)
    higher = values.shape[1] - torch.searchsorted(ordered, steps.contiguous(), right=True)
    differ = lower + higher
    return torch.where(differ > 0, lower / differ.clamp_min(1), 0.5).float()


def centred_norms(patches: Tensor) -> Tensor:
    """Compute patch norms after the image's mean patch is subtracted: (B, P, D) -> (B, P) float32.

    A vector common to all tokens raises every norm and hides, or by its sign inflates, their ratios.
    """
    x = patches.float()
    return torch.linalg.vector_norm(x - x.mean(dim=1, keepdim=True), dim=-1)


def massive_dimension(patches: Tensor, *, top: float = 0.05) -> tuple[Tensor, Tensor]:
    """Find the width dimension with the largest |x| of each patch, and how massive it is: (B, P, D) -> (B, P) twice.

    The second is max |x| over median |x| (Sun et al., arXiv 2402.17762), computed only for the share ``top`` of
    patches of each image with the largest norm, since a median is dear; nan for the others.
    """
    size = patches.float().abs()
    largest, dimension = size.max(dim=-1)  # (B, P)
    count = max(1, round(patches.shape[1] * top))
    chosen = torch.linalg.vector_norm(size, dim=-1).topk(count, dim=1).indices  # (B, n)
    rows = size.gather(1, chosen.unsqueeze(-1).expand(-1, -1, size.shape[-1]))  # (B, n, D)
    ratio = torch.full_like(largest, float("nan"))
    ratio.scatter_(1, chosen, largest.gather(1, chosen) / rows.median(dim=-1).values.clamp_min(1e-12))
    return dimension, ratio
