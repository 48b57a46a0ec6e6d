"""Augmentation of a batch of images at once, on the device where they are.

What happens to a sample is drawn from (seed, epoch, index), so neither the batch it came in nor the device matters. A batch
is mixed with parameters that are drawn from (seed, epoch, step), the same on every rank, and sample i of the *global* batch
with its neighbour: 0 with 1, 2 with 3, and so on. Ranks hold an even number of samples each, so pairs never straddle two of
them, and since the order of samples is a random permutation, neighbours are as good as any other pairing.
"""

import torch

from .random import SAMPLE, hash64, randint, uniform

# Which draw of a sample is used for what: one option never changes what another one does.
CROP_Y, CROP_X, FLIP = range(3)


class Normalize:
    """uint8 images in "image" become float32, channels_last, (x / 255 - mean) / std; float ones are left as they are.

    Called with a batch, returns one with "target", the labels, beside it.
    """

    def __init__(self, *, mean, std):
        mean, std = torch.tensor(mean), torch.tensor(std)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, batch):
        image = batch["image"]
        if image.dtype == torch.uint8:
            image = self.normalize(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return {**batch, "image": image, "target": batch["label"]}

    def normalize(self, image):  # (n, H, W, C) uint8 -> float32
        n, height, width, channels = image.shape
        scale, shift = (x.to(image.device).repeat(width) for x in (self.scale, self.shift))
        rows = image.reshape(n, height, width * channels).float()  # long rows vectorise, three channels do not
        return rows.mul_(scale).add_(shift).view(n, height, width, channels)


class Augment:
    """Random crop with padding, horizontal flip, and normalisation of a batch from `train_loader`.

    Called with (batch, epoch, step), returns the batch with "image" (n, C, H, W) float32, channels_last, and "target".
    """

    def __init__(self, options, *, seed, mean, std, size, num_classes):
        self.options, self.seed = options, seed
        self.finish = Normalize(mean=mean, std=std)

    def __call__(self, batch, epoch, step, rank=0, world=1):
        image = batch["image"]
        if image.dtype == torch.uint8:
            image = image.permute(0, 2, 3, 1)  # (n, H, W, C)
            draws = hash64(self.seed, SAMPLE, epoch, batch["index"])
            image = crop_flip(image, self.options.padding, self.options.flip, draws)
            image = image.permute(0, 3, 1, 2)
        return self.finish({**batch, "image": image})


def crop_flip(image, padding, probability, key):
    """Pad (n, H, W, C) with black, crop back to (H, W) at random, and flip some left to right; `key` (n,) hashes the samples."""
    n, height, width, channels = image.shape
    device = image.device
    top = randint(hash64(key, CROP_Y), 2 * padding + 1)
    left = randint(hash64(key, CROP_X), 2 * padding + 1)
    flipped = uniform(hash64(key, FLIP)) < probability

    padded = torch.nn.functional.pad(image, (0, 0, padding, padding, padding, padding))
    x = torch.arange(width, device=device)
    x = left[:, None] + torch.where(flipped[:, None], width - 1 - x, x)  # (n, W)
    y = top[:, None] + torch.arange(height, device=device)  # (n, H)
    y = y + torch.arange(n, device=device)[:, None] * padded.shape[1]
    pixel = y[:, :, None] * padded.shape[2] + x[:, None, :]  # (n, H, W)
    return padded.view(-1, channels).index_select(0, pixel.flatten()).view(image.shape)
