"""Table 2 b of Darcet et al. (arXiv 2309.16588): zero-shot classification by a model that was trained with captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.backbones.open_clip_text import PROMPTS, fill_prompts, find_text, imagenet_names
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.labels import CLASS_CAPTION, class_captions
from vitprobe.inputs.scene_shapes import BACKGROUNDS
from vitprobe.plots.frozen import Score, ScorePanel, draw_scores
from vitprobe.probes.passes import Reader
from vitprobe.probes.zero_shot import ZeroShotReader, describe
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.training.objectives.text import SCENE_PROMPT

INTERVAL = "Wilson's 95 %, for test images drawn at random"
GUESS = "a class drawn at random"
MODELS = (
    "Darcet et al. trained OpenCLIP on image-text pairs of their own and published no weights: those of the zoo are "
    "others"
)


@dataclass(frozen=True)
class ZeroShotOptions:
    """Hold what table 2 b leaves open."""

    prompts: str = "openai80"
    """``single`` (a photo of a {}) or ``openai80``: the 80 prompts that OpenAI wrote for ImageNet, their mean."""
    text: str = ""
    """Where the text tower is, if it is neither beside the checkpoint nor in the model of open_clip that was named: a
    folder with text.safetensors, a model of open_clip, or the file of the whole model."""

    def __post_init__(self) -> None:
        if self.prompts not in PROMPTS:
            raise ArgumentError(f"got prompts {self.prompts!r}; allowed are {', '.join(PROMPTS)}")
        if not isinstance(self.text, str):
            raise ArgumentError(f"got text {self.text!r}; give a folder, a file or a model of open_clip")


class ZeroShot(Measurement):
    """Embed what is said of each class, and find the nearest for every test image."""

    def __init__(self, setting: Setting, options: ZeroShotOptions) -> None:
        """Find the text tower and embed the prompts. Raises `ArgumentError` for a model without one."""
        self.setting, self.options = setting, options
        text = find_text(setting.backbone.spec, given=options.text)
        self.prompts, self.notes = prompts_of(setting, options.prompts)
        if not self.prompts:
            raise ArgumentError(f"nothing can be said of the classes of {setting.test.name}: {'; '.join(self.notes)}")
        text.module.to(next(setting.backbone.module.parameters()).device)
        number = sum(len(said) for own in self.prompts.values() for said in own)
        with setting.progress(f"{setting.model}: descriptions", number) as advance:
            self.reader = ZeroShotReader({task: describe(text, own, advance) for task, own in self.prompts.items()})

    def test_readers(self) -> Sequence[Reader]:
        """Return what finds the nearest description."""
        return (self.reader,)

    def found(self) -> Found:
        """Return the accuracy of each task."""
        setting, rows, scores = self.setting, [], []
        for task, own in self.prompts.items():
            result = self.reader.result(task, setting.test.labels[task])
            is_imagenet = setting.test.name.partition(",")[0] == "imagenet" and len(own) == 1000
            key = "in1k" if is_imagenet else ""
            rows.append(Row(f"{task}, nearest description", result.accuracy, "share", result.num_images,
                            result.interval, key=key))  # fmt: skip
            rows.append(Row(f"{task}: {GUESS}", result.guess, "share", result.num_images))
            score = {name: getattr(result, name) for name in ("accuracy", "interval", "guess", "most_frequent")}
            told = {"num_classes": len(own), "num_prompts": len(own[0]), "first_prompt": own[0][0]}
            scores.append({"task": task, **score, **told, "shares_told": result.shares.tolist()})
        summary = {
            "data": setting.test.name,
            "prompts": self.options.prompts,
            "interval": INTERVAL,
            "scores": scores,
            "notes": [MODELS] * any(row.key for row in rows) + self.notes,
        }
        return Found(tuple(rows), summary)


def prompts_of(setting: Setting, prompts: str) -> tuple[dict[str, tuple[tuple[str, ...], ...]], list[str]]:
    """Say what is said of the classes of each task; and what cannot be said, or is said otherwise."""
    source, found, notes = setting.test, {}, []
    for task, classes in source.classes.items():
        if task not in source.labels:
            continue
        if source.name.startswith("scenes"):
            if task == "background" and classes == BACKGROUNDS:
                found[task] = tuple((SCENE_PROMPT.format(name),) for name in classes)
                notes.append(f"{task}: one prompt a class, as training with captions has it: {SCENE_PROMPT}")
            continue
        names = imagenet_names(classes)
        try:
            captions = () if names else class_captions(classes)
        except InputError as error:
            notes.append(f"{task}: {error}")
            continue
        prefix = CLASS_CAPTION.format("")
        found[task] = fill_prompts(names or [caption.removeprefix(prefix) for caption in captions], prompts)
    return found, notes


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw a panel for each task: every model's accuracy beside that of a guess."""
    panels: dict[tuple[str, str], list[tuple[str, list[Score]]]] = {}
    for title, found in drawn:
        for one in found.summary["scores"]:
            shown = [
                Score("nearest description", one["accuracy"], tuple(one["interval"])),
                Score(GUESS, one["guess"], is_control=True),
                Score("most frequent class, always", one["most_frequent"], is_control=True),
            ]
            panels.setdefault((found.summary["data"], one["task"]), []).append((title, shown))
    made = [ScorePanel(task, "zero-shot accuracy", rows, second=data) for (data, task), rows in panels.items()]
    return {"scores": draw_scores(made, note=f"bars: {INTERVAL}")}


ITEMS = {"table2-zero-shot": Item(ZeroShot, draw, ZeroShotOptions)}
