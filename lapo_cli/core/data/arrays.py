"""Arrays in files from outside: nothing is unpickled, and no size is trusted before it is checked."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.errors import CorruptDataError, shortened

# All that zipfile, zlib and numpy raise on damaged bytes; messages of numpy's own advise to allow pickles.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)

_MOST_RATIO = 200
_ALWAYS_ALLOWED = 16 * 2**20

_npy: Any = np.lib.format  # Public and documented, but without type hints.


class Header:
    """The header of an array, checked against the bytes that follow it.

    Attributes:
        dtype: booleans, numbers or text.
        shape: as many entries as there are bytes for.
    """

    def __init__(self, name: str, stream: IO[bytes], size: int) -> None:
        """Read the header, at which ``stream`` stands.

        Args:
            name: of the array, with that of its file, for messages.
            stream: left standing at the first entry.
            size: bytes of the whole array in the file, header included.

        Raises:
            CorruptDataError: the header is damaged, or does not fit ``size``.
        """
        self._name, self._stream = name, stream
        try:
            version = _npy.read_magic(stream)
            read = {(1, 0): _npy.read_array_header_1_0, (2, 0): _npy.read_array_header_2_0}[version]
            shape, fortran, dtype = read(stream)
        except Exception as error:  # numpy parses the header as Python, and damaged bytes can fail in any way there.
            raise CorruptDataError(f"{name} is truncated or altered: its header is damaged; get it again.") from error
        self.shape: tuple[int, ...] = tuple(map(int, shape))
        self.dtype: np.dtype[Any] = dtype
        if fortran and len(self.shape) > 1:
            raise CorruptDataError(f"{name} is in Fortran order: it must be saved in C order.")
        if dtype.kind not in "biufU" or dtype.itemsize == 0:
            raise CorruptDataError(f"{name} holds neither numbers nor text: it is not used.")
        self._num_bytes = math.prod(self.shape) * dtype.itemsize
        if min(self.shape, default=0) < 0 or self._num_bytes != size - stream.tell():
            raise CorruptDataError(f"{name} is truncated or altered: its size differs from its header; get it again.")

    def __str__(self) -> str:
        return shortened(f"{self.dtype} {self.shape}")

    def read(self) -> NDArray[Any]:
        """The whole array.

        Raises:
            CorruptDataError: the bytes end early or are altered.
        """
        try:
            content = self._stream.read(self._num_bytes)
            return np.frombuffer(content, self.dtype).reshape(self.shape).copy()
        except UNREADABLE as error:
            raise CorruptDataError(f"{self._name} is truncated or altered: get it again.") from error


def load_array(file: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array in an npy file.

    Args:
        mapped: map the file read-only instead of reading it.

    Raises:
        CorruptDataError: it is missing or damaged.
    """
    try:
        with file.open("rb") as stream:
            header = Header(str(file), stream, file.stat().st_size)
            return np.memmap(stream, header.dtype, "r", stream.tell(), header.shape) if mapped else header.read()
    except OSError as error:
        raise CorruptDataError(f"{file} is missing or cannot be read.") from error


@contextmanager
def open_member(archive: zipfile.ZipFile, member: str, name: str) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo]]:
    """A member of a zip archive as a stream; zipfile gives no more bytes of it than it declares.

    Args:
        name: the member's name for messages.

    Raises:
        CorruptDataError: it declares more than such data unpacks to, or, inside the block, it is damaged.
        KeyError: there is no such member.
    """
    info = archive.getinfo(member)
    packed = min(info.compress_size, archive.start_dir)  # No member is larger than all that the archive holds.
    if info.file_size > max(_ALWAYS_ALLOWED, _MOST_RATIO * packed):
        raise CorruptDataError(
            f"{name} would unpack from {packed:,} to {info.file_size:,} bytes: frames do not compress like that, so it "
            "is not used."
        )
    try:
        with archive.open(info) as stream:
            yield stream, info
    except UNREADABLE as error:
        raise CorruptDataError(f"{name} is truncated or altered: get it again.") from error
