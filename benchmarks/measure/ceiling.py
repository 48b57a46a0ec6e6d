"""Measure the accuracy of a small net of dense convolutions on CIFAR-10, a baseline for the nano models.

    python -m benchmarks.measure.ceiling --data-dir DIR                  train on 90 %, score the other 10 %
    python -m benchmarks.measure.ceiling --data-dir DIR --split test     train on all, score the test split, once

The net and the recipe follow airbench94 (Keller Jordan, arXiv 2404.00498) and its version with Muon. The net has a
whitening convolution with frozen weights, and three blocks of two 3x3 convolutions, BatchNorm, GELU and max-pooling.
Muon trains the 3x3 convolutions, SGD trains the biases and the head, and each image is flipped in every second epoch.
8 epochs of all training images take 2.8e14 FLOPs. Accuracy is measured on one view of each image, and on six views: the
image, two copies moved by a pixel, and the mirror images of these three. Each run is added to results/ceiling.json.

The net is registered with timm as `dense_conv_net`, so that `metamix train` can use it as a teacher: add
`--import benchmarks.measure.ceiling --teacher dense_conv_net --teacher-checkpoint FILE`, with the file that
`--weights FILE` wrote.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from timm.optim import Muon
from torch import Tensor, nn

from benchmarks.measure.timing import append_row
from benchmarks.paths import RESULTS
from benchmarks.scoring import six_views
from metamix.data import DataOptions, Source, normalize, open_data
from metamix.data.memory import mean_std, pixels
from metamix.models import count_macs
from metamix.utils.system import commit
from metamix.utils.text import exit_with_message
from metamix.weights.files import save_weights

FILE = RESULTS / "ceiling.json"
WIDTHS = (64, 256, 256)  # channels of the blocks
BIAS_EPOCHS = 3  # epochs in which the bias of the whitening convolution is trained
KERNEL = 2  # kernel size of the whitening convolution


def whitening_filters(images: Tensor, kernel: int = KERNEL, eps: float = 5e-4) -> Tensor:
    """Compute filters that whiten patches of `images` (N, C, H, W), and append the negative of each filter.

    Returns:
        (2 C kernel^2, C, kernel, kernel): scaled eigenvectors of the covariance of patches, and their negatives.
    """
    patches = F.unfold(images, kernel).movedim(1, -1).flatten(0, -2)  # (patches, C k k)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + eps).sqrt()).T.unflatten(1, (images.shape[1], kernel, kernel))
    return torch.cat([filters, -filters])


class ConvBlock(nn.Sequential):
    """Convolution, max-pooling, BatchNorm, GELU, convolution, BatchNorm, GELU: halves height and width."""

    def __init__(self, in_chans: int, dim: int):
        def conv(channels: int) -> nn.Conv2d:
            layer = nn.Conv2d(channels, dim, 3, padding=1, bias=False)
            nn.init.dirac_(layer.weight[:channels])  # the first outputs copy the inputs
            return layer

        def norm() -> nn.BatchNorm2d:
            layer = nn.BatchNorm2d(dim, momentum=0.4)
            layer.weight.requires_grad_(False)
            return layer

        super().__init__(conv(in_chans), nn.MaxPool2d(2), norm(), nn.GELU(), conv(dim), norm(), nn.GELU())


class CeilingNet(nn.Module):
    """Classify images: (B, in_chans, 32, 32) -> logits (B, num_classes).

    The weight of `whiten` is not trained: copy the result of `whitening_filters` into it.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg: dict[str, Any] = {}  # timm reads this attribute
        filters = 2 * in_chans * KERNEL**2
        self.whiten = nn.Conv2d(in_chans, filters, KERNEL)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)
        widths = (filters, *WIDTHS)
        self.blocks = nn.Sequential(*(ConvBlock(a, b) for a, b in zip(widths, WIDTHS)))
        self.head = nn.Linear(WIDTHS[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1.0)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.gelu(self.whiten(x)))  # (B, C, 3, 3)
        return self.head(x.amax((2, 3))) / 9


@register_model
def dense_conv_net(pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, **_: Any) -> CeilingNet:
    """Build the net for `timm.create_model`."""
    return CeilingNet(num_classes, in_chans)


def augment(images: Tensor, epoch: int, seed: int, margin: int = 2) -> Tensor:
    """Flip each image (N, C, H, W) in every second epoch, and move it by up to `margin` pixels.

    The border is filled by reflection.
    """
    first = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.5  # the same in every epoch
    flipped = first ^ bool(epoch % 2)
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    moves = torch.randint(2 * margin + 1, (len(images), 2), generator=generator)
    padded, (height, width) = F.pad(images, (margin,) * 4, mode="reflect"), images.shape[-2:]
    y, x = moves[:, :1] + torch.arange(height), moves[:, 1:] + torch.arange(width)  # (N, H), (N, W)
    image, channel = torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
    return padded[image, channel, y[:, None, :, None], x[:, None, None, :]]


