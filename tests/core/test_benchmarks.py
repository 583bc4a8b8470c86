"""The measurement of one device, dry-run on the CPU: it has to work at once where a GPU is at hand for minutes."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from lapo_cli.core.config import Config


def test_every_training_is_measured_as_json(tiny: Callable[..., Config]) -> None:
    pytest.importorskip("procgen")
    from tests.benchmarks.device import measure

    config = tiny("model.frame_size=64", "stage1.batch_size=2", "stage2.batch_size=2")
    found = json.loads(json.dumps(measure("cpu", config, seconds=0.0, frames=256), allow_nan=False))
    assert found["stages"].keys() == {"stage 1", "stage 2", "stage 3 online"}
    for stage in found["stages"].values():
        assert stage["steps_per_second"] > 0
        assert stage["hours_to_finish"] > 0
        assert stage["difference_from_cpu"] < 1e-4
        assert stage["peak_gpu_memory_bytes"] is None
    assert found["stages"]["stage 1"]["ratio_to_plain"] > 0


def test_the_benchmarks_of_trainings_do_without_extras() -> None:
    code = "import sys; sys.modules['av'] = None; import tests.benchmarks.__main__"
    subprocess.run([sys.executable, "-c", code], check=True)
