"""Several processes that train one model: real ones, with gloo on the CPU, against one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.chains import Chain
from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import Config
from lapo_cli.core.errors import DeviceError, DiskFullError, UsageError
from lapo_cli.core.models.batch_norm import BatchNorm2d
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.quantizers.vq import VectorQuantizer
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.pipeline import Options, run_chain, run_stage
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.metrics import read_metrics
from tests.core.tiny_config import TINY

# Losses are read, and so logged, with every checkpoint: after every update.
_SETTINGS = (
    "checkpoint_seconds=0",
    "stage1.steps=30",
    "stage1.eval_every=30",
    "stage1.error_focus=1",
    "stage2.steps=30",
    "stage2.lookahead=3",
    "stage2.eval_every=30",
)


def _batch_norm() -> dict[str, Tensor]:
    """Outputs, gradients and statistics of batch normalization of a batch, or of this process's share of it."""
    everything = (
        torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + torch.arange(8)[:, None, None, None]
    )
    x = everything[distributed.part(8)].requires_grad_()
    norm = BatchNorm2d(3)
    y = norm(x)
    (y * everything[distributed.part(8)].square()).mean().backward()
    distributed.average_gradients(norm.parameters())
    assert x.grad is not None
    return {
        **norm.state_dict(),
        "y": distributed.gather(y).flatten(0, 1),
        "x.grad": distributed.gather(x.grad).flatten(0, 1) / distributed.world_size(),
        "weight.grad": norm.weight.grad,  # type: ignore[dict-item]
    }


