"""The items of the reproduction: a table, light to import; the module of an item holds ``ITEMS`` with its name."""

from dataclasses import dataclass

PAIR = ("organism", "organism-reg4")
TRIO = (*PAIR, "organism-clean")
WITH_REGISTERS = ("organism-reg4", "scenes-content-reg4")
SIZES = ("scenes-content", "organism", "organism-clean")
REGISTERS = ("organism", *WITH_REGISTERS)
LABELLED = ("training", "labels")

NEEDS = {
    "images": "any images",
    "training": "images to train on beside held-out ones",
    "labels": "a class for each image",
    "masks": "a class for each pixel",
    "depth": "a depth for each pixel",
    "boxes": "boxes around objects",
    "text": "an OpenCLIP model, or one trained with captions",
    "run": "a folder of train-registers (--run), or minutes to train a small one",
}


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    paper: str
    """Where it stands: ``Fig. 3``, or the paper that it is from."""
    title: str
    needs: tuple[str, ...]
    """Of `NEEDS`; () for an item that counts on the architecture alone."""
    module: str
    """Of `vitprobe.reproduction`."""
    models: tuple[str, ...] = PAIR
    """Taken where no --model is given: embedded ones."""


_PAPER = (
    Entry("fig1", "Fig. 1, 2", "attention maps, same images, one scale", ("images",), "attention", TRIO),
    Entry("fig3", "Fig. 3", "histogram of patch norms", ("images",), "norms", TRIO),
    Entry("fig4a", "Fig. 4 a", "norms by block", ("images",), "norms", TRIO),
    Entry("fig4b", "Fig. 4 b", "norms by training step", ("images", "run"), "growth", ()),
    Entry("fig4c", "Fig. 4 c", "norms by size of the model", ("images",), "sizes", SIZES),
    Entry("fig5a", "Fig. 5 a", "cosine of a patch with its neighbours", ("images",), "neighbours", TRIO),
    Entry("fig5b", "Fig. 5 b, Table 5", "position and pixels from one token", ("training",), "local_probes", TRIO),
    Entry("fig7", "Fig. 7", "norms with and without registers", ("images",), "norms", TRIO),
    Entry("fig8", "Fig. 8", "0 to 16 registers: maps and scores", ("run",), "sweep", ()),
    Entry("fig9", "Fig. 9, 16", "attention of CLS and of each register", ("images",), "register_maps", REGISTERS),
    Entry("fig10", "Fig. 10, 11", "where outliers lie, by position resize", ("images",), "norms", PAIR),
    Entry("fig12", "Fig. 12", "FLOPs and parameters by number of registers", (), "flops", ("deit3-b16", "dinov2-l14")),
    Entry("fig13", "Fig. 13, 14", "value projection: spectrum, null space", ("images",), "null_space", TRIO),
    Entry("fig15", "Fig. 15", "norms by kind of token", ("images",), "norms", TRIO),
    Entry("fig20", "Fig. 20", "first principal component of patches", ("images",), "components", TRIO),
    Entry("table1", "Tables 1, 4, 6", "classes from one token", LABELLED, "token_classes", TRIO),
    Entry("table2-classes", "Table 2 a", "linear classification of images", LABELLED, "frozen", TRIO),
    Entry("table2-masks", "Table 2 a", "linear segmentation", ("training", "masks"), "dense", TRIO),
    Entry("table2-depth", "Table 2 a", "linear depth", ("training", "depth"), "dense", TRIO),
    Entry("table2-zero-shot", "Table 2 b", "zero-shot classification", ("labels", "text"), "zero_shot", ()),
    Entry("table3", "Table 3", "object discovery (LOST), CorLoc", ("boxes",), "discovery", TRIO),
)
_BEYOND = (
    Entry("claims98", "arXiv 2603.25803", "the claims, at the 98th percentile", LABELLED, "claims", TRIO),
    Entry("replace", "arXiv 2604.14433", "registers replaced", LABELLED, "replacement", WITH_REGISTERS),
    Entry("patch-score", "arXiv 2602.22394", "Patch Score, Point-in-Box", ("boxes",), "patch_score", TRIO),
    Entry("knn", "DINO's protocol", "k nearest neighbours", LABELLED, "frozen", TRIO),
)
TABLE = {entry.name: entry for entry in (*_PAPER, *_BEYOND)}
ALSO = {
    "fig2": "fig1",
    "fig11": "fig10",
    "fig14": "fig13",
    "fig16": "fig9",
    "table4": "table1",
    "table5": "fig5b",
    "table6": "table1",
}
"""Figures and tables of the paper that an item of another name is."""


def find(text: str) -> tuple[Entry, ...]:
    """Return the items that a name stands for: itself, its other numbers, all parts of a figure, or ``all``; or ()."""
    text = text.lower().replace("_", "-")
    text = ALSO.get(text, text)
    if text == "all":
        return tuple(TABLE.values())
    if text in TABLE:
        return (TABLE[text],)
    return tuple(e for e in TABLE.values() if text and e.name.startswith(text) and not e.name[len(text)].isdecimal())
