"""Open data sets that torchvision or timm know by name, from a folder that holds them.

An input is `torchvision:NAME:ROOT[:SPLIT]` (`torchvision:CIFAR10:data:test`) or `timm:NAME:ROOT[:SPLIT]`, where NAME is
what timm's `create_dataset` takes (`torch/cifar10`, `folder`, `hfds/user/name`). Nothing is fetched, unless the input
ends in `:download`. Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vitprobe.errors import InputError
from vitprobe.inputs.annotations import Label
from vitprobe.inputs.archives import one_line
from vitprobe.inputs.images import Decoded, decode, safe_name

LIBRARIES = ("torchvision", "timm")
GRAMMAR = "give LIBRARY:NAME:ROOT or LIBRARY:NAME:ROOT:SPLIT, such as torchvision:CIFAR10:data:test"
TIMM_TORCH = (
    "cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365", "image_folder", "folder"
)  # fmt: skip
"""Sets of timm's `torch/`, of those that it knows, that have one label an image."""
TIMM_SPLITS = ("train", "validation", "val", "test")
"""Splits of timm's `torch/` sets; it would take any other word for the test set."""
FAILURES = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ImportError, EOFError
)  # fmt: skip
"""What the libraries raise for a set that is not there, or not as they want it; they hold no common class."""


@dataclass(frozen=True)
class Known:
    """Say how torchvision opens one set."""

    splits: tuple[str, ...]
    """Names of its splits; the first is the one that is taken where none is given. Empty where it has none."""
    holds: str
    """What the folder must hold."""
    has_train_flag: bool = False
    """Whether the split is given as `train=True` or `train=False`."""
    may_fetch: bool = True
    """Whether torchvision can still fetch it."""
    must: str = ""
    """What is looked for before torchvision is asked, which would make a folder for it."""


_MNIST = "raw/train-images-idx3-ubyte, raw/train-labels-idx1-ubyte and the same of t10k"
TORCHVISION: Mapping[str, Known] = {
    "CIFAR10": Known(("train", "test"), "cifar-10-batches-py/ (cifar-10-python.tar.gz unpacked)", True),
    "CIFAR100": Known(("train", "test"), "cifar-100-python/ (cifar-100-python.tar.gz unpacked)", True),
    "MNIST": Known(("train", "test"), f"MNIST/ with {_MNIST}", True),
    "FashionMNIST": Known(("train", "test"), f"FashionMNIST/ with {_MNIST}", True),
    "KMNIST": Known(("train", "test"), f"KMNIST/ with {_MNIST}", True),
    "SVHN": Known(("train", "test", "extra"), "train_32x32.mat, test_32x32.mat or extra_32x32.mat"),
    "STL10": Known(("train", "test", "unlabeled"), "stl10_binary/ (stl10_binary.tar.gz unpacked)"),
    "Food101": Known(("train", "test"), "food-101/ with images/ and meta/"),
    "Flowers102": Known(("train", "val", "test"), "flowers-102/ with jpg/, imagelabels.mat and setid.mat"),
    "DTD": Known(("train", "val", "test"), "dtd/dtd/ with images/ and labels/"),
    "FGVCAircraft": Known(("train", "val", "trainval", "test"), "fgvc-aircraft-2013b/ with data/"),
    "OxfordIIITPet": Known(("trainval", "test"), "oxford-iiit-pet/ with images/ and annotations/"),
    "StanfordCars": Known(
        ("train", "test"),
        "stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat",
        may_fetch=False,
    ),
    "SUN397": Known((), "SUN397/ with ClassName.txt and folders of classes"),
    "Caltech101": Known(
        (),
        "caltech101/101_ObjectCategories/ with folders of classes and BACKGROUND_Google/",
        must="caltech101/101_ObjectCategories",
    ),
    "Places365": Known(
        ("train-standard", "train-challenge", "val"),
        "categories_places365.txt, places365_train_standard.txt, places365_val.txt, data_large_standard/, val_large/",
    ),
}
"""Sets whose classes do not show in their folders; a set of class folders (ImageNet, EuroSAT) is given as a folder.

Of the fourteen of Table 1 (arXiv 2309.16588), ImageNet, VOC and CUB are read by `truths`; the paper's Places205 is no
longer distributed, and Places365 stands for it.
"""
TRAIN_FOLDERS, HELD_FOLDERS = ("train", "training"), ("val", "valid", "validation", "eval", "evaluation")
"""Folders in which timm looks for the splits of a folder."""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """Point at one image file of a named set."""

    path: str
    label: Label | None

    @property
    def name(self) -> str:
        """Return the path, printable."""
        return safe_name(self.path)

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""
        return decode(Path(self.path))


