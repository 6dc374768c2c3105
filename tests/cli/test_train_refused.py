"""What ``train-registers`` cannot do is said in one line, with exit code 2, before anything is written."""

import io
import re
import shlex
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

SMALL = "--arch-arg depth=2 --arch-arg embed_dim=32 --arch-arg num_heads=2 --num-bank 16"
ORGANISM = "--model organism --image-size 64 --objective retrofit"
REG4, LOADED = "vit_small_patch14_reg4_dinov2", "--model timm:vit_tiny_patch16_224 --weights {there}"
SELF, TEXT = "--objective self-distillation", "--objective text"


def png(seed: int) -> bytes:
    """Noise as the bytes of a file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders, tables and shards of pictures, most of which something is wrong with."""
    folder = tmp_path_factory.mktemp("there")
    for place in (
        "two/cat",
        "two/dog",
        "more/cat",
        "more/dog",
        "one/cat",
        "flat",
        "wordnet/n01440764",
        "wordnet/n02110185",
        "numbers/1",
        "numbers/2",
    ):
        (folder / place).mkdir(parents=True)
        for i in range(6):
            (folder / place / f"{i}.png").write_bytes(png(i))
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(12)]
    pq.write_table(pa.table({"image": images}), folder / "bare.parquet")
    pq.write_table(pa.table({"image": images, "label": [0] * 12}), folder / "same.parquet")
    (folder / "noise.tar").write_bytes(b"not a tar at all" * 64)
    with tarfile.open(folder / "whole.tar", "w") as shard:
        for i in range(12):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png(i))
            shard.addfile(member, io.BytesIO(png(i)))
    (folder / "cut.tar").write_bytes((folder / "whole.tar").read_bytes()[:700])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        other = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=64, num_heads=2, img_size=32)
    save_file(other.state_dict(), folder / "other.safetensors")
    (folder / "broken.safetensors").write_bytes(b"{}" * 50)
    return folder


