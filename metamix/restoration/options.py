"""Define the options of restoration."""

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from metamix.data.options import ReadingOptions, Template
from metamix.layers.image_inference import check_tiles
from metamix.tasks.options import BackboneOptions, WeightOptions, as_trained
from metamix.utils.options import changed_flags, option
from metamix.utils.rules import Count, Natural, NotNegative, ShareBetween

from .degradations import PAIRS, parse_degradations
from .loss import parse_loss

_data = partial(option, group="data")
_model = partial(option, group="model")
_crops = partial(option, group="augmentation")
_loss = partial(option, group="loss", on_resume="report")
_score = partial(option, group="scoring", on_resume="report")

PAIR_OPTIONS = ("input_folder", "target_folder", "input_name")


@dataclass
class RestorationDataOptions(ReadingOptions):
    """Options that say where images are and how they are scored, for `metamix train` and `metamix eval`."""

    data_dir: str = _data(
        "", "folder of the images, or folder that holds train/ and test/; see --degradation", on_resume="ignore"
    )
    test_dir: str = _data(
        "",
        "folder of the images to score; default: test/ or val/ in data_dir, or a share of the images",
        on_resume="ignore",
    )
    input_folder: str = _data("input", "pairs: folder of the degraded images inside data_dir or the folder of a split")
    target_folder: str = _data("target", "pairs: folder of the clean images")
    input_name: Template = _data(
        "{name}", "pairs: name of the degraded copy of the clean image {name}, such as '{name}x2'"
    )

    score_channel: Literal["auto", "rgb", "y", "grey"] = _score(
        "auto", "channels that PSNR and SSIM compare; auto: y (BT.601, 16 to 235) for super-resolution, else rgb"
    )
    score_border: Natural | Literal["auto"] = _score(
        "auto", "pixels at each side that are not compared; auto: the scale for super-resolution, else 0"
    )
    score_rounding: bool = _score(True, "clip and round restored images to 8 bits before they are compared")
    tile: int = _score(0, "score in tiles of this side, in pixels of the model's input; 0: whole images")
    overlap: int = _score(32, "smallest overlap of neighbouring tiles, in the same pixels", needs="tile")
    ensemble: bool = _score(False, "average over eight orientations of the images to score; takes eight times as long")
    local_pooling: Natural = _score(
        0,
        "side of the windows that MAXIM's channel attention averages over while scoring, such as the side of "
        "the training crops, in pixels of the model's input; 0: the whole image or tile",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data_dir and not self.test_dir:
            raise ValueError("no images are given: give --data-dir FOLDER")
        check_tiles(self.tile, self.overlap)


@dataclass
class RestorationOptions(BackboneOptions, RestorationDataOptions):
    """Options of `metamix train` for restoration."""

    # The engine's defaults suit batches of 128 images. A few hundred photographs would make only a few such batches.
    engine_defaults: ClassVar[dict[str, Any]] = {
        "batch_size": 16,
        "optimizer": "muon",
        "lr": 3e-3,
        "schedule": "linear",
        "warmup_epochs": 0.5,
        "weight_decay": 0.01,
        "ema": True,
        "ema_decay": 0.999,
    }

    model: str = _model("maxim_nano", "image model; several names, a,b,c, are trained one after the other and compared")
    degradation: str = _data(
        PAIRS,
        "how clean images are degraded, such as noise:25 or blur:0.5-3,noise:0-50,jpeg:30-90; pairs: the folder has "
        "clean and degraded images. Degradations: noise, downscale, blur, motion, jpeg, low_light, haze, rain",
    )
    channels: Literal["auto", "rgb", "grey", "y"] = _data(
        "auto",
        "rgb, grey or y; y: luminance of BT.601, 16 to 235, to which degradations are applied (noise:25 is 25 of 219 "
        "levels); auto: grey if all images are grey, else rgb",
    )
    test_share: ShareBetween = _data(0.1, "share of the images that is scored if there is no --test-dir, test/ or val/")
    crop: Count = _crops(64, "side of the random crops of the clean images, in pixels")
    crops: Count = _crops(8, "crops of each image in an epoch")
    flip: bool = _crops(True, "flip at random, horizontally and vertically")
    rotate: bool = _crops(True, "rotate by a random multiple of 90 degrees")
    mixup: NotNegative = _crops(0.0, "alpha of mixup of neighbouring crops and their targets, such as 1.2; 0: no mixup")
    loss: str = _loss(
        "charbonnier", "charbonnier, l1, mse, psnr, ssim, fft, or a sum of them such as charbonnier+0.1*fft"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_backbone({"in_chans": "--channels"})
        flags = changed_flags(self, *PAIR_OPTIONS)
        if parse_degradations(self.degradation).steps and flags:
            raise ValueError(f"{flags[0]} {flags[1]} is for pairs, but degradation is {self.degradation}: omit one")
        parse_loss(self.loss)


@dataclass
class RestorationEvalOptions(WeightOptions, RestorationDataOptions):
    """Options of `metamix eval` for restoration."""

    degradation: str | None = as_trained("how clean images are degraded, or pairs")
    channels: Literal["auto", "rgb", "grey", "y"] | None = as_trained("rgb, grey or y")
    test_share: ShareBetween | None = as_trained("share of the images that is scored")


def verify_command(options: RestorationOptions, folder: str) -> str:
    """Return the command that lists what is wrong with the images of a folder."""
    flags = changed_flags(options, *PAIR_OPTIONS, "max_pixels")
    flags += ["--clean"] if parse_degradations(options.degradation).steps else []
    return shlex.join(["metamix", "verify", "--task", "restoration", folder, *flags])
