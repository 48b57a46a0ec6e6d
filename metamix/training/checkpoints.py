"""Find, write and check the checkpoint of a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamix.utils.text import package_logger, plural
from metamix.weights.files import CHECKPOINT, load_checkpoint, require, save_checkpoint

from .early_stopping import is_exhausted
from .processes import ProcessGroup
from .recipe import Recipe, resume_changes

_logger = package_logger(__name__)

CONTENT = "content"  # key of the digest of the files' content in `TaskData.identity`
ENTRIES = (  # what a checkpoint must hold
    "recipe", "about", "step", "steps_per_epoch", "history", "sums", "seconds", "epoch_seconds",
    "model", "ema", "optimizer", "scaler",
)  # fmt: skip
WORDS = {"digest": "files, labels or boxes", CONTENT: "content of the files"}  # how messages name a key


class Checkpoints:
    """Find and write the checkpoint of a run folder, and remember the newest good checkpoint."""

    def __init__(self, folder: Path | None, minutes: float):
        self.path = folder / CHECKPOINT if folder is not None else None  # None for a dry run
        self.minutes = minutes  # time between two checkpoints within an epoch
        self.last: tuple[Path | None, int] | None = None  # the newest good checkpoint and its step
        self._written_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Return whether it is time for the next checkpoint."""
        return time.monotonic() - self._written_at >= 60 * self.minutes

    def find(self, resume: str, group: ProcessGroup) -> tuple[Path, dict[str, Any]] | None:
        """Read the run folder's checkpoint or, if there is none yet, the checkpoint that `--resume` names.

        Returns:
            Path and content of the checkpoint; None for a dry run, or if there is no checkpoint and `resume` is empty.

        Raises:
            FileNotFoundError: there is no checkpoint at `resume`.
            ValueError: the checkpoint is damaged or incomplete, or only some ranks see it.
        """
        if self.path is None:
            return None
        path = self.path
        if resume and not path.exists():  # the run's own checkpoint takes precedence over --resume
            path = Path(resume) / CHECKPOINT if Path(resume).is_dir() else Path(resume)
        if not group.exists_for_all(path.exists() or bool(resume), path):
            return None
        state = load_checkpoint(path)
        require(state, ENTRIES, path)
        return path, state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint. If that fails, the old one stays, and OSError names the last good checkpoint."""
        assert self.path is not None, "a dry run writes nothing"
        try:
            save_checkpoint(self.path, state)
        except OSError as error:
            raise OSError(
                f"{error}; stopped at step {state['step']}, and {self.good}. Free some space, or "
                f"make the folder writable, and repeat the command"
            ) from error

    def written(self, step: int, path: Path | None = None) -> None:
        """Remember the newest checkpoint and the time; every rank calls this.

        `path` is needed only if the checkpoint belongs to another run.
        """
        self._written_at, self.last = time.monotonic(), (path or self.path, step)

    @property
    def good(self) -> str:
        """Describe the last good checkpoint, as a clause of an error message."""
        if self.last is None:
            return "there is no checkpoint yet"
        return "the last good checkpoint is {}, step {}".format(*self.last)


def check_resumable(
    path: Path, state: Mapping[str, Any], recipe: Recipe, identity: Mapping[str, Any], steps_per_epoch: int
) -> list[str]:
    """Check that a recipe can continue a checkpoint; return a sentence about each change that is to be reported.

    Raises:
        ValueError: the data changed; an option that must stay the same changed; early stopping is on now, but was off
            when epochs were scored; `score` changed, but early stopping has already chosen a best epoch; or the run has
            ended, and an option other than `score` changed.
    """
    # `resume_changes` rejects a changed batch size. So if the number of steps changed, the data changed.
    changes, best = resume_changes(state["recipe"], recipe), state.get("best", {})
    if state["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{path} was made with {plural(state['steps_per_epoch'], 'step')} per epoch, but there are now "
            f"{steps_per_epoch}: the data have changed. Start a new run with --output"
        )
    check_identity(state["about"], identity, path)
    scored = sum(any(name.startswith("holdout_") for name in epoch) for epoch in state["history"])
    if scored and recipe.engine.early_stopping and not state["recipe"].get("early_stopping"):
        raise ValueError(
            f"{path} has {plural(scored, 'scored epoch')} without early stopping, so the weights of its best epoch "
            f"were not kept: leave out --early-stopping, or start a new run with --output"
        )
    stopped_early = is_exhausted(best, recipe.engine.early_stopping)
    ended = stopped_early or state["step"] >= recipe.engine.epochs * steps_per_epoch
    if ended and changes.keys() - {"score"}:
        more = "a larger --early-stopping" if stopped_early else "more --epochs or --iterations"
        raise ValueError(
            f"the run of {path} ended after {plural(state['step'] // state['steps_per_epoch'], 'epoch')}, so no epoch "
            f"would use the new recipe: {'; '.join(changes.values())}. Use the old values, give {more}, or start a new "
            f"run with --output"
        )
    if best and recipe.engine.early_stopping and "score" in changes:
        raise ValueError(
            f"the best epoch of {path} was chosen with other weights: {changes['score']}. Use the old value, or start "
            f"a new run with --output"
        )
    return list(changes.values())


def check_identity(saved: Mapping[str, Any], identity: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError if the data differ from the data of a run; warn if the run saved no digest of their content.

    `saved` holds the entries of the identity that the run saved. Entries that an older version did not save are not
    checked. `source` names the run in messages.
    """
    differing = [
        WORDS.get(key, key) for key, value in identity.items() if key in saved and _round(saved[key]) != _round(value)
    ]
    if differing:
        raise ValueError(
            f"{source} was made with other data; these differ: {', '.join(differing)}. Give the data of the run, or "
            f"start a new run with --output (and --checkpoint to start from these weights)"
        )
    if CONTENT in identity and CONTENT not in saved:  # metamix 0.2
        _logger.warning(
            f"{source} was written by metamix 0.2: names, sizes and labels of its data are checked, but it has no "
            f"digest of the files' content, so changed pixels would go unnoticed"
        )


def _round(value: Any) -> Any:
    """Round the floats in a list, since the mean of the same images differs in its last digits between processors."""
    return [round(v, 5) if isinstance(v, float) else v for v in value] if isinstance(value, (list, tuple)) else value
