"""The run directory: what is skipped, set aside, refused, locked, and what damage is told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lapo_cli.core.config import Config
from lapo_cli.core.errors import CorruptDataError, MissingInputError, RunDirError
from lapo_cli.core.run_dir import RunDir, SeedDir, StageDir

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


def test_fresh_starts_over(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    assert stage.begin(_KEY, fresh=True)
    assert stage.done() is None
    assert not (stage.path / "model.safetensors").exists()


def test_the_output_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = _finished(tmp_path / "a").output_fingerprint("x")
    torch.manual_seed(0)
    assert _finished(tmp_path / "b").output_fingerprint("x") == one
    assert _finished(tmp_path / "c").output_fingerprint("x") != one


def test_an_unfinished_stage_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="lapo train-idm maze"):
        StageDir(tmp_path / "idm").require_done("lapo train-idm maze")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1}', "\xff"])
def test_a_damaged_done_file_is_told(tmp_path: Path, text: str) -> None:
    stage = _finished(tmp_path)
    (stage.path / "done.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptDataError, match=r"done\.json is damaged"):
        stage.done()


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_stage_marker_is_set_aside(tmp_path: Path, text: str) -> None:
    stage = StageDir(tmp_path / "idm")
    stage.begin(_KEY, fresh=False)
    (stage.path / "config.yaml").write_bytes(text.encode("latin-1"))
    assert stage.begin(_KEY, fresh=False)
    assert (tmp_path / "idm.old-1").exists()


def test_damaged_missing_or_foreign_weights_are_told(tmp_path: Path) -> None:
    stage = _finished(tmp_path)
    with pytest.raises(CorruptDataError, match="weights"):
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
    (tmp_path / "run" / "fruitbot" / "seed-0").mkdir(parents=True)
    run = RunDir.open(inside)
    assert (run.config, run.preset) == (config, "quick")
    assert [(s.game, s.seed) for s in run.seed_dirs(inside)] == [("maze", 3)]
    assert [(s.game, s.seed) for s in run.seed_dirs()] == [("fruitbot", 0), ("maze", 3)]
    with pytest.raises(RunDirError, match="no game yet"):
        RunDir.create(tmp_path / "empty", config, "quick").seed_dirs()


def test_a_folder_of_something_else_is_no_run_directory(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(RunDirError, match="is no run directory"):
        RunDir.create(tmp_path / "photos", tiny(), "quick")
    with pytest.raises(RunDirError, match="is no run directory"):
        RunDir.create(tmp_path / "photos" / "cat.jpg", tiny(), "quick")
    with pytest.raises(RunDirError, match="is no run directory"):
        RunDir.open(tmp_path / "photos")
    with pytest.raises(RunDirError, match="is no run directory"):
        RunDir.open(tmp_path / "absent")
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_another_format_is_refused_and_named(tmp_path: Path, tiny: Tiny) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "quick")
    content = yaml.safe_load((run.path / "run.yaml").read_text())
    content |= {"format": 99, "lapo_version": "9.9"}
    (run.path / "run.yaml").write_text(yaml.safe_dump(content))
    for attempt in (lambda: RunDir.open(run.path), lambda: RunDir.create(run.path, tiny(), "quick")):
        with pytest.raises(RunDirError, match=r"format 99.*lapo 9\.9"):
            attempt()


@pytest.mark.parametrize("text", ["", "[", "[]", "format: 2", "format: 2\nconfig: {stage7: 1}\npreset: quick", "\xff"])
def test_a_damaged_run_file_is_told(tmp_path: Path, tiny: Tiny, text: str) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "quick")
    (run.path / "run.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirError, match="is damaged"):
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
