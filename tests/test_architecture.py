"""The house: floors, who may import what, and habits that the project does without; read with ast."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vitprobe"

FLOORS = {
    **dict.fromkeys(("errors", "tokens", "results", "published"), 0),
    **dict.fromkeys(("inputs", "backbones", "recorder"), 1),
    **dict.fromkeys(("probes", "registers"), 2),
    **dict.fromkeys(("training", "plots"), 3),
    "reproduction": 4,
    **dict.fromkeys(("cli", "__main__"), 5),
}
"""A file imports only from floors below its own."""

PAGE = {"filters", "position_similarity", "attention_distance", "translation"}
"""The displays that `plots.inspect` puts on one page."""

SHARED = {
    "inputs": {
        "images",
        "scene_shapes",
        "scenes",
        "archives",
        "annotations",
        "sources",
        "named_sets",
        "labels",
        "workers",
        "seeding",
        "slots",
        "reading",
        "stream",
        "scene_stream",
        "drawn_scenes",
        "geometry",
        "truths",
        "truth_base",
        "truth_classes",
        "truth_coco",
        "truth_files",
        "truth_layouts",
        "truth_masks",
        "truth_nyud",
        "truth_other",
        "truth_scenes",
        "truth_voc",
        "vtab_lists",
    },  # whatever a training stream is made of, and images with truths
    "backbones": {
        "trunk",
        "base",
        "timm_build",
        "conv_net",
        "weights",
        "hub",
        "zoo",
        "positions",
        "timm_eva",
        "timm_tower",
        "timm_vit",
        "open_clip_files",
        "open_clip_registers",
        "open_clip_vit",
        "reference_vit",
        "reference_names",
        "reference",
    },
    "probes": {
        "attention",
        "attention_geometry",
        "attention_means",
        "batch",
        "boxes",
        "by_image",
        "confidence_bins",
        "corloc",
        "curves",
        "dense_sample",
        "dense_scores",
        "evidence",
        "feature_file",
        "histogram",
        "knn",
        "linear",
        "linear_fit",
        "link",
        "mixture",
        "norm_stats",
        "norms",
        "outliers",
        "passes",
        "patches",
        "feature_maps",
        "shifts",
        "translation_pass",
        "translation_sums",
        "token_features",
        "token_means",
        "token_sets",
        "verdict",
    },
    "registers": {"base"},
    "reproduction": {"base", "table", "norms", "trusted", "dense_figures", "dense_options", "token_draws"},
    "training": {
        "config",
        "recipes",
        "variants",
        "held_out",
        "objectives",
        "groups",
        "data",
        "build",
        "engine",
        "schedule",
        "step",
        "evaluation",
        "checkpoint",
        "metrics",
        "save",
        "plan",
        "downstream",
        "finetune_recipes",
        "finetune",
        "loop",
        "dry",
    },  # one after the other; `bench`, `rates` and `finetuned` stand at the end
    "plots": {"base", "style", "norm_maps", "norms", "attention", "curves", "sweep", "kinds", "frozen", *PAGE},
    "cli": None,
}
"""The modules of a folder that its other modules may import; None for all. Its __init__ may import them all."""

SIDEWAYS = {
    ("tokens", "errors"),
    ("results", "errors"),
    ("results", "tokens"),
    ("recorder", "backbones.base"),
    ("__main__", "cli"),
}
"""The imports between parts of one floor."""

LIBRARIES = {
    "timm": {"inputs", "backbones", "recorder", "training"},
    "open_clip": {"inputs", "backbones", "recorder", "training"},
    "lightly": {"training"},
    "PIL": {"inputs", "backbones", "recorder"},
    "sklearn": {"probes", "registers", "inputs"},
    "matplotlib": {"plots", "reproduction"},  # the latter for the type of a figure alone
    "accelerate": {"training", "probes"},
    "typer": {"cli"},
}
"""The parts of the package that may import a library."""


def module_name(path: Path) -> str:
    """``probes.norms`` for vitprobe/probes/norms.py, ``probes`` for its __init__."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FILES = [path for folder in ("vitprobe", "tests", "analyses") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST, modules: set[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Every import of a file: ``vitprobe.x.y`` down to the module, a library by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield (inside if inside.removeprefix("vitprobe.") in modules else node.module), node


def import_faults(name: str, source: str, *, is_package: bool, modules: set[str]) -> list[str]:
    """What is wrong with the imports of the module ``name``; empty where nothing is."""
    tree, part, faults = ast.parse(source), name.split(".")[0], []
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for target, node in imports(tree, modules):
        top, *rest = target.split(".")
        if top == "vitprobe" and rest:
            if not may_import(name, ".".join(rest), is_package=is_package):
                faults.append(f"{name} imports {target}")
        elif part not in LIBRARIES.get(top, {part}) or (top == "sklearn" and part == "inputs" and node not in inner):
            faults.append(f"{name} imports {target}")
    return faults


def may_import(name: str, target: str, *, is_package: bool) -> bool:
    """Whether one module of vitprobe may import another."""
    part, other = name.split(".")[0], target.split(".")[0]
    if part == other:
        shared = SHARED.get(part, set())
        if is_package or shared is None:
            return True
        own, its = name.rpartition(".")[0], target.rpartition(".")[0]
        in_line = own.startswith(its) or its.startswith(own)  # one folder, or one inside the other
        return in_line and target.count(".") > 0 and target.split(".")[1] in shared
    return FLOORS[other] < FLOORS[part] or (name, target) in SIDEWAYS


