"""The run directory: what is skipped, set aside, refused, locked, and how damage is reported."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.config import Config
from lapo_cli.core.errors import CorruptDataError, MissingInputError, RunDirError
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir, SeedDir, StageDir, load_weights, read_about

Tiny = Callable[..., Config]
_KEY = {"stage": "idm", "seed": 0, "inputs": {"train": "abc"}, "config": {"lr": 0.1}}


def _finished(path: Path) -> StageDir:
    stage = StageDir(path / "idm")
    assert stage.begin(_KEY, fresh=False)
    stage.save_state({"step": 3})
    stage.save_weights({"net": torch.nn.Linear(2, 2)}, {"stage": "idm"})
    stage.finish({"loss": 0.5})
    return stage


def test_a_finished_stage_is_skipped_for_its_own_key_alone(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    assert not stage.begin(_KEY, fresh=False)
    assert stage.require_done("x")["results"] == {"loss": 0.5}
    assert stage.load_state() is None  # the resume state has gone


def test_a_changed_key_sets_aside_and_loses_nothing(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    before = {file.name: file.read_bytes() for file in stage.path.iterdir()}
    assert stage.begin({**_KEY, "seed": 1}, fresh=False)
    assert {file.name for file in stage.path.iterdir()} == {"config.yaml"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "idm.old-1").iterdir()} == before
    (stage.path / "half.bin").write_bytes(b"half done")
    assert stage.begin({**_KEY, "seed": 2}, fresh=False)
    assert (tmp_path / "idm.old-2" / "half.bin").read_bytes() == b"half done"
    assert (tmp_path / "idm.old-1").exists()


def test_an_unfinished_stage_of_the_same_key_keeps_its_checkpoint(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "idm")
    stage.begin(_KEY, fresh=False)
    stage.save_state({"step": 3})
    assert stage.begin(_KEY, fresh=False)
    state = stage.load_state()
    assert state is not None
    assert state["step"] == 3


@pytest.mark.parametrize("finished", [True, False])
def test_fresh_starts_over_and_sets_aside(tmp_path: Path, finished: bool) -> None:
    stage = _finished(tmp_path)
    if not finished:
        (stage.path / "done.json").unlink()
    before = {file.name: file.read_bytes() for file in stage.path.iterdir()}
    assert stage.begin(_KEY, fresh=True)
    assert stage.done() is None
    assert {file.name for file in stage.path.iterdir()} == {"config.yaml"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "idm.old-1").iterdir()} == before


def test_fresh_sets_a_damaged_stage_aside(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    (stage.path / "done.json").write_text("{")
    with pytest.raises(CorruptDataError, match="--fresh"):
        stage.begin(_KEY, fresh=False)
    assert stage.begin(_KEY, fresh=True)
    assert (tmp_path / "idm.old-1" / "model.safetensors").exists()


def test_the_output_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = _finished(tmp_path / "a").output_fingerprint("x")
    torch.manual_seed(0)
    assert _finished(tmp_path / "b").output_fingerprint("x") == one
    assert _finished(tmp_path / "c").output_fingerprint("x") != one


def test_an_unfinished_stage_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="lapo train-idm maze"):
        StageDir(tmp_path / "idm").require_done("lapo train-idm maze")


_DEEP = "[" * 200_000
_LONG_NUMBER = "1" * 5000


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"key": 1}', "\xff", _DEEP, _LONG_NUMBER, "NaN", '"\\ud800"', "{}" * 40_000_000]
)
def test_a_damaged_done_file_is_reported(tmp_path: Path, text: str) -> None:
    stage = _finished(tmp_path)
    (stage.path / "done.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptDataError, match=r"done\.json is damaged"):
        stage.done()


@pytest.mark.parametrize(("old", "new"), [("0.5", "0.6"), ("idm", "idn"), ("loss", "lose")])
def test_an_altered_done_file_is_reported(tmp_path: Path, old: str, new: str) -> None:
    stage = _finished(tmp_path)
    file = stage.path / "done.json"
    stage.finish({"loss": 0.5, "of": "idm"})
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CorruptDataError, match=r"done\.json is damaged"):
        stage.done()


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)))
def test_results_come_back_exactly(results: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = StageDir(Path(folder, "idm"))
        stage.begin(_KEY, fresh=False)
        stage.finish(results)
        assert stage.require_done("x")["results"] == results


def test_an_altered_or_missing_stage_config_is_refused(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    assert stage.read_config()["config"] == {"lr": 0.1}
    file = stage.path / "config.yaml"
    file.write_text(file.read_text().replace("0.1", "0.2"))
    with pytest.raises(CorruptDataError, match=r"config\.yaml"):
        stage.read_config()
    file.unlink()
    with pytest.raises(CorruptDataError, match=r"config\.yaml"):
        stage.read_config()


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "key: &a [*a]", "a: " + _LONG_NUMBER])
def test_a_damaged_stage_marker_is_set_aside(tmp_path: Path, text: str) -> None:
    stage = StageDir(tmp_path / "idm")
    stage.begin(_KEY, fresh=False)
    (stage.path / "config.yaml").write_bytes(text.encode("latin-1"))
    assert stage.begin(_KEY, fresh=False)
    assert (tmp_path / "idm.old-1").exists()


def test_damaged_missing_or_foreign_weights_are_reported(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    with pytest.raises(CorruptDataError, match=r"do not fit the networks of this version .*--fresh"):
        stage.load_weights({"net": torch.nn.Linear(3, 2)})
    file = stage.path / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(CorruptDataError, match="weights"):
            stage.load_weights({"net": torch.nn.Linear(2, 2)})
    file.unlink()
    with pytest.raises(CorruptDataError, match="weights"):
        stage.load_weights({"net": torch.nn.Linear(2, 2)})


def test_altered_weights_of_a_finished_stage_are_reported(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    file = stage.path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + bytes(8))  # Zeros are weights like any others.
    for load in (stage.load_weights, partial(load_weights, file)):
        with pytest.raises(CorruptDataError, match=rf"{file} .*--fresh"):
            load({"net": torch.nn.Linear(2, 2)})
    file.write_bytes(whole)
    stage.load_weights({"net": torch.nn.Linear(2, 2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_reported(tmp_path: Path, value: float) -> None:
    stage = StageDir(tmp_path / "idm")
    net = torch.nn.Linear(2, 2)
    net.weight.data[0, 1] = value
    stage.save_weights({"net": net}, {})
    with pytest.raises(CorruptDataError, match="weights"):
        load_weights(stage.path / "model.safetensors", {"net": torch.nn.Linear(2, 2)})


@pytest.mark.parametrize(
    "header", [None, {}, {"about": "["}, {"about": _DEEP}, {"about": "[]"}, {"about": "{}"}, {"about": '{"stage": 1}'}]
)
def test_a_weights_file_of_something_else_is_reported(tmp_path: Path, header: dict[str, str] | None) -> None:
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, header)
    with pytest.raises(CorruptDataError, match=str(file)):
        read_about(file)


def test_weights_come_back_from_channels_last(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "idm")
    stage.begin(_KEY, fresh=False)
    net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    stage.save_weights({"net": net}, {})
    other = torch.nn.Conv2d(3, 4, 3)
    stage.load_weights({"net": other})
    assert torch.equal(net.weight, other.weight)


def test_a_run_is_found_from_anywhere_inside_it(tmp_path: Path, tiny: Tiny) -> None:
    config = tiny()
    RunDir.create(tmp_path / "run", config, "quick")
    inside = tmp_path / "run" / "maze" / "seed-3" / "idm"
    inside.mkdir(parents=True)
    for other in ("my-robot/seed-0", "my-robot/seed-x", "my-robot/seed-00", "my-robot/seed-²", "maze/other"):
        (tmp_path / "run" / other).mkdir(parents=True)
    (tmp_path / "run" / "my-robot" / "seed-1").touch()
    run = RunDir.open(inside)
    assert (run.config, run.preset) == (config, "quick")
    assert [(s.game, s.seed) for s in run.seed_dirs(inside)] == [("maze", 3)]
    assert [(s.game, s.seed) for s in run.seed_dirs()] == [("maze", 3), ("my-robot", 0)]
    with pytest.raises(RunDirError, match="no game yet"):
        RunDir.create(tmp_path / "empty", config, "quick").seed_dirs()


def test_a_folder_of_something_else_is_no_run_directory(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(RunDirError, match="is not a run directory"):
        RunDir.create(tmp_path / "photos", tiny(), "quick")
    with pytest.raises(RunDirError, match="is not a run directory"):
        RunDir.create(tmp_path / "photos" / "cat.jpg", tiny(), "quick")
    with pytest.raises(RunDirError, match="is not a run directory"):
        RunDir.open(tmp_path / "photos")
    with pytest.raises(RunDirError, match=r"There is no folder .*absent"):
        RunDir.open(tmp_path / "absent")
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_run_directory_is_made_where_an_earlier_attempt_left_its_lock(tmp_path: Path, tiny: Tiny) -> None:
    run = RunDir(tmp_path / "run", tiny(), "quick")
    with run.lock():
        pass
    (run.path / ".run.0123.tmp.yaml").touch()
    assert RunDir.create(run.path, tiny(), "quick") == RunDir.open(run.path)


def test_of_two_processes_that_make_a_run_the_second_needs_the_same_configuration(tmp_path: Path, tiny: Tiny) -> None:
    first, same = (RunDir.prepare(tmp_path / "run", tiny(), "quick") for _ in range(2))
    other = RunDir.prepare(tmp_path / "run", tiny("stage1.lr=1e-3"), "quick")
    first.save()
    same.save()
    with pytest.raises(RunDirError, match=r"stage1\.lr differ"):
        other.save()
    assert RunDir.open(first.path).config == tiny()


def test_another_configuration_is_refused_unless_the_run_is_to_be_reconfigured(tmp_path: Path, tiny: Tiny) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "quick")
    before = (run.path / "run.yaml").read_bytes()
    with pytest.raises(RunDirError, match=r"stage1\.lr differ.*--run-dir.*--reconfigure"):
        RunDir.create(run.path, tiny("stage1.lr=1e-3"), "quick")
    again = RunDir.create(run.path, tiny("evaluation.episodes=99"), "quick")  # No training depends on it.
    assert again.config.evaluation.episodes == 99
    assert (run.path / "run.yaml").read_bytes() == before
    changed = RunDir.create(run.path, tiny("stage1.lr=1e-3"), "paper", reconfigure=True)
    assert RunDir.open(run.path) == changed


def test_another_format_is_refused_and_named(tmp_path: Path, tiny: Tiny) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "quick")
    content = yaml.safe_load((run.path / "run.yaml").read_text())
    content |= {"format": 99, "lapo_version": "9.9"}
    (run.path / "run.yaml").write_text(yaml.safe_dump(content))
    for attempt in (lambda: RunDir.open(run.path), lambda: RunDir.create(run.path, tiny(), "quick")):
        with pytest.raises(RunDirError, match=r"format 99.*lapo 9\.9"):
            attempt()


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "format: 2", "format: &a [*a]", "format: 2\nconfig: {stage7: 1}\npreset: quick", "\xff"]
)
def test_a_damaged_run_file_is_reported(tmp_path: Path, tiny: Tiny, text: str) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "quick")
    (run.path / "run.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirError, match=r"run\.yaml (is damaged|has a configuration that does not fit)"):
        RunDir.open(run.path)


_HOLD = """
import sys
from pathlib import Path
from lapo_cli.core.run_dir import SeedDir
with SeedDir(Path(sys.argv[1]), "maze", 0).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_ends_even_by_a_kill(tmp_path: Path) -> None:
    seed_dir = SeedDir(tmp_path / "maze" / "seed-0", "maze", 0)
    command = [sys.executable, "-c", _HOLD, str(seed_dir.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunDirError, match="Another lapo process"), seed_dir.lock():
        pass
    holder.kill()
    holder.communicate()
    with seed_dir.lock():
        pass


class _KillOnWaiting(Silent):
    """Progress that kills a process once it reads that it is waited for."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def log(self, message: str) -> None:
        assert "Waiting for another lapo process that works in" in message
        self.process.kill()


def test_who_may_wait_gets_the_lock_when_its_holder_dies(tmp_path: Path) -> None:
    seed_dir = SeedDir(tmp_path / "maze" / "seed-0", "maze", 0)
    command = [sys.executable, "-c", _HOLD, str(seed_dir.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with seed_dir.lock(_KillOnWaiting(holder)):
            assert holder.wait() == -9


def test_a_run_may_be_given_further_stages(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    RunDir.create(tmp_path / "run", tiny(), "paper")
    more = RunDir.prepare(tmp_path / "run", tiny("extra_stages=relabel"), "paper")
    assert more.config.extra_stages == ("relabel",)
    assert RunDir.open(tmp_path / "run").config.extra_stages == ()
