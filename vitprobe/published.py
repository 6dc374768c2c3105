"""Published numbers that measured ones stand beside, each with where it is from and how far to trust it.

Only what was read in a text is here; what was read off a plot is not. ``paper``: read in the primary paper's text;
``secondary``: read in another text that quotes it, to be checked before it is cited; ``model card``: read on the
authors' page of the weights.
"""

from dataclasses import dataclass

DARCET = "Darcet et al., arXiv 2309.16588"
JIANG = "Jiang et al., arXiv 2506.08010"
TRUST = ("paper", "secondary", "model card")
MODELS = {
    "DeiT-III-B": "deit3-b16", "DeiT-III-B + 4 reg": "",
    "OpenCLIP-B/16": "openclip-b16", "OpenCLIP-B/16 + 4 reg": "",
    "DINOv2-L": "dinov2-l14", "DINOv2-L + 4 reg": "dinov2-reg-l14",
    "DINOv2-g": "dinov2-g14", "DINOv2-g + 4 reg": "dinov2-reg-g14",
    "DINOv2-S": "dinov2-s14", "DINOv2-S + 4 reg": "dinov2-reg-s14",
    "DINOv2-B": "dinov2-b14", "DINOv2-B + 4 reg": "dinov2-reg-b14",
    "DINOv2": "dinov2", "DINOv2 + 1 reg": "", "DINOv2 + 4 reg": "dinov2-reg", "ViT": "", "OpenCLIP": "openclip",
}  # fmt: skip
"""What the texts name, and the model of the zoo that comes nearest. They are not the same weights: Darcet et al.
trained OpenCLIP on their own data, DINOv2-L on ImageNet-22k, and published no DeiT-III or OpenCLIP with registers."""


@dataclass(frozen=True)
class Published:
    """Hold one published number."""

    item: str
    """Name of the item of the reproduction."""
    key: str
    """What the number is of; a measured row of the same key stands beside it."""
    model: str
    """A key of `MODELS`."""
    value: float
    unit: str
    """``share``, or the number's own unit."""
    trust: str
    """Of `TRUST`."""
    source: str
    spread: float | None = None
    """Standard deviation that was published with it."""
    bound: str = ""
    """``<`` or ``<=`` where the text gives a bound."""

    @property
    def like(self) -> str:
        """The model of the zoo that comes nearest, or its family; empty for none."""
        return MODELS[self.model]


def _darcet(item: str, trust: str, place: str, unit: str, rows: dict[str, dict[str, float]]) -> list[Published]:
    """List the numbers of a table, by model and key."""
    return [
        Published(item, key, model, value, unit, trust, f"{DARCET}, {place}")
        for model, row in rows.items()
        for key, value in row.items()
    ]


_PERCENT = {
    # dataset: normal, outlier, CLS (table 6); spreads over draws where the paper gives them
    "airc": (17.1, 79.1, 87.3), "cf10": (97.1, 99.3, 99.4), "cf100": (81.3, 93.7, 94.5), "cub": (18.6, 84.9, 91.3),
    "cal101": (73.2, 97.6, 96.9), "cars": (10.8, 85.2, 91.5), "dtd": (63.1, 84.9, 85.2), "flow": (59.5, 99.6, 99.7),
    "food": (74.2, 93.5, 94.7), "in1k": (65.8, 69.0, 86.0), "p205": (53.1, 55.1, 66.4), "pets": (47.8, 94.1, 96.9),
    "sun": (37.7, 78.5, 78.6), "voc": (70.8, 89.7, 89.1),
}  # fmt: skip
_SPREADS = {"airc.normal": 0.005, "airc.outlier": 0.005, "cub.outlier": 0.021}
_KINDS = ("normal", "outlier", "cls")

_TABLE1 = [
    Published("table1", f"{name}.{kind}", "DINOv2-g", round(value / 100, 4), "share", "paper",
              f"{DARCET}, tables 1 and 6", _SPREADS.get(f"{name}.{kind}"))
    for name, values in _PERCENT.items()
    for kind, value in zip(_KINDS, values, strict=True)
]  # fmt: skip
_TABLE4 = _darcet(
    "table1",
    "secondary",
    "table 4",
    "share",
    {
        "DINOv2": {"airc.cls": 0.846, "airc.normal": 0.155, "airc.outlier": 0.733},
        "DINOv2 + 1 reg": {"airc.cls": 0.852, "airc.normal": 0.145, "airc.register": 0.711},
    },
)
_DEIT, _CLIP = "DeiT-III-B + 4 reg", "OpenCLIP-B/16 + 4 reg"
_TABLE2 = {
    "DeiT-III-B": (0.847, 0.389, 0.511), _DEIT: (0.847, 0.391, 0.512),
    "OpenCLIP-B/16": (0.782, 0.266, 0.702), _CLIP: (0.781, 0.267, 0.661),
    "DINOv2-L": (0.843, 0.466, 0.378), "DINOv2-L + 4 reg": (0.848, 0.479, 0.366),
}  # fmt: skip
_TABLE3 = {
    "DeiT-III-B": (0.117, 0.131, 0.107), _DEIT: (0.271, 0.327, 0.251),
    "OpenCLIP-B/16": (0.388, 0.443, 0.310), _CLIP: (0.371, 0.420, 0.279),
    "DINOv2-L": (0.353, 0.402, 0.269), "DINOv2-L + 4 reg": (0.554, 0.600, 0.420),
}  # fmt: skip
_JIANG3 = {
    "DINOv2-L": (0.322, 0.368, 0.254), "DINOv2-L + 4 reg": (0.562, 0.602, 0.423),
    "OpenCLIP-B/16": (0.308, 0.359, 0.234),
}  # fmt: skip
_CARD = {"S": (0.811, 0.809), "B": (0.845, 0.846), "L": (0.863, 0.867), "g": (0.865, 0.871)}
_BOXES = ("voc2007", "voc2012", "coco20k")

