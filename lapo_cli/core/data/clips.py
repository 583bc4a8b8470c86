"""Clips: video files, folders of images and npz files of frames, decoded into small frames one at a time.

Clips come from anywhere and are not trusted. Only the demuxers of these formats are used, no playlist or other protocol
is followed, and a frame of more than :data:`MOST_PIXELS` is refused before any memory is allocated for it. All that is
in memory is what the decoder holds.

The size is changed and cuts are detected by FFmpeg's filters (``scale`` by area, and ``scdet``: a jump in the mean
absolute difference of successive frames). A *run* is a stretch of successive frames without a cut; windows never leave
one.
"""

import itertools
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.arrays import UNREADABLE, Header, open_member
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError, one_line, shortened
from lapo_cli.core.extras import require_extra
from lapo_cli.core.files import human_bytes

Fit = Literal["stretch", "crop", "letterbox"]

MOST_PIXELS = 2**25
"""Of one frame, a little more than 7680 x 4320."""

LONGEST_GAP = 60.0
"""Seconds between two frames after which a new run starts instead."""

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_DEMUXERS = "mov,matroska,webm,avi,gif"
_CUT_SCORE = 10
_STILL_LEVELS = 3  # of 255: what compression changes in a picture that stands still
_MOST_IMAGE_BYTES = 2**28
_UNEVEN = 1.5
_CODECS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "mjpeg"}
_HDR = (16, 18)  # transfer characteristics of ITU-T H.273: PQ and HLG
_TURNS = {90: ("transpose", "cclock"), -90: ("transpose", "clock"), 180: ("rotate", "PI"), -180: ("rotate", "PI")}


@dataclass(frozen=True)
class Preparation:
    """What becomes of a clip's frames.

    Attributes:
        size: pixels per side of the square frames.
        fit: how a frame becomes square: stretched, cut to its middle, or with black bars.
        fps: frames per second to take; None for every frame.
        skip_still: leave out frames that equal the one before.
    """

    size: int = 64
    fit: Fit = "stretch"
    fps: float | None = None
    skip_still: bool = False

    def __str__(self) -> str:
        rate = "every frame" if self.fps is None else f"{self.fps:g} frames per second"
        return f"{self.size}x{self.size} by {self.fit}, {rate}{', without still frames' if self.skip_still else ''}"


@dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        path: the file, or the folder of its images.
        kind: what it is.
        files: what it consists of, in order.
    """

    path: Path
    kind: Literal["video", "images", "npz"]
    files: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)

    def identity(self) -> list[tuple[str, int, int]]:
        """Path, size and time of change of every file: equal while they are the same."""
        return [(str(file.absolute()), (s := file.stat()).st_size, s.st_mtime_ns) for file in self.files]


@dataclass
class Findings:
    """What was noticed while a clip was read.

    Attributes:
        decoded: frames it has, whether taken or not.
        bytes_read: of its files, so far.
        notes: sentences on it, without its name.
    """

    decoded: int = 0
    bytes_read: int = 0
    notes: tuple[str, ...] = ()

    def note(self, text: str) -> None:
        """Add a sentence unless it is there."""
        if text not in self.notes:
            self.notes = (*self.notes, text)


@dataclass(frozen=True)
class Frame:
    """A prepared frame.

    Attributes:
        pixels: (size, size, 3) uint8.
        index: of the clip's frames as they are decoded, from 0.
        time: seconds from the clip's beginning, None where it has no times.
        starts: whether it starts a run.
    """

    pixels: NDArray[np.uint8]
    index: int
    time: float | None
    starts: bool


def find_clips(paths: Sequence[str | Path]) -> tuple[list[Clip], list[Path]]:
    """The clips at some files, folders (with all below them) and patterns such as ``*.mp4``.

    Returns:
        the clips in order, numbers in names counting as numbers, and the files in the folders that are none.

    Raises:
        MissingInputError: there is nothing at one of them.
        UsageError: a file that was named is nothing that can be read.
    """
    clips: dict[Path, Clip] = {}
    others: list[Path] = []
    for word in paths:
        for path in _expanded(Path(word)):
            if path.is_dir():
                found, rest = _in_folder(path)
                others += rest
            else:
                found = [_single(path)]
            clips |= {clip.path.absolute(): clip for clip in found}
    if not clips:
        raise MissingInputError(
            f"There is no clip in {', '.join(map(str, paths))}: give {', '.join(VIDEO_SUFFIXES)} or npz files, or "
            "folders of PNG or JPEG images."
        )
    return list(clips.values()), others


def _expanded(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    found = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise MissingInputError(f"There is nothing at {path}: check the path.")
    return sorted(found, key=_by_number)


def _single(path: Path) -> Clip:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return Clip(path, "video", (path,))
    if suffix == ".npz":
        return Clip(path, "npz", (path,))
    raise UsageError(
        f"{path} is no clip: give {', '.join(VIDEO_SUFFIXES)} or npz files, or folders of PNG or JPEG images."
    )


def _in_folder(folder: Path) -> tuple[list[Clip], list[Path]]:
    """Every video and npz file in a folder and below, and every folder of images."""
    clips: list[Clip] = []
    others: list[Path] = []
    images: dict[Path, list[Path]] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(root, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                images.setdefault(file.parent, []).append(file)
            elif file.suffix.lower() in (*VIDEO_SUFFIXES, ".npz"):
                clips.append(_single(file))
            else:
                others.append(file)
    clips += [Clip(where, "images", tuple(sorted(files, key=_by_number))) for where, files in images.items()]
    return sorted(clips, key=lambda clip: _by_number(clip.path)), sorted(others)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """So that frame_10 comes after frame_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def read_clip(clip: Clip, preparation: Preparation, findings: Findings, *, threads: int = 1) -> Iterator[Frame]:
    """Decode and prepare a clip's frames.

    A clip that breaks off gives the frames before that, and a note.

    Args:
        clip: what is read.
        preparation: what becomes of the frames.
        findings: filled in on the way.
        threads: that decode.

    Raises:
        CorruptDataError: it is nothing that can be decoded, or its frames are too large.
        UsageError: it has no times, which ``fps`` needs; or PyAV is not installed.
    """
    read = {"video": _video_frames, "images": _image_frames, "npz": _npz_frames}[clip.kind]
    frames: Iterable[_Decoded] = read(clip, findings, threads)
    if preparation.fps is not None:
        frames = _at_rate(clip, frames, preparation.fps)
    resize = _Resizer(preparation)
    previous: NDArray[np.uint8] | None = None
    for frame in frames:
        pixels, cut = resize(frame.picture)
        starts = frame.starts or cut
        if preparation.skip_still and previous is not None and not starts and _is_still(previous, pixels):
            continue
        previous = pixels
        yield Frame(pixels, frame.index, frame.time, starts)


def _is_still(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> bool:
    return int(np.abs(after.astype(np.int16) - before).max()) <= _STILL_LEVELS


@dataclass(frozen=True)
class _Decoded:
    """A frame before it is prepared; ``picture`` is a VideoFrame of PyAV."""

    picture: Any
    index: int
    time: float | None
    starts: bool


def _av() -> Any:
    return require_extra("av", "video", "Reading clips")


@contextmanager
def _readable(clip: Clip, findings: Findings) -> Iterator[None]:
    """What FFmpeg raises is a damaged clip; once there are frames, it is one that breaks off."""
    error_of = _av().error
    try:
        yield
    except (error_of.FFmpegError, OSError) as error:
        if findings.decoded == 0:
            why = one_line(str(getattr(error, "strerror", None) or error), 120)
            if isinstance(error, error_of.ArgumentError):  # What some decoders say before the size is known.
                why += f", as of frames with more than {MOST_PIXELS:,} pixels"
            raise CorruptDataError(f"{clip.path} cannot be decoded ({why}): convert it, or get it again.") from error
        findings.note(f"breaks off after {findings.decoded:,} frames")


def _video_frames(clip: Clip, findings: Findings, threads: int) -> Iterator[_Decoded]:
    av = _av()
    limits = {"max_pixels": str(MOST_PIXELS)}
    options = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS, **limits}
    with _readable(clip, findings), av.open(f"file:{clip.path.absolute()}", options=options) as container:
        if not container.streams.video:
            raise CorruptDataError(f"{clip.path} has no video stream: give another file.")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None:
            raise CorruptDataError(
                f"{clip.path} is in a format that PyAV has no decoder for: convert it, for example to H.264."
            )
        require_size(clip.path, codec.width, codec.height)
        codec.options, codec.thread_count = limits, threads
        stream.thread_type = "FRAME" if threads > 1 else "NONE"
        if codec.color_trc in _HDR:
            findings.note("has HDR colours, which are taken as they are, without tone mapping")
        yield from _decoded(clip, container, stream, findings)


