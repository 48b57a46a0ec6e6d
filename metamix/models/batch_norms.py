"""Freeze or replace the batch norms of a backbone, for training on batches of few images."""

from timm.layers import BatchNormAct2d, GroupNorm1Act, freeze_batch_norm_2d
from torch import nn

from metamix.layers import GroupNorm1
from metamix.utils.checks import check_choice

BATCH_NORMS = ("auto", "freeze", "replace", "train")


def apply_batch_norms(body: nn.Module, batch_norms: str, *, loaded: bool) -> nn.Module:
    """Freeze all batch norms of a model, replace them by group norms, or train them as they are.

    "auto" freezes them if the backbone has `loaded` weights, and replaces them if its weights are random.
    """
    check_choice("batch_norms", batch_norms, BATCH_NORMS)
    if batch_norms == "auto":
        batch_norms = "freeze" if loaded else "replace"
    if batch_norms == "freeze":
        return freeze_batch_norm_2d(body)
    return replace_batch_norms(body) if batch_norms == "replace" else body


def replace_batch_norms(module: nn.Module) -> nn.Module:
    """Replace all batch norms inside a module by group norms of one group, with the same initial weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            make = GroupNorm1Act if isinstance(child, BatchNormAct2d) else GroupNorm1
            new = make(child.num_features, affine=child.affine)
            new.load_state_dict({key: child.state_dict()[key] for key in new.state_dict()})
            if isinstance(child, BatchNormAct2d):
                new.act, new.drop = child.act, child.drop
            setattr(module, name, new)
        else:
            replace_batch_norms(child)
    return module
