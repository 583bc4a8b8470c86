"""File helpers shared by all packages: atomic writes, guarded reads, locks, full disks, checksums, the data folder.

The command line imports this module before it knows what to do, so slow libraries are imported in functions.
"""

import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lapo_cli.core.errors import CorruptDataError, DiskFullError, LapoError, UsageError, one_line, shortened
from lapo_cli.core.progress import Progress

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_T = TypeVar("_T")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_SECONDS = 0.5  # between attempts to get a lock; many processes of a cluster may wait for one
_LEFT_SECONDS = 3600.0  # after which an unfinished file is that of a process that was killed
_MOST_YAML_BYTES = 100_000
_MOST_YAML_DEPTH = 20
_MOST_JSON_BYTES = 64_000_000


def data_dir() -> Path:
    """Where demonstrations live: ``$LAPO_DATA_DIR``, else ``~/.lapo/data``. The folder need not exist.

    Raises:
        UsageError: the path begins with ``~`` and there is no such home directory.
    """
    chosen = os.environ.get("LAPO_DATA_DIR") or "~/.lapo/data"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"The data folder {shortened(chosen)} has no known home directory: set LAPO_DATA_DIR or --data-dir to a "
            "full path."
        ) from error


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


def as_lapo_error(error: OSError) -> LapoError | None:
    """The error as a sentence for the user, where it is specific enough."""
    path = Path(str(error.filename)) if error.filename is not None else None
    if is_disk_full(error):
        where = "A disk" if path is None else f"The disk that holds {path.parent}"
        return DiskFullError(f"{where} is full: free some space there, then run the same command again.")
    if path is None:
        return None
    return LapoError(f"{path} cannot be used ({error.strerror}): check the path and its permissions.")


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

    Readers see the old file or the whole new one, never a part, even after a power cut. The parent folder is made. What
    a killed process has left there is removed by the next write, an hour later or more.

    Raises:
        DiskFullError: the disk filled up; ``path`` is as it was before.
    """
    with disk_full_as_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept last because some writers (numpy.save) append theirs when it is missing.
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
        for left in path.parent.glob(f".{glob.escape(path.stem)}.{'?' * 8}.tmp{glob.escape(path.suffix)}"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    left.unlink()
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


def set_aside(path: Path) -> None:
    """Rename what is at ``path``, if anything, to ``NAME.old-N`` before its suffix, with the first free N from 1."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    if path.exists():
        path.rename(aside)


@contextmanager
def exclusive(lock_file: Path, error: LapoError, wait: Progress | None = None) -> Iterator[None]:
    """Hold a lock until the block or the process ends, however it ends. The parent folder is made.

    It is a ``flock``: file systems that are shared between machines have to pass it on (NFS version 4 does).

    Args:
        wait: wait for as long as another process holds the lock, and report there that one does.

    Raises:
        LapoError: ``error``, if another process holds the lock and ``wait`` is None.
    """
    import filelock

    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as timeout:
        if wait is None:
            raise error from timeout
        wait.log(f"Waiting for another lapo process that works in {lock_file.parent}.")
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_of_workers(lock_file: Path, error: LapoError, wait: Progress | None = None) -> Iterator[None]:
    """:func:`exclusive`, once no lock is held that has this name and ``-`` before its own: workers may outlive it."""
    with exclusive(lock_file, error, wait):
        for worker in lock_file.parent.glob(f"{glob.escape(lock_file.name)}-*"):
            with exclusive(worker, error, wait):
                pass
        yield


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text of at most 64 MB in UTF-8.

    Raises:
        ValueError: it is not one, or it holds a number that is not finite or needs more than 64 bits.
    """
    try:
        if len(text) > _MOST_JSON_BYTES:
            raise ValueError("it is too large")
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        _require_ordinary(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def read_json(path: Path, adapter: "TypeAdapter[_T]", advice: str) -> _T:
    """The content of a JSON file, checked against a type.

    Args:
        adapter: of the type; it is applied strictly, so that ``"1"`` is not a number.
        advice: the end of the message, e.g. ``"run that stage again with --fresh"``.

    Raises:
        CorruptDataError: the content is not JSON or not of the type.
        FileNotFoundError: there is no such file.
    """
    try:
        text = _read_bytes(path, _MOST_JSON_BYTES)
        parse_json(text)
        return adapter.validate_json(text, strict=True)
    except ValueError as error:
        raise CorruptDataError(f"{path} is damaged: {advice}.") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of at most 100 kB without aliases, anchors, tags or deep nesting.

    Raises:
        ValueError: it is not one, or it holds a number that is not finite or needs more than 64 bits; the message says
            why in at most 200 characters.
    """
    import yaml

    if len(text) > _MOST_YAML_BYTES:
        raise ValueError(f"it is larger than {human_bytes(_MOST_YAML_BYTES)}")
    depth = 0
    try:
        for event in yaml.parse(text, _yaml_loader()):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError("anchors, aliases and tags are not accepted")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_YAML_DEPTH:
                raise ValueError("it is nested too deeply")
        value = _loaded_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(one_line(str(error), 200)) from error
    _require_ordinary(value)
    return value


def _loaded_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _yaml_loader())
    except ValueError as error:  # What Python says of such a number is advice for programmers.
        raise ValueError("it holds a number or a date that cannot be") from error


def _yaml_loader() -> Any:
    """PyYAML's safe loader, from libyaml where PyYAML was built with it, which is ten times as fast."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; see :func:`parse_yaml`.

    Raises:
        ValueError: see :func:`parse_yaml`; or it is not UTF-8.
        OSError: it cannot be read.
    """
    return parse_yaml(_read_bytes(path, _MOST_YAML_BYTES).decode())


def _read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a file; of a device without end, too, no more than ``most`` and one are read."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {human_bytes(most)}")
    return content


def _require_ordinary(value: Any) -> None:
    """Refuse numbers that JSON or 64 bits cannot hold, and text that UTF-8 cannot.

    Raises:
        ValueError: there is one in ``value``.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _require_ordinary(key)
            _require_ordinary(item)
    elif isinstance(value, list):
        for item in value:
            _require_ordinary(item)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("it holds a whole number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds the number {value}")
