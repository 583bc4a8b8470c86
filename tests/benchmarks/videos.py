"""How fast clips are imported, beside the decoder alone on as many threads."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from lapo_cli.core.data.download import carry_out, plan_import, scratch_folder
from lapo_cli.core.data.sources.video import VideoImporter
from tests.benchmarks.timing import Line, interleaved, medians
from tests.videos import write_video

_CLIPS, _FRAMES, _HEIGHT, _WIDTH = 4, 900, 360, 640


def videos(rounds: int) -> list[Line]:
    """Frames a second of decoding, and of all that ``lapo import`` does; H.264 of 640 x 360."""
    with TemporaryDirectory() as folder:
        clips = _clips(Path(folder) / "clips")

        def decode() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_decode, clips))

        def fetch() -> None:
            data = Path(folder) / "data"
            importer = VideoImporter("clips", (Path(folder) / "clips",), scratch_folder(data, "clips"))
            carry_out(plan_import("clips", data, importer, fresh=True))

        took, plain, ratio = medians(interleaved(fetch, decode, rounds))
    frames = _CLIPS * _FRAMES
    result = f"{ratio:.2f} of the decoder's"
    return [Line("import of clips, 640 x 360", f"{frames / plain:,.0f} /s", f"{frames / took:,.0f} /s", result, "0.75")]


def _decode(path: Path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.thread_type = os.cpu_count() or 1, "FRAME"
        for _ in container.decode(stream):
            pass


def _clips(folder: Path) -> list[Path]:
    """Clips of a background that scrolls and a square that crosses it."""
    blocks = np.random.default_rng(0).integers(0, 256, (_HEIGHT // 8, _WIDTH // 8, 3), np.uint8)
    ground = blocks.repeat(8, 0).repeat(8, 1)
    shown = np.stack([np.roll(ground, 3 * t, 1) for t in range(_FRAMES // 3)])
    for t, frame in enumerate(shown):
        frame[100:160, 5 * t % (_WIDTH - 60) :][:, :60] = 255
    first = write_video(folder / "0.mp4", np.concatenate([shown] * 3), preset="veryfast")
    paths = [folder / f"{number}.mp4" for number in range(_CLIPS)]
    for path in paths[1:]:
        path.hardlink_to(first)
    return paths
