"""Test what metamix sets for a process."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from metamix.utils.system import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**26)
before = faults()
for _ in range(4):
    torch.zeros(2**26)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux alone is asked")
def test_freed_memory_is_kept():
    """The kernel provides the pages of a block that was freed only once."""
    runs = [
        subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
        for keep in (True, False)
    ]
    kept, returned = (int(run.stdout) for run in runs)
    assert kept < 100 and returned > 4 * 100
