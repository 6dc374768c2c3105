"""Images with what is known of each: classes, boxes, a class or a depth for every pixel.

Like `images`, this file is shared ground inside `vitprobe.inputs`; the readers are the files named ``truth_*``.
"""

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.truth_base import HAS, SPLITS, Request, TruthSource, read_request
from vitprobe.inputs.truth_classes import open_cub, open_imagenet
from vitprobe.inputs.truth_coco import open_coco20k
from vitprobe.inputs.truth_layouts import LAYOUTS, Layout, layout_help
from vitprobe.inputs.truth_masks import open_ade20k, open_camvid, open_masks
from vitprobe.inputs.truth_nyud import open_nyud
from vitprobe.inputs.truth_other import open_other
from vitprobe.inputs.truth_scenes import open_scenes
from vitprobe.inputs.truth_voc import open_voc

__all__ = ("HAS", "LAYOUTS", "SPLITS", "Layout", "TruthSource", "layout_help", "open_truths")

READERS: Mapping[str, Callable[[Request], TruthSource]] = {
    "camvid": open_camvid,
    "masks": open_masks,
    "ade20k": open_ade20k,
    "voc2007": open_voc,
    "voc2012": open_voc,
    "coco20k": open_coco20k,
    "nyud": open_nyud,
    "imagenet": open_imagenet,
    "cub": open_cub,
}
"""What reads NAME:ROOT[:SPLIT], by NAME; `LAYOUTS` says how each must lie."""


def open_truths(text: str, *, split: str, limit: int | None = None, seed: int = 0) -> TruthSource:
    """Open one set of images with what is known of them, listed; no image is read.

    `text` is ``scenes`` or ``scenes:KIND``, a NAME:ROOT[:SPLIT] of `LAYOUTS`, or what `open_labelled` takes. `split` is
    ``train`` or ``test``: the set's own splits, or, where it has none, the rest and a fifth drawn by `seed`; a SPLIT
    that the text names serves to test on. ``whole`` is ``test``, but a set without splits is not divided: for what
    trains nothing. `limit` keeps a random subset drawn by `seed`, in the original order. Images without their
    annotation are left out and named in `skipped`; what is found damaged when it is read raises InputError then, with
    its name.

    Raises ArgumentError for a value that is not allowed, InputError where a set is not there (what was looked for, how
    it must lie, where it is got from: nothing is fetched, unless the text ends in ``:download``), where a list leads
    out of its folder, or where nothing is left to train on beside SPLIT.
    """
    if split not in SPLITS:
        raise ArgumentError(f"got split {split!r}; allowed are {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit of {limit} images; give 1 or more")
    name, colon, _ = text.partition(":")
    if name == "scenes":
        return open_scenes(Request(text, name, None, None, split, limit, seed))
    if name in READERS and (colon or not os.path.exists(text)):
        return READERS[name](read_request(text, split=split, limit=limit, seed=seed))
    try:
        return open_other(text, split=split, limit=limit, seed=seed)
    except InputError as error:
        near = () if os.path.exists(text) else get_close_matches(name, ("scenes", *READERS), n=1, cutoff=0.75)
        if not near:
            raise
        raise InputError(f"{error}; did you mean {near[0]}?") from None
