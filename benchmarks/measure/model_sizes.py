"""Count parameters and multiply-adds (MACs) of every registered model: results/model_sizes.json.

python -m benchmarks.measure.model_sizes
"""

import json

import timm

import metamix  # noqa: F401 - registers the models with timm
from benchmarks.paths import RESULTS
from metamix.models import count_macs
from metamix.utils.files import write_text

FILE = RESULTS / "model_sizes.json"


def registered() -> list[str]:
    """List the names that metamix registers with timm, without tags."""
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("metamix.")]


def measure(name: str) -> dict:
    """Return parameters, MACs of one image and the input size (channels, height, width) of a model."""
    model = timm.create_model(name, device="meta")
    size = model.default_cfg["input_size"]
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "macs": count_macs(model, size), "input_size": list(size)}


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    write_text(FILE, json.dumps({name: measure(name) for name in registered()}, indent=1) + "\n")
