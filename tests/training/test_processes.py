"""What a process of a run sets for itself."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from metamix.training.processes import ProcessGroup

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**26  # a block as large as activations are, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
ProcessGroup.start("cpu")
faults()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_was_freed_is_used_again():
    """Without a page fault on every page of it; the control is the same allocation before."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert default > 1000 and kept < default / 100
