"""What a process of a run sets for itself at its start."""

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
        b"x" * 2**26  # as large as activations, and freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
ProcessGroup.start("cpu")
faults()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_was_freed_is_used_again():
    """It then has no page faults; the control allocates before the setting is made."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert default > 1000 and kept < default / 100
