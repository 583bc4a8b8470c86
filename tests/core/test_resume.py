"""Real processes, killed for real: what is resumed ends where an unbroken run ends, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lapo_cli.core import compute
from lapo_cli.core.config import Config
from lapo_cli.core.pipeline import Options, run_stage
from lapo_cli.core.progress import Progress, Silent, Task
from lapo_cli.core.run_dir import RunDir, StageDir
from lapo_cli.core.training.metrics import read_metrics
from tests.core.tiny_config import TINY

_LONG = (
    "stage1.steps=300",
    "stage1.batch_size=4",
    "stage1.eval_every=100",
    "stage2.steps=300",
    "stage2.batch_size=4",
    "stage2.eval_every=100",
    "stage2.lookahead=3",
    "stage2.optimizer=muon",
    "stage2.target.standardize=true",
    "model.policy_trunk=compact",
)


def _start(data_dir: Path, *words: str | Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lapo_cli", *map(str, words), "--device", "cpu", "--quiet"]
    environment = {**os.environ, "LAPO_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    # A shell starts background jobs with Ctrl-C ignored, and the tests may be part of one.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heed
    )


def _finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def _kill_after_a_checkpoint(process: "subprocess.Popen[bytes]", stage: Path) -> None:
    before = (stage / "state.pt").stat().st_mtime_ns if (stage / "state.pt").exists() else 0
    while not (stage / "state.pt").exists() or (stage / "state.pt").stat().st_mtime_ns == before:
        assert process.poll() is None, "it ended without a checkpoint"
        time.sleep(0.01)
    time.sleep(0.1)  # into the updates after the checkpoint, which are lost
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (stage / "done.json").exists()


def _same_outcome(killed: Path, unbroken: Path) -> None:
    weights = [safetensors.torch.load_file(folder / "model.safetensors") for folder in (killed, unbroken)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    results = [json.loads((folder / "done.json").read_text())["results"] for folder in (killed, unbroken)]
    assert results[0] == results[1]
    steps = [line["step"] for line in read_metrics(killed)]
    assert steps == sorted(steps)
    assert not (killed / "state.pt").exists()


@pytest.mark.parametrize("stage", ["idm", "policy"])
def test_a_run_killed_twice_ends_with_the_weights_of_an_unbroken_one(
    stage: str, tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    def start(name: str) -> "subprocess.Popen[bytes]":
        run = tmp_path / name
        words: list[str | Path] = ["train-idm", "maze", "--run-dir", run] if stage == "idm" else ["train-policy", run]
        pace = "checkpoint_seconds=0.2" if name == "killed" else "checkpoint_seconds=600"
        for word in (*TINY, *_LONG, pace):
            words += ["--set", word]
        return _start(data_dir, *words)

    if stage == "policy":
        options = Options("cpu", data_dir)
        for name in ("killed", "unbroken"):
            run = RunDir.create(tmp_path / name, tiny(), "paper")
            run_stage(run, "idm", [run.seed_dir("maze", 0)], options, Silent())
    folders = {name: tmp_path / name / "maze" / "seed-0" / stage for name in ("killed", "unbroken")}
    unbroken = start("unbroken")
    _kill_after_a_checkpoint(start("killed"), folders["killed"])
    _kill_after_a_checkpoint(start("killed"), folders["killed"])
    _finish(start("killed"))
    _finish(unbroken)
    _same_outcome(folders["killed"], folders["unbroken"])


def test_ctrl_c_leaves_a_checkpoint_and_exits_with_130(tmp_path: Path, data_dir: Path) -> None:
    words = [word for setting in (*TINY, "stage1.steps=100000") for word in ("--set", setting)]
    process = _start(data_dir, "train-idm", "maze", "--run-dir", tmp_path / "run", *words)
    stage = tmp_path / "run" / "maze" / "seed-0" / "idm"
    while not read_metrics(stage):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors
    state = StageDir(stage).load_state()
    assert state is not None
    assert state["step"] >= read_metrics(stage)[-1]["step"] > 0


class _Interrupted(Silent):
    """Progress that interrupts the work in its middle."""

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        yield self

    def update(self, done: int, **metrics: float) -> None:
        if done >= 6:
            raise KeyboardInterrupt


def _hardware(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr(compute, "_has_fast_bf16", lambda device: bf16)


def _trained(run: RunDir, data_dir: Path, progress: Progress) -> tuple[bool, bytes]:
    """Whether stage 1 was skipped, and its weights."""
    (result,) = run_stage(run, "idm", [run.seed_dir("maze", 0)], Options("cpu", data_dir), progress)
    return result.skipped, (result.path / "model.safetensors").read_bytes()


def test_a_stage_goes_on_in_the_precision_it_was_begun_in(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("precision=auto", "checkpoint_seconds=0")
    weights = {}
    for bf16 in (True, False):
        _hardware(monkeypatch, bf16=bf16)
        run = RunDir.create(tmp_path / f"unbroken-{bf16}", config, "paper")
        _, weights[bf16] = _trained(run, data_dir, Silent())
        assert run.seed_dir("maze", 0).stage("idm").read_config()["precision"] == ("bf16" if bf16 else "fp32")
    assert weights[True] != weights[False]

    moved = RunDir.create(tmp_path / "moved", config, "paper")
    _hardware(monkeypatch, bf16=True)
    with pytest.raises(KeyboardInterrupt):
        _trained(moved, data_dir, _Interrupted())
    stage = moved.seed_dir("maze", 0).stage("idm")
    assert stage.load_state() is not None
    _hardware(monkeypatch, bf16=False)
    assert _trained(moved, data_dir, Silent()) == (False, weights[True])
    assert stage.read_config()["precision"] == "bf16"
    assert _trained(moved, data_dir, Silent()) == (True, weights[True])
    assert not stage.path.with_name("idm.old-1").exists()