DATA = [
    ("--data {there}/flat", "one class only: all 6 images of flat are 'flat', the folder"),
    ("--data {there}/one", "one class only: all 6 images of one are 'cat'"),
    ("--data {there}/same.parquet", "one class only"),
    ("--data {there}/bare.parquet", "bare.parquet: no column of labels among image"),
    ("--data {there}/whole.tar", "none of the 12 images of whole.tar has a label"),
    ("--data {there}/two --label kind --data {there}/bare.parquet", "no column"),
    ("--data {there}/noise.tar", "noise.tar: not a tar file"),
    ("--data {there}/cut.tar", "cut.tar"),
    ("--data {there}/nowhere", "nowhere: no such file"),
    ("--data scenes --data {there}/two", "scenes cannot be mixed with pictures"),
    ("--data scenes --held-out {there}/two", "got --held-out, which is not for scenes"),
    ("--data {there}/two --num-held-out 100", "got --num-held-out 100; 2 images are held out"),
    ("--data {there}/two --held-out {there}/more --num-held-out 100", "got --num-held-out 100; 12 images"),
    ("--data {there}/two --held-out {there}/two", "2 held-out images are trained on too, .*/two/cat/.*; give others"),
    ("--data {there}/two --held-out {there}/wordnet", "is not among the 2 classes to be told apart: cat, dog"),
    ("--data {there}/two --limit 1", "got --limit 1; give 2 or more"),
    (f"--data {{there}}/two {TEXT}", "none of the 12 images of two has a caption; looked for"),
    (f"--data {{there}}/numbers {TEXT} --caption class", "class '1' is a number, and no caption can be made of it"),
    ("--data torchvision:CIFAR10:{there}/nowhere", "Dataset not found"),
]  # fmt: skip
MODELS = [
    (f"--model timm:{REG4} --weights random --image-size 28", "has 4 registers already; give a model without any"),
    (f"--arch {REG4} --image-size 28", "has 4 registers already"),
    ("--arch-arg reg_tokens=2 --num-reg 0", "scenes-tiny has 2 registers already"),
    ("--model organism-reg4 --image-size 64", "has 4 registers already"),
    (f"{LOADED}/other.safetensors", "other.safetensors does not fit timm:vit_tiny_patch16_224"),
    (f"{LOADED}/broken.safetensors", "broken.safetensors"),
    (f"{LOADED}/none.safetensors", "none.safetensors"),
    ("--model timm:resnet18 --weights random", "is a convolutional network, without tokens: it takes no registers"),
    ("--model nonsense", "got model 'nonsense'"),
    ("--arch nonsense", "no architecture nonsense"),
    ("--model organism --arch scenes-tiny", "give one of them"),
    ("--model organism --arch-arg depth=2", "--arch-arg and --layer-scale go with --arch"),
    ("--arch-arg depth=deep", "got depth 'deep'"),
    ("--arch-arg depth", "got 'depth'; allowed is KEY=VALUE"),
    ("--image-size 33", "an image height of 33 px; it must be a multiple of the patch, 4 px: 32 or 36"),
    ("--image-size 32x33", "an image width of 33 px"),
    ("--image-size 0", "an image height of 0 px"),
    ("--image-size big", "got image size 'big'"),
    ("--model open_clip:ViT-B-32/openai --weights random --drop-path 0.1", "has no place for --drop-path"),
    ("--objective retrofit", "retrofit needs a pretrained --model"),
    (f"{ORGANISM} --trainable registers", "nothing is left to train of organism with 0 registers; .* --no-control"),
]  # fmt: skip
WORDS = [
    ("--num-reg -1", r"got --num-reg \[-1\]; give numbers of registers, 0 or more"),
    ("--objective magic", "got --objective 'magic'; allowed are supervised, text, self-distillation, retrofit"),
    ("--recipe magic", "got --recipe 'magic'; allowed are small, deit3"),
    ("--task magic", "got task magic; scenes have count"),
    ("--task count --task magic", "got task magic"),
    ("--trainable magic", "got --trainable 'magic'; allowed are all, registers"),
    ("--augment magic", "got --augment 'magic'"),
    ("--loss magic", "got --loss 'magic'"),
    ("--optimizer magic", "got --optimizer 'magic'"),
    ("--schedule magic", "got --schedule 'magic'"),
    ("--precision float16", "got --precision 'float16'; allowed are auto, float32, bfloat16"),
    ("--device gpu", "got device 'gpu'"),
    ("--format bmp", "got format 'bmp'"),
    ("--epochs 1", "epochs with scenes, of which there is no end; give --steps"),
    ("--epochs 1 --steps 4 --data {there}/two", "got --steps and --epochs; give one of them"),
    ("--batch-size 10 --accumulation 3", "got 10 images in 3 micro-batches"),
    ("--batch-size 0", "got --batch-size 0; give 1 or more"),
    ("--steps 0", "got --steps 0; give 1 or more"),
    ("--workers -1", "got --workers -1"),
    ("--keep -1", "got --keep -1"),
    ("--resume {there}/two", "holds no run of train-registers"),
    ("--resume {there}/two --lr 0.1", "got --lr with --resume"),
]  # fmt: skip
ODD = [f"{name} {value}" for name in ("lr", "weight-decay", "mixup") for value in ("nan", "inf")]
ODD += [f"{name} nan" for name in ("cutmix", "clip", "smoothing", "drop-path", "dropout", "ema", "layer-decay")]
ODD += [f"{name} nan" for name in ("layer-scale", "register-std", "epochs")]
NUMBERS = [
    *((f"--{name}", f"got --{name}") for name in ODD),
    ("--lr 0", "got --lr 0.0; give a positive number"),
    ("--lr -1", "got --lr -1.0"),
    ("--weight-decay -1", "got --weight-decay -1.0; give 0 or more"),
    ("--register-std -1", "got --register-std -1.0; give 0 or more"),
    ("--drop-path 1", "allowed is 0 to 0.9"),
    ("--smoothing 1", "allowed is 0 to 0.9"),
    ("--ema 1", "allowed is 0 to 0.99999"),
    ("--layer-decay 0", "allowed is 0.1 to 1"),
    ("--arch-arg init_values=nan", "got --arch-arg init_values nan; give a finite number"),
    (f"{SELF} --objective-arg koleo=inf", "got --objective-arg koleo inf; give a finite number"),
    (f"{SELF} --objective-arg koleo=much", "got --objective-arg koleo=much; give a number from 0 on"),
    (f"{SELF} --objective-arg koleo=none", "got --objective-arg koleo=None; give a number from 0 on"),
    (f"{SELF} --objective-arg mask_ratio=0.5", "give two numbers from 0 to 1, e.g. mask_ratio=0.1,0.5"),
    (f"{SELF} --objective-arg mask_ratio=0.5,2", "give two numbers from 0 to 1"),
    (f"{SELF} --objective-arg num_prototypes=1", "give a whole number from 2 on"),
    (f"{SELF} --objective-arg num_prototypes=2.5", "give a whole number from 2 on"),
    (f"{SELF} --objective-arg student_temperature=0", "give a number from 0.001 on"),
    (f"{SELF} --objective-arg local_size=13", "an image height of 13 px; it must be a multiple of the patch"),
    (f"{SELF} --objective-arg local_size=4", "sides of at least 5 px"),
    (f"{SELF} --objective-arg global_scale=0.5,0.1", "global scale"),
    (f"{SELF} --objective-arg magic=1", "self-distillation has no option magic; it has num_prototypes"),
    (f"{TEXT} --objective-arg text_heads=0", "give a whole number from 1 on"),
    (f"{TEXT} --objective-arg text_heads=3", "the heads must divide the width"),
    (f"{TEXT} --objective-arg context_length=true", "give a whole number from 3 on"),
    (f"{ORGANISM} --objective-arg num_views=0", "give a whole number from 1 on"),
    (f"{ORGANISM} --objective-arg shift=3", "give a number from 0 to 1"),
    (f"{ORGANISM} --objective-arg denoise=1", "give true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), [*DATA, *MODELS, *WORDS, *NUMBERS])
def test_it_is_one_line_and_nothing_is_written(
    given: str, said: str, run: Callable[..., tuple[int, str, str]], there: Path, tmp_path: Path
) -> None:
    asked = shlex.split(given.format(there=there))
    small = [] if {"--model", "--arch", "--resume"} & set(asked) else shlex.split(SMALL)
    held_out = [] if {"--num-held-out", "--resume"} & set(asked) or there.name in given else ["--num-held-out", "2"]
    out = [] if "--resume" in asked else ["--out", tmp_path / "out"]
    code, printed, err = run("train-registers", *small, *held_out, *asked, *out)
    assert (code, printed) == (2, ""), err
    assert err.startswith("vitprobe: ") and err.count("\n") == 1, err

    assert re.search(said, err), err
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_that_is_not_there_is_said_first(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    small = [*shlex.split(SMALL), "--num-held-out", "2"]
    code, _, err = run("train-registers", *small, "--tensorboard", "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1
    assert "--tensorboard needs the package tensorboard" in err
    assert list(tmp_path.iterdir()) == []
