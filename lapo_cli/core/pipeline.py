"""``run-all`` and its parts: which stages there are, in which order, and over which games and seeds.

A stage run by hand and by :func:`run_all` is the same call; all that passes between stages is files.
"""

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lapo_cli.core import files
from lapo_cli.core.compute import resolve
from lapo_cli.core.data.download import ensure_stores
from lapo_cli.core.data.store import open_store
from lapo_cli.core.errors import LapoError, MissingInputError
from lapo_cli.core.evaluation import evaluate as measure
from lapo_cli.core.evaluation.rollout import Act, uniform
from lapo_cli.core.evaluation.summary import Failure, Row, Summary, estimate_row, make_row, with_mean_of_games
from lapo_cli.core.games import get_game
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.recording.demonstrations import Recorded
from lapo_cli.core.recording.demonstrations import record_demonstrations as record_replay_logs
from lapo_cli.core.report import figures as pictures
from lapo_cli.core.run_dir import RunDir, SeedDir, fingerprint
from lapo_cli.core.stages import expert, idm, offline, online, policy
from lapo_cli.core.stages.online import Init
from lapo_cli.core.training.agents import OfflineAgent
from lapo_cli.core.training.checkpoints import EXPERT, IDM, OFFLINE, ONLINE, POLICY, RL_ONLY, SCRATCH
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import StageResult

CHAIN: dict[str, Callable[[Context], StageResult]] = {
    IDM: idm.train_idm,
    POLICY: policy.train_policy,
    OFFLINE: offline.decode_offline,
    ONLINE: partial(online.finetune_online, init="latent"),
    SCRATCH: partial(online.finetune_online, init="scratch"),
}
"""The stages of ``run-all`` for one game and seed, in order."""

