"""Test the settings that a process makes at its start."""

import platform
import resource

import pytest

from metamix.training.processes import ProcessGroup
from tests.helpers.running import in_a_process


def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**26  # as large as activations, and freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def check_faults():
    default = count_faults()
    ProcessGroup.start("cpu")
    count_faults()
    kept = count_faults()
    assert default > 1000 and kept < default / 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_was_freed_is_used_again():
    """It causes no page faults; the control allocates before the setting is made."""
    assert in_a_process(check_faults) == 0
