"""Getting demonstrations of a game into the data folder, whatever their source: plan first, then carry it out."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer
from lapo_cli.core.data.sources.demos import is_bundled
from lapo_cli.core.data.store import SPLITS, FrameStore, Manifest, Split, open_store, store_path
from lapo_cli.core.errors import BusyError, CorruptDataError, MissingInputError, UsageError, shortened
from lapo_cli.core.files import disk_full_as_error, exclusive, free_space, require_free_space
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.registry import PLAIN_NAME

DEFAULT_SOURCE = "drive"


@dataclass(frozen=True)
class Plan:
    """What getting a game will do, to be shown before it is done.

    Attributes:
        game: its name.
        data_dir: where its stores go.
        importer: where the frames come from.
        offers: split -> the store that will be made.
        kept: split -> manifest of a store that is already here and stays.
        replaced: split -> manifest of a store that is here and will be replaced.
        bounds: split -> most frames to take, None for all.
        fresh: fetch and store again what is already here.
        free_bytes: what is free on the disk now.
    """

    game: str
    data_dir: Path
    importer: Importer
    offers: dict[Split, Offer]
    kept: dict[Split, Manifest]
    replaced: dict[Split, Manifest]
    bounds: Bounds
    fresh: bool
    free_bytes: int

    @property
    def store_bytes(self) -> int | None:
        """What the new stores take, None where it is not known yet."""
        sizes = [offer.num_bytes for offer in self.offers.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def plan(
    game: str,
    data_dir: Path,
    *,
    source: str | None = None,
    location: str | Path | None = None,
    max_frames: int | None = None,
    fresh: bool = False,
    splits: Sequence[Split] = SPLITS,
) -> Plan:
    """Find out what getting a game's demonstrations will take. Nothing is fetched or stored.

    Args:
        game: its name; of one's own data, any name of letters, digits, '-', '_' and '.'.
        data_dir: where its stores go.
        source: a name in :data:`SOURCES`; None for whichever reads ``location`` or, without one, the official files.
        location: a path or an address; None for the source's own data.
        max_frames: at most so many train frames, at least 3; the test split is small and always taken completely.
        fresh: make and fetch again even what is already here.
        splits: get only these.

    Raises:
        UnknownNameError: there is no such source.
        MissingInputError, UsageError, CorruptDataError: the request does not fit what there is.
        DiskFullError: there is not enough disk space to unpack the first chunk.
    """
    _require_plain(game)
    importer = _open(game, source, None if location is None else str(location), data_dir)
    return plan_import(game, data_dir, importer, max_frames=max_frames, fresh=fresh, splits=splits)


def plan_import(
    game: str,
    data_dir: Path,
    importer: Importer,
    *,
    max_frames: int | None = None,
    fresh: bool = False,
    splits: Sequence[Split] = SPLITS,
) -> Plan:
    """As :func:`plan`, for an importer that is made already.

    Raises:
        MissingInputError, UsageError, CorruptDataError: the request does not fit what there is.
    """
    _require_plain(game)
    bounds: Bounds = {"train": max_frames, "test": None}
    offers = {split: offer for split, offer in importer.offers(bounds).items() if split in splits}
    here = {split: _manifest(data_dir, game, split) for split in offers}
    kept = {split: m for split, m in here.items() if m and not fresh and m.source == offers[split].source}
    return Plan(
        game=game,
        data_dir=data_dir,
        importer=importer,
        offers={split: offer for split, offer in offers.items() if split not in kept},
        kept=kept,
        replaced={split: m for split, m in here.items() if m and split not in kept},
        bounds=bounds,
        fresh=fresh,
        free_bytes=free_space(data_dir),
    )


def carry_out(plan: Plan, progress: Progress | None = None) -> dict[Split, Manifest]:
    """Carry out a plan. Interrupted in any way, the same plan made again continues.

    Returns:
        split -> manifest of the store that is now here.

    Raises:
        DownloadError: it could not be fetched.
        BusyError: another process is getting the same game.
        CorruptDataError, MissingInputError: what was fetched or given is not what it should be.
        DiskFullError: it does not fit; what was complete before is untouched.
        EnvironmentUnavailableError: a replay log was given and its environment cannot run here.
    """
    if not plan.offers:
        return dict(plan.kept)
    shown = progress or Silent()
    require_free_space(plan.data_dir, plan.store_bytes or 0, f"Storing {plan.game}")
    with _getting(plan.game, plan.data_dir):
        return _carry_out(plan, shown)


def _getting(game: str, data_dir: Path, wait: Progress | None = None) -> AbstractContextManager[None]:
    """The lock of whoever gets a game; see :func:`exclusive`."""
    busy = BusyError(f"Another lapo process is getting {game}: wait until it has finished, then try again.")
    with disk_full_as_error(data_dir):
        (data_dir / game).mkdir(parents=True, exist_ok=True)
    return exclusive(data_dir / game / ".download.lock", busy, wait)


def _carry_out(plan: Plan, progress: Progress) -> dict[Split, Manifest]:
    scratch = scratch_folder(plan.data_dir, plan.game)
    if plan.fresh:
        shutil.rmtree(scratch, ignore_errors=True)
    made = dict(plan.kept)
    try:
        importer = plan.importer.fetch(progress)
        # What was fetched may be more or less than was supposed.
        offers = {split: offer for split, offer in importer.offers(plan.bounds).items() if split in plan.offers}
        require_free_space(
            plan.data_dir, sum(offer.num_bytes or 0 for offer in offers.values()), f"Storing {plan.game}"
        )
        for split in offers:
            made[split] = importer.store(split, plan.data_dir, plan.bounds[split], progress)
    except CorruptDataError as error:
        if plan.importer.url is None:
            raise
        raise CorruptDataError(f"{error} To fetch all of it again, add --fresh to the same command.") from error
    shutil.rmtree(scratch, ignore_errors=True)
    return made


def download(
    game: str,
    data_dir: Path,
    *,
    source: str | None = None,
    location: str | Path | None = None,
    max_frames: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[Split, Manifest]:
    """Plan and carry out; see :func:`plan` for the arguments and :func:`carry_out` for the rest."""
    planned = plan(game, data_dir, source=source, location=location, max_frames=max_frames, fresh=fresh)
    return carry_out(planned, progress)


def ensure_stores(game: str, data_dir: Path, source: str, max_frames: int, progress: Progress) -> FrameStore:
    """Get the stores of a game that are missing; one that is here is never replaced.

    Of several processes that need them, one makes them and the others wait.

    Args:
        game: its name.
        data_dir: root of the stores.
        source: where missing ones come from, a name in :data:`SOURCES`.
        max_frames: most train frames to get.
        progress: reports what is missing, what is fetched and what is used.

    Returns:
        The train store.

    Raises:
        UnknownNameError: there is no such source.
        MissingInputError: the source has no data of this game, or the bundled demonstrations are here and ``source``
            names others.
        UsageError: the train and the test store do not fit together.
        LapoError: they could not be fetched or made, or are damaged.
    """
    SOURCES.get(source)
    missing = _missing(data_dir, game)
    if missing:
        planned = plan(game, data_dir, source=source, max_frames=max_frames, splits=missing)  # May refuse.
        require_free_space(data_dir, planned.store_bytes or 0, f"Storing {game}")
        with _getting(game, data_dir, progress):
            missing = _missing(data_dir, game)
            if missing:  # Else another job has made them meanwhile.
                progress.log(
                    f"There are no {' or '.join(missing)} frames of {game} in {data_dir}: getting them from '{source}'."
                )
                _carry_out(plan(game, data_dir, source=source, max_frames=max_frames, splits=missing), progress)
    train = open_store(data_dir, game, "train")
    test = open_store(data_dir, game, "test")
    of_train, of_test = ((store.manifest.frame_shape, store.manifest.num_actions) for store in (train, test))
    if of_train != of_test:
        raise UsageError(
            f"The frames of {game} in {data_dir} do not fit together: train has shape and actions {of_train}, "
            f"test has {of_test}: get both from one source with 'lapo download {game}'."
        )
    if source != "demos" and is_bundled(train.manifest):
        raise MissingInputError(
            f"{data_dir} holds the bundled demonstrations of {game} but this configuration wants those of '{source}': "
            f"get them with 'lapo download {game} --source {source}', or use what is there with --set "
            "data.source=demos."
        )
    progress.log(f"{game}: {train.manifest.num_frames:,} training frames from {train.manifest.source}.")
    return train


def copy_stores(game: str, data_dir: Path, scratch: Path, progress: Progress) -> None:
    """Have the stores of a game on a faster disk too, as ``scratch/GAME/SPLIT``; of several jobs there, one copies.

    Raises:
        MissingInputError, CorruptDataError: there are none in ``data_dir``, or they are damaged.
        UsageError: other frames of that name are in ``scratch``.
        DiskFullError: they do not fit.
    """
    with disk_full_as_error(scratch):
        (scratch / game).mkdir(parents=True, exist_ok=True)
    with _getting(game, scratch, progress):
        for split in SPLITS:
            wanted, there = open_store(data_dir, game, split).manifest, _manifest(scratch, game, split)
            if there == wanted:
                continue
            source, to = (store_path(folder, game, split) for folder in (data_dir, scratch))
            if to.exists():
                raise UsageError(f"{to} holds other frames: choose another --scratch, or remove that folder.")
            require_free_space(scratch, wanted.num_bytes, f"A copy of the {split} frames of {game}")
            progress.log(f"Copying the {split} frames of {game} to {to}.")
            partial = to.with_name(f".{split}.copy")
            shutil.rmtree(partial, ignore_errors=True)  # A copy that was cut off.
            with disk_full_as_error(scratch):
                shutil.copytree(source, partial)
            partial.rename(to)


def _missing(data_dir: Path, game: str) -> list[Split]:
    return [split for split in SPLITS if not store_path(data_dir, game, split).exists()]


def _open(game: str, source: str | None, location: str | None, data_dir: Path) -> Importer:
    """The importer of the first source that reads ``location``."""
    candidates = SOURCES.values()
    if source is not None or location is None:
        candidates = [SOURCES.get(source or DEFAULT_SOURCE)]
    try:
        for candidate in candidates:
            importer = candidate.open(game, location, scratch_folder(data_dir, game))
            if importer is not None:
                return importer
        found = Path(str(location)).exists()
    except OSError as error:
        raise MissingInputError(f"{location} cannot be read ({error.strerror}): check the path.") from error
    if not found:
        raise MissingInputError(f"There is no file or folder {location}: check the path.")
    readable = " ".join(f"{candidate.name}: {candidate.description}" for candidate in candidates)
    raise MissingInputError(f"There is nothing of {game} at {location} that can be read. What can be: {readable}")


def _require_plain(game: str) -> None:
    if not PLAIN_NAME.fullmatch(game):
        raise UsageError(
            f"'{shortened(game)}' cannot be the name of a data set: use letters, digits, '-', '_' and '.'."
        )


def scratch_folder(data_dir: Path, game: str) -> Path:
    """Where what is on the way into the stores of a game is kept."""
    return data_dir / game / ".download"


def _manifest(data_dir: Path, game: str, split: Split) -> Manifest | None:
    """Manifest of a store that is here and sound."""
    path = store_path(data_dir, game, split)
    try:
        return FrameStore.open(path).manifest if path.is_dir() else None
    except CorruptDataError:
        return None
