"""Getting demonstrations of a game into the data folder, wherever they come from: plan first, then do it."""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lapo_cli.core.data.fetch import drive_url, fetch_zip
from lapo_cli.core.data.origins import Bounds, ChunkOrigin, LogOrigin, Offer, Origin, RemoteOrigin
from lapo_cli.core.data.replay_log import bundled_logs, read_log
from lapo_cli.core.data.store import FRAME_BYTES, SPLITS, FrameStore, Manifest, Split, read_manifest, store_path
from lapo_cli.core.data.store_writer import only_one
from lapo_cli.core.errors import CorruptDataError, UsageError
from lapo_cli.core.files import disk_full_as_error, free_space, require_free_space
from lapo_cli.core.games import GAMES, get_game
from lapo_cli.core.progress import Progress

Source = Literal["drive", "demos"]


@dataclass(frozen=True)
class Plan:
    """What getting a game will do, to be said before it is done.

    Attributes:
        game: its name.
        data_dir: where its stores go.
        origin: where the frames come from.
        offers: split -> the store that will be made of it.
        kept: split -> manifest of a store of that very source which is already here.
        replaced: split -> manifest of a store of another source which will give way.
        bounds: split -> most frames to take, None for all.
        fresh: fetch and store anew what is already here.
        fetch_bytes: 0 where nothing is fetched, None where only the server knows how much.
        store_bytes: what the new stores take, None where it is not known yet; an estimate for Google Drive.
        free_bytes: what is free on the disk now.
    """

    game: str
    data_dir: Path
    origin: Origin
    offers: dict[Split, Offer]
    kept: dict[Split, Manifest]
    replaced: dict[Split, Manifest]
    bounds: Bounds
    fresh: bool
    fetch_bytes: int | None
    store_bytes: int | None
    free_bytes: int


@dataclass(frozen=True)
class Demos:
    """Bundled demonstrations of a game.

    Attributes:
        game: its name.
        frames: split -> how many frames they make.
        policies: who played, and how.
        training_steps: environment steps that the most trained of them had; a planner needs none.
        seed: of the training log's levels and random choices.
        mean_return, low, high: of the training log's episodes, with its 95 % interval.
        episodes: how many these are.
        normalized: (mean_return - random) / (paper's expert - random).
    """

    game: str
    frames: dict[Split, int]
    policies: tuple[str, ...]
    training_steps: int
    seed: int
    mean_return: float
    low: float
    high: float
    episodes: int
    normalized: float


@dataclass(frozen=True)
class GameRow:
    """One line of the list of games.

    Attributes:
        game: its name.
        stores: split -> manifest of what is here.
        problems: split -> why what is here cannot be used.
    """

    game: str
    stores: dict[Split, Manifest]
    problems: dict[Split, str]


def plan(
    game: str,
    data_dir: Path,
    *,
    source: Source = "drive",
    from_: str | Path | None = None,
    max_frames: int | None = None,
    fresh: bool = False,
) -> Plan:
    """Find out what getting a game's demonstrations will take. Nothing is fetched or stored.

    Args:
        game: its name.
        data_dir: where its stores go.
        source: the official zip file on Google Drive, or the demonstrations bundled with lapo.
        from_: take them from here instead: a zip file or a folder of npz chunks, a replay log, a folder of
            ``<game>-train.npz`` and ``<game>-test.npz``, or the http(s) address of a zip file.
        max_frames: at most so many train frames, at least 3; the test split is small and always taken whole.
        fresh: make the stores anew even where they are already here, and fetch anew.

    Raises:
        UnknownNameError, MissingInputError, UsageError, CorruptDataError: the request does not fit what there is.
        DiskFullError: no room to look into the first chunk.
    """
    get_game(game)
    if max_frames is not None and max_frames < 3:
        raise UsageError(f"{max_frames} frames hold no window: ask for 3 or more.")
    bounds: Bounds = {"train": max_frames, "test": None}
    origin = _origin(game, source, from_, data_dir)
    offers = origin.offers(bounds)
    here = {split: _manifest(data_dir, game, split) for split in offers}
    kept = {split: m for split, m in here.items() if m and m.source == offers[split].source and not fresh}
    wanted = {split: offer for split, offer in offers.items() if split not in kept}
    return Plan(
        game=game,
        data_dir=data_dir,
        origin=origin,
        offers=wanted,
        kept=kept,
        replaced={split: m for split, m in here.items() if m and split not in kept},
        bounds=bounds,
        fresh=fresh,
        fetch_bytes=None if wanted and isinstance(origin, RemoteOrigin) else 0,
        store_bytes=_store_bytes(wanted),
        free_bytes=free_space(data_dir),
    )


