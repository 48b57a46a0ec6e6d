"""Settings of all tests: one thread for each process, since pytest-xdist runs one process per core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; threads that wait for each other starve
os.environ.setdefault("MPLBACKEND", "agg")
