"""Settings of all tests: one thread for each process, since pytest-xdist runs one process per core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; threads that wait for each other starve
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items):
    """Run the tests of deployment last: after OpenVINO 2026.4 and NNCF 3.4, training in the same process may crash."""
    items.sort(key=lambda item: "deploy" in item.path.parts)