STAGES: tuple[str, ...] = tuple(CHAIN)


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        data_dir: root of the frame stores.
        fresh: start stages over instead of resuming or skipping them.
        wandb: log to Weights & Biases too.
        jobs: games and seeds side by side.
    """

    device: str = "auto"
    data_dir: Path = field(default_factory=files.data_dir)
    fresh: bool = False
    wandb: bool = False
    jobs: int = 1


@dataclass(frozen=True)
class PlannedStage:
    """A stage that ``run-all`` would come to.

    Attributes:
        state: ``done`` (will be skipped), ``resume``, or ``run`` (also where the configuration has changed since).
    """

    game: str
    seed: int
    stage: str
    state: str


def _context(run: RunDir, seed_dir: SeedDir, options: Options, progress: Progress) -> Context:
    compute = resolve(options.device, run.config.precision)
    return Context(seed_dir, run.config, compute, options.data_dir, progress, options.fresh, options.wandb)


def train_idm(run: RunDir, game: str, seed: int, options: Options, progress: Progress) -> list[StageResult]:
    """Stage 1 of one game and seed."""
    seed_dir = run.seed_dir(get_game(game).name, seed)
    return [idm.train_idm(_context(run, seed_dir, options, progress))]


def train_policy(run: RunDir, path: Path, options: Options, progress: Progress) -> list[StageResult]:
    """Stage 2 of every game and seed at or below ``path``."""
    return [policy.train_policy(_context(run, s, options, progress)) for s in run.seed_dirs(path)]


def decode_offline(run: RunDir, path: Path, options: Options, progress: Progress) -> list[StageResult]:
    """Stage 3, offline, of every game and seed at or below ``path``."""
    return [offline.decode_offline(_context(run, s, options, progress)) for s in run.seed_dirs(path)]


def finetune_online(run: RunDir, path: Path, init: Init, options: Options, progress: Progress) -> list[StageResult]:
    """Stage 3, online, of every game and seed at or below ``path``."""
    return [online.finetune_online(_context(run, s, options, progress), init) for s in run.seed_dirs(path)]


def train_expert(run: RunDir, game: str, seed: int, options: Options, progress: Progress) -> list[StageResult]:
    """An expert of one game and seed, and its learning curve."""
    ctx = _context(run, run.seed_dir(get_game(game).name, seed), options, progress)
    result = expert.train_expert(ctx)
    pictures.draw_learning_curve(result.path)
    return [result]


def record_demonstrations(*args: Any, options: Options, **more: Any) -> list[Recorded]:
    """See :func:`lapo_cli.core.recording.demonstrations.record_demonstrations`."""
    return record_replay_logs(*args, compute=resolve(options.device), fresh=options.fresh, **more)


def evaluate(run: RunDir, path: Path, options: Options, progress: Progress) -> Summary:
    """Play every policy found at or below ``path`` (or the one ``path`` lies in) and write the table there.

    Raises:
        MissingInputError: nothing there is finished.
    """
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    only = _stage_of(path, contexts)
    if all(len(_candidates(ctx, only)) == 1 for ctx in contexts):
        raise MissingInputError(
            f"{path} holds no finished policy yet: run 'lapo decode-offline {run.path}', 'lapo finetune-online "
            f"{run.path}' or 'lapo train-expert GAME --run-dir {run.path}' first."
        )
    with run.lock():
        return _summarize(run, contexts, [], path.absolute(), only)


def run_all(run: RunDir, games: list[str], seeds: list[int], options: Options, progress: Progress) -> Summary:
    """Every stage of every game and seed, then the table. What is finished is skipped, what is cut off resumes.

    A game that fails is noted in the summary and does not stop the others.

    Raises:
        LapoError: nothing could be started at all.
    """
    chains = [(get_game(game).name, seed) for game in games for seed in seeds]
    resolve(options.device, run.config.precision)
    with run.lock():
        work = _side_by_side if options.jobs > 1 else _one_by_one
        failures = sorted(work(run, chains, options, progress), key=lambda f: chains.index((f.game, f.seed)))
        failed = {(failure.game, failure.seed) for failure in failures}
        # Measured already: the table is made again from what the chains have kept.
        calm = replace(options, fresh=False)
        finished = [_context(run, run.seed_dir(*chain), calm, progress) for chain in chains if chain not in failed]
        return _summarize(run, finished, failures, run.path, None)


def plan(run: RunDir, games: list[str], seeds: list[int], options: Options) -> list[PlannedStage]:
    """What :func:`run_all` would do, without doing it."""
    planned = []
    config = json.loads(run.config.model_dump_json())
    for game in games:
        for seed in seeds:
            again: set[str] = set()
            for name in STAGES:
                stage = run.seed_dir(get_game(game).name, seed).stage(name)
                asked = stage.asked()
                changed = any(config[section] != value for section, value in asked.get("config", {}).items())
                if options.fresh or not asked or changed or again.intersection(asked["inputs"]):
                    state = "run"
                    again.add(name)
                else:
                    state = "resume" if stage.done() is None else "done"
                planned.append(PlannedStage(game, seed, name, state))
    return planned


def _chain(run: RunDir, game: str, seed: int, options: Options, progress: Progress) -> None:
    """One game and seed from data to measured policies."""
    ctx = _context(run, run.seed_dir(game, seed), options, progress)
    ensure_data(ctx)
    for stage in CHAIN.values():
        result = stage(ctx)
        if result.skipped:
            progress.log(f"{game}, seed {seed}: {result.stage} was finished before.")
    for candidate in _candidates(ctx, None):
        measure.measured_returns(ctx, candidate)


def ensure_data(ctx: Context) -> None:
    """See :func:`ensure_stores`."""
    data = ctx.config.data
    ensure_stores(ctx.seed_dir.game, ctx.data_dir, data.source, data.max_frames, ctx.progress)


def _failure(game: str, seed: int, error: Exception, progress: Progress) -> Failure:
    """Note what stopped one game and seed; whatever it was, the others go on."""
    if isinstance(error, LapoError):
        message = str(error)
    elif isinstance(error, BrokenExecutor):  # One process killed from outside takes the pool with it.
        message = "a process was killed, perhaps for lack of memory: run the same command with fewer --jobs."
    else:
        what = f"{type(error).__name__}: {error}".rstrip(". ")
        message = f"{what}. The stage alone, with --debug, shows the traceback."
    progress.log(f"{game}, seed {seed} stopped: {message}")
    return Failure(game, seed, message)


def _one_by_one(run: RunDir, chains: list[tuple[str, int]], options: Options, progress: Progress) -> Iterable[Failure]:
    for game, seed in chains:
        try:
            _chain(run, game, seed, options, progress)
        except Exception as error:
            yield _failure(game, seed, error, progress)


def _side_by_side(
    run: RunDir, chains: list[tuple[str, int]], options: Options, progress: Progress
) -> Iterable[Failure]:
    """Processes of their own, each with a GPU or an equal share of the CPU."""
    for game, seed in dict(chains).items():
        # Once for all its seeds, which would get in each other's way; if it fails, its chains say so.
        with suppress(LapoError):
            ensure_data(_context(run, run.seed_dir(game, seed), options, progress))
    jobs = min(options.jobs, len(chains))
    gpus = torch.cuda.device_count() if options.device in ("auto", "cuda") and resolve(options.device).is_cuda else 0
    devices = [f"cuda:{number % gpus}" if gpus else options.device for number in range(jobs)]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    spawn = multiprocessing.get_context("spawn")
    waiting = deque(chains)
    working: dict[Future[None], tuple[str, int, str]] = {}
    with (
        progress.task("games and seeds", len(chains), "run") as task,
        ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        while waiting or working:
            # No more are handed over than can work, or Ctrl-C would start the next ones.
            while waiting and devices:
                (game, seed), device = waiting.popleft(), devices.pop(0)
                try:
                    future = pool.submit(_chain, run, game, seed, replace(options, device=device), Silent())
                except BrokenExecutor as error:
                    devices.append(device)
                    yield _failure(game, seed, error, progress)
                else:
                    working[future] = (game, seed, device)
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                game, seed, device = working.pop(future)
                devices.append(device)
                try:
                    future.result()
                    progress.log(f"{game}, seed {seed} is finished.")
                except Exception as error:
                    yield _failure(game, seed, error, progress)
            task.update(len(chains) - len(waiting) - len(working))


def _stage_of(path: Path, contexts: list[Context]) -> str | None:
    """The stage folder that ``path`` lies in, if any."""
    for ctx in contexts:
        at, root = path.absolute(), ctx.seed_dir.path.absolute()
        if at != root and at.is_relative_to(root):
            return at.relative_to(root).parts[0]
    return None


def _finished(ctx: Context, name: str) -> dict[str, Any] | None:
    """``done.json`` of a stage that fits the present configuration, inverse dynamics model and latent policy."""
    stage = ctx.seed_dir.stage(name)
    asked, done = stage.asked(), stage.done()
    config = json.loads(ctx.config.model_dump_json())
    if done is None or any(config[section] != value for section, value in asked["config"].items()):
        return None
    for earlier in {IDM, POLICY}.intersection(asked["inputs"]):
        made = ctx.seed_dir.stage(earlier).done()
        if made is None or fingerprint(made["outputs"]) != asked["inputs"][earlier]:
            return None
    return done


def _candidates(ctx: Context, only: str | None) -> list[measure.Candidate]:
    """The policies of a game and seed that are finished, the random one first."""
    found = [measure.Candidate("random", "random policy", "uniform", lambda: uniform)]
    done = _finished(ctx, OFFLINE)
    if done is not None and only in (None, OFFLINE):
        agents: dict[int, OfflineAgent] = {}

        def load(count: int) -> Act:
            agents.update(agents or offline.load_offline_agents(ctx))
            return agents[count].act

        for count in sorted(map(int, done["results"]["test_accuracy"])):
            label = f"LAPO decoded offline, {count} labelled frames"
            key = fingerprint([done["outputs"], done["key"], count])
            found.append(measure.Candidate(f"offline-{count}", label, key, partial(load, count)))
    reinforced: dict[str, tuple[str, Callable[[], Act]]] = {
        ONLINE: ("LAPO fine-tuned online", lambda: online.load_agent(ctx, "latent").act),
        RL_ONLY: ("LAPO fine-tuned online, RL only", lambda: online.load_agent(ctx, "latent-rl-only").act),
        SCRATCH: ("PPO from scratch", lambda: online.load_agent(ctx, "scratch").act),
        EXPERT: ("PPO expert", lambda: expert.load_expert(ctx).act),
    }
    for stage, (label, act) in reinforced.items():
        done = _finished(ctx, stage)
        if done is not None and only in (None, stage):
            key = fingerprint([done["outputs"], done["key"]])
            found.append(measure.Candidate(stage, f"{label}, {done['results']['env_steps']:,} steps", key, act))
    return found


def _summarize(run: RunDir, contexts: list[Context], failures: list[Failure], path: Path, only: str | None) -> Summary:
    rows: list[Row] = []
    by_seed: dict[int, list[Row]] = {}
    curves: dict[str, list[SeedDir]] = {}
    for game in dict.fromkeys(ctx.seed_dir.game for ctx in contexts):
        of_game = [ctx for ctx in contexts if ctx.seed_dir.game == game]
        curves[game] = [ctx.seed_dir for ctx in of_game]
        returns: dict[str, list[measure.Measured]] = {}
        for ctx in of_game:
            for candidate in _candidates(ctx, only):
                array = measure.measured_returns(ctx, candidate)
                returns.setdefault(candidate.label, []).append(measure.Measured(ctx.seed_dir.seed, array))
        shown = [make_row(game, label, [m.returns for m in measured]) for label, measured in returns.items()]
        expert = _demonstrations(of_game[0])
        rows += [*shown[:1], *expert, *shown[1:]]
        for label, measured in returns.items():
            for one in measured:
                by_seed.setdefault(one.seed, []).append(make_row(game, label, [one.returns]))
    folder = path if path.is_dir() else path.parent
    summary = Summary(with_mean_of_games(rows), by_seed, [*_probes(contexts)], failures, folder)
    summary.files.extend(pictures.draw(folder, rows, curves))
    summary.write()
    return summary


def _probes(contexts: list[Context]) -> Iterable[str]:
    """How well the true action can be read off the latent one, and what to compare that with."""
    for ctx in contexts:
        done = ctx.seed_dir.stage(IDM).done()
        if done is not None:
            found = done["results"]
            yield (
                f"{ctx.title('probe')}: reads the true action off the latent action with accuracy "
                f"{found['probe/accuracy']:.2f} (always guessing the commonest action: "
                f"{found['probe/commonest_action']:.2f}, an untrained network's latent action: "
                f"{found['probe/untrained']:.2f})."
            )


def _demonstrations(ctx: Context) -> list[Row]:
    """The row of the expert; none where the data has been removed since."""
    try:
        store = open_store(ctx.data_dir, ctx.seed_dir.game, "train")
    except LapoError:
        return []
    estimate = measure.demonstrations(store)
    if estimate is None:
        return []
    episodes = store.manifest.num_episodes
    return [estimate_row(ctx.seed_dir.game, "demonstrations (expert)", estimate, episodes, seeds=1, note="as recorded")]
