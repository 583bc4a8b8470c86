"""Clips of one's own: videos, folders of images and npz files of frames; see :mod:`lapo_cli.core.data.clips`.

Importing has two steps. Each clip is first decoded into a file of small frames in the scratch folder, two or more clips
side by side. Then clips are divided between the splits, whole, and their frames are copied into the stores.

An interrupted import uses decoded clips again, and starts over with those that were being decoded. To go on inside a
clip it would have to restore, at a keyframe, what the decoder has concealed, the clock of ``fps``, the two frames that
``scdet`` remembers and the notes so far, in files whose seeking is not always exact.
"""

import hashlib
import json
import os
import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from lapo_cli.core.data.action_files import KnownActions, read_actions, require_frames
from lapo_cli.core.data.clips import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Clip,
    Findings,
    Preparation,
    find_clips,
    read_clip,
)
from lapo_cli.core.data.sources.base import SOURCES, TEST_FRACTION, Bounds, Importer, Offer, Source, bounded, held_out
from lapo_cli.core.data.store import SPLITS, UNLABELLED, Manifest, Split, map_frames, read_manifest, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError, DiskFullError, LapoError, UsageError, shortened
from lapo_cli.core.extras import require_extra
from lapo_cli.core.files import atomic_write_json, disk_full_as_error, read_json, sha256_file
from lapo_cli.core.progress import Progress

CLIPS_FILE = "clips.json"
MADE_BY = "video"
_SHORTEST = 3  # frames, one window
_BLOCK = 1024
_POLL_SECONDS = 0.2


class VideoSource(Source):
    """See the module."""

    name = "video"
    description = "A video file, or a folder of videos or of PNG or JPEG images; 'lapo import' has options for them."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        path = self.require(location, "a file or a folder")
        known = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        inside = path.rglob("*") if path.is_dir() else ()
        if path.suffix.lower() in VIDEO_SUFFIXES or any(file.suffix.lower() in known for file in inside):
            return VideoImporter(game, (path,), scratch)
        return None


class _Record(TypedDict):
    """What is kept of a decoded clip behind its frames.

    Attributes:
        frames: prepared ones.
        decoded: frames that the clip has.
        starts: rows that start a run.
        notes: sentences on the clip.
    """

    frames: Annotated[int, Field(ge=0)]
    decoded: Annotated[int, Field(ge=0)]
    starts: list[Annotated[int, Field(ge=0)]]
    notes: list[str]


_RECORD = TypeAdapter(_Record)


@dataclass(frozen=True)
class DecodedClip:
    """A clip whose prepared frames lie in a file.

    The file holds K frames, raw; the number of each frame in the clip (K,) int64; a :class:`_Record` as JSON; and the
    length of that in 8 bytes. It is renamed into place when it is complete. It is not brought to the disk before that,
    which would take longer than the work on short clips: after a power cut, what is damaged is made again.

    Attributes:
        clip: the clip.
        file: its file.
        size: pixels per side.
        record: what else is known of it.
    """

    clip: Clip
    file: Path
    size: int
    record: _Record

    @classmethod
    def open(cls, clip: Clip, file: Path, size: int) -> "DecodedClip | None":
        """The file that an earlier call has made; None where there is none."""
        try:
            with file.open("rb") as content:
                end = content.seek(-8, os.SEEK_END)
                length = int.from_bytes(content.read(), "little")
                content.seek(end - length)
                record = _RECORD.validate_json(content.read(length))
        except (OSError, ValueError):
            return None
        whole = record["frames"] * (size**2 * 3 + 8) == end - length
        return cls(clip, file, size, record) if whole else None

    @classmethod
    def write(
        cls,
        clip: Clip,
        file: Path,
        preparation: Preparation,
        findings: Findings,
        threads: int,
        stop: threading.Event,
    ) -> "DecodedClip":
        """Decode a clip into the file; ``findings`` are filled in on the way.

        Raises:
            CorruptDataError: it cannot be decoded.
            CancelledError: ``stop`` was set.
        """
        index, starts = array("q"), []
        temporary = file.with_suffix(".partial")
        with temporary.open("wb", 2**20) as out:
            for frame in read_clip(clip, preparation, findings, threads=threads):
                if stop.is_set():
                    raise CancelledError
                if frame.starts:
                    starts.append(len(index))
                index.append(frame.index)
                out.write(frame.pixels.data)
            record = _Record(frames=len(index), decoded=findings.decoded, starts=starts, notes=list(findings.notes))
            footer = _RECORD.dump_json(record)
            out.write(index.tobytes() + footer + len(footer).to_bytes(8, "little"))
        temporary.rename(file)
        return cls(clip, file, preparation.size, record)

    def rows(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]:
        """Frames (K, size, size, 3), mapped; where runs start (K,); number of each frame in the clip (K,)."""
        count = self.record["frames"]
        frames = map_frames(self.file, count, (self.size, self.size, 3))
        starts = np.zeros(count, np.bool_)
        starts[self.record["starts"]] = True
        return frames, starts, np.fromfile(self.file, np.int64, count, offset=frames.nbytes)


