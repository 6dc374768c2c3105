"""Which variants one call trains: numbers of registers, and the controls without which a drop proves nothing."""

from dataclasses import dataclass

from vitprobe.training.config import TrainConfig


@dataclass(frozen=True)
class Variant:
    """Name one training of a call."""

    num_registers: int
    denoise: bool | None = None
    """For ``retrofit``: whether the teacher's features are averaged over views; None elsewhere."""
    smoothing: float | None = None
    """For ``finetune``: label smoothing; None elsewhere."""

    @property
    def name(self) -> str:
        """The variant's folder: ``reg4``, ``reg4-plain`` where a retrofit does not denoise, ``reg4-smooth0.1``."""
        smoothed = "" if self.smoothing is None else f"-smooth{self.smoothing:g}"
        return f"reg{self.num_registers}" + ("-plain" if self.denoise is False else "") + smoothed

    @property
    def title(self) -> str:
        """The variant in a figure: ``4 registers``, ``no registers, no denoising``."""
        number = {0: "no registers", 1: "1 register"}.get(self.num_registers, f"{self.num_registers} registers")
        smoothed = "" if not self.smoothing else f", smoothing {self.smoothing:g}"
        return number + (", no denoising" if self.denoise is False else "") + smoothed


def variants(config: TrainConfig) -> tuple[Variant, ...]:
    """List the trainings of a call, the control R = 0 first.

    The controls of ``retrofit`` are distillation without registers, without denoising, and without either: the ablation
    of PH-Reg ascribes most of the gain to distillation and denoising, not to the registers.
    """
    numbers = dict.fromkeys((*([0] if config.control else []), *sorted(config.num_registers)))
    if config.objective != "retrofit":
        return tuple(Variant(number) for number in numbers)
    denoise = bool(config.option("denoise"))
    ways = (denoise, not denoise) if config.control else (denoise,)
    return tuple(Variant(number, way) for way in ways for number in numbers)
