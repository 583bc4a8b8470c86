"""The training loop: divergence, interruption, full disks, metrics; and the schedules."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lapo_cli.core import interrupts
from lapo_cli.core.config import OnlineConfig, Ramp, Stage1Config, Stage2Config
from lapo_cli.core.errors import CorruptDataError, DiskFullError, TrainingDivergedError
from lapo_cli.core.progress import Task
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import TrainingLoop
from lapo_cli.core.training.metrics import MetricsLog, read_metrics
from tests.core.tiny_config import run

MakeContext = Callable[..., Context]


class _Counter:
    """State of a training that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def _run(ctx: Context, stage: StageDir, total: int, act: Callable[[int], float], counter: _Counter) -> None:
    loop = TrainingLoop(stage, ctx, "counting", total, {"counter": counter}, show=(), read_every=5)
    for step in loop:
        counter.count += 1
        loop.record({"losses/total": torch.tensor(act(step))})


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    (tmp_path / "stage").mkdir()
    return StageDir(tmp_path / "stage")


def test_a_nan_loss_stops_at_its_step_and_keeps_the_checkpoint_before_it(context: MakeContext, stage: StageDir) -> None:
    # A checkpoint is due after every step; the loss of step 7 (from 0) is NaN.
    with pytest.raises(TrainingDivergedError, match=r"nan at step 8 of .*counting: .*of step 7 is kept"):
        _run(context("checkpoint_seconds=0"), stage, 20, lambda step: float("nan") if step == 7 else 1.0, _Counter())
    state = stage.load_state()
    assert state is not None
    assert state["step"] == state["counter"]["count"] == 7
    assert all(line["losses/total"] == 1.0 for line in read_metrics(stage.path))


def test_a_nan_between_two_readings_is_named_by_its_own_step(context: MakeContext, stage: StageDir) -> None:
    with pytest.raises(TrainingDivergedError, match="became inf at step 3 of"):
        _run(context(), stage, 20, lambda step: float("inf") if step == 2 else 1.0, _Counter())
    assert stage.load_state() is None


def test_what_is_counted_before_is_logged_once(context: MakeContext, stage: StageDir) -> None:
    for _ in range(2):  # The first one is lost before its first checkpoint.
        loop = TrainingLoop(stage, context(), "counting", 5, {"counter": _Counter()}, show=(), before=100)
        loop.log(-1, {"evaluated": 1.0})
        loop.record({"losses/total": torch.tensor(1.0)})
    assert [line["step"] for line in read_metrics(stage.path)] == [100]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [3, 9])  # 9 is the last one
def test_a_signal_checkpoints_after_the_update_and_interrupts(
    context: MakeContext, stage: StageDir, number: signal.Signals, at: int
) -> None:
    def act(step: int) -> float:
        if step == at:
            os.kill(os.getpid(), number)
        return 1.0

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        _run(context(), stage, 10, act, _Counter())
    assert signal.getsignal(number) is before
    state = stage.load_state()
    assert state is not None
    assert state["step"] == state["counter"]["count"] == at + 1
    counter = _Counter()
    _run(context(), stage, 10, lambda step: 1.0, counter)
    assert counter.count == 10


def test_a_signal_repeated_within_a_moment_still_checkpoints(context: MakeContext, stage: StageDir) -> None:
    def act(step: int) -> float:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        _run(context(), stage, 10, act, _Counter())
    state = stage.load_state()
    assert state is not None
    assert state["step"] == 1


