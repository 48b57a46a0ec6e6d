"""Test the scores of segmentation against literal computations, and the predictions in tiles and views."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metamix.segmentation.inference import AT_ONCE, Predictor
from metamix.segmentation.metric import (
    SHOWN,
    SegmentationMetric,
    class_scores,
    confusion_matrix,
    dilate,
)

IGNORED, CLASSES = 255, 5


def blobs(seed, size=(24, 30)):
    """Make labels and predictions.

    Class 3 is only predicted, class 4 is absent, and a tenth of the pixels is ignored.
    """
    torch.manual_seed(seed)
    coarse = torch.randint(0, 3, (1, 1, 6, 6)).float()
    truth = nn.functional.interpolate(coarse, size)[0, 0].byte()
    predicted = torch.where(torch.rand(size) < 0.2, torch.randint(0, 4, size).byte(), truth)
    truth[torch.rand(size) < 0.1] = IGNORED
    return truth, predicted


class Fixed(nn.Module):
    """Predict fixed labels."""

    def __init__(self, labels):
        super().__init__()
        self.labels = iter(labels)

    def forward(self, x):
        return nn.functional.one_hot(next(self.labels).long(), CLASSES).permute(2, 0, 1)[None].float()


def literal_scores(pairs):
    """Compute mean IoU, pixel accuracy, mean accuracy and boundary F with sets of pixels."""
    real, shown = [set() for _ in range(CLASSES)], [set() for _ in range(CLASSES)]
    edges = []  # (class, edge in the prediction, edge in the truth, distance) of each image
    for i, (truth, predicted) in enumerate(pairs):
        truth, predicted = truth.int().numpy(), predicted.int().numpy()
        predicted = np.where(truth == IGNORED, IGNORED, predicted)
        for (y, x), label in np.ndenumerate(truth):
            if label != IGNORED:
                real[label].add((i, y, x))
                shown[predicted[y, x]].add((i, y, x))
        for k in range(CLASSES):
            edges.append((k, edge(predicted, k), edge(truth, k), 0.0075 * math.hypot(*truth.shape)))
    ious, accuracies, fs = [], [], []
    for k in range(CLASSES):
        both, either = real[k] & shown[k], real[k] | shown[k]
        ious += [len(both) / len(either)] if either else []
        accuracies += [len(both) / len(real[k])] if real[k] else []
        counts = np.zeros(4)
        for label, a, b, distance in edges:
            if label == k:
                counts += [len(a), near(a, b, distance), len(b), near(b, a, distance)]
        if counts[0] + counts[2]:
            p, r = counts[1] / max(1, counts[0]), counts[3] / max(1, counts[2])
            fs.append(2 * p * r / (p + r) if p + r else 0.0)
    right = sum(len(a & b) for a, b in zip(real, shown)) / sum(map(len, real))
    return [100 * x for x in (np.mean(ious), right, np.mean(accuracies), np.mean(fs))]


def edge(labels, k):
    pixels = set()
    for (y, x), label in np.ndenumerate(labels):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]
            if label == k and inside and labels[v, u] not in (k, IGNORED):
                pixels.add((y, x))
    return pixels


def near(pixels, others, distance):
    return sum(any(math.dist(a, b) <= distance for b in others) for a in pixels)


@pytest.fixture
def scored():
    """Score four images as two processes would; return the metric, both states, and (truth, prediction) pairs."""
    pairs = [blobs(i, (24, 30 + 150 * (i == 3))) for i in range(4)]  # the last is wide, so edges one pixel apart match
    metric = SegmentationMetric("abcde", lambda x: x.float(), {"": Predictor()})
    states = []
    for part in (pairs[:1], pairs[1:]):
        state = metric.start()
        for truth, predicted in part:
            image = torch.zeros(3, *truth.shape, dtype=torch.uint8)
            batch = {"image": [image], "target": [truth], "index": torch.tensor([len(part)]), "name": ["x"]}
            metric.update(state, metric.predict(Fixed([predicted]).eval(), batch), batch)
        states.append(state)
    return metric, states, pairs


def test_scores_equal_a_literal_computation(scored):
    metric, states, pairs = scored
    scores = metric.result(states)
    assert list(scores) == ["miou", "pixel_accuracy", "mean_accuracy", "boundary_f"]
    assert list(scores.values()) == pytest.approx(literal_scores(pairs), rel=1e-9)
    table = metric.by_class(states)
    assert table["e"] == {"iou": None, "accuracy": None, "boundary_f": None, "share": 0.0}
    assert table["d"]["iou"] == 0 and table["d"]["accuracy"] is None and table["d"]["boundary_f"] == 0
    assert sum(row["share"] for row in table.values()) == pytest.approx(100, abs=0.05)
    labelled = np.concatenate([truth[truth != IGNORED] for truth, _ in pairs])
    assert table["a"]["share"] == pytest.approx(100 * np.mean(labelled == 0), abs=0.01)


def test_the_state_does_not_grow_with_the_number_of_images():
    metric = SegmentationMetric("abcde", lambda x: x.float(), {"": Predictor()})
    state, ious = metric.start(), []
    for i in range(30):
        truth, predicted = blobs(i, (8, 8))
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        batch = {"image": [image], "target": [truth], "index": torch.tensor([i]), "name": [str(i)]}
        metric.update(state, [{"": predicted}], batch)
        ious.append(float(class_scores(confusion_matrix(truth, predicted, 5))[0].nanmean()))
    scores = [image.iou for image in state["shown"]]
    ious.sort(reverse=True)
    assert scores == [*ious[:SHOWN], *ious[-SHOWN:]]


def test_ignored_images_are_not_scored():
    metric = SegmentationMetric("ab", lambda x: x.float(), {"": Predictor()})
    state, image = metric.start(), torch.zeros(3, 4, 4, dtype=torch.uint8)
    ignored = torch.full((4, 4), IGNORED, dtype=torch.uint8)
    batch = {"image": [image], "target": [ignored], "index": torch.tensor([1]), "name": ["b"]}
    metric.update(state, metric.predict(lambda x: torch.zeros(1, 2, 4, 4), batch), batch)
    assert not state["shown"]
    with pytest.raises(ValueError, match="no pixel is left to score"):
        metric.result([state])


def test_images_of_one_class_have_no_boundary_score():
    metric = SegmentationMetric("ab", lambda x: x.float(), {"": Predictor()})
    state, image = metric.start(), torch.zeros(3, 4, 4, dtype=torch.uint8)
    batch = {"image": [image], "target": [torch.zeros(4, 4).byte()], "index": torch.tensor([0]), "name": ["a"]}
    metric.update(state, metric.predict(lambda x: torch.ones(1, 2, 4, 4), batch), batch)
    assert metric.result([state]) == {"miou": 100, "pixel_accuracy": 100, "mean_accuracy": 100}


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 3.2, 50.0])
def test_dilation_is_a_disk(radius):
    pixels = torch.zeros(2, 11, 13, dtype=torch.bool)
    pixels[0, 5, 6] = pixels[1, 0, 12] = True
    near = dilate(pixels, radius)
    for k, (y, x) in enumerate([(5, 6), (0, 12)]):
        for v, u in np.ndindex(11, 13):
            assert bool(near[k, v, u]) == (math.hypot(v - y, u - x) <= radius)


def identity(x):
    """Return the image as logits: its channels are the classes."""
    return x


def test_labels_are_the_strongest_channels_in_tiles_and_for_many_classes_too():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 20, 33)
    whole = Predictor()(identity, image, (20, 33))
    assert whole.equal(image[0].argmax(0).byte())
    assert Predictor(tile=16, overlap=4)(identity, image, (20, 33)).equal(whole)  # tiles agree
    many = torch.randn(1, 40, 20, 33)  # more classes than are resized at once
    larger = nn.functional.interpolate(many, (40, 66), mode="bilinear")[0].argmax(0)
    assert Predictor()(identity, many, (40, 66)).equal(larger.byte())
    text = Predictor(512, 128, flip=True, scales=(0.5, 1.0)).describe()
    assert text == "tiles of 512 pixels that overlap by 128 or more, mean over scales 0.5, 1 and flips"


def test_the_probabilities_of_views_are_averaged():
    torch.manual_seed(0)
    image, seen = torch.randn(1, 3, 12, 16), []

    def model(x):
        """Return logits that depend on the place, so that mirroring matters."""
        seen.append(x)
        return x * torch.linspace(0, 3, x.shape[-1])

    averaged = Predictor(flip=True, scales=(0.5, 1.0))(model, image, (12, 16))
    small = nn.functional.interpolate(image, (6, 8), mode="bilinear", antialias=True)
    inputs = [small, small.flip(-1), image, image.flip(-1)]
    assert all(torch.allclose(x, wanted, atol=1e-6) for x, wanted in zip(seen, inputs, strict=True))
    logits = [nn.functional.interpolate(model(x), (12, 16), mode="bilinear") for x in inputs]
    logits[1::2] = [x.flip(-1) for x in logits[1::2]]
    wanted = torch.stack([x.softmax(1) for x in logits]).mean(0)[0].argmax(0).byte()
    assert averaged.equal(wanted) and not averaged.equal(model(image)[0].argmax(0).byte())


def test_views_are_averaged_at_the_size_of_the_models_input():
    """Probabilities of many classes at the size of a large photograph would take gigabytes."""
    image, sizes = torch.randn(1, 40, 6, 8), []
    predictor = Predictor(flip=True)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Largest():
        assert predictor(identity, image, (60, 80)).shape == (60, 80)
    assert max(sizes) == AT_ONCE * 60 * 80  # a few classes at a time