def habits(source: str, *, may_print: bool, has_tokens: bool = True) -> list[str]:
    """The habits of a file that the project does without."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}"
        if has_tokens and isinstance(node, ast.Subscript) and cuts_prefix(node.slice):
            faults.append(f"{line}: cuts prefix tokens off by counting them; ask the layout")
        if isinstance(node, ast.ExceptHandler):
            caught = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else ["everything"]
            if {"everything", "Exception"} & set(caught):
                faults.append(f"{line}: catches {caught[0]}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            faults.append(f"{line}: prints")
    return faults


def cuts_prefix(index: ast.expr) -> bool:
    """Whether an index reads ``:, 1:`` on its first two axes, with any number or any ``...prefix...`` in it."""
    if not (isinstance(index, ast.Tuple) and len(index.elts) >= 2):
        return False
    first, second = index.elts[:2]
    whole = isinstance(first, ast.Slice) and not (first.lower or first.upper or first.step)
    if not whole or not isinstance(second, ast.Slice) or second.upper or not second.lower:
        return False
    start = ast.unparse(second.lower)
    return "prefix" in start or (start.isdigit() and int(start) > 0)


@pytest.mark.parametrize("name", MODULES)
def test_floors(name: str) -> None:
    path = MODULES[name]
    assert name in ("", "__init__") or name.split(".")[0] in FLOORS, f"on which floor does {name} stand?"
    is_package = path.name == "__init__.py"
    assert import_faults(name or "vitprobe", path.read_text(), is_package=is_package, modules=set(MODULES)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_habits(path: Path) -> None:
    root, part = path.relative_to(ROOT).parts[:2]
    has_tokens = part != "inputs"  # pictures have none: there, columns are coordinates
    assert habits(path.read_text(), may_print=root != "vitprobe" or part == "cli", has_tokens=has_tokens) == []


def test_no_import_leads_back() -> None:
    """Not even inside functions: what a folder shares must stay below what uses it."""
    graph = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        targets = {target.removeprefix("vitprobe.") for target, _ in imports(ast.parse(path.read_text()), set(MODULES))}
        graph[name] |= targets & set(MODULES)
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES if "tests" not in path.parts}
    assert {str(path): length for path, length in lengths.items() if length > 300} == {}


def test_only_the_recorder_registers_hooks_on_a_model() -> None:
    hooking = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("_hook")
    ]
    assert set(hooking) == {"recorder"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["vitprobe", "vitprobe.backbones", "vitprobe.cli"])
def test_importing_is_light(module: str) -> None:
    """The command line answers --help at once: whatever is heavy is imported by the command that needs it."""
    if module == "vitprobe.cli" and "cli" not in MODULES:
        pytest.skip("there is no command line yet")
    loaded = loaded_by(f"import {module}")
    assert "vitprobe" in loaded
    assert loaded & {"torch", "numpy", "matplotlib", "timm", "open_clip", "sklearn", "PIL", "pyarrow"} == set()


KNOWN = {
    "inputs.images",
    "inputs.loading",
    "backbones.base",
    "backbones.zoo",
    "probes",
    "probes.patches",
    "probes.norms",
}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("backbones.base", "from vitprobe.recorder import Site"),  # sideways
        ("backbones.base", "def f():\n    import vitprobe.probes.norms"),  # up, inside a function
        ("inputs.scenes", "from vitprobe.inputs.loading import ImageLoader"),  # a sibling that is not shared
        ("inputs.scenes", "from vitprobe.inputs import loading"),
        ("recorder", "from vitprobe.backbones.zoo import ZOO"),
        ("probes.norms", "from vitprobe.plots.style import ink"),
        ("probes.norms", "from vitprobe.probes import measure_norms"),  # a folder's own front door
        ("training.loop", "from vitprobe.plots.norms import draw"),
        ("probes.norms", "import timm"),
        ("probes.norms", "def f():\n    from matplotlib import pyplot"),
        ("cli.norms", "from PIL import Image"),
        ("inputs.images", "from sklearn.datasets import load_sample_image"),
        ("plots.norms", "import sklearn.mixture"),
    ],
)
def test_the_floors_can_be_broken(name: str, source: str) -> None:
    assert len(import_faults(name, source, is_package=False, modules=KNOWN)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("probes.norms", "from vitprobe import __version__\nfrom vitprobe.backbones import load"),
        ("probes.norms", "from vitprobe.probes import patches\nfrom vitprobe.probes.patches import Patches"),
        ("recorder", "from vitprobe.backbones.base import Backbone"),
        ("cli.norms", "from vitprobe.cli.options import Out\nfrom vitprobe.plots.norms import draw"),
        ("inputs.images", "def f():\n    from sklearn.datasets import load_sample_image"),
        ("probes.outliers", "import numpy\nfrom sklearn.mixture import GaussianMixture"),
    ],
)
def test_the_floors_allow_what_they_should(name: str, source: str) -> None:
    assert import_faults(name, source, is_package=False, modules=KNOWN) == []


def test_the_habits_are_seen() -> None:
    one = "1"  # put together here, so that this file does not show the habit itself
    for source in (f"x[:, {one}:]", f"x[:, {one}:, 2]", "x[:, num_prefix_tokens:]", f"x[:, {one}::2]", "print(1)"):
        assert len(habits(source, may_print=False)) == 1, source
    for handler in ("except", "except Exception", "except (OSError, Exception) as e"):
        assert len(habits(f"try:\n    f()\n{handler}:\n    pass", may_print=False)) == 1
    for source in ("x[:, layout.patches]", "x[1:]", "x[:, 0:4]", "x[:, -2:]", "echo(1)", "x[0, 1:]"):
        assert habits(source, may_print=False) == []
    assert habits("try:\n    f()\nexcept OSError:\n    pass\nprint(1)", may_print=True) == []