def test_a_second_signal_later_on_interrupts_at_once(
    context: MakeContext, stage: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_REPEAT_SECONDS", 0)
    counter = _Counter()

    def act(step: int) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        _run(context(), stage, 10, act, counter)
    assert stage.load_state() is None


def test_a_full_disk_while_checkpointing_keeps_the_old_checkpoint(context: MakeContext, small_disk: Path) -> None:
    class Growing(_Counter):
        def state_dict(self) -> Mapping[str, Any]:
            return {"count": self.count, "ballast": torch.zeros(50_000 * self.count)}

    stage = StageDir(small_disk)
    with pytest.raises(DiskFullError, match="is full"):
        _run(context("checkpoint_seconds=0"), stage, 20, lambda step: 1.0, Growing())
    state = stage.load_state()
    assert state is not None
    assert state["step"] == state["counter"]["count"] >= 1
    assert not list(small_disk.glob(".*tmp*"))


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while out.write(bytes(4096)):
            pass


def _write_until_refused(log: MetricsLog) -> None:
    for step in range(2, 2000):
        log.write(step, {"a": 1.0})


def test_a_full_disk_while_logging_is_one_sentence(context: MakeContext, small_disk: Path) -> None:
    log = MetricsLog(small_disk, context(), resume_at=0)
    log.write(1, {"a": 1.0})
    _fill(small_disk / "ballast")
    with pytest.raises(DiskFullError):
        _write_until_refused(log)
    (small_disk / "ballast").unlink()
    assert read_metrics(small_disk)[0]["step"] == 1
    log.close()


def test_lines_after_the_checkpoint_and_a_line_cut_by_a_kill_go(context: MakeContext, tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "seconds": step * 2.0, "a": 1.0}) for step in (5, 10, 15)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:9])
    log = MetricsLog(tmp_path, context(), resume_at=10)
    log.write(12, {"a": 2.0})
    log.close()
    found = read_metrics(tmp_path)
    assert [line["step"] for line in found] == [5, 10, 12]
    assert found[-1]["seconds"] >= 20.0  # the time before the kill counts


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no more", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_reported(stage: StageDir, damage: bytes) -> None:
    (stage.path / "state.pt").write_bytes(damage)
    with pytest.raises(CorruptDataError, match="--fresh"):
        stage.load_state()


def test_a_truncated_checkpoint_is_reported(stage: StageDir) -> None:
    stage.save_state({"step": 1, "weights": torch.randn(1000)})
    whole = (stage.path / "state.pt").read_bytes()
    (stage.path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptDataError, match="--fresh"):
        stage.load_state()


def test_a_checkpoint_with_any_byte_altered_is_reported(stage: StageDir) -> None:
    stage.save_state({"step": 1, "weights": torch.randn(50)})
    file = stage.path / "state.pt"
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptDataError, match=r"state\.pt is damaged"):
            stage.load_state()


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": "1"},
        {"step": -1},
        {"step": 100},
        {"rng": None},
        {"rng": {}},
        {"rng": {"cpu": torch.zeros(3)}},
        {"net": None},
        {"net": {}},
        {"net": torch.nn.Linear(3, 3).state_dict()},
        {"net": {"weight": 1, "bias": 2}},
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"counter": {}},
    ],
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_checkpoint_of_another_structure_is_reported(
    context: MakeContext, stage: StageDir, change: dict[str, Any], missing: bool
) -> None:
    net = torch.nn.Linear(2, 2)
    state = {"net": net, "optimizer": torch.optim.Adam(net.parameters()), "counter": _Counter()}
    saved: dict[str, Any] = {name: item.state_dict() for name, item in state.items()}
    saved |= {"step": 1, "rng": {"cpu": torch.get_rng_state()}, **change}
    if missing:
        saved = {name: value for name, value in saved.items() if name not in change}
    stage.save_state(saved)
    with pytest.raises(CorruptDataError, match=r"state\.pt does not fit this stage: .*--fresh"):
        TrainingLoop(stage, context(), "counting", 10, state, show=())


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"\xff",
            b"[]",
            b"1",
            b"",
            b"{}",
            b"[" * 100_000,
            b"1" * 5000,
            b'{"step": 1}',
            b'{"step": 1, "seconds": NaN}',
        ),
        b'{"step": "1", "seconds": 1}',
        b'{"step": 1.5, "seconds": 1}',
        b'{"step": 1, "seconds": 1, "a": "b"}',
    ],
)
def test_a_damaged_line_of_metrics_is_reported_with_its_number(tmp_path: Path, line: bytes) -> None:
    whole = b'{"step": 1, "seconds": 0.5, "a": NaN}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(CorruptDataError, match=r"metrics\.jsonl is damaged in line 2"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(whole + line)
    assert [found["step"] for found in read_metrics(tmp_path)] == [1]


