"""What finished runs have left, read from their files alone; what is missing or damaged is noted, not fatal.

The report is made of this and knows neither networks nor data: it can be made on another machine, without Procgen, and
while a run is going on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from lapo_cli.core.envs.base import normalized
from lapo_cli.core.errors import CorruptDataError, LapoError, RunDirError
from lapo_cli.core.evaluation import evaluate, measurements, sheets
from lapo_cli.core.evaluation.reference import reference_returns
from lapo_cli.core.evaluation.summary import Key, title_of
from lapo_cli.core.files import read_json
from lapo_cli.core.run_dir import RunDir, SeedDir, StageDir
from lapo_cli.core.training.metrics import EVALUATED, read_metrics
from lapo_cli.core.training.networks import IDM, POLICY
from lapo_cli.core.training.stage import is_current

_T = TypeVar("_T")
Reference = tuple[FiniteFloat | None, FiniteFloat | None]
"""Mean returns of the random policy and of the paper's expert, where they are known."""


class FilmFile(sheets.Sheet):
    """A film of so many levels, each with an equal share of the cells, of which the first ``lengths`` are filled."""

    levels: int
    every: NotRequired[int]
    lengths: NotRequired[list[int]]
    returns: NotRequired[list[FiniteFloat]]


class StripsFile(sheets.Sheet):
    """Rows of four cells; ``error_gain`` is what the error in the last one was multiplied by."""

    error_gain: NotRequired[int]


class _Evaluation(TypedDict):
    """A file of :mod:`lapo_cli.core.evaluation.evaluate`."""

    stage: str
    fingerprint: str
    order: int
    name: str
    method: str
    labels: int | None
    env_steps: int | None
    reference_returns: Reference
    film: FilmFile
    returns: Annotated[list[FiniteFloat], Field(min_length=1)]


class Store(TypedDict):
    """What is shown of a store's manifest."""

    num_frames: int
    frame_shape: list[int]
    num_episodes: int
    num_actions: int | None
    source: str
    fingerprint: str


class Demonstrations(TypedDict):
    """A file of :mod:`lapo_cli.core.evaluation.measurements`."""

    method: str
    stores: dict[str, Store]
    action_names: list[str]
    reference_returns: Reference
    film: FilmFile
    returns: list[FiniteFloat]


class Purity(TypedDict):
    """Share of the nearest neighbours with the same true action."""

    map: FiniteFloat
    latent: FiniteFloat
    chance: FiniteFloat
    neighbours: int


class Latents(TypedDict):
    """A file of :mod:`lapo_cli.core.evaluation.latents`."""

    method: str
    points: list[tuple[FiniteFloat, FiniteFloat]]
    clusters: list[int]
    actions: list[int | None] | None
    purity: Purity | None
    codes: list[list[int]] | None


Errors = TypedDict(
    "Errors", {"rollout": list[FiniteFloat], "one step": list[FiniteFloat], "copying": list[FiniteFloat]}
)
"""Mean squared errors by the number of steps ahead."""


class Imagined(TypedDict):
    """A file of :mod:`lapo_cli.core.evaluation.imagination`."""

    horizon: int
    films: FilmFile
    strips: StripsFile
    sequences: int
    candidates: int
    errors: Errors


def trusted_steps(errors: Errors) -> int:
    """For how many steps from the start a rollout is closer to what happened than repeating the first frame."""
    for step, (rolled, copied) in enumerate(zip(errors["rollout"], errors["copying"], strict=True)):
        if rolled >= copied:
            return step
    return len(errors["rollout"])


@dataclass(frozen=True)
class Policy:
    """What one policy of one game and seed has played.

    Attributes:
        stage: that trained it; empty for the random policy and for demonstrations.
        order: its place in tables.
        returns: (E,) episodic returns.
        film: with the folder and the name of its file.
    """

    stage: str
    order: int
    method: str
    labels: int | None
    env_steps: int | None
    returns: NDArray[np.float64]
    film: tuple[Path, FilmFile] | None

    @property
    def key(self) -> Key:
        """What policies of several seeds have in common."""
        return self.method, self.labels, self.env_steps

    @property
    def title(self) -> str:
        """The policy in words."""
        return title_of(self.key)


