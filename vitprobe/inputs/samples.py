"""The two photographs that scikit-learn ships, read from where they are: images that are always at hand."""

from dataclasses import dataclass
from importlib.resources import files

from vitprobe.inputs.images import Decoded, decode

NAMES = ("china.jpg", "flower.jpg")


@dataclass(frozen=True)
class SampleItem:
    """Name one of the photographs (640 x 427 px, CC BY; see scikit-learn's ``datasets/images/README.txt``)."""

    file: str

    @property
    def name(self) -> str:
        """``samples/china.jpg`` or ``samples/flower.jpg``."""
        return f"samples/{self.file}"

    def read(self) -> Decoded:
        """Decode the photograph."""
        return decode(files("sklearn.datasets.images").joinpath(self.file).read_bytes())


def sample_items() -> list[SampleItem]:
    """List the photographs."""
    return [SampleItem(name) for name in NAMES]