class _InterruptAt:
    """Progress that sends SIGINT when the task of a given name reaches a given count."""

    def __init__(self, name: str, at: int) -> None:
        self._name, self._at = name, at

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        progress = self

        class Watched:
            def update(self, done: int, **metrics: float) -> None:
                if progress._name in name and done == progress._at:
                    os.kill(os.getpid(), signal.SIGINT)

        yield Watched()

    def log(self, message: str) -> None:
        pass


def test_online_training_resumes_where_ctrl_c_stopped_it(context: MakeContext, tmp_path: Path) -> None:
    words = ("online.steps=512", "online.ppo.num_envs=4", "online.ppo.num_steps=32")
    unbroken = context(*words, game="bigfish")
    run(unbroken, "scratch")
    broken = replace(unbroken, seed_dir=replace(unbroken.seed_dir, path=tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        run(replace(broken, progress=_InterruptAt("PPO from scratch", 256)), "scratch")
    assert broken.seed_dir.stage("scratch").done() is None
    run(broken, "scratch")
    stages = [ctx.seed_dir.stage("scratch") for ctx in (unbroken, broken)]
    results = [stage.require_done("")["results"] for stage in stages]
    assert results[0] == results[1]
    weights = [safetensors.torch.load_file(stage.path / "model.safetensors") for stage in stages]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    kept = [[(line["step"], line.get("losses/entropy")) for line in read_metrics(stage.path)] for stage in stages]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (5, 0.5), (10, 0.9), (60, 0.55), (110, 0.2)])
def test_the_learning_rate_warms_up_and_decays_linearly(step: int, rate: float) -> None:
    schedule = Stage1Config(steps=110, warmup=10, lr_start=0.1, lr=0.9, lr_end=0.2)
    assert schedule.learning_rate(step) == pytest.approx(rate)


def test_without_warm_up_the_rate_starts_at_its_peak() -> None:
    assert Stage1Config(steps=10, warmup=0, lr_start=0.1, lr=0.9, lr_end=0.0).learning_rate(0) == 0.9


@pytest.mark.parametrize("steps", [16, 1_000, 120_000])
def test_a_shorter_schedule_reaches_its_peak_and_its_end(steps: int) -> None:
    config = Stage2Config().of_steps(steps)
    rates = [config.learning_rate(step) for step in range(steps + 1)]
    assert max(rates) == config.lr
    assert rates.index(config.lr) == steps // 60
    assert rates[-1] == pytest.approx(config.lr_end)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0), (35_000, 0), (42_500, 1.25e-3), (50_000, 2.5e-3), (2_025_000, 1.25e-3), (4_000_000, 0), (5_000_000, 0)],
)
def test_a_ramp_is_zero_then_rises_then_falls(step: int, rate: float) -> None:
    assert Ramp(start=35_000, peak=50_000, lr=0.0025).at(step, 4_000_000) == pytest.approx(rate, abs=1e-12)


def test_a_ramp_without_a_rise_starts_at_its_peak() -> None:
    assert Ramp(start=0, peak=0, lr=0.5).at(0, 100) == 0.5


def test_half_as_many_environment_steps_have_the_same_schedule_in_half_the_time():
    whole = OnlineConfig(steps=1000, hidden=Ramp(start=200, peak=600, lr=0.5))
    half = whole.of_steps(500)
    assert half.steps == 500
    for layer in ("action_head", "value_head", "hidden"):
        for step in range(0, 1001, 100):
            assert getattr(half, layer).at(step // 2, 500) == pytest.approx(getattr(whole, layer).at(step, 1000))
    assert whole.of_steps(1000) == whole
