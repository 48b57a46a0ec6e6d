"""Remember the weights of the epoch with the best held-out score, and decide when training stops early.

The score is the first score of the task's metric. The option `score` chooses whether it is computed with the last
weights or with their average. The checkpoint holds the best epoch, so a resumed run stops at the same epoch with the
same weights.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from .recipe import Recipe

# The best epoch, the name and value of its score, its weights ("model"), and the last scored epoch; empty at the start.
# While all scores are NaN, the best epoch is the first scored epoch, and no weights are kept.
Best = dict[str, Any]


def check_held_out(recipe: Recipe, splits: Collection[str]) -> None:
    """Raise ValueError if early stopping has no held-out split to watch."""
    patience = recipe.engine.early_stopping
    if patience and "holdout" not in splits:
        advice = "the data need a split val that is neither trained on nor scored as the test split"
        if hasattr(recipe.options, "holdout"):
            advice = "add --holdout 0.1 to hold out a tenth of train"
        raise ValueError(f"early_stopping is {patience}, but no split is held out to be scored each epoch: {advice}")


def updated(best: Best, epoch: int, scores: Mapping[str, float], model: nn.Module, lower_is_better: bool) -> Best:
    """Return the best epoch, given a new epoch's held-out scores.

    The best epoch so far stays the best if the new score is equal, worse or NaN.
    """
    name, score = next(iter(scores.items()), ("", math.nan))
    sign = -1 if lower_is_better else 1
    if best and (math.isnan(score) or sign * score <= sign * best["score"]):
        return best | {"scored": epoch}
    kept = {} if math.isnan(score) else model.state_dict()
    weights = {key: tensor.detach().to("cpu", copy=True) for key, tensor in kept.items()}
    return {"epoch": epoch, "scored": epoch, "name": name, "score": score, "model": weights}


def is_exhausted(best: Best, patience: int) -> bool:
    """Return whether the last scored epoch is `patience` or more epochs after the best; False if `patience` is 0."""
    return bool(patience and best) and best["scored"] - best["epoch"] >= patience
