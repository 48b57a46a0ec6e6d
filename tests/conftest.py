"""Run each test process with one thread, since pytest-xdist runs one process per core, and render no figures."""

import functools
import gc
import os
import pkgutil

import pytest
from matplotlib.figure import Figure
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it on import; more threads than cores slow tests down
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items):
    """Run the tests of deployment last: training may crash in a process that has used OpenVINO 2026.4 and NNCF 3.4."""
    items.sort(key=lambda item: "deploy" in item.nodeid or item.path.name == "test_export.py")


def pytest_collection():
    """Stop garbage collection while modules are imported: it takes an eighth of the import time and frees little."""
    gc.disable()


def pytest_collection_finish():
    """Exempt imported objects from garbage collection: each full collection would take a third of a second longer.

    Collect seldom, since most tests make few cycles of objects.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


RENDER = Figure.savefig


def write_pixel(figure, file, **options):
    """Write a picture of one pixel in place of a figure; rendering takes two thirds of a short run."""
    Image.new("L", (1, 1)).save(file, "png")


Figure.savefig = write_pixel

DRAW = (
    "metamix.training.run_folder.draw_curves",
    "metamix.classification.pictures.draw_classes",
    "metamix.classification.pictures.draw_confusion",
    "metamix.segmentation.pictures.draw_confusion",
    "metamix.segmentation.pictures.draw_images",
    "metamix.restoration.pictures.draw_sheet",
    "metamix.detection.pictures.draw_precision_recall",
    "metamix.detection.pictures.draw_grid",
)
COUNT_MACS = tuple(
    f"metamix.{name}.count_macs"
    for name in ("classification.model", "detection.model", "restoration.model", "segmentation.model", "tasks.simple")
)


@pytest.fixture(scope="session", autouse=True)
def drawn():
    """Replace the functions that draw figures, which take a third of a short run; return the originals by name."""
    functions = {name: pkgutil.resolve_name(name) for name in DRAW}
    with pytest.MonkeyPatch.context() as patch:
        for name in DRAW:
            patch.setattr(name, lambda path, *_, **__: Image.new("L", (1, 1)).save(path, "png"))
        yield functions


@pytest.fixture
def rendered_figures(monkeypatch, drawn):
    """Draw and render figures, for tests that look at them."""
    monkeypatch.setattr(Figure, "savefig", RENDER)
    for name, draw in drawn.items():
        monkeypatch.setattr(name, draw)


@pytest.fixture(scope="session", autouse=True)
def digits_are_decoded_once():
    """Decode the digits once for all tests, since decoding takes a quarter of a short run."""
    from metamix.data.formats import digits

    digits.Digits = functools.cache(digits.Digits)


@pytest.fixture(scope="session", autouse=True)
def macs_are_counted_once():
    """Count the multiply-adds of equal models once for all runs, since counting takes a tenth of a short run."""
    from metamix.models import count_macs

    counted = {}

    def look_up(model, input_size):
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items())
        key = str(model), shapes, tuple(input_size)
        if key not in counted:
            counted[key] = count_macs(model, input_size)
        return counted[key]

    with pytest.MonkeyPatch.context() as patch:
        for name in COUNT_MACS:
            patch.setattr(name, look_up)
        yield


@pytest.fixture
def forget_mixers(monkeypatch):
    """Restore the registry of mixers after the test."""
    from metamix.mixers import registry

    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))


@pytest.fixture
def forget_models():
    """Restore the zoo's list of models after the test."""
    from metamix.models.registry import default_cfgs

    before = dict(default_cfgs)
    yield
    default_cfgs.clear()
    default_cfgs.update(before)
