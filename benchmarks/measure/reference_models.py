"""Build models of timm, metamix, other packages (`PEERS`) and cloned repositories (`AUTHORS`) by name.

The folder given as --authors holds the clones, each in a folder with the name of its repository. tests/goldens has
tensors of smaller models of the same classes.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy
import timm
from torch import nn

import metamix  # noqa: F401 - registers the models with timm
from metamix.utils.text import did_you_mean


def wavemix(**options) -> nn.Module:
    """Build the authors' classifier from the package `wavemix`."""
    # The package imports a module that numpy 2 lacks.
    sys.modules.setdefault("numpy.lib.function_base", SimpleNamespace(hamming=numpy.hamming))
    from wavemix.classification import WaveMix

    return WaveMix(**options)


PEERS: dict[str, Callable[[], nn.Module]] = {
    "authors_wavemix_192_16": lambda: wavemix(depth=16, final_dim=192, ff_channel=192, level=1, patch_size=4),
    "authors_wavemix_144_7": lambda: wavemix(
        num_classes=10, depth=7, final_dim=144, ff_channel=144, level=1, initial_conv="strided", stride=1
    ),
}


@dataclass(frozen=True)
class Checkout:
    """A model class in a clone of a repository.

    Attributes:
        repository: owner and name on GitHub.
        file: path of the Python file in the repository.
        name: name of the class.
        parameters: number of parameters that the model must have.
        options: arguments of the constructor.
        script: whether importing the file starts training. If so, only its imports, functions and classes are run.
    """

    repository: str
    file: str
    name: str
    parameters: int
    options: dict = field(default_factory=dict)
    script: bool = False

    def path(self, authors: Path) -> Path:
        return authors / self.repository.split("/")[1] / self.file


RAFTMLP_S = [
    dict(depth=depth, dim=dim, patch_size=patch, raft_size=2, embedding_kernels=kernels)
    for depth, dim, patch, kernels in ((2, 64, 4, [4, 8]), (2, 128, 2, [2, 4]), (6, 256, 2, [2, 4]), (2, 512, 2, [2]))
]
AUTHORS = {
    "authors_raftmlp_s": Checkout(
        "okojoalg/raft-mlp", "libs/models.py", "RaftMLP", 9_868_768,
        dict(
            layers=RAFTMLP_S, embedding_type="emb_cross_mlp", shortcut=False, in_channels=3, pretrained_image_size=224,
            num_classes=1000, token_expansion_factor=2, channel_expansion_factor=4, token_mixing_type="ser_pm",
        ),
    ),
    "authors_ninformer_cifar": Checkout(
        "Abdullah-88/NiNformer", "train.py", "NiNformerImageClassification", 2_652_170,
        dict(
            image_size=32, patch_size=4, in_channels=3, num_classes=10, d_model=256, d_ffn=512, seq_len=64,
            num_layers=4, dropout=0.5,
        ),
        script=True,
    ),
    "authors_minattn_symmetric_nomlp_h4_cifar": Checkout(
        "Abdennacer-Badaoui/Reducing_the_Transformer_Architecture_to_a_Minimum", "src/modules.py", "ReducedTransformer",
        68_874,
        dict(
            embed_dim=64, num_heads=4, num_layers=6, n_classes=10, patch_size=8, num_patches=16, dropout=0.1,
            in_channels=3, include_mlp=False, modification="symmetry",
        ),
    ),
}  # fmt: skip


def check_names(names: list[str], authors: Path | None) -> None:
    """Exit, before any work starts, if a name is unknown, or its package or clone is missing."""
    for name in names:
        if name not in PEERS and name not in AUTHORS and not timm.is_model(name):
            accepted = [*timm.list_models(), *PEERS, *AUTHORS]
            raise SystemExit(
                f"Unknown model {name!r}{did_you_mean(name, accepted)} Accepted: any timm model, including ours, "
                f"and {', '.join([*PEERS, *AUTHORS])}."
            )
        if need := lacks(name, authors):
            raise SystemExit(f"{name} {need}.")


def lacks(name: str, authors: Path | None) -> str | None:
    """Return the end of a sentence that says what `name` lacks and what to do; None if nothing is missing."""
    if name.startswith("authors_wavemix") and importlib.util.find_spec("wavemix") is None:
        return "needs the package wavemix: pip install wavemix"
    if name not in AUTHORS:
        return None
    checkout = AUTHORS[name]
    if authors is None:
        return f"needs a clone of {checkout.repository}: give the parent folder of the clone as --authors"
    if not checkout.path(authors).is_file():
        return f"needs {checkout.path(authors)}, which is not there: clone {checkout.repository} into {authors}"
    return None


def ours(name: str) -> bool:
    """Return whether metamix registers the name."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("metamix.")


def create(name: str, size: int, authors: Path | None = None) -> nn.Module:
    """Build a model without trained weights; only metamix's models and timm's fixed-size models use `size`."""
    if name in PEERS:
        return PEERS[name]()
    if name in AUTHORS:
        return from_checkout(name, authors)
    cfg = timm.get_pretrained_cfg(name)
    sized = ours(name) or (cfg is not None and cfg.fixed_input_size)
    return timm.create_model(name, **(dict(img_size=size) if sized else {}))


def from_checkout(name: str, authors: Path | None) -> nn.Module:
    """Build a model from a clone in the folder `authors`.

    Raises:
        SystemExit: a package is missing, or the model does not have the expected number of parameters.
    """
    checkout = AUTHORS[name]
    path = checkout.path(authors)
    for folder in (path.parents[checkout.file.count("/")], path.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        model = getattr(load(name, path, checkout.script), checkout.name)(**checkout.options)
    except ImportError as error:
        raise SystemExit(f"{path} needs a package that is not installed: {error}.") from error
    parameters = sum(p.numel() for p in model.parameters())
    if parameters != checkout.parameters:
        raise SystemExit(
            f"{path} builds a model of {parameters} parameters, but {name} has {checkout.parameters}: "
            f"check out the commit that its files in tests/goldens name as source_commit."
        )
    return model


def load(name: str, path: Path, script: bool) -> ModuleType:
    """Import the file. If it is a script, run only its imports and definitions."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    tree = ast.parse(path.read_text(), str(path))
    if script:
        tree.body = [
            node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
        ]
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module