@dataclass(frozen=True)
class StageRun:
    """One stage of one game and seed.

    Attributes:
        label: as legends call it.
        done: whether it is finished.
        results: its numbers, once it is.
        about: the stamps and the key of its ``config.yaml``.
        metrics: lines of its ``metrics.jsonl``.
    """

    name: str
    label: str
    done: bool
    results: dict[str, Any]
    about: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def seconds(self) -> float | None:
        """Time spent on it, resumed runs added up."""
        return float(self.metrics[-1]["seconds"]) if self.metrics else None

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric; of a step that was logged twice the last value."""
        values = {line["step"]: float(line[name]) for line in self.metrics if name in line}
        return list(values), list(values.values())

    @property
    def evaluations(self) -> dict[int, tuple[float, float, int]]:
        """Environment steps -> mean return on unseen levels, standard deviation, episodes."""
        return {
            line["step"]: (line[EVALUATED], line[f"{EVALUATED}_std"], int(line["eval/episodes"]))
            for line in self.metrics
            if EVALUATED in line and f"{EVALUATED}_std" in line and "eval/episodes" in line
        }


@dataclass(frozen=True)
class SeedResults:
    """All that is there of one game and seed."""

    game: str
    seed: int
    path: Path
    policies: list[Policy]
    stages: dict[str, StageRun]
    reference: Reference
    demonstrations: Demonstrations | None
    latents: Latents | None
    imagined: Imagined | None

    def normalize(self, value: float) -> float | None:
        """See :func:`normalized`."""
        return normalized(value, self.reference)


@dataclass(frozen=True)
class RunResults:
    """All that is there of a run.

    Attributes:
        name: of its folder; of several with the same name, with enough of the path to tell them apart.
        seeds: games in order, then seeds.
        failures: sentences of its last summary on what could not be finished.
        problems: sentences on files that are damaged.
        newest: when the newest file that was read was written; None for an empty run.
    """

    name: str
    run: RunDir
    seeds: list[SeedResults]
    failures: list[str]
    problems: list[str] = field(default_factory=list)
    newest: datetime | None = None

    @property
    def games(self) -> list[str]:
        """Names of its games."""
        return list(dict.fromkeys(seed.game for seed in self.seeds))

    @cached_property
    def references(self) -> dict[tuple[str, *Key], float]:
        """See :func:`lapo_cli.core.evaluation.reference.reference_returns`."""
        return reference_returns(self.run)

    def of(self, game: str) -> list[SeedResults]:
        """The seeds of a game."""
        return [seed for seed in self.seeds if seed.game == game]


_EVALUATION = TypeAdapter(_Evaluation)
_DEMONSTRATIONS = TypeAdapter(Demonstrations)
_LATENTS = TypeAdapter(Latents)
_IMAGINED = TypeAdapter(Imagined)
_ADVICE = "delete it and run 'lapo evaluate' again"


def read_run(path: Path, name: str | None = None) -> RunResults:
    """Everything that the run at ``path`` has left.

    Raises:
        RunDirError: it is not a run directory, or one of another format.
    """
    run = RunDir.open(path)
    problems: list[str] = []
    reader = _Reader(problems)
    try:
        folders = run.seed_dirs()
    except RunDirError:
        folders = []
    seeds = [_read_seed(folder, reader) for folder in folders]
    failures = reader.attempt(lambda: _failures(run.path / "summary.json")) or []
    files = [file for folder in folders for pattern in _READ for file in folder.path.glob(pattern)]
    newest = max((file.stat().st_mtime for file in files), default=None)
    when = None if newest is None else datetime.fromtimestamp(newest, UTC)
    return RunResults(name or run.path.name, run, seeds, failures, problems, when)


_READ = ("*/done.json", "*/metrics.jsonl", f"{evaluate.FOLDER}/*.json", f"{measurements.FOLDER}/*.json")


class _Reader:
    """Reads what can be read and notes what cannot."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def attempt(self, read: Callable[[], _T]) -> _T | None:
        """What ``read`` returns; None where the file is missing or damaged, which is then noted."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except (LapoError, ValidationError, OSError) as error:
            self._problems.append(str(error))
            return None


def _failures(file: Path) -> list[str]:
    content = read_json(file, TypeAdapter(dict[str, Any]), "run 'lapo evaluate' again")
    found = content.get("failures", [])
    if not isinstance(found, list):
        raise CorruptDataError(f"{file} is damaged: run 'lapo evaluate' again.")
    return [f"{f.get('game')}, seed {f.get('seed')}: {f.get('message')}" for f in found if isinstance(f, dict)]


def _read_seed(folder: SeedDir, reader: _Reader) -> SeedResults:
    measured = folder.path / measurements.FOLDER
    demonstrations = reader.attempt(lambda: read_json(measured / "demonstrations.json", _DEMONSTRATIONS, _ADVICE))
    latents = reader.attempt(lambda: _read_latents(measured / "latents.json"))
    imagined = reader.attempt(lambda: _read_imagined(measured / "imagination.json"))
    stages: dict[str, StageRun] = {}
    for path in sorted(folder.path.glob("*/")):
        if ".old-" not in path.name and (path / "config.yaml").exists():
            stage = reader.attempt(lambda path=path: read_stage(StageDir(path)))  # type: ignore[misc]
            if stage is not None:
                stages[stage.name] = stage
    evaluations = list(_evaluations(folder, reader))
    order = {IDM: 0, POLICY: 1, **{evaluation["stage"]: evaluation["order"] for evaluation in evaluations}}
    stages = dict(sorted(stages.items(), key=lambda item: order.get(item[0], max(order.values()) + 1)))
    policies = [_policy(folder, evaluation) for evaluation in evaluations]
    reference: Reference = (None, None)
    for found in (demonstrations, *evaluations):
        if found is not None:
            reference = found["reference_returns"]
            break
    if demonstrations is not None and demonstrations["returns"]:
        returns = np.array(demonstrations["returns"], np.float64)
        film = measured / "demonstrations.webp", demonstrations["film"]
        policies.append(Policy("", 1, demonstrations["method"], None, None, returns, film))
    policies.sort(key=lambda policy: (policy.order, policy.method, policy.labels or 0))
    return SeedResults(
        folder.game, folder.seed, folder.path, policies, stages, reference, demonstrations, latents, imagined
    )


def _read_latents(file: Path) -> Latents:
    found = read_json(file, _LATENTS, _ADVICE)
    actions = found["clusters"] if found["actions"] is None else found["actions"]
    numbers = [*found["clusters"], *(action for action in actions if action is not None)]
    if not len(found["points"]) == len(found["clusters"]) == len(actions) > 0 or min(numbers) < 0:
        raise CorruptDataError(f"{file} is damaged: {_ADVICE}.")
    return found


def _read_imagined(file: Path) -> Imagined:
    found = read_json(file, _IMAGINED, _ADVICE)
    errors = found["errors"]
    if not len(errors["rollout"]) == len(errors["one step"]) == len(errors["copying"]) == found["horizon"] > 0:
        raise CorruptDataError(f"{file} is damaged: {_ADVICE}.")
    return found


def read_stage(folder: StageDir) -> StageRun:
    """What a stage has left in its folder.

    Raises:
        CorruptDataError: a file is damaged.
    """
    about, done = folder.read_config(), folder.done()
    label = str(about.get("label") or folder.name)
    return StageRun(
        folder.name, label, done is not None, {} if done is None else done["results"], about, read_metrics(folder.path)
    )


def _evaluations(folder: SeedDir, reader: _Reader) -> Iterator[_Evaluation]:
    """Evaluations of the policies that are there now, not of weights that have been replaced since."""
    for file in sorted((folder.path / evaluate.FOLDER).glob("*.json")):
        found = reader.attempt(lambda file=file: read_json(file, _EVALUATION, _ADVICE))  # type: ignore[misc]
        if found is not None and reader.attempt(lambda found=found: _is_current(folder, found)):  # type: ignore[misc]
            yield found


def _is_current(folder: SeedDir, evaluation: _Evaluation) -> bool:
    if not evaluation["stage"]:
        return True
    done = folder.stage(evaluation["stage"]).done()
    if done is None or not is_current(folder, evaluation["stage"]):
        return False
    return evaluate.policy_fingerprint(done, evaluation["name"]) == evaluation["fingerprint"]


def _policy(folder: SeedDir, found: _Evaluation) -> Policy:
    returns = np.array(found["returns"], np.float64)
    film = folder.path / evaluate.FOLDER / f"{found['name']}.webp", found["film"]
    return Policy(found["stage"], found["order"], found["method"], found["labels"], found["env_steps"], returns, film)