def download(
    game: str,
    data_dir: Path,
    *,
    source: Source = "drive",
    from_: str | Path | None = None,
    max_frames: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[Split, Manifest]:
    """Plan and carry out; see :func:`plan` for the arguments and :func:`carry_out` for the rest."""
    asked = plan(game, data_dir, source=source, from_=from_, max_frames=max_frames, fresh=fresh)
    return carry_out(asked, progress)


def carry_out(plan: Plan, progress: Progress | None = None) -> dict[Split, Manifest]:
    """Do what a plan says. Interrupted in any way, the same plan made again goes on from there.

    Returns:
        split -> manifest of the store that is now here.

    Raises:
        DownloadError: it could not be fetched, or another process is getting the same game.
        CorruptDataError, MissingInputError: what was fetched or given is not what it should be.
        DiskFullError: it does not fit; what was whole before is untouched.
        EnvironmentUnavailableError: a replay log was given and there is no Procgen here.
    """
    if not plan.offers:
        return dict(plan.kept)
    require_free_space(plan.data_dir, plan.store_bytes or 0, f"Storing {plan.game}")
    home = plan.data_dir / plan.game
    with disk_full_as_error(home):
        home.mkdir(parents=True, exist_ok=True)
    with only_one(home / ".download.lock", f"getting {plan.game}"):
        if not isinstance(plan.origin, RemoteOrigin):
            return _store(plan, plan.origin, plan.offers, progress)
        return _fetch_and_store(plan, plan.origin, home / ".download", progress)


def list_games(data_dir: Path) -> list[GameRow]:
    """All sixteen games, and what is here."""
    rows = []
    for game in GAMES:
        stores: dict[Split, Manifest] = {}
        problems: dict[Split, str] = {}
        for split in SPLITS:
            path = store_path(data_dir, game, split)
            if path.is_dir():
                try:
                    stores[split] = read_manifest(path)
                except CorruptDataError as error:
                    problems[split] = str(error)
        rows.append(GameRow(game, stores, problems))
    return rows


def bundled_demos(game: str) -> Demos:
    """What is bundled of a game, and how well it was played.

    Raises:
        MissingInputError, CorruptDataError: this installation is not whole.
    """
    logs = {split: read_log(path) for split, path in bundled_logs(game).items()}
    info = logs["train"].info
    policies = info["settings"]["policies"]
    return Demos(
        game=game,
        frames={split: log.num_frames for split, log in logs.items()},
        policies=tuple(
            words if count == len(policies) else f"{count} of {len(policies)}: {words}"
            for words, count in Counter(map(_in_words, policies)).items()
        ),
        training_steps=max(policy.get("env_steps") or 0 for policy in policies),
        seed=info["settings"]["seed"],
        mean_return=info["mean_return"],
        low=info["low"],
        high=info["high"],
        episodes=info["measured_episodes"],
        normalized=info["normalized"],
    )


def _in_words(policy: Mapping[str, Any]) -> str:
    """A policy of a log's ``info``, such as 'expert (25,000,000 steps, seed 0, sampled)'."""
    facts = [
        f"{policy['env_steps']:,} steps" if policy.get("env_steps") else "",
        f"seed {policy['seed']}" if "seed" in policy else "",
        str(policy.get("actions", "")),
        f"{100 * policy['epsilon']:g} % random" if policy["epsilon"] else "",
    ]
    told = ", ".join(fact for fact in facts if fact)
    return f"{policy['policy']} ({told})" if told else str(policy["policy"])


def _origin(game: str, source: Source, from_: str | Path | None, data_dir: Path) -> Origin:
    if from_ is None and source == "drive":
        return RemoteOrigin(game, drive_url(get_game(game).drive_id), official=True)
    if from_ is None:
        return LogOrigin(game, bundled_logs(game))
    if str(from_).startswith(("http://", "https://")):
        return RemoteOrigin(game, str(from_), official=False)
    path = Path(from_)
    if path.suffix == ".npz":
        return LogOrigin(game, {"test" if path.stem.endswith("-test") else "train": path})
    files = {split: path / f"{game}-{split}.npz" for split in SPLITS}
    logs = {split: file for split, file in files.items() if file.is_file()}
    return LogOrigin(game, logs) if logs else ChunkOrigin(game, path, scratch=data_dir)


def _fetch_and_store(
    plan: Plan, remote: RemoteOrigin, folder: Path, progress: Progress | None
) -> dict[Split, Manifest]:
    if plan.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    archive = fetch_zip(remote.url, plan.game, folder, ways_out=_ways_out(plan.game), progress=progress)
    fetched = ChunkOrigin(plan.game, archive, scratch=folder, name=remote.url)
    try:
        offers = {split: offer for split, offer in fetched.offers(plan.bounds).items() if split in plan.offers}
        made = _store(plan, fetched, offers, progress)
    except CorruptDataError as error:
        raise CorruptDataError(f"{error} To fetch all of it anew: the same command with --fresh.") from error
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _store(
    plan: Plan, origin: LogOrigin | ChunkOrigin, offers: dict[Split, Offer], progress: Progress | None
) -> dict[Split, Manifest]:
    require_free_space(plan.data_dir, _store_bytes(offers) or 0, f"Storing {plan.game}")
    made = dict(plan.kept)
    for split in offers:
        made[split] = origin.store(split, plan.data_dir, plan.bounds[split], progress)
    return made


def _store_bytes(offers: dict[Split, Offer]) -> int | None:
    frames = [offer.num_frames for offer in offers.values()]
    return None if None in frames else FRAME_BYTES * sum(count for count in frames if count is not None)


def _manifest(data_dir: Path, game: str, split: Split) -> Manifest | None:
    """Manifest of a store that is here and sound."""
    path = store_path(data_dir, game, split)
    try:
        return FrameStore.open(path).manifest if path.is_dir() else None
    except CorruptDataError:
        return None


def _ways_out(game: str) -> str:
    return (
        f"wait up to 24 hours and run the same command again, or fetch {drive_url(get_game(game).drive_id)} in a "
        f"browser and run `lapo download {game} --from FILE.zip`, or use the bundled demonstrations with "
        f"`lapo download {game} --source demos`."
    )
