"""A model zoo of efficient token-mixing vision backbones, registered with timm.

    import metamix, timm

    metamix.list_models("*raft*")                                   names, sizes, weights and their accuracy
    timm.create_model("metaformer_raft_nano", pretrained=True)      a model, as any of timm's
    timm.create_model("metaformer_raft_s12", features_only=True)    its maps at strides 4, 8, 16 and 32
    timm.create_model("metaformer_raft_s12", mixer="minattn")       the same model with another mixer
    metamix.load_classifier("RUN_OR_FILE")                          a trained model, its transform and its classes
    metamix.save_classifier(model, "my.safetensors", classes=...)   one from a training loop of your own

    metamix.list_image_models()                                     image restoration models
    metamix.create_image_model("maxim_s3.sidd", pretrained=True)    one of them

    metamix.list_mixers()                                           names of all mixers
    metamix.mixer_options("raft")                                   options of one, for mixer_args
    @metamix.register_mixer("mine")                                 a mixer of your own, see metamix.mixers.registry

    metamix.models.load_official("poolformer", state_dict, ...)     weights of the papers' authors
    from metamix.detection import build_detector                    torchvision's detectors on any of these models
    from metamix.segmentation import build_segmenter                heads for semantic segmentation on them

On the command line, `metamix --help` says how to train, evaluate and predict.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models
from .mixers import list_mixers, mixer_options, register_mixer
from .models import create_image_model, list_image_models, list_models
from .tasks import registry as _tasks  # noqa: F401 - names the modules of the tasks
from .version import __version__

if TYPE_CHECKING:
    from .classification.load import load_classifier
    from .classification.save import save_classifier

__all__ = [
    "__version__", "create_image_model", "list_image_models", "list_mixers", "list_models", "load_classifier",
    "mixer_options", "models", "register_mixer", "save_classifier",
]  # fmt: skip
LATER = ("classification", "deploy", "detection", "restoration", "segmentation")  # packages imported on first use


def __dir__() -> list[str]:
    """List the public names, with those that are imported on first use."""
    return sorted({*globals(), *__all__, *LATER})


def __getattr__(name: str) -> Any:
    """Import tasks and deployment on first use, so that `import metamix` imports only models."""
    if name == "load_classifier":
        from .classification.load import load_classifier

        return load_classifier
    if name == "save_classifier":
        from .classification.save import save_classifier

        return save_classifier
    if name in LATER:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
