"""Fetching a zip file from Google Drive or any web server, in as many attempts as it takes.

What has arrived lies beside the target as ``.part``, and what identifies the version of the file that it belongs to as
``.part.json``: a strong ETag, else Last-Modified. A server sends the rest only if its file still is that version
(``If-Range``); otherwise it sends the new file from the beginning, so that two versions never mix.
"""

import hashlib
import re
import time
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lapo_cli.core.errors import CorruptDataError, DownloadError
from lapo_cli.core.files import atomic_write_json, disk_full_as_error, human_bytes, read_json, require_free_space
from lapo_cli.core.progress import Progress, Task

RETRIES = 3
_TIMEOUT_S = 30.0
_BLOCK_BYTES = 128 * 1024
_MOST_PAGES = 5
_USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0 Safari/537.36"


def drive_url(drive_id: str) -> str:
    """Where a browser finds a file of Google Drive."""
    return f"https://drive.google.com/uc?id={drive_id}"


def fetch_zip(url: str, game: str, folder: Path, *, if_refused: str, progress: Progress) -> Path:
    """Fetch the zip file of a game, or continue where an earlier attempt was cut.

    Args:
        url: an address at Google Drive, whose warning pages are followed, or any other.
        game: whose demonstrations it holds, for messages.
        folder: where the file and its part lie.
        if_refused: what can be done when Google Drive refuses; ends the sentence.
        progress: reports the bytes.

    Returns:
        The file, complete.

    Raises:
        DownloadError: refused, unreachable, cut off, or not a zip file; what arrived is kept.
        DiskFullError: there is not enough disk space.
    """
    # Named after the address, so that a part of one file is never continued with another.
    target = folder / f"{game}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.zip"
    if not target.exists():
        with disk_full_as_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _Transfer(url, game, target, if_refused, progress).run()
    return target


@dataclass(frozen=True)
class _Version:
    """Which file a part belongs to.

    Attributes:
        validator: its strong ETag, or Last-Modified; None where the server gives neither.
        total: its bytes, None where the server does not report them.
    """

    validator: str | None
    total: int | None


_VERSION = TypeAdapter(_Version)


class _CutError(Exception):
    """The connection broke; another attempt may succeed."""