def read(source: Source, options: DataOptions) -> tuple[Tensor, Tensor]:
    """Return the images (N, C, H, W) uint8 and the labels (N,) of a split."""
    return pixels(source, options).images[source.indices].permute(0, 3, 1, 2), source.labels


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, views: Callable[[Tensor], Any]) -> float:
    """Return the percentage of images whose label has the largest weighted sum of logits over the views."""
    model.eval()
    right = 0
    for batch, label in zip(images.split(500), labels.split(500)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = sum(
                weight * model(view.contiguous(memory_format=torch.channels_last)).float()
                for weight, view in views(batch)
            )
        right += int((logits.argmax(1) == label).sum())
    return 100 * right / len(labels)


def train(model: CeilingNet, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, seed: int) -> None:
    """Train on normalised images (N, C, H, W). Learning rates fall linearly to 0."""
    convs = [block[i].weight for block in model.blocks for i in (0, 4)]
    biases = [block[i].bias for block in model.blocks for i in (2, 5)]
    decay = 2e-6 * batch_size
    muon = Muon(convs, lr=0.24, momentum=0.6, nesterov=True, ns_steps=3, ns_coefficients="original", adjust_lr_fn=None)
    groups = [
        dict(params=[model.whiten.bias], lr=0.053, weight_decay=decay / 0.053),
        dict(params=biases, lr=0.053, weight_decay=decay / 0.053),
        dict(params=[model.head.weight], lr=0.67, weight_decay=decay / 0.67),
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    peaks = [(group, group["lr"]) for optimizer in (muon, sgd) for group in optimizer.param_groups]
    steps_per_epoch = len(images) // batch_size
    total, start = epochs * steps_per_epoch, time.monotonic()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        seen = augment(images, epoch, seed)
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group, peak in peaks:
                group["lr"] = peak * (1 - step / total)
            sgd.param_groups[0]["lr"] = 0.053 * max(0.0, 1 - step / (BIAS_EPOCHS * steps_per_epoch))
            chosen = order[i * batch_size : (i + 1) * batch_size]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(seen[chosen].contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.2).backward()
            with torch.no_grad():
                for weight in convs:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
            muon.step()
            sgd.step()
            model.zero_grad()
        print(f"epoch {epoch + 1}/{epochs}, {time.monotonic() - start:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="folder", help="folder, cifar10 or another set of 32 x 32 images")
    parser.add_argument("--data-dir", default="data/cifar10", help="folder that holds the data")
    parser.add_argument("--split", choices=("holdout", "test"), default="holdout", help="split to score")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=FILE, help="result file")
    parser.add_argument("--weights", type=Path, help="file for the trained weights; by default they are not kept")
    args = parser.parse_args(argv)
    options = DataOptions(data=args.data, data_dir=args.data_dir)
    with exit_with_message(ValueError, OSError):
        splits = open_data(args.data, root=args.data_dir, holdout=0.1 if args.split == "holdout" else 0.0)
        (images, labels), (others, truth) = read(splits.train, options), read(getattr(splits, args.split), options)
    mean, std = mean_std(images.permute(0, 2, 3, 1))
    images, others = normalize(images, mean, std), normalize(others, mean, std)

    torch.manual_seed(args.seed)
    model = CeilingNet(len(splits.classes)).to(memory_format=torch.channels_last)
    model.whiten.weight.data.copy_(whitening_filters(images[:5000]))
    macs, start = count_macs(model, (3, 32, 32)), time.monotonic()
    train(model, images, labels, epochs=args.epochs, batch_size=args.batch_size, seed=args.seed)
    row = {
        "model": "dense convolutions, after airbench94",
        "split": args.split,
        "seed": args.seed,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "macs": macs,
        "epochs": args.epochs,
        "flops": 6 * macs * len(images) * args.epochs,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "top1": round(accuracy(model, others, truth, lambda images: [(1.0, images)]), 2),
        "top1_six_views": round(accuracy(model, others, truth, six_views), 2),
        "commit": commit(),
    }
    if args.weights:
        metadata = dict(task="classification", model="dense_conv_net", num_classes=model.num_classes, in_chans=3)
        metadata |= dict(mean=mean, std=std, classes=list(splits.classes), img_size=32)
        save_weights(args.weights, model.state_dict(), metadata)
    append_row(args.results, row)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
