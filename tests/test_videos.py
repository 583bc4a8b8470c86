"""Videos from end to end: the commands that the README shows, and that latent actions belong to their frames."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lapo_cli.cli.main import app
from lapo_cli.core.compute import Compute
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import load_idm
from tests.core.tiny_config import TINY
from tests.videos import Frames, numbered, write_video

_README = (Path(__file__).parents[1] / "README.md").read_text()
_TINY = [part for word in TINY for part in ("--set", word)]
_CUT = 600

Lapo = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a file of their actions, and a new video with a cut before frame 600."""
    folder = tmp_path_factory.mktemp("videos")
    for clip in range(3):
        write_video(folder / "clips" / f"{clip}.mp4", numbered(90, first=200 * clip, shape=(96, 128)))
    lines = [f"{clip}.mp4,{frame},{frame // 3 % 4}" for clip in range(3) for frame in range(90)]
    (folder / "actions.csv").write_text("\n".join(["clip,frame,action", *lines]))
    write_video(folder / "new.mp4", _new_video(), codec="libx264rgb", pixels="rgb24", qp="0")
    return folder


def _new_video() -> Frames:
    return np.concatenate([numbered(_CUT), numbered(40, first=_CUT, ground=200)])


@pytest.fixture
def lapo(home: Path, monkeypatch: pytest.MonkeyPatch) -> Lapo:
    monkeypatch.chdir(home)
    monkeypatch.setenv("LAPO_DATA_DIR", str(home / "data"))
    return lambda *words: CliRunner().invoke(app, list(words))


def _section() -> list[str]:
    text = _README.partition("## Your own videos")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def done(home: Path, lapo: Lapo) -> list[str]:
    """What the README's commands print, with networks that take seconds."""
    if not (home / "done.json").exists():
        shown = []
        for line in _section():
            _, *words = shlex.split(line)
            result = lapo(*words, *(_TINY if words[0] == "run-all" else []))
            assert result.exit_code == 0, result.output
            shown.append(result.stdout)
        (home / "done.json").write_text(json.dumps(shown))
    printed: list[str] = json.loads((home / "done.json").read_text())
    return printed


def test_the_commands_of_the_readme_do_what_it_says(done: list[str]) -> None:
    without, with_actions = done[:3], done[3:]
    assert re.search(r"\| robot \| train \| 60 +\| 737 kB \| - +\| - +\|", without[0])  # Its returns are not known.
    assert "offline was left out, since the train frames of robot have no true actions" in without[1]
    assert "scratch was left out, since there is no environment for robot to act in" in without[1]
    assert "latents.npz: latent actions of" in without[2]
    assert "offline was left out" not in with_actions[1]
    assert "probe" in with_actions[1]
    assert "with actions predicted from" in with_actions[2]


def _context(home: Path, name: str) -> Context:
    run = RunDir.open(home / "runs" / name)
    return Context(run.seed_dir(name, 0), run.config, Compute(torch.device("cpu"), bf16=False), home / "data")


def test_latent_actions_belong_to_the_frames_they_name(home: Path, lapo: Lapo, done: list[str]) -> None:
    (home / "all.npz").unlink(missing_ok=True)
    result = lapo("label", "runs/driver/driver/seed-0", "new.mp4", "--fps", "30", "--out", "all.npz")
    assert result.exit_code == 0, result.output
    made = np.load(home / "all.npz")
    centres = [t for t in range(1, _CUT + 39) if t not in (_CUT - 1, _CUT)]
    assert made["window"].tolist() == [[t - 1, t, t + 1] for t in centres]
    assert made["time"] == pytest.approx(np.array(centres) / 30)
    idm = load_idm(_context(home, "driver"))
    windows = torch.from_numpy(_new_video()[made["window"]])
    with torch.no_grad():
        z = idm.latent_action(normalize(windows, idm.size))
        codes = idm.quantizer(z).codes
    assert np.allclose(made["z"], z.numpy(), atol=1e-5)
    shifted = idm.latent_action(normalize(windows.roll(1, 0), idm.size)).detach().numpy()
    assert np.abs(made["z"] - shifted).max() > 1e-3
    assert codes is not None
    assert (made["codes"] == codes.numpy()).mean() > 0.99
    assert made["actions"].shape == (len(centres),)
    assert made["actions"].max() < 4
    about = json.loads(str(made["about"]))
    assert (about["frames"], about["preparation"]["fit"]) == (_CUT + 40, "stretch")
    decoded = json.loads((home / "runs/driver/driver/seed-0/offline/done.json").read_text())["results"]
    assert about["labels"] == max(map(int, decoded["test_accuracy"]))


def test_without_options_frames_are_prepared_as_those_of_the_data_set(home: Path, done: list[str]) -> None:
    made = np.load(home / "latents.npz")
    assert set(np.diff(made["window"]).ravel().tolist()) == {3}
    preparation = json.loads(str(made["about"]))["preparation"]
    assert preparation == {"size": 64, "fit": "crop", "fps": 10.0, "skip_still": False}
    assert "actions" not in made


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs/robot", "new.mp4", "--out", "a.txt"], "does not end in .npz"),
        (["runs/robot", "new.mp4", "--out", "latents.npz"], "latents.npz is there already"),
        (["runs/robot", "no.mp4", "--out", "a.npz"], "There is nothing at no.mp4"),
        (["runs/robot", "clips", "--out", "a.npz"], "clips holds 3 clips: name one of them"),
        (["runs/robot", "clips/0.mp4", "--fps", "0.1", "--out", "a.npz"], "no three frames without a cut"),
        (["runs/robot", "actions.csv", "--out", "a.npz"], "actions.csv is no clip"),
        (["runs/none", "new.mp4", "--out", "a.npz"], "There is no folder"),
        (["runs/robot", "new.mp4", "--crop", "--letterbox", "--out", "a.npz"], "cannot be used together"),
    ],
)
def test_what_cannot_be_labelled(home: Path, lapo: Lapo, done: list[str], words: list[str], sentence: str) -> None:
    result = lapo("label", *words)
    assert result.exit_code in (1, 2)
    assert sentence in result.output
    assert not (home / "a.npz").exists()


def test_a_file_that_is_there_is_set_aside_with_fresh(home: Path, lapo: Lapo, done: list[str]) -> None:
    assert lapo("label", "runs/robot", "new.mp4", "--fresh").exit_code == 0
    assert (home / "latents.old-1.npz").exists()
    assert (home / "latents.npz").exists()


def test_another_import_of_that_name_is_refused(home: Path, lapo: Lapo, done: list[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (home / "data" / "robot").rglob("*.u8")}
    result = lapo("import", "robot", "clips", "--fps", "20")
    assert result.exit_code == 2
    assert "robot is there already, from 3 clips of clips" in result.output
    assert before == {file: file.stat().st_mtime_ns for file in (home / "data" / "robot").rglob("*.u8")}


def test_a_name_of_a_game_is_said_to_be_one(home: Path, lapo: Lapo) -> None:
    result = lapo("import", "maze", "clips")
    assert result.exit_code == 0
    assert "maze is a game: the clips take the place of its demonstrations" in result.output


@pytest.mark.parametrize("name", ["a/b", "..", "a b", ""])
def test_names_that_cannot_be(lapo: Lapo, name: str) -> None:
    result = lapo("import", name, "clips")
    assert result.exit_code == 2
    assert "cannot be the name of a data set" in result.output