class _Transfer:
    """One file on its way."""

    def __init__(self, url: str, game: str, target: Path, if_refused: str, progress: Progress) -> None:
        import requests  # Slow to import, and needed for nothing but this.

        self._requests = requests
        self._url, self._game, self._target, self._if_refused = url, game, target, if_refused
        self._progress = progress
        self._part = target.with_name(f"{target.name}.part")
        self._version_file = target.with_name(f"{target.name}.part.json")
        self._task: Task | None = None
        self._answered = self._is_drive = False

    def run(self) -> None:
        """Fetch all that is missing, and put the file in place."""
        version = self._read_version()
        # Killed just before the last rename, all of it is there.
        if not self._arrived() or self._arrived() != version.total:
            self._fetch()
        self._version_file.unlink(missing_ok=True)
        if not zipfile.is_zipfile(self._part):
            self._part.unlink()
            raise DownloadError(f"What {self._url} gave is not a zip file: check the address.")
        self._part.rename(self._target)

    def _fetch(self) -> None:
        with ExitStack() as self._stack, self._requests.Session() as session:
            session.headers.update({"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"})
            for attempt in range(RETRIES + 1):
                if attempt:
                    time.sleep(min(2 ** (attempt - 1), 30))
                try:
                    return self._attempt(session)
                except (_CutError, self._requests.RequestException) as error:
                    cause = error
            raise DownloadError(self._what_broke()) from cause

    def _attempt(self, session: Any) -> None:
        """One request, and all that it brings."""
        version = self._read_version()
        arrived = self._arrived() if version.validator else 0
        headers = {"Range": f"bytes={arrived}-", "If-Range": version.validator} if version.validator and arrived else {}
        with self._open(session, headers) as response:
            self._answered = True
            if response.status_code == 206 and headers:
                self._require_rest(response, arrived, version)
            elif response.status_code == 200:
                version, arrived = _version_of(response), 0
            elif response.status_code == 416 and headers:
                self._version_file.unlink()  # The file is not what it was: the next attempt starts over.
                raise _CutError
            else:
                raise DownloadError(
                    f"The server answered {response.status_code} to {self._url}{self._kept()}: check the address, or "
                    "try again later."
                )
            if version.total is not None:
                require_free_space(self._target.parent, version.total - arrived, f"The zip file of {self._game}")
            self._receive(response, arrived, version)

    def _open(self, session: Any, headers: dict[str, str]) -> Any:
        """The response that has the file, behind the pages that Google Drive puts before it."""
        from gdown.download import get_url_from_gdrive_confirmation
        from gdown.exceptions import FileURLRetrievalError
        from gdown.parse_url import parse_url

        drive_id, _ = parse_url(self._url)
        self._is_drive = drive_id is not None
        url = drive_url(drive_id) if drive_id else self._url
        for _ in range(_MOST_PAGES if self._is_drive else 0):
            response = session.get(url, stream=True, timeout=_TIMEOUT_S)
            if "Content-Disposition" in response.headers or response.status_code != 200:
                if not headers:
                    return response
                response.close()  # The pages are requested without a range, which is meant for the file.
                break
            try:
                url = get_url_from_gdrive_confirmation(response.text)
            except FileURLRetrievalError as error:
                raise self._refused() from error
        return session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S)

    def _require_rest(self, response: Any, arrived: int, version: _Version) -> None:
        """Refuse anything but the rest of the file that had begun to arrive."""
        etag = response.headers.get("ETag", "")
        if etag.startswith('"') and str(version.validator).startswith('"') and etag != version.validator:
            self._version_file.unlink()  # A server that ignores If-Range sends the rest of another version.
            raise _CutError
        found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != arrived or version.total not in (None, int(found[3])):
            raise DownloadError(f"{self._url} sent another part of the file than the one requested{self._kept()}.")

    def _receive(self, response: Any, arrived: int, version: _Version) -> None:
        """Append the response to the part, or begin the part with it where nothing has ``arrived``."""
        blocks = response.iter_content(_BLOCK_BYTES)
        block = next(blocks, b"")
        if arrived == 0:
            # Checked before the part is touched: a web page in place of the file must not cost what had arrived.
            if not block.startswith(b"PK"):
                if self._is_drive and b"<html" in block.lower():
                    raise self._refused()
                raise DownloadError(f"What {self._url} gave is not a zip file{self._kept()}: check the address.")
            self._part.unlink(missing_ok=True)
            atomic_write_json(self._version_file, asdict(version))
        task = self._show(arrived, version.total)
        with self._part.open("ab") as file:
            while block:
                file.write(block)
                arrived += len(block)
                task.update(arrived)
                block = next(blocks, b"")
        if version.total not in (None, arrived):
            raise _CutError

    def _show(self, arrived: int, total: int | None) -> Task:
        if self._task is None:
            opened = self._progress.task(f"Downloading {self._game}", total or 0, "bytes", arrived)
            self._task = self._stack.enter_context(opened)
        return self._task

    def _read_version(self) -> _Version:
        try:
            return read_json(self._version_file, _VERSION, "it is written again")
        except (FileNotFoundError, CorruptDataError):
            return _Version(None, None)

    def _arrived(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _kept(self) -> str:
        return ", but what had arrived is kept, and the same command resumes there" if self._arrived() else ""

    def _refused(self) -> DownloadError:
        return DownloadError(
            f"Google Drive does not give out the file of {self._game} now, most likely because its daily quota is "
            f"spent{self._kept()}: {self._if_refused}"
        )

    def _what_broke(self) -> str:
        if not self._answered:
            return (
                f"{self._url} cannot be reached{self._kept()}: check the network and the address, then run the same "
                "command again."
            )
        total = self._read_version().total
        of = f" of {human_bytes(total)}" if total else ""
        return (
            f"The download of {self._game} broke off after {human_bytes(self._arrived())}{of}: run the same command "
            "again and it resumes there."
        )


def _version_of(response: Any) -> _Version:
    """The version of the file that a complete response brings."""
    etag, length = response.headers.get("ETag", ""), response.headers.get("Content-Length", "")
    return _Version(
        validator=etag if etag.startswith('"') else response.headers.get("Last-Modified"),
        total=int(length) if re.fullmatch(r"\d{1,19}", length) else None,
    )
