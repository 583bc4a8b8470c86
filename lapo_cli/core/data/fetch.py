"""Fetching a zip file of demonstrations, resumably, from Google Drive or any web server."""

import hashlib
import zipfile
from contextlib import ExitStack
from pathlib import Path

from lapo_cli.core.data.sources.npz import find_chunks
from lapo_cli.core.errors import DownloadError, LapoError
from lapo_cli.core.files import disk_full_as_error, human_bytes, require_free_space
from lapo_cli.core.progress import Progress, Silent, Task

RETRIES = 3
_TIMEOUT_S = 30.0


def drive_url(drive_id: str) -> str:
    """Where a browser, and gdown, find a file of Google Drive."""
    return f"https://drive.google.com/uc?id={drive_id}"


def fetch_zip(url: str, game: str, folder: Path, *, ways_out: str, progress: Progress | None) -> Path:
    """Fetch the zip file of a game, or go on where an earlier attempt was cut.

    Args:
        url: an address at Google Drive, whose warning pages are walked through, or any other.
        folder: where the file and its parts lie.
        ways_out: what a person can do when Google Drive refuses; ends the sentence.

    Returns:
        The file, complete.

    Raises:
        DownloadError: refused, unreachable, cut off, or not a zip file.
        DiskFullError: there is no room for it.
    """
    import gdown  # Slow to import, and needed for nothing but this.

    # Named after the address, so that a part of one file is never continued with another.
    target = folder / f"{game}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.zip"
    with disk_full_as_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in _parts(target):
            if _is_whole(part, game):  # Killed just before gdown renamed it.
                part.rename(target)
    if target.exists():
        return target
    shown, arrived_before = progress or Silent(), _arrived(target)
    with ExitStack() as stack:
        task: Task | None = None
        announced: int | None = None

        def report(done: int, total: int | None) -> None:
            nonlocal task, announced
            if task is None:
                announced = total
                if total is not None:
                    require_free_space(folder, total - done, f"The zip file of {game}")
                task = stack.enter_context(shown.task(f"Downloading {game}", total or 0, "bytes", arrived_before))
            task.update(done)

        try:
            with disk_full_as_error(folder):
                # Without cookies, because gdown would keep them in the person's home folder.
                gdown.download(
                    url=url,
                    output=str(target),
                    quiet=True,
                    resume=True,
                    use_cookies=False,
                    timeout=_TIMEOUT_S,
                    retries=RETRIES,
                    progress=report,
                )
        except gdown.exceptions.FileURLRetrievalError as error:
            raise DownloadError(
                f"Google Drive does not hand over {game} now, most likely because its daily quota is spent: {ways_out}"
            ) from error
        except (gdown.exceptions.DownloadError, OSError) as error:  # The errors of requests are OSErrors.
            raise DownloadError(_what_broke(error, url, game, target, announced)) from error
    if not zipfile.is_zipfile(target):
        target.unlink()
        raise DownloadError(f"What {url} gave is not a zip file: check the address.")
    return target


def _what_broke(error: Exception, url: str, game: str, target: Path, announced: int | None) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"The server answered {response.status_code} to {url}: check the address, or try again later."
    if "byte range" in str(error):
        return f"The download of {game} cannot be resumed from {url}: start over with --fresh."
    arrived = _arrived(target)
    if arrived == 0 and "incomplete" not in str(error):
        return f"{url} cannot be reached: check the network, then run the same command again."
    of = f" of {human_bytes(announced)}" if announced else ""
    return (
        f"The download of {game} broke off after {human_bytes(arrived)}{of}: "
        "run the same command again and it resumes there."
    )


def _parts(target: Path) -> list[Path]:
    return list(target.parent.glob(f"{target.name}*.part"))


def _arrived(target: Path) -> int:
    return sum(part.stat().st_size for part in _parts(target))


def _is_whole(part: Path, game: str) -> bool:
    # Not zipfile.is_zipfile: chunks are zip files themselves, so that a cut just behind one looks like an end.
    try:
        find_chunks(part, game, "train")
    except LapoError:
        return False
    return True
