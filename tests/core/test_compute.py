"""The CPU's memory: what one batch has freed serves the next one."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")

_BATCHES = """
import resource, sys, torch
from lapo_cli.core.compute import resolve

if sys.argv[1] == "resolved":
    resolve("cpu")

def batch():
    return [torch.ones(40_000_000, dtype=torch.uint8) for _ in range(5)]

for _ in range(5):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def _cleared(how: str) -> int:
    """Bytes that the kernel cleared for a GB in five batches, after as many before them."""
    found = subprocess.run([sys.executable, "-c", _BATCHES, how], check=True, capture_output=True, text=True)
    return int(found.stdout)


def test_the_memory_of_a_batch_serves_the_next_one() -> None:
    assert _cleared("resolved") < 10_000_000
    assert _cleared("untouched") > 100_000_000  # What this is for: else the setting could go.
