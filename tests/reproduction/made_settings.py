"""Settings made by hand, for the tests of items."""

import contextlib

from vitprobe import backbones
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, generate, scene_items
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction.base import Found, Item, Setting, fill
from vitprobe.reproduction.run import Task, measure
from vitprobe.reproduction.table import TABLE

SIZE = (224, 224)


def scenes(number, *, seed=5, labelled=False):
    config = SceneConfig(size=SIZE)
    labels = {"majority": generate(number, config=config, seed=seed).majority.numpy()} if labelled else {}
    classes = {"majority": tuple("abcdef")} if labelled else {}
    return TruthSource("scenes", scene_items(number, config=config, seed=seed), labels, classes)


def loader(backbone, source):
    return ImageLoader(source.items, backbone.transform, batch_size=4, workers=0)


@contextlib.contextmanager
def silent(title, total):
    yield lambda number: None


def run_items(names, items, folder, *, model="organism", train=None, test=None, rule="auto", block=None, **options):
    """Measure items as the command does: what each found, or why it could not be measured."""
    backbone = backbones.load(model)
    test = scenes(8) if test is None else test
    setting = Setting(
        model=model,
        backbone=backbone,
        train=train,
        test=test,
        rule=OutlierRule.parse(rule),
        block=backbone.num_blocks - 1 if block is None else block,
        norms=None,
        seed=0,
        autocast=None,
        folder=folder,
    )
    loaders = {"test": loader(backbone, test)} | ({"train": loader(backbone, train)} if train is not None else {})
    tasks = [Task(TABLE[name], items[name], fill(items[name].options, options)) for name in names]
    return measure(tasks, setting, loaders, progress=silent)


def read_again(found: Found) -> Found:
    """What is left of a result that went through JSON."""
    import json

    from vitprobe.results import to_json

    return Found.read_back(json.loads(to_json(found.as_summary())), found.arrays)


def figures(item: Item, *found: Found):
    """Draw what was found, as `redraw` does, and check that the figures have what a reader needs."""
    drawn = item.draw([(f"model {i}", read_again(one)) for i, one in enumerate(found)])
    assert drawn
    for figure in drawn.values():
        figure.draw_without_rendering()
    return drawn