def _decoded(clip: Clip, container: Any, stream: Any, findings: Findings) -> Iterator[_Decoded]:
    origin: float | None = None
    last: float | None = None
    steps: list[float] = []  # the shortest and the longest between two frames
    lost = False
    for packet in container.demux(stream):
        findings.bytes_read = max(findings.bytes_read, (packet.pos or 0) + packet.size)
        try:
            pictures = packet.decode()
        except _av().error.InvalidDataError:
            if findings.decoded == 0:
                raise
            findings.note("has damaged frames, which are left out")
            lost = True
            continue
        for picture in pictures:
            time = picture.time
            if time is not None and origin is None:
                origin = time
            since = None if time is None or last is None else time - last
            starts = findings.decoded == 0 or lost or (since is not None and not 0 <= since <= LONGEST_GAP)
            if since is not None and not starts:
                steps = [min([since, *steps[:1]]), max([since, *steps[1:]])]
            yield _Decoded(picture, findings.decoded, None if time is None else time - (origin or 0.0), starts)
            findings.decoded += 1
            last, lost = time, False
    if steps and steps[1] > _UNEVEN * steps[0]:
        findings.note("has a variable frame rate: --fps N takes evenly spaced frames")
    expected = stream.frames
    announced = (container.duration or 0) / _av().time_base  # A matroska file knows its seconds, not its frames.
    if findings.decoded < expected:
        findings.note(f"announces {expected:,} frames and has {findings.decoded:,}")
    elif not expected and steps and last is not None and (has := last - (origin or 0.0) + steps[1]) < 0.9 * announced:
        findings.note(f"announces {announced:.1f} seconds and has {has:.1f}")


def _image_frames(clip: Clip, findings: Findings, threads: int) -> Iterator[_Decoded]:
    starts, taken = True, 0
    refused: CorruptDataError | None = None
    for index, file in enumerate(clip.files):
        try:
            picture = _image(file)
        except CorruptDataError as error:
            refused = refused or error
            findings.note(f"has images that are left out: {refused}".rstrip("."))
            starts = True
        else:
            yield _Decoded(picture, index, None, starts)
            starts, taken = False, taken + 1
        findings.decoded += 1
        findings.bytes_read += file.stat().st_size
    if refused is not None and not taken:
        raise refused


def _image(file: Path) -> Any:
    """The picture in a file.

    Raises:
        CorruptDataError: it is no image, damaged or too large.
    """
    av = _av()
    with file.open("rb") as stream:
        content = stream.read(_MOST_IMAGE_BYTES + 1)
    name = next((name for magic, name in _CODECS.items() if content.startswith(magic)), None)
    if name is None or len(content) > _MOST_IMAGE_BYTES:
        raise CorruptDataError(f"{file} is no PNG or JPEG image of at most {human_bytes(_MOST_IMAGE_BYTES)}.")
    codec = av.CodecContext.create(name, "r")
    codec.options = {"max_pixels": str(MOST_PIXELS)}
    try:
        pictures = codec.decode(av.Packet(content)) or codec.decode(None)
    except (av.error.FFmpegError, ValueError):
        pictures = []
    if not pictures:
        raise CorruptDataError(f"{file} cannot be decoded: it is damaged or has more than {MOST_PIXELS:,} pixels.")
    return pictures[0]


