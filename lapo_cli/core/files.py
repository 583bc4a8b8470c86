"""Small file helpers shared by every room: atomic writes, full disks, checksums, the data folder."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lapo_cli.core.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def data_dir() -> Path:
    """Where demonstrations live: ``$LAPO_DATA_DIR``, else ``~/.lapo/data``. The folder need not exist."""
    chosen = os.environ.get("LAPO_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".lapo" / "data"


def human_bytes(count: float) -> str:
    """``1536`` -> ``'1.5 kB'``; decimal units, as disks are sold."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def is_disk_full(error: OSError) -> bool:
    """Whether there is no space left, or the quota is exceeded."""
    return error.errno in _FULL


@contextmanager
def disk_full_as_error(folder: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a sentence.

    Raises:
        DiskFullError: the block failed with ENOSPC or EDQUOT.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"The disk that holds {folder} is full: free some space there or choose another folder, "
                "then run the same command again."
            ) from error
        raise


def require_free_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Refuse early what cannot fit.

    Args:
        folder: where the bytes will go; it need not exist yet.
        what: the subject of the sentence, e.g. ``"Storing bigfish"``.

    Raises:
        DiskFullError: fewer than ``bytes_needed`` bytes are free there.
    """
    free = free_space(folder)
    if free < bytes_needed:
        raise DiskFullError(
            f"{what} needs {human_bytes(bytes_needed)} in {folder} but only {human_bytes(free)} are free: "
            "free some space there or choose another folder."
        )


def free_space(folder: Path) -> int:
    """Bytes free for us on the disk that holds ``folder`` or, while it does not exist, its nearest parent."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` if the block succeeds and goes if it fails.

    Readers see the old file or the whole new one, never a part, even after a power cut. The parent folder is made.

    Raises:
        DiskFullError: the disk filled up; ``path`` is as it was before.
    """
    with disk_full_as_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept last because some writers (numpy.save) append theirs when it is missing.
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
        try:
            yield temporary
            fsync_path(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; see :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; see :func:`atomic_path`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN is refused with ValueError because it is not JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