PUBLISHED: tuple[Published, ...] = (
    *_darcet("fig3", "paper", "section 2.1 and figure 3", "share", {"DINOv2-g": {"outlier_share": 0.0237}}),
    *_darcet("fig5b", "secondary", "figure 5 b", "share",
             {"DINOv2-g": {"position.normal": 0.417, "position.outlier": 0.228}}),
    *_darcet("fig5b", "secondary", "figure 5 b", "patches",
             {"DINOv2-g": {"distance.normal": 0.79, "distance.outlier": 5.09}}),
    *_darcet("fig5b", "secondary", "figure 5 b", "L2 of a patch",
             {"DINOv2-g": {"pixels.normal": 18.38, "pixels.outlier": 25.23}}),
    *_darcet("fig5b", "secondary", "table 5, on tokens that are no outliers", "share",
             {"DINOv2": {"position.other": 0.663}, "DINOv2 + 4 reg": {"position.other": 0.658}}),
    *_darcet("fig5b", "secondary", "table 5, on tokens that are no outliers", "L2 of a patch",
             {"DINOv2": {"pixels.other": 15.9}, "DINOv2 + 4 reg": {"pixels.other": 16.0}}),
    *_TABLE1,
    *_TABLE4,
    *(Published(item, key, model, row[at], unit, "secondary", f"{DARCET}, table 2 a")
      for at, (item, key, unit) in enumerate((("table2-classes", "in1k", "share"), ("table2-masks", "ade20k", "share"),
                                              ("table2-depth", "nyud", "RMSE, m")))
      for model, row in _TABLE2.items()),
    *(Published("table2-classes", "in1k", f"DINOv2-{size}{reg}", pair[at], "share", "model card", "DINOv2's model card")
      for size, pair in _CARD.items() for at, reg in enumerate(("", " + 4 reg"))),
    *_darcet("table2-zero-shot", "secondary", "table 2 b", "share",
             {"OpenCLIP-B/16": {"in1k": 0.599}, _CLIP: {"in1k": 0.601}}),
    *(Published("table3", key, model, row[at], "share", "secondary", f"{DARCET}, table 3")
      for model, row in _TABLE3.items() for at, key in enumerate(_BOXES)),
    *(Published("table3", key, model, row[at], "share", "paper", f"{JIANG}, best of the settings that it searches")
      for model, row in _JIANG3.items() for at, key in enumerate(_BOXES)),
    Published("fig12", "flops.4", "DINOv2", 0.02, "share", "paper", f"{DARCET}, figure 12", bound="<"),
    Published("fig12", "flops.16", "DINOv2", 0.06, "share", "paper", f"{DARCET}, figure 12", bound="<="),
    Published("knn", "in1k", "DINOv2-g", 0.8353, "share", "secondary", "SINDER (ECCV 2024), original weights"),
    Published("knn", "in1k", "DINOv2-g + 4 reg", 0.8369, "share", "secondary", "SINDER (ECCV 2024), with registers"),
    Published("patch-score", "point_in_box", "ViT", 0.427, "share", "paper", "LaSt-ViT, arXiv 2602.22394"),
    Published("patch-score", "point_in_box", "OpenCLIP", 0.398, "share", "paper", "LaSt-ViT, arXiv 2602.22394"),
)  # fmt: skip
"""Intervals, where a source gives any, are in ``spread``; shares are from 0 to 1."""


def published(item: str, key: str) -> tuple[Published, ...]:
    """Return what was published of one number of an item, in the order of the table; () for nothing, or no key."""
    return tuple(one for one in PUBLISHED if key and (one.item, one.key) == (item, key))


def beside(item: str, key: str, model: str) -> tuple[Published, ...]:
    """Return what stands beside a number measured of a model of the zoo: of its size, else its family, else of any."""
    found = published(item, key)
    near = [one for name in (model, model.rpartition("-")[0]) for one in found if name and one.like == name]
    return tuple(one for one in near if one.like == near[0].like) if near else found
