"""Freeze or replace the batch norms of a backbone, whose heads train on batches of few images."""

from timm.layers import BatchNormAct2d, GroupNorm1Act, freeze_batch_norm_2d
from torch import nn

from metamix.layers import GroupNorm1


def settle_batch_norms(body: nn.Module, frozen: bool | None, *, loaded: bool, keep: bool) -> nn.Module:
    """Freeze all batch norms of a model, keep them, or replace them by group norms.

    Args:
        body: the model.
        frozen: whether to freeze; None: if the weights are `loaded`.
        loaded: whether the weights are loaded.
        keep: keep batch norms that are not frozen, instead of replacing them.

    Raises:
        ValueError: `frozen` is something else.
    """
    if frozen not in (True, False, None):
        raise ValueError(f"frozen_norms is {frozen!r}; accepted are True, False and None.")
    if loaded if frozen is None else frozen:
        return freeze_batch_norm_2d(body)
    return body if keep else replace_batch_norms(body)


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
