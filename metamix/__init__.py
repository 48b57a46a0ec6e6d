"""A model zoo of efficient token-mixing vision backbones, registered with timm.

    import metamix, timm

    metamix.list_models("*raft*")                                   names, sizes, weights and their accuracy
    timm.create_model("metaformer_raft_nano", pretrained=True)      a model with its weights
    timm.create_model("metaformer_raft_s12", features_only=True)    feature maps at strides 4, 8, 16 and 32
    timm.create_model("metaformer_raft_s12", mixer="minattn")       the same model with another mixer
    metamix.train("finetune/tiny", data_dir="images")               train, as on the command line
    metamix.load("RUN_OR_FILE").predict(["a.jpg"])                  a trained model of any task
    metamix.evaluate(checkpoint="RUN_OR_FILE", data_dir="images")   its scores
    metamix.export("RUN_OR_FILE", output="FOLDER", format="onnx")   the same model for an inference engine
    metamix.save_classifier(model, "my.safetensors", classes=...)   a model from your own training loop

    metamix.create_image_model("maxim_s3.sidd", pretrained=True)    a model of list_image_models(), for restoration

    metamix.mixer_options("raft")                                   options of a mixer of list_mixers(), for mixer_args
    @metamix.register_mixer("mine")                                 a mixer of your own; see metamix.mixers.registry

    metamix.models.load_official("poolformer", state_dict, ...)     weights of the papers' authors
    from metamix.detection import build_detector                    torchvision's detectors with a backbone of the zoo
    from metamix.segmentation import build_segmenter                semantic segmentation with such a backbone

On the command line, `metamix --help` lists the commands, such as train, eval and predict.
"""

from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from . import models
from .mixers import list_mixers, mixer_options, register_mixer
from .models import create_image_model, list_image_models, list_models
from .tasks.load import load
from .tasks.registry import PUBLIC, TASKS, register_task
from .tasks.spec import TaskSpec
from .version import __version__

if TYPE_CHECKING:
    from .cli.evaluate import evaluate
    from .cli.train import train
    from .tasks.export import export

__all__ = [
    "TaskSpec", "__version__", "create_image_model", "evaluate", "export", "list_image_models", "list_mixers",
    "list_models", "load", "mixer_options", "models", "register_mixer", "register_task", "train",
]  # fmt: skip
# Imported on first use, so that `import metamix` takes less time.
_PARTS = PUBLIC | {
    "evaluate": "metamix.cli.evaluate:evaluate",
    "export": "metamix.tasks.export:export",
    "train": "metamix.cli.train:train",
}
_PACKAGES = tuple(TASKS)


def __dir__() -> list[str]:
    """List the public names, including the names that are imported on first use."""
    return sorted({*globals(), *__all__, *_PARTS, *_PACKAGES})


def __getattr__(name: str) -> Any:
    """Import a task, or a function whose module is slow to import, on first use."""
    if name in _PARTS:
        return resolve_name(_PARTS[name])
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
