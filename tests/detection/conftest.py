import pytest

from tests.helpers import shapes


@pytest.fixture
def coco(tmp_path):
    """Return a function that writes a data set of squares and discs in COCO's format and returns its folder."""

    def make(train=8, val=4, test=4, change=None):
        return shapes.write(tmp_path / "shapes", train=train, val=val, test=test, change=change)

    return make


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Write a data set of eight images, which tests must not change."""
    return shapes.write(tmp_path_factory.mktemp("few") / "shapes", train=4, val=2, test=2)