def _quantizer() -> dict[str, Tensor]:
    """Codebooks after three batches, with revived codes."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 8, 4, 2, 0.9, 0.05, revive_below=0.5)
    for _ in range(3):
        quantized = quantizer(torch.randn(12, 16)[distributed.part(12)])
    assert quantized.perplexity is not None
    return {**quantizer.state_dict(), "perplexity": quantized.perplexity, "rng": torch.get_rng_state()}


def _gradients() -> dict[str, Tensor]:
    """Gradients of stage 1 for one batch, with changes in one half of it alone."""
    torch.manual_seed(0)
    idm = InverseDynamicsModel(1, 16, VectorQuantizer(2, 8, 4, 2, 0.9, 0.05))
    world_model = WorldModel(4, 16, 16)
    frames = torch.rand(8, 3, 3, 16, 16) - 0.5
    frames[4:, 2] = frames[4:, 1]
    loss, _ = joint_loss(idm, world_model, frames[distributed.part(8)], Compute(torch.device("cpu"), False), 4.0)
    loss.backward()
    parameters = {**dict(idm.named_parameters()), **dict(world_model.named_parameters())}
    distributed.average_gradients(parameters.values())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return {**gradients, "loss": distributed.mean(loss)}


def _computed() -> dict[str, dict[str, Tensor]]:
    return {"batch norm": _batch_norm(), "quantizer": _quantizer(), "gradients": _gradients()}


def _alone_in_main() -> list[Any]:
    """How many processes there are for what the main one does alone, and then."""
    return [distributed.on_main(distributed.world_size), distributed.world_size()]


def _failed(work: Callable[[], Any], together: Callable[[Callable[[], Any]], Any]) -> list[str]:
    try:
        together(work)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def _fail_on(rank: int) -> None:
    if distributed.rank() == rank:
        raise DiskFullError(f"The disk of {rank} is full.")


def _agreement() -> dict[str, Any]:
    ours = distributed.rank()
    return {
        "any": distributed.any_of(ours == 1, False, True),
        "main's": distributed.on_main(lambda: ours),
        "own": distributed.on_all(lambda: ours),
        "alone": _alone_in_main(),
        "main failed": _failed(lambda: _fail_on(0), distributed.on_main),
        "another failed": _failed(lambda: _fail_on(1), distributed.on_all),
        "uneven": _failed(lambda: distributed.part(7), distributed.on_all)[:1],
    }


def _process(rank: int, folder: Path) -> None:
    """One of the two processes of the tests of single functions."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": (folder / "port").read_text()}
    with distributed.processes():
        torch.save({"computed": _computed(), "agreement": _agreement()}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes came to."""
    folder = tmp_path_factory.mktemp("processes")
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    (folder / "port").write_text(str(store.port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        processes = torch.multiprocessing.start_processes(_process, (folder,), nprocs=2, join=False)
        while not processes.join():
            pass
    finally:
        del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("what", ["batch norm", "quantizer", "gradients"])
def test_shares_of_a_batch_give_what_the_whole_batch_gives(what: str, of_two: list[dict[str, Any]]) -> None:
    whole = _computed()[what]
    for each in of_two:
        assert each["computed"][what].keys() == whole.keys()
        for name, value in each["computed"][what].items():
            assert torch.allclose(value, whole[name], rtol=1e-5, atol=1e-6), name


def test_both_processes_come_to_the_very_same_numbers(of_two: list[dict[str, Any]]) -> None:
    for what, values in of_two[0]["computed"].items():
        for name, value in values.items():
            assert torch.equal(value, of_two[1]["computed"][what][name]), name


def test_processes_agree_on_flags_results_and_errors(of_two: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(of_two):
        assert each["agreement"] == {
            "any": [True, False, True],
            "main's": 0,
            "own": rank,
            "alone": [1, 2],
            "main failed": ["DiskFullError", "The disk of 0 is full."],
            "another failed": ["DiskFullError", "The disk of 1 is full."],
            "uneven": ["UsageError"],
        }


def test_one_process_needs_nobody_to_agree() -> None:
    assert distributed.part(7) == slice(0, 7)
    assert distributed.any_of(True, False) == [True, False]
    with pytest.raises(UsageError):
        distributed.on_main(lambda: (_ for _ in ()).throw(UsageError("No.")))


def test_processes_cannot_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(DeviceError, match="cannot share the GPU cuda:1"):
        resolve("cuda:1")


def test_a_chain_needs_as_many_gpus_as_devices(
    tmp_path: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = RunDir.create(tmp_path, tiny(), "paper")
    with pytest.raises(DeviceError, match="--devices 3 needs as many GPUs, and 2 are here"):
        Chain(run, "maze", 0, Options(devices=3))("cuda:1", Silent())


def test_scratch_is_for_one_machine(
    tmp_path: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run = RunDir.create(tmp_path, tiny(), "paper")
    with pytest.raises(UsageError, match="--scratch is for the processes of one machine"):
        Chain(run, "maze", 0, Options("cpu", scratch=tmp_path)).run_stages("cpu", Silent())


def _start(data_dir: Path, *words: str | Path, program: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
    overrides = [word for setting in (*TINY, *_SETTINGS) for word in ("--set", setting)]
    first, *others = map(str, words)  # Those of the test last, where they count.
    command = [sys.executable, *program, "-m", "lapo_cli", first, *overrides, *others, "--device", "cpu", "--json"]
    environment = {**os.environ, "LAPO_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--quiet"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _finish(process: "subprocess.Popen[bytes]", code: int = 0) -> tuple[Any, str]:
    """The one document on stdout, and stderr."""
    out, errors = process.communicate()
    assert process.returncode == code, errors.decode()
    return json.loads(out), errors.decode()


def _wait_for_update(process: "subprocess.Popen[bytes]", stage: Path, count: int) -> None:
    while len(read_metrics(stage)) < count:
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)


def _child(process: "subprocess.Popen[bytes]", rank: int) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = (
        pid for pid in children if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return int(found)


def _alone(tiny: Callable[..., Config], path: Path, data_dir: Path, stage: str) -> None:
    run = RunDir.create(path, tiny(*_SETTINGS), "paper")
    run_stage(run, stage, [run.seed_dir("maze", 0)], Options("cpu", data_dir), Silent())


def _curve(path: Path, stage: str, name: str) -> list[float]:
    lines = [line for line in read_metrics(path / "maze" / "seed-0" / stage) if name in line]
    assert [line["step"] for line in lines] == list(range(1, 31))
    return [line[name] for line in lines]


def _weights(path: Path, stage: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path / "maze" / "seed-0" / stage / "model.safetensors")


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_a_model_trained_by_two_is_that_of_one_and_resumes_with_either_number(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    one, two, broken, moved = (tmp_path / name for name in ("one", "two", "broken", "moved"))
    _alone(tiny, one, data_dir, "idm")
    document, errors = _finish(_start(data_dir, "train-idm", "maze", "--run-dir", two, "--devices", "2"))
    assert errors == ""
    assert [stage["skipped"] for stage in document["stages"]] == [False]

    stage = broken / "maze" / "seed-0" / "idm"
    process = _start(data_dir, "train-idm", "maze", "--run-dir", broken, "--devices", "2")
    _wait_for_update(process, stage, 3)
    process.send_signal(signal.SIGINT)
    document, errors = _finish(process, 130)
    assert document["error"]["type"] == "KeyboardInterrupt"
    assert errors.count("Interrupted") == 1
    process = _start(data_dir, "train-idm", "maze", "--run-dir", broken, "--devices", "2")
    _wait_for_update(process, stage, len(read_metrics(stage)) + 2)
    os.kill(_child(process, rank=1), signal.SIGKILL)
    document, errors = _finish(process, 1)
    assert document["error"]["message"].startswith("Another of the processes that train this model ended")
    assert errors.count("Error:") == 1
    shutil.copytree(broken, moved)
    _finish(_start(data_dir, "train-idm", "maze", "--run-dir", broken, "--devices", "2"))
    _alone(tiny, moved, data_dir, "idm")

    for name, value in _weights(two, "idm").items():
        assert torch.equal(value, _weights(broken, "idm")[name]), name
    assert _curve(broken, "idm", "quantizer/perplexity") == _curve(two, "idm", "quantizer/perplexity")
    expected, found = (_curve(path, "idm", "losses/total") for path in (one, two))
    assert _curve(broken, "idm", "losses/total") == found
    # Rounding alone at first; later it also decides between codes that are nearly as near.
    assert found[:3] == pytest.approx(expected[:3], rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-2)
    assert _curve(moved, "idm", "losses/total") == pytest.approx(expected, rel=1e-2)


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_a_batch_that_cannot_be_shared_is_refused_before_the_run_is_made(tmp_path: Path, data_dir: Path) -> None:
    words = ["train-idm", "maze", "--run-dir", tmp_path / "run", "--devices", "2", "--set", "stage1.batch_size=15"]
    document, errors = _finish(_start(data_dir, *words), 2)
    assert "A batch of 15 cannot be shared evenly by 2 processes" in document["error"]["message"]
    assert errors.count("Error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_of_all_is_left_to_the_first_process_to_report(code: int) -> None:
    """torchrun ends the others as soon as one has ended: the first one must be it."""
    words = (
        sys.executable,
        "-c",
        f"from lapo_cli.core.distributed import leave; print(flush=True); leave(SystemExit({code}))",
    )
    first, other = (
        subprocess.Popen(
            words, stdout=subprocess.PIPE, env={**os.environ, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    )
    assert other.stdout is not None
    other.stdout.read(1)  # It is about to leave.
    assert first.wait() == code
    assert other.poll() is None
    other.terminate()
    assert other.wait() == -signal.SIGTERM


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_a_wrong_option_is_reported_once(tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]) -> None:
    RunDir.create(tmp_path / "run", tiny(), "paper")
    words = ["run-chain", "maze", "--run-dir", tmp_path / "run", "--devices", "2", "--set", "nope=1"]
    document, errors = _finish(_start(data_dir, *words), 2)
    assert "nope" in document["error"]["message"]
    assert errors.count("Error:") == 1


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_torchrun_trains_stage_2_as_one_process_does(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    _alone(tiny, one, data_dir, "idm")
    shutil.copytree(one, two)
    _alone(tiny, one, data_dir, "policy")
    # As --standalone, on a machine whose name leads nowhere too.
    local = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    torchrun = ("-m", "torch.distributed.run", *local, "--nproc-per-node", "2")
    process = _start(data_dir, "train-policy", two, program=torchrun)
    document, _ = _finish(process)
    assert [stage["stage"] for stage in document["stages"]] == ["policy"]
    name = "losses/imitation"
    assert _curve(two, "policy", name) == pytest.approx(_curve(one, "policy", name), rel=1e-5)


def _chain(run: Path, *words: str | Path) -> tuple[str | Path, ...]:
    return ("--preset", "paper", "--run-dir", run, *words)


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_a_chain_of_two_processes_shares_what_can_be_shared(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    one, two, moved = (tmp_path / name for name in ("one", "two", "moved"))
    expected = run_chain(RunDir.create(one, tiny(*_SETTINGS), "paper"), "maze", 0, Options("cpu", data_dir), Silent())
    document, errors = _finish(_start(data_dir, "run-chain", "maze", *_chain(two), "--devices", "2"))
    assert errors == ""
    assert [stage["stage"] for stage in document["stages"]] == [stage.stage for stage in expected]
    # Stage 2 imitates what stage 1 has made, with its rounding.
    for stage, name, error in (("idm", "losses/total", 1e-5), ("policy", "losses/imitation", 1e-2)):
        assert _curve(two, stage, name)[:3] == pytest.approx(_curve(one, stage, name)[:3], rel=error)
        assert "2 x" in yaml.safe_load((two / "maze" / "seed-0" / stage / "config.yaml").read_text())["device"]
    evaluated = [sorted(file.name for file in (run / "maze/seed-0/evaluation").glob("*.json")) for run in (one, two)]
    assert evaluated[0] == evaluated[1]

    # From its first two stages on, what one process makes of them is bit for bit what two made.
    shutil.copytree(two, moved)
    for stage in ("offline", "online", "scratch"):
        shutil.rmtree(moved / "maze" / "seed-0" / stage)
    again = run_chain(RunDir.open(moved), "maze", 0, Options("cpu", data_dir), Silent())
    assert {stage.stage for stage in again if stage.skipped} == {"idm", "policy"}
    for stage in ("offline", "online", "scratch"):
        for name, value in _weights(two, stage).items():
            assert torch.equal(value, _weights(moved, stage)[name]), (stage, name)


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_all_by_two_processes_ends_with_them_and_resumes(
    tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    words = ("run-all", "--games", "maze", *_chain(run), "--devices", "2", "--set", "stage1.steps=150")
    process = _start(data_dir, *words)
    stage = run / "maze" / "seed-0" / "idm"
    _wait_for_update(process, stage, 3)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    (log,) = (run / "devices").glob("maze-0-*.log")
    until = time.monotonic() + 120
    while not (ended := "Interrupted" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    assert ended
    before = len(read_metrics(stage))
    document, _ = _finish(_start(data_dir, *words))
    assert document["failures"] == []
    assert before < 100  # It was in the middle.
    assert [line["step"] for line in read_metrics(stage) if "losses/total" in line] == list(range(1, 151))


@pytest.mark.timeout(900)  # a process of several starts slowly on a busy machine
def test_what_stops_the_processes_of_a_chain_is_its_failure(tmp_path: Path, data_dir: Path) -> None:
    words = ("run-all", "--games", "maze", *_chain(tmp_path / "run"), "--devices", "2", "--set", "stage2.batch_size=15")
    document, _ = _finish(_start(data_dir, *words), 1)
    (failure,) = document["failures"]
    assert failure["message"].startswith("A batch of 15 cannot be shared evenly by 2 processes")
    assert not (tmp_path / "run" / "maze").exists()