@dataclass(frozen=True, slots=True)
class KnownRow:
    """Point at one image of a named set that is no file of its own."""

    set_name: str
    rows: Any
    """Gives (image or open file, label) for an index."""
    index: int
    label: Label | None

    @property
    def name(self) -> str:
        """Return `set#row`."""
        return f"{safe_name(self.set_name)}#{self.index}"

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""
        try:
            image = self.rows[self.index][0]
            if not isinstance(image, Image.Image):
                with image:
                    return decode(image.read())
        except (OSError, RuntimeError, ValueError, LookupError, AssertionError) as error:
            raise InputError(f"the data set cannot read it: {one_line(error)}") from None
        rgb = image.convert("RGB")
        return Decoded(rgb, (), hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest())


@dataclass(frozen=True)
class NamedSet:
    """Hold what a name stands for."""

    items: Sequence[KnownFile | KnownRow]
    classes: tuple[str, ...]
    """Names of all classes in the set's own order; empty where the set has numbers only."""


def is_named(text: str) -> bool:
    """Return whether an input names a data set of a library."""
    return text.partition(":")[0] in LIBRARIES and ":" in text


def named_parts(text: str) -> tuple[str | None, str | None]:
    """Return the inputs that stand for a named set's own images to train on and to test on; None twice for no splits.

    A split that the input names is to test on; None is to train on where it holds training images. Raises InputError
    for no such input.
    """
    library, name, root, split, download = _parse(text)
    own = _own_splits(library, name, root)
    train = next((one for one in own if one.startswith("train")), None)
    test = next((one for one in ("test", "validation", "val") if one in own), None)
    if split is not None:
        is_known = library == "timm" or split in own
        test, train = split, train if is_known and not split.startswith("train") else None
    ending = ":download" if download else ""
    made = (None if one is None else f"{library}:{name}:{root}:{one}{ending}" for one in (train, test))
    return tuple(made)


def _own_splits(library: str, name: str, root: str) -> tuple[str, ...]:
    if library == "torchvision":
        return TORCHVISION[name].splits if name in TORCHVISION else ()
    if name.lower() in ("folder", "torch/folder", "torch/image_folder"):
        there = (
            any(os.path.isdir(os.path.join(root, one)) for one in names) for names in (TRAIN_FOLDERS, HELD_FOLDERS)
        )
        return ("train", "validation") if all(there) else ()
    return ("train", "validation") if name.lower().startswith("torch/") else ()


def open_named(text: str) -> NamedSet:
    """Return the images of a named set with their labels, listed and not read.

    Raises InputError where the name or the split is not known, and where the set is not there; it says what is needed.
    """
    library, name, root, split, download = _parse(text)
    if library == "timm":
        return _listed(text, _from_timm(text, name, root, split or "train", download))
    found = _listed(text, _from_torchvision(text, name, root, split, download))
    if not TORCHVISION[name].splits:  # it will be split by seed, and some come in the order of the disk
        return NamedSet(sorted(found.items, key=lambda item: item.path), found.classes)
    return found


def _parse(text: str) -> tuple[str, str, str, str | None, bool]:
    library, name, rest = [*text.split(":", 2), "", ""][:3]
    download = rest.endswith(":download")
    rest = rest.removesuffix(":download")
    found = None if os.path.exists(rest) else re.fullmatch(r"(.+):(\w[\w+\-]*)", rest)
    root, split = (found[1], found[2]) if found else (rest, None)
    root = os.path.expanduser(root)  # a shell does so only where an argument begins
    if not name or not root:
        raise InputError(f"{safe_name(text)}: {'no name' if not name else 'no folder'}; {GRAMMAR}")
    return library, name, root, split, download


def _from_torchvision(text: str, name: str, root: str, split: str | None, download: bool) -> Any:
    from torchvision import datasets

    known = TORCHVISION.get(name)
    if known is None:
        raise InputError(
            f"{safe_name(text)}: no set {name!r}; of torchvision's there are {', '.join(TORCHVISION)}; "
            "give a set of class folders as that folder"
        )
    split = split or next(iter(known.splits), None)
    if split is not None and split not in known.splits:
        raise InputError(f"{safe_name(text)}: no split {split!r}; {name} has {', '.join(known.splits) or 'none'}")
    chosen = {"train": split == "train"} if known.has_train_flag else {"split": split} if known.splits else {}
    if known.must and not download and not os.path.isdir(os.path.join(root, known.must)):
        raise _not_there(text, root, known.holds, FileNotFoundError("Dataset not found"), may_fetch=True)
    try:
        return getattr(datasets, name)(root, download=download, **chosen)
    except FAILURES as error:
        raise _not_there(text, root, known.holds, error, may_fetch=known.may_fetch and not download) from None


