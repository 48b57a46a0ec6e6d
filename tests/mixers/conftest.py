import pytest

from metamix.mixers import registry


@pytest.fixture
def forget(monkeypatch):
    """What the test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
