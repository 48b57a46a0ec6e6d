"""Test the scores of classification, and the pictures that show them."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from metamix.classification import pictures
from metamix.classification.metric import ClassificationMetric
from metamix.classification.pictures import ClassificationPictures, draw_classes, draw_confusion
from metamix.data import normalize
from metamix.utils import figures

DIGITS = tuple("0123456789")
PERFECT = {"recall": 100.0, "precision": 100.0, "images": 1}


def metric(classes=DIGITS):
    return ClassificationMetric(classes, partial(normalize, mean=(0.0,), std=(1.0,)))


def states_of(metric, logits, labels):
    state = metric.start()
    metric.update(state, logits, {"label": labels})
    return [state]


def test_scores_count_the_samples_of_all_ranks():
    digits = metric()
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    states = []
    for part in (slice(0, 20), slice(20, 47), slice(47, 50)):  # the first rank has one batch, the second has two
        if part.start != 47:
            states.append(digits.start())
        digits.update(states[-1], logits[part], {"label": labels[part]})
    order = logits.argsort(1, descending=True)
    assert digits.result(states) == pytest.approx(
        {
            "top1": 100 * (order[:, 0] == labels).double().mean().item(),
            "top5": 100 * (order[:, :5] == labels[:, None]).any(1).double().mean().item(),
            "loss": F.cross_entropy(logits, labels).item(),
        }
    )
    assert next(iter(digits.result(states))) == "top1"
    confusion = sum(state["confusion"] for state in states)
    assert confusion.sum() == 50 and confusion[labels[0], order[0, 0]] >= 1
    assert ClassificationPictures(digits).report(states) == ""


@pytest.mark.parametrize("classes, names", [(5, ["top1", "loss"]), (6, ["top1", "top5", "loss"])])
def test_top5_needs_six_classes(classes, names):
    few = metric(DIGITS[:classes])
    assert list(few.result(states_of(few, torch.randn(4, classes), torch.arange(4)))) == names


def test_recall_and_precision_of_each_class_are_computed():
    few = metric(("ant", "bee", "cat", "dog"))
    labels, predictions = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 0])
    assert few.by_class(states_of(few, F.one_hot(predictions, 4).float(), labels)) == {
        "ant": {"recall": 66.67, "precision": 50.0, "images": 3},
        "bee": {"recall": 50.0, "precision": 50.0, "images": 2},
        "cat": {"recall": 0.0, "precision": None, "images": 1},
        "dog": {"recall": None, "precision": None, "images": 0},
    }


@pytest.mark.usefixtures("rendered_figures")
def test_a_confusion_matrix_and_the_scores_of_classes_are_drawn(tmp_path):
    few = metric(("ant", "bee", "cat", "dog"))
    states = states_of(few, torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 2]))
    drawn = ClassificationPictures(few).draw(states, tmp_path)
    assert [path.name for path in drawn] == ["test_confusion.png", "test_classes.png"]
    assert all(min(Image.open(path).size) > 250 for path in drawn)


@pytest.mark.usefixtures("rendered_figures")
def test_pictures_of_many_classes_stop_growing_and_show_the_classes_with_the_lowest_recall(tmp_path, monkeypatch):
    draw_confusion(tmp_path / "c.png", torch.eye(100, dtype=torch.int64) * 7, tuple(map(str, range(100))), "title")
    assert min(Image.open(tmp_path / "c.png").size) > 500
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: figures.append(figure))
    for count in (10, 40, 100):
        draw_classes(tmp_path / "b.png", {f"{n}": PERFECT | {"recall": 100.0 - n} for n in range(count)})
    heights = [figure.get_figheight() for figure in figures]
    assert heights[0] < heights[1] == heights[2]
    (axes,) = figures[2].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{n} (1)" for n in range(99, 59, -1)]
    assert axes.get_title() == "40 of 100 classes with the lowest recall"


@pytest.mark.usefixtures("rendered_figures")
@pytest.mark.parametrize("name", ["a$x_$b", b"\xe9".decode(errors="surrogateescape")])
def test_class_names_with_dollars_and_undecodable_bytes_are_drawn(name, tmp_path):
    """A $ does not start a formula, and bytes that are not UTF-8 are escaped."""
    draw_confusion(tmp_path / "c.png", torch.eye(2, dtype=torch.int64), ("ant", name), "title")
    draw_classes(tmp_path / "b.png", {"ant": PERFECT, name: PERFECT})
    assert all(min(Image.open(tmp_path / f"{picture}.png").size) > 200 for picture in "cb")


@pytest.mark.usefixtures("rendered_figures")
def test_missing_fonts_give_one_message_and_no_warnings(tmp_path, monkeypatch, caplog, recwarn):
    monkeypatch.setattr("metamix.utils.figures.fonts", lambda: ["DejaVu Sans"])
    draw_confusion(tmp_path / "c.png", torch.eye(2, dtype=torch.int64), ("猫", "犬"), "title")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/c.png shows boxes for letters") and message.endswith("install Noto Sans CJK")
    assert not recwarn.list


def test_installed_fonts_for_other_scripts_are_used(monkeypatch, request):
    figures.fonts.cache_clear()
    request.addfinalizer(figures.fonts.cache_clear)
    font = SimpleNamespace(name="Noto Sans CJK JP")
    monkeypatch.setattr(figures.font_manager, "fontManager", SimpleNamespace(ttflist=[font]))
    assert figures.fonts() == ["sans-serif", "Noto Sans CJK JP"]


def test_logits_that_are_not_finite_are_refused():
    logits = torch.zeros(2, 10)
    logits[1, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity: .* or --amp none"):
        states_of(metric(), logits, torch.tensor([1, 2]))
