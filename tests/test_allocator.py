import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from rankloom.allocator import keep_freed_memory

x = torch.ones(2**23)  # 32 MiB, as all that follow

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        y = x * 2
        z = y.relu()
        z = y + z
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
kept = keep_freed_memory()
faults()
print(kept, given_back, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice to glibc")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    kept, given_back, again = done.stdout.split()
    if kept == "False":
        pytest.skip("the C library takes no advice")
    assert int(again) < int(given_back) / 5
