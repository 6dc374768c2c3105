"""Make the transforms that training images go through, from a PIL image in RGB to normalised tensors (3, H, W).

What is random in them comes from the global generators of `random`, numpy and torch alone, which `stream` seeds for
each image. Sizes are in pixels: one side of a square, or (height, width).
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision import transforms as tv

from vitprobe.errors import ArgumentError

Size = int | tuple[int, int]
Triple = tuple[float, float, float]
Augmentation = Callable[[Image.Image], Tensor]

KINDS = ("three-augment", "rand-augment", "crop", "light", "none")
"""What `supervised_transform` can do, from the strongest to nothing."""
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
"""RandAugment as DeiT sets it (arXiv 2012.12877, table 9), in timm's notation."""
COLOUR_JITTER = 0.3
"""Jitter of brightness, contrast and saturation beside ThreeAugment (arXiv 2204.07118, table 2)."""
LIGHT_PADDING = 4
"""Pixels that `light` pads by reflection before it crops: the simple random crop of arXiv 2204.07118, section 3.2."""
BLUR_KERNEL, BLUR_SIGMA = 9, (0.1, 2.0)
"""Side of the Gaussian's kernel and range of its deviation, in pixels, as DINOv2 trains."""


def supervised_transform(
    kind: str, size: Size, mean: Triple, std: Triple, interpolation: str = "bicubic"
) -> Augmentation:
    """Return what images go through to be classified: a transform to (3, H, W).

    `three-augment` (DeiT-III, arXiv 2204.07118): a random resized crop of 8-100 % of the area, a flip, one of
    solarising, greying and blurring, jitter of colours; `rand-augment` (DeiT): the same crop, a flip, RandAugment;
    `crop`: the crop and a flip; `light`, for small pictures: scaled to cover `size`, padded by 4 pixels, a random crop
    of `size`, a flip; `none`: `plain_transform`. Raises ArgumentError for another kind.
    """
    if kind not in KINDS:
        raise ArgumentError(f"augmentation {kind!r}; give one of {', '.join(KINDS)}")
    if kind == "none":
        return plain_transform(size, mean, std, interpolation)
    if kind == "light":
        crop = tv.RandomCrop(_pair(size), padding=LIGHT_PADDING, padding_mode="reflect")
        scale = ResizeKeepRatio(_pair(size), interpolation=interpolation)
        return tv.Compose([scale, crop, tv.RandomHorizontalFlip(), *_tensor(mean, std)])
    parts = {
        "three-augment": {"auto_augment": "3a", "color_jitter": COLOUR_JITTER},
        "rand-augment": {"auto_augment": RAND_AUGMENT, "color_jitter": None},
        "crop": {"color_jitter": None},
    }[kind]
    return create_transform(
        _pair(size), is_training=True, mean=mean, std=std, interpolation=interpolation, re_prob=0.0, **parts
    )


def text_transform(size: Size, mean: Triple, std: Triple) -> Augmentation:
    """Return what images go through beside their captions: a random resized crop of 90-100 %, as open_clip trains."""
    crop = tv.RandomResizedCrop(_pair(size), scale=(0.9, 1.0), interpolation=tv.InterpolationMode.BICUBIC)
    return tv.Compose([crop, *_tensor(mean, std)])


def plain_transform(size: Size, mean: Triple, std: Triple, interpolation: str = "bicubic") -> Augmentation:
    """Return a transform without anything random: the image is scaled to cover `size`, and its middle is cut out."""
    scale = ResizeKeepRatio(_pair(size), interpolation=interpolation)
    return tv.Compose([scale, tv.CenterCrop(_pair(size)), *_tensor(mean, std)])


@dataclass(frozen=True)
class MultiCrop:
    """Cut two global crops and several local ones out of one image, each augmented in its own way."""

    first: Augmentation
    second: Augmentation
    local: Augmentation
    num_local: int

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Return 2 crops (3, H, W) of the global size, then `num_local` of the local size."""
        return (self.first(image), self.second(image), *(self.local(image) for _ in range(self.num_local)))


def multi_crop_transform(
    global_size: Size,
    local_size: Size,
    num_local: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    mean: Triple,
    std: Triple,
) -> MultiCrop:
    """Return the crops of self-distillation as DINO and DINOv2 make them (arXiv 2104.14294; arXiv 2304.07193, app. B).

    Each crop is flipped with probability 0.5, jittered in colour with 0.8 and greyed with 0.2; the first global one is
    always blurred, the second with probability 0.1 and solarised with 0.2, local ones are blurred with 0.5. Scales are
    shares of the area. Raises ArgumentError for a scale outside 0-1, fewer than 0 local crops, and sides of less than 5
    pixels, which cannot be blurred.
    """
    for name, scale in (("global", global_scale), ("local", local_scale)):
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ArgumentError(f"{name} scale {scale}; give (least, most) with 0 < least <= most <= 1")
    least = min(*_pair(global_size), *_pair(local_size))
    if num_local < 0 or least <= BLUR_KERNEL // 2:
        got = f"{num_local} local crops, sides from {least} px"
        raise ArgumentError(f"{got}; give 0 crops or more and sides of at least {BLUR_KERNEL // 2 + 1} px")

    def crop(size: Size, scale: tuple[float, float], *, blur: float, solarise: float = 0.0) -> Augmentation:
        cut = tv.RandomResizedCrop(_pair(size), scale=scale, interpolation=tv.InterpolationMode.BICUBIC)
        jitter = tv.RandomApply([tv.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8)
        parts = [cut, tv.RandomHorizontalFlip(), jitter, tv.RandomGrayscale(p=0.2)]
        parts.append(tv.RandomApply([tv.GaussianBlur(BLUR_KERNEL, BLUR_SIGMA)], p=blur))
        if solarise:
            parts.append(tv.RandomSolarize(threshold=128, p=solarise))
        return tv.Compose([*parts, *_tensor(mean, std)])

    return MultiCrop(
        first=crop(global_size, global_scale, blur=1.0),
        second=crop(global_size, global_scale, blur=0.1, solarise=0.2),
        local=crop(local_size, local_scale, blur=0.5),
        num_local=num_local,
    )


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _tensor(mean: Triple, std: Triple) -> list[Callable]:
    return [tv.ToTensor(), tv.Normalize(mean, std)]