def _from_timm(text: str, name: str, root: str, split: str, download: bool) -> Any:
    from timm.data import create_dataset

    kind, _, rest = name.lower().partition("/")
    if kind in ("tfds", "wds", "hfids") or os.path.isfile(root):
        raise InputError(f"{safe_name(text)}: a stream, not drawn from at random; give its shards or Parquet files")
    if name.lower() != "folder" and not (kind == "hfds" and rest) and not (kind == "torch" and rest in TIMM_TORCH):
        raise InputError(
            f"{safe_name(text)}: no set {name!r}; give folder, hfds/USER/NAME or torch/ and {', '.join(TIMM_TORCH)}"
        )
    if kind == "torch" and split not in TIMM_SPLITS:
        raise InputError(f"{safe_name(text)}: no split {split!r}; give one of {', '.join(TIMM_SPLITS)}")
    if kind == "hfds" and not download:
        raise InputError(
            f"{safe_name(text)}: the hub is asked for it; give its Parquet files, or say so: {safe_name(text)}:download"
        )
    try:
        return create_dataset(name, root=root, split=split, download=download and kind == "torch")
    except FAILURES as error:
        same = {known.lower(): of.holds for known, of in TORCHVISION.items()}
        holds = same.get(rest.replace("_", ""), "the set, or folders of classes" if kind != "hfds" else "its cache")
        raise _not_there(text, root, holds, error, may_fetch=kind == "torch" and not download) from None


def _not_there(text: str, root: str, holds: str, error: Exception, *, may_fetch: bool) -> InputError:
    reason = one_line(re.split(" You can (?:use|set) download", str(error))[0].rstrip("."))
    reason = reason or (type(error).__name__ if os.path.isdir(root) else "no such folder")
    fetch = f", or have it fetched there: {safe_name(text)}:download" if may_fetch else ""
    return InputError(f"{safe_name(text)}: {reason}; {safe_name(root)} must hold {holds}{fetch}")


def _listed(text: str, dataset: Any) -> NamedSet:
    """Read paths and labels off a data set object, without reading an image."""
    reader = getattr(dataset, "reader", None)
    if hasattr(reader, "label_key"):  # timm's reader of Hugging Face sets
        labels = list(reader.dataset[reader.label_key])
        return _named(text, None, labels, _in_order(reader.class_to_idx), reader)
    lists = dataset if reader is None else reader
    if hasattr(lists, "samples"):  # folders of classes, whoever lists them
        order = lists.wnid_to_idx if hasattr(lists, "wnid_to_idx") else lists.class_to_idx
        return _named(text, [path for path, _ in lists.samples], [at for _, at in lists.samples], _in_order(order))
    pairs = next((getattr(dataset, name) for name in ("_samples", "imgs") if hasattr(dataset, name)), None)
    if pairs is not None:  # Stanford Cars, Places365
        paths, labels = [path for path, _ in pairs], [at for _, at in pairs]
    elif hasattr(dataset, "categories"):  # Caltech101
        folder, labels = os.path.join(dataset.root, "101_ObjectCategories"), dataset.y
        names = (
            f"{dataset.categories[at]}/image_{index:04d}.jpg" for at, index in zip(labels, dataset.index, strict=True)
        )
        paths = [os.path.join(folder, name) for name in names]
    else:
        paths, labels = (
            next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)
            for names in (("_image_files", "_images"), ("targets", "labels", "_labels"))
        )
    classes = tuple(getattr(dataset, "classes", getattr(dataset, "categories", ())))
    if labels is None:
        raise InputError(f"{safe_name(text)}: its labels cannot be listed without reading its images; give a folder")
    return _named(text, paths, [int(label) for label in labels], classes, dataset)


def _in_order(positions: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(positions, key=positions.__getitem__))


def _named(
    text: str, paths: Sequence[Any] | None, labels: Sequence[Any], classes: tuple[str, ...], rows: Any = None
) -> NamedSet:
    names = [None if at is None or at == -1 else classes[at] if classes else at for at in labels]
    if paths is not None:
        items: list[Any] = [KnownFile(os.fspath(path), name) for path, name in zip(paths, names, strict=True)]
    else:
        items = [KnownRow(text, rows, index, name) for index, name in enumerate(names)]
    return NamedSet(items=items, classes=classes)
