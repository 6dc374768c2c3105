"""Draw results: one file of displays a probe. Displays never compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200


def write(figure: "Figure", stem: Path, formats: Sequence[str], *, dpi: int = DPI) -> list[Path]:
    """Save a figure as ``stem.FORMAT`` for every format; no date inside, so equal results give equal files."""
    from vitprobe.plots.style import paper

    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    with paper():
        for path, name in zip(paths, formats, strict=True):
            figure.savefig(path, dpi=dpi, metadata=undated[name])
    return paths
