import pytest

from metamix.mixers import registry


@pytest.fixture
def forget(monkeypatch):
    """Forget after the test what it registered."""
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
