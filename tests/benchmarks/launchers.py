"""What a launcher takes beside the work: sixteen short chains, against the same ones in this process."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from lapo_cli.core.config_loading import load_config
from lapo_cli.core.data.download import ensure_stores
from lapo_cli.core.pipeline import Options, run_all
from lapo_cli.core.plugins import load_plugin
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir
from tests.benchmarks.timing import Line, seconds
from tests.core.tiny_config import TINY

_GAME, _CHAINS = "board", 16  # It has no environment, so that nothing is played.
_PLUGIN = Path(__file__).parents[1] / "plugins" / "toy_source.py"
_CONFIG = (*TINY, "data.source=squares", "stage1.steps=4", "stage2.steps=4", "offline.steps=2")
_SLURM = ("cpus=1", "gpus=0", "poll=0.5")


def launchers(rounds: int) -> list[Line]:
    """Seconds for all chains, by every launcher that can run here, once each; ``rounds`` is for other benchmarks.

    Ray starts two processes for all of them, the others one for each chain.

    SLURM's nodes have to see the folder of temporary files.
    """
    load_plugin(_PLUGIN)
    config = load_config("paper", overrides=_CONFIG)
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        ensure_stores(_GAME, data, "squares", config.data.max_frames, Silent())

        def took(name: str, options: Options) -> float:
            run = RunDir.create(Path(folder) / name.partition(" ")[0], config, "paper")  # No spaces, for SLURM.
            return seconds(lambda: _run(run, options))

        def _run(run: RunDir, options: Options) -> None:
            failures = run_all(run, [_GAME], list(range(_CHAINS)), options, Silent()).failures
            assert not failures, failures[0].message

        here = took("here", Options("cpu", data))
        times = [(name, took(name, options)) for name, options in _others(data)]
    lines = [Line(f"{_CHAINS} chains by local --jobs 1", f"{here:.0f} s", "", "", "")]
    for name, time in times:
        each = f"{(time - here) / _CHAINS:+.1f} s a chain"
        lines.append(Line(f"{_CHAINS} chains by {name}", f"{here:.0f} s", f"{time:.0f} s", each, ""))
    return lines


def _others(data: Path) -> Iterator[tuple[str, Options]]:
    yield "local --jobs 2", Options("cpu", data, jobs=2)
    if importlib.util.find_spec("ray") is not None:
        yield "ray --jobs 2", Options("cpu", data, jobs=2, launcher="ray")
    if shutil.which("sbatch") is not None:
        yield "slurm --jobs 2", Options("cpu", data, jobs=2, launcher="slurm", launcher_settings=_SLURM)