def _npz_frames(clip: Clip, findings: Findings, threads: int) -> Iterator[_Decoded]:
    av = _av()
    try:
        with zipfile.ZipFile(clip.path) as archive:
            member = _frames_member(clip, archive.namelist())
            shown = f"{clip.path}: array {member.removesuffix('.npy')}"
            with open_member(archive, member, shown) as (stream, info):
                header = Header(shown, stream, info.file_size)
                shape = header.shape
                if header.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
                    raise CorruptDataError(f"{shown} holds {header} where uint8 (N, H, W, 3) is expected.")
                require_size(clip.path, shape[2], shape[1])
                for index in range(shape[0]):
                    content = stream.read(math.prod(shape[1:]))
                    pixels = np.frombuffer(content, np.uint8).reshape(shape[1:])
                    yield _Decoded(av.VideoFrame.from_ndarray(pixels, format="rgb24"), index, None, index == 0)
                    findings.decoded += 1
                    findings.bytes_read = info.compress_size * findings.decoded // shape[0]
    except UNREADABLE as error:
        raise CorruptDataError(f"{clip.path} is truncated or no npz file: get it again.") from error


def _frames_member(clip: Clip, names: Sequence[str]) -> str:
    """``obs`` or ``frames``, or the only array that there is."""
    known = [name for name in ("frames.npy", "obs.npy") if name in names]
    if known or len(names) == 1:
        return (known or list(names))[0]
    raise CorruptDataError(
        f"{clip.path} has the arrays {shortened(', '.join(names)) or 'none'}: name the one with the frames 'frames'."
    )


def require_size(path: Path, width: int, height: int) -> None:
    """Refuse frames that are too large.

    Raises:
        CorruptDataError: they are.
    """
    if width * height > MOST_PIXELS:
        raise CorruptDataError(
            f"The frames of {path} have {width} x {height} pixels, more than the {MOST_PIXELS:,} that are read: make "
            "them smaller first."
        )


def _at_rate(clip: Clip, frames: Iterable[_Decoded], fps: float) -> Iterator[_Decoded]:
    """The frame that is shown at each multiple of 1 / fps after the beginning of its run."""
    shown: _Decoded | None = None
    begun, ticks, starts, step = 0.0, 0, True, 1 / fps

    def until(time: float) -> Iterator[_Decoded]:
        nonlocal ticks, starts
        assert shown is not None
        while (tick := begun + ticks / fps) < time - 1e-6:
            yield _Decoded(shown.picture, shown.index, tick, starts)
            ticks, starts = ticks + 1, False

    for frame in frames:
        if frame.time is None:
            raise UsageError(
                f"The frames of {clip.path} have no times, so their rate cannot be changed: leave out --fps."
            )
        if shown is not None and shown.time is not None:
            step = step if frame.starts else frame.time - shown.time
            yield from until(shown.time + step)
        if frame.starts:
            begun, ticks, starts, step = frame.time, 0, True, 1 / fps
        shown = frame
    if shown is not None and shown.time is not None:
        yield from until(shown.time + step)  # How long the last one is shown is not known: as long as the one before.


class _Resizer:
    """FFmpeg's filters from a picture to a small frame, made again whenever pictures change their size or format."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._made_for: tuple[Any, ...] = ()

    def __call__(self, picture: Any) -> tuple[NDArray[np.uint8], bool]:
        """The frame (size, size, 3), and whether it comes after a cut; other pictures than before are one too."""
        form = (picture.width, picture.height, picture.format.name, picture.rotation)
        changed = form != self._made_for
        if changed:
            self._graph, self._made_for = self._make(picture), form
        self._graph.push(picture)
        frame = self._graph.pull()
        return frame.to_ndarray(), changed or "lavfi.scd.time" in frame.metadata

    def _make(self, picture: Any) -> Any:
        graph = _av().filter.Graph()
        graph.threads = 1  # Slices of a small frame cost more to hand over than they save; cores have other clips.
        size, turn = self._preparation.size, _TURNS.get(picture.rotation)
        fit = {
            "stretch": [],
            "crop": [("crop", r"min(iw\,ih):min(iw\,ih)")],
            "letterbox": [("pad", r"max(iw\,ih):max(iw\,ih):(ow-iw)/2:(oh-ih)/2")],
        }[self._preparation.fit]
        chain = [
            graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format.name, time_base=picture.time_base or 1
            ),
            *(graph.add(*step) for step in ([turn] if turn else [])),
            *(graph.add(*step) for step in fit),
            graph.add("scale", f"{size}:{size}:flags=area"),
            graph.add("scdet", f"threshold={_CUT_SCORE}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for one, next_one in itertools.pairwise(chain):
            one.link_to(next_one)
        graph.configure()
        return graph
