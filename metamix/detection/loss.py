"""Compute the loss of torchvision's detectors."""

from torch import Tensor, nn

from metamix.training.task import Batch


def detection_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the losses, and each loss by a name that ends in `_loss`, so that one plot shows them all."""
    losses = model(batch["image"], batch["target"])
    return sum(losses.values()), {f"{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}