@dataclass(frozen=True)
class VideoImporter(Importer):
    """Clips on this machine, before they are decoded.

    Attributes:
        game: name of the stores.
        paths: files, folders and patterns.
        scratch: folder of the decoded clips.
        preparation: what becomes of the frames.
        test_fraction: share of the frames that become test frames, in (0, 1).
        actions: file of true actions; see :mod:`lapo_cli.core.data.action_files`.
    """

    game: str
    paths: tuple[str | Path, ...]
    scratch: Path
    preparation: Preparation = field(default_factory=Preparation)
    test_fraction: float = TEST_FRACTION
    actions: Path | None = None

    @cached_property
    def found(self) -> tuple[list[Clip], list[Path]]:
        """The clips, and the files beside them that are none."""
        return find_clips(self.paths)

    @cached_property
    def known_actions(self) -> KnownActions | None:
        """The actions that are known, None without a file of them."""
        return None if self.actions is None else read_actions(self.actions, self.found[0])

    @cached_property
    def source(self) -> str:
        """The manifest's ``source``."""
        clips = self.found[0]
        digest = hashlib.sha256(json.dumps([clip.identity() for clip in clips]).encode()).hexdigest()[:16]
        where = shortened(", ".join(map(str, self.paths)))
        share = f"{self.test_fraction:g} of the frames for test"
        labels = "" if self.actions is None else f", actions of {self.actions.name} ({sha256_file(self.actions)[:16]})"
        return f"{len(clips)} clips of {where} ({digest}), {self.preparation}, {share}{labels}"

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """See :meth:`Importer.offers`; how many frames there are shows when they are decoded."""
        require_extra("av", "video", "Reading clips")
        self.known_actions  # noqa: B018  # What is wrong in them shows before hours of decoding.
        return {split: Offer(self.source, None, self.preparation.size**2 * 3) for split in SPLITS}

    def fetch(self, progress: Progress) -> "Importer":
        """Decode the clips; those that an interrupted call has decoded are kept."""
        clips, others = self.found
        if others:
            some = ", ".join(path.name for path in others[:3])
            progress.log(f"Left out, since they are no clips: {len(others):,} of the files, {shortened(some)}.")
        decoded: list[DecodedClip] = []
        left_out: list[str] = []
        for clip, result in zip(clips, self._decode(clips, progress), strict=True):
            if isinstance(result, LapoError):
                if len(clips) == 1:
                    raise result
                left_out.append(str(result))
                continue
            for note in result.record["notes"]:
                progress.log(f"{clip.path} {note}.")
            if result.record["frames"] < _SHORTEST:
                left_out.append(f"{clip.path} gives fewer than the three frames of a window.")
            else:
                decoded.append(result)
        for sentence in left_out:
            progress.log(f"Left out: {sentence}")
        if not decoded:
            raise CorruptDataError(f"No clip in {', '.join(map(str, self.paths))} has three frames: give longer ones.")
        if self.actions is not None and self.known_actions is not None:
            counts = {done.clip.path: done.record["decoded"] for done in decoded}
            require_frames(self.actions, self.known_actions, counts)
        return _DecodedImporter(self, decoded, left_out)

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`."""
        return self.fetch(progress).store(split, data_dir, bound, progress)

    def _decode(self, clips: Sequence[Clip], progress: Progress) -> "list[DecodedClip | LapoError]":
        """Every clip in its order, decoded or refused, by as many threads as there are cores."""
        cores = os.cpu_count() or 1
        stop = threading.Event()
        findings = [Findings() for _ in clips]
        sizes = [clip.num_bytes for clip in clips]
        with disk_full_as_error(self.scratch):
            self.scratch.mkdir(parents=True, exist_ok=True)
        with (
            progress.task(f"Decoding clips of {self.game}", sum(sizes), "bytes") as task,
            ThreadPoolExecutor(cores) as pool,
        ):
            # The largest first, so that the last ones to be decoded are short.
            order = sorted(range(len(clips)), key=lambda n: -sizes[n])
            work = {n: pool.submit(self._decode_one, clips[n], findings[n], cores, stop) for n in order}
            try:
                while wait(work.values(), _POLL_SECONDS).not_done:
                    task.update(sum(min(f.bytes_read, size) for f, size in zip(findings, sizes, strict=True)))
                    for done in (future for future in work.values() if future.done()):
                        done.result()  # An error that concerns all clips, for example a full disk, ends the others.
                task.update(sum(sizes))
                return [work[n].result() for n in range(len(clips))]
            finally:
                stop.set()

    def _decode_one(
        self, clip: Clip, findings: Findings, threads: int, stop: threading.Event
    ) -> "DecodedClip | LapoError":
        if stop.is_set():  # Or every clip that is still waiting would be opened.
            raise CancelledError
        key = json.dumps([clip.identity(), asdict(self.preparation)])
        file = self.scratch / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.clip"
        earlier = DecodedClip.open(clip, file, self.preparation.size)
        if earlier is not None:
            findings.bytes_read = clip.num_bytes
            return earlier
        try:
            with disk_full_as_error(self.scratch):
                return DecodedClip.write(clip, file, self.preparation, findings, threads, stop)
        except DiskFullError:
            raise
        except LapoError as error:  # Of this clip alone.
            return error


@dataclass(frozen=True)
class _Part:
    """Rows ``start`` to ``stop`` of a decoded clip."""

    decoded: DecodedClip
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _DecodedImporter(Importer):
    """Imports clips that are decoded already."""

    before: VideoImporter
    decoded: list[DecodedClip]
    left_out: list[str]

    @cached_property
    def parts(self) -> dict[Split, list[_Part]]:
        """Split -> what it consists of: whole clips, or the two ends of the only one."""
        fraction = self.before.test_fraction
        whole = [_Part(clip, 0, clip.record["frames"]) for clip in self.decoded]
        total = sum(map(len, whole))
        if total < 2 * _SHORTEST:
            raise UsageError(f"{total} frames are too few for training and test: give clips of 6 frames or more.")
        if len(whole) == 1:
            cut = min(max(round(total * (1 - fraction)), _SHORTEST), total - _SHORTEST)
            return {"train": [_Part(self.decoded[0], 0, cut)], "test": [_Part(self.decoded[0], cut, total)]}
        test = held_out([len(part) for part in whole], fraction)
        return {
            "train": [part for number, part in enumerate(whole) if number not in test],
            "test": [part for number, part in enumerate(whole) if number in test],
        }

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """See :meth:`Importer.offers`."""
        before = self.before.offers(bounds)
        counts = {split: bounded(sum(map(len, self.parts[split])), bounds[split]) for split in SPLITS}
        return {split: Offer(offer.source, counts[split], offer.frame_bytes) for split, offer in before.items()}

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`; a bound cuts the last clip taken."""
        game, size = self.before.game, self.before.preparation.size
        total = bounded(sum(map(len, self.parts[split])), bound)
        target = store_path(data_dir, game, split)
        if len(self.decoded) == 1 and split == "test":
            progress.log(f"There is one clip: its last {total:,} frames are for test, the others for training.")
        with StoreWriter(target, game, split, (size, size, 3), self._num_actions) as writer:
            with progress.task(f"Storing {game} {split}", total, "frames") as task:
                done = 0
                for part in self.parts[split]:
                    done += self._put(writer, part, total - done)
                    task.update(done)
            self._describe(data_dir / game / CLIPS_FILE)
            return writer.finish(source=self.before.source, made_by=MADE_BY, episode_returns=[])

    def _put(self, writer: StoreWriter, part: _Part, most: int) -> int:
        """Append a part's rows, at most so many; returns how many."""
        count = min(len(part), most)
        if count == 0:
            return 0
        rows = slice(part.start, part.start + count)
        frames, starts, index = part.decoded.rows()
        starts = starts[rows].copy()
        starts[0] = True
        at = writer.reserve(count)
        for first in range(0, count, _BLOCK):
            writer.put_frames(at + first, frames[rows][first : first + _BLOCK])
        writer.put_columns(at, self._actions(part.decoded, index, rows), None, starts)
        return count

    def _actions(self, decoded: DecodedClip, index: NDArray[np.int64], rows: slice) -> NDArray[np.uint8] | None:
        known = self.before.known_actions
        if known is None:
            return None
        of_clip = np.full(decoded.record["decoded"], UNLABELLED, np.uint8)
        frames, actions = known.get(decoded.clip.path, np.empty((0, 2), np.int64)).T
        of_clip[frames] = actions
        of_rows = of_clip[index]
        # Of a frame that is taken several times, the last one is where the action happens.
        of_rows[:-1][index[:-1] == index[1:]] = UNLABELLED
        return of_rows[rows]

    @property
    def _num_actions(self) -> int | None:
        """As many as the environment of that name has, else as many as occur."""
        known = self.before.known_actions
        if known is None:
            return None
        occurring = 1 + max((int(pairs[:, 1].max()) for pairs in known.values()), default=0)
        if self.before.game not in ENVIRONMENTS:
            return occurring
        there = ENVIRONMENTS.get(self.before.game).require_actions()
        if occurring > there:
            raise UsageError(
                f"{self.before.actions} has an action of number {occurring - 1}, but {self.before.game} has {there}: "
                "import the clips under another name."
            )
        return there

    def _describe(self, file: Path) -> None:
        """Which clips there are, in which split, how they were prepared, and what was left out."""
        splits: dict[Path, list[Split]] = {}
        for split, parts in self.parts.items():
            for part in parts:
                splits.setdefault(part.decoded.clip.path, []).append(split)
        clips = [
            {
                "path": str(done.clip.path),
                "splits": splits[done.clip.path],
                **done.record,
                "starts": len(done.record["starts"]),
            }
            for done in self.decoded
        ]
        about = {
            "source": self.before.source,
            "preparation": asdict(self.before.preparation),
            "clips": clips,
            "left_out": self.left_out,
        }
        atomic_write_json(file, about)


_ABOUT = TypeAdapter(dict[str, Any])


def preparation_of(data_dir: Path, game: str) -> Preparation | None:
    """How the clips of a data set were prepared; None where it was not made of clips.

    Raises:
        CorruptDataError: the files that say so are damaged.
    """
    train, file = store_path(data_dir, game, "train"), data_dir / game / CLIPS_FILE
    if not train.is_dir() or (manifest := read_manifest(train)).made_by != MADE_BY:
        return None
    try:
        about = read_json(file, _ABOUT, "import the clips again with --fresh")
        # That of an import that did not finish names another one; earlier versions did not record it.
        if about.get("source", manifest.source) != manifest.source:
            raise ValueError("of another import")
        return TypeAdapter(Preparation).validate_python(about["preparation"])
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise CorruptDataError(f"{file} is missing or damaged: import the clips again with --fresh.") from error


SOURCES.register(VideoSource())
