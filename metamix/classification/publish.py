"""Describe a classifier in timm's hub format, so that `timm.create_model("hf-hub:...")` loads it."""

import json
from pathlib import Path

import timm
import torch
from timm.models._hub import save_config_for_hf

from metamix.models.metaformer import MetaFormer
from metamix.tasks.publish import CONFIG, PublishOptions
from metamix.utils.checks import parse_size
from metamix.utils.files import write_text

from .load import Classifier

USE = """import {packages}
from PIL import Image

model = timm.create_model("{address}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
scores = model(transform(Image.open("photo.jpg").convert("{mode}"))[None])
names = model.pretrained_cfg["label_names"]
print({shown})
"""
# Entries of timm's configuration that are cleared, since they may describe other weights.
OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "description", "notes", "label_names")


def write_config(classifier: Classifier, folder: Path, options: PublishOptions) -> str:
    """Write the config.json of a folder with weights, and return code that loads the model with timm.

    Raises:
        ValueError: timm cannot load the model from the folder, or the loaded model returns other logits.
    """
    metadata, net = classifier.metadata, classifier.model
    size = parse_size("img_size", metadata.img_size)  # type: ignore[arg-type]  # the metadata are complete
    save_config_for_hf(
        net,
        str(folder / CONFIG),
        model_config={
            "pretrained_cfg": dict.fromkeys(OF_OTHER_WEIGHTS) | {"license": options.license},
            "label_names": list(classifier.classes),
        },
        data_config={
            "input_size": (metadata.in_chans, *size),
            "mean": metadata.mean,
            "std": metadata.std,
            "interpolation": metadata.interpolation,
            "crop_pct": metadata.crop_pct,
            "crop_mode": metadata.crop_mode,
        },
    )
    # timm 1.0.31 writes the number of classes twice, so transformers 5.24 passes it twice and raises TypeError.
    config = json.loads((folder / CONFIG).read_text())
    config["model_args"].pop("num_classes", None)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    images = torch.rand(2, metadata.in_chans or 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            same = torch.equal(loaded(images), net(images))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"timm cannot load {classifier.name} from its hub format: {error}") from error
    if not same:
        raise ValueError(f"the model that timm loads from the hub format differs from {classifier.name}")
    packages = "metamix, timm" if isinstance(net, MetaFormer) else "timm"  # metamix registers its models
    shown = "names[scores.argmax()]"
    if metadata.threshold is not None:
        likely = f"scores[0].sigmoid() >= scores.new_tensor({metadata.threshold})"
        shown = f"[name for name, has_it in zip(names, {likely}) if has_it]"
    return USE.format(packages=packages, address=f"hf-hub:{options.repo}", mode=classifier.transform.mode, shown=shown)
