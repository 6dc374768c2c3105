"""What probes measure at a time."""

from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """Names, positions in the source, and images (B, 3, H, W) as the model reads them."""

    names: tuple[str, ...]
    indices: tuple[int, ...]
    images: Tensor
