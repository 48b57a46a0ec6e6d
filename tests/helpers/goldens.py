"""Read files of the authors' arguments, weights, inputs and outputs, and give weights the authors' names."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parents[1] / "goldens"


def read_golden(name):
    """Return the arguments of the authors' constructor, the model's weights, and all tensors of the file by name."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    state = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    return json.loads((GOLDENS / f"{name}.json").read_text())["constructor"], state, tensors


def read_exact(name):
    """Return the outputs of the authors' code in float64, by name."""
    path = Path(name)
    return load_file(GOLDENS / path.parent / "f64" / f"{path.name}.safetensors")


def wavemix_state(model, renames):
    """Return a restoration model's state dict with the tensor names and the detail channel order of WaveMix's authors.

    `renames` maps the beginnings of our names to theirs. The authors number the feed-forward parts of a model with
    several levels.
    """
    state, mixer = {}, model.blocks[0].mixer
    several, width = len(mixer.levels) > 1, mixer.reduce.out_channels
    for key, value in model.state_dict().items():
        for ours, theirs in renames.items():
            key = re.sub(rf"^{ours}\.", f"{theirs}.", key)
        key = key.replace("blocks.", "layers.").replace(".mixer.reduce.", ".reduction.")
        key = re.sub(r"\.mixer\.levels\.(\d)\.", lambda m: f".feedforward{int(m[1]) + 1 if several else ''}.", key)
        for ours, theirs in dict(fc1=0, fc2=3, up=4, norm=5).items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        if re.search(r"feedforward\d?\.0\.weight", key):
            low, high, others = value.tensor_split((width, 4 * width), dim=1)
            high = high.unflatten(1, (3, width)).transpose(1, 2).flatten(1, 2)  # c0-LH, c0-HL, c0-HH, c1-LH ...
            value = torch.cat([low, high, others], dim=1)
        state[key] = value
    return state
