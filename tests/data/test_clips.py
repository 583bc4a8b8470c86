"""Clips: which frames come out of them, where runs start, and what is refused."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from lapo_cli.core.data import clips
from lapo_cli.core.data.clips import Findings, Frame, Preparation, find_clips, read_clip
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError
from tests.videos import Frames, number_of, numbered, write_video

_RGB = {"codec": "libx264rgb", "pixels": "rgb24", "qp": "0"}  # without loss


def _read(path: Path, *, threads: int = 1, **preparation: object) -> tuple[list[Frame], Findings]:
    ((clip,), _) = find_clips([path])
    findings = Findings()
    return list(read_clip(clip, Preparation(**preparation), findings, threads=threads)), findings  # type: ignore[arg-type]


def _numbers(frames: list[Frame]) -> list[int]:
    return [number_of(frame.pixels) for frame in frames]


def _starts(frames: list[Frame]) -> list[int]:
    return [place for place, frame in enumerate(frames) if frame.starts]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.MOV", "mjpeg", "yuvj420p"),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_frame_of_every_container_comes_once_and_in_order(
    tmp_path: Path, name: str, codec: str, pixels: str, threads: int
) -> None:
    path = write_video(tmp_path / name, numbered(40, first=7), codec=codec, pixels=pixels, rate=25)
    frames, findings = _read(path, threads=threads)
    assert _numbers(frames) == list(range(7, 47))
    assert [frame.index for frame in frames] == list(range(40))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(40) / 25, abs=0.01)
    assert _starts(frames) == [0]
    assert findings.decoded == 40
    assert findings.notes == ()


def test_frames_of_the_right_size_are_not_changed(tmp_path: Path) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    frames, _ = _read(write_video(tmp_path / "a.mkv", shown, **_RGB))
    assert np.array_equal([frame.pixels for frame in frames], shown)


@pytest.mark.parametrize("kind", ["video", "images", "npz"])
def test_sizes_are_reduced_by_area(tmp_path: Path, kind: str) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (4, 128, 256, 3), np.uint8)
    (clip,) = _as(kind, tmp_path / "a", shown)
    frames = [frame.pixels for frame in read_clip(clip, Preparation(32), Findings())]
    expected = shown.reshape(4, 32, 4, 32, 8, 3).mean((2, 4))
    assert np.abs(np.array(frames) - expected).max() <= 2


def _as(kind: str, path: Path, shown: Frames) -> list[clips.Clip]:
    """Frames as a clip of that kind."""
    if kind == "video":
        return find_clips([write_video(path.with_suffix(".mkv"), shown, **_RGB)])[0]
    if kind == "npz":
        np.savez_compressed(path.with_suffix(".npz"), frames=shown)
        return find_clips([path.with_suffix(".npz")])[0]
    _write_images(path, shown)
    return find_clips([path])[0]


def _write_images(folder: Path, shown: Frames, codec: str = "png", pixels: str = "rgb24", name: str = "{}.png") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(shown):
        encoder = av.CodecContext.create(codec, "w")
        encoder.height, encoder.width = frame.shape[:2]
        encoder.pix_fmt, encoder.time_base = pixels, 1
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
        picture.pts = 0
        packets = encoder.encode(picture) + encoder.encode()
        (folder / name.format(number)).write_bytes(b"".join(bytes(packet) for packet in packets))


@pytest.mark.parametrize(("codec", "pixels", "name"), [("png", "rgb24", "f{}.png"), ("mjpeg", "yuvj420p", "{}.JPG")])
def test_images_come_in_the_order_of_their_numbers(tmp_path: Path, codec: str, pixels: str, name: str) -> None:
    _write_images(tmp_path / "images", numbered(12), codec, pixels, name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    ((clip,), others) = find_clips([tmp_path])
    frames = list(read_clip(clip, Preparation(), Findings()))
    assert _numbers(frames) == list(range(12))
    assert [frame.time for frame in frames] == [None] * 12
    assert [other.name for other in others] == ["notes.txt"]


def test_arrays_of_frames(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", obs=numbered(30), rewards=np.zeros(30))
    frames, findings = _read(tmp_path / "a.npz")
    assert _numbers(frames) == list(range(30))
    assert findings.decoded == 30


def test_fits(tmp_path: Path) -> None:
    shown = np.zeros((3, 64, 128, 3), np.uint8)
    shown[:, :, :32], shown[:, :, 32:96], shown[:, :, 96:] = 60, 120, 180
    path = write_video(tmp_path / "a.mkv", shown, **_RGB)
    row = {fit: _read(path, fit=fit)[0][0].pixels[32, :, 0] for fit in ("stretch", "crop", "letterbox")}
    column = _read(path, fit="letterbox")[0][0].pixels[:, 32, 0]
    assert row["stretch"][[4, 32, 60]].tolist() == [60, 120, 180]
    assert set(row["crop"].tolist()) == {120}
    assert row["letterbox"][[4, 32, 60]].tolist() == [60, 120, 180]
    assert column[[4, 32, 60]].tolist() == [0, 120, 0]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotated_videos_are_turned(tmp_path: Path, rotation: int, turns: int) -> None:
    shown = np.zeros((3, 32, 64, 3), np.uint8)
    shown[:, :16, :16] = 255
    (frame, *_), _ = _read(write_video(tmp_path / "a.mp4", shown, rotation=rotation))
    upright = np.rot90(shown[0], turns)[:, :, 0]
    rows, columns = (np.arange(64) * side // 64 for side in upright.shape)
    assert np.abs(frame.pixels[:, :, 0].astype(int) - upright[rows][:, columns]).mean() < 8


def test_hard_cuts_start_a_run(tmp_path: Path) -> None:
    scenes = [numbered(20, first=20 * scene, ground=ground) for scene, ground in enumerate((0, 200, 90))]
    frames, _ = _read(write_video(tmp_path / "a.mp4", np.concatenate(scenes)))
    assert _starts(frames) == [0, 20, 40]
    assert _numbers(frames) == list(range(60))


def test_a_change_of_size_within_a_clip_starts_a_run(tmp_path: Path) -> None:
    _write_images(tmp_path / "images", numbered(3))
    _write_images(tmp_path / "other", numbered(3, first=3, shape=(80, 100)))
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "images" / f"later-{file.name}")
    frames, _ = _read(tmp_path / "images")
    assert _starts(frames) == [0, 3]
    assert _numbers(frames) == list(range(6))


@pytest.mark.parametrize("fps", [10, 30, 7.5, 60, 25])
def test_a_rate_takes_the_frame_that_is_shown_then(tmp_path: Path, fps: float) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(60))
    frames, _ = _read(path, fps=fps)
    expected = [int(tick / fps * 30 + 1e-6) for tick in range(round(2 * fps))]
    assert _numbers(frames) == [frame.index for frame in frames] == expected
    assert [frame.time for frame in frames] == pytest.approx(np.arange(len(expected)) / fps)
    assert _starts(frames) == [0]


def test_a_variable_rate_is_noted_and_made_even(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 1.1]
    path = write_video(tmp_path / "a.mkv", numbered(6), times=times)
    frames, findings = _read(path)
    assert _numbers(frames) == list(range(6))
    assert findings.notes == ("has a variable frame rate: --fps N takes evenly spaced frames",)
    assert [frame.index for frame in _read(path, fps=10)[0]] == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5]


def test_a_long_gap_starts_a_run_and_is_not_filled(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered(6), times=[0.0, 0.1, 0.2, 1e6, 1e6 + 0.1, 1e6 + 0.2])
    frames, _ = _read(path, fps=10)
    assert ([frame.index for frame in frames], _starts(frames)) == ([0, 1, 2, 3, 4, 5], [0, 3])
    frames, _ = _read(path)
    assert _starts(frames) == [0, 3]


def test_still_frames_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(10).repeat(3, 0))
    frames, findings = _read(path, skip_still=True)
    assert _numbers(frames) == list(range(10))
    assert [frame.index for frame in frames] == list(range(0, 30, 3))
    assert findings.decoded == 30


def test_an_image_that_is_none_is_left_out(tmp_path: Path) -> None:
    _write_images(tmp_path / "images", numbered(9))
    (tmp_path / "images" / "4.png").write_bytes(_png(60_000, 60_000))
    frames, findings = _read(tmp_path / "images")
    assert _numbers(frames) == [frame.index for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert _starts(frames) == [0, 4]
    assert "has images that are left out" in findings.notes[0]
    assert "4.png cannot be decoded" in findings.notes[0]
    assert findings.decoded == 9


def test_hdr_is_noted(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mkv",
        numbered(4),
        codec="libx265",
        pixels="yuv420p10le",
        **{"x265-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:log-level=none"},
    )
    frames, findings = _read(path)
    assert _numbers(frames) == list(range(4))
    assert "HDR" in findings.notes[0]


def test_a_truncated_clip_gives_the_frames_before_that(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered(60, shape=(120, 160)), g="10")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames, findings = _read(path)
    assert 10 < len(frames) < 60
    assert _numbers(frames)[:-4] == list(range(len(frames) - 4))  # The last ones may lack what they were coded from.
    assert findings.decoded == len(frames)
    assert any(note.startswith("announces 2.0 seconds and has ") for note in findings.notes)


def test_damaged_frames_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", numbered(30), codec="png", pixels="rgb24")
    content = bytearray(path.read_bytes())
    place = content.index(b"\x89PNG", len(content) // 2)
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    frames, findings = _read(path)
    missing = sorted(set(range(30)) - set(_numbers(frames)))
    assert 1 <= len(missing) <= 2
    assert _starts(frames) == [0, missing[0]]
    assert findings.notes[0] == "has damaged frames, which are left out"


def _png(width: int, height: int) -> bytes:
    """A PNG file that declares to be so large, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _huge_png(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(_png(60_000, 60_000))
    return folder / "images"


def _sound(folder: Path) -> Path:
    path = folder / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate, sound.pts = 16_000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def _unknown_codec(folder: Path) -> Path:
    path = write_video(folder / "a.mkv", numbered(3))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    return path


def _playlist(folder: Path) -> Path:
    secret = write_video(folder / "secret.mp4", numbered(3))
    (folder / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    return folder / "a.mp4"


def _text(folder: Path) -> Path:
    (folder / "a.mp4").write_text("hello " * 1000)
    return folder / "a.mp4"


def _empty(folder: Path) -> Path:
    (folder / "a.mp4").touch()
    return folder / "a.mp4"


def _no_image(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_text("hello")
    return folder / "images"


def _other_arrays(folder: Path) -> Path:
    np.savez(folder / "a.npz", one=np.zeros(3), two=np.zeros(3))
    return folder / "a.npz"


def _floats(folder: Path) -> Path:
    np.savez(folder / "a.npz", frames=np.zeros((3, 64, 64, 3)))
    return folder / "a.npz"


def _huge_video(folder: Path) -> Path:
    """Of frames whose size is nowhere but in them."""
    side = 5800
    frame = np.broadcast_to(np.uint8(0), (1, side, side, 3))
    return write_video(folder / "a.mkv", frame, codec="mjpeg", pixels="yuvj420p")


def _cut_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", frames=numbered(3))
    (folder / "a.npz").write_bytes((folder / "a.npz").read_bytes()[:20_000])
    return folder / "a.npz"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_huge_png, "0.png cannot be decoded: it is damaged or has more than 33,554,432 pixels"),
        (_huge_video, "a.mkv cannot be decoded .*as of frames with more than 33,554,432 pixels"),
        (_sound, "has no video stream"),
        (_unknown_codec, "is in a format that PyAV has no decoder for"),
        (_playlist, "cannot be decoded"),
        (_text, "cannot be decoded"),
        (_empty, "cannot be decoded"),
        (_no_image, r"0.png is no PNG or JPEG image of at most 268 MB"),
        (_other_arrays, "has the arrays one.npy, two.npy"),
        (_floats, "holds float64"),
        (_cut_npz, "truncated"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path: Path, make: Callable[[Path], Path], sentence: str) -> None:
    with pytest.raises(CorruptDataError, match=sentence) as raised:
        _read(make(tmp_path))
    assert len(str(raised.value)) < 600


def test_frames_that_are_too_large_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mkv", numbered(3, shape=(240, 320)))
    monkeypatch.setattr(clips, "MOST_PIXELS", 240 * 320 - 1)
    with pytest.raises(CorruptDataError, match="have 320 x 240 pixels, more than"):
        _read(path)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31));"
        "from tests.data.test_clips import _read;"
        f"from pathlib import Path; _read(Path({str(_huge_png(tmp_path))!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has more than 33,554,432 pixels" in done.stderr


def test_a_rate_needs_times(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", frames=numbered(3))
    with pytest.raises(UsageError, match=r"have no times.*leave out --fps"):
        _read(tmp_path / "a.npz", fps=10)


def test_finding_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "b/2.mp4",
        "b/10.mp4",
        "b/.hidden.mp4",
        "b/.git/x.mp4",
        "b/notes.txt",
        "c.MKV",
        "b/shots/1.png",
        "d.npz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found, others = find_clips(["b", "c.MKV", "b/2.mp4", "*.npz"])
    assert [(str(clip.path), clip.kind) for clip in found] == [
        ("b/2.mp4", "video"), ("b/10.mp4", "video"), ("b/shots", "images"), ("c.MKV", "video"), ("d.npz", "npz"),
    ]  # fmt: skip
    assert [str(path) for path in others] == ["b/notes.txt"]
    for words, error in ((["no.mp4"], MissingInputError), (["x*"], MissingInputError), (["b/notes.txt"], UsageError)):
        with pytest.raises(error):
            find_clips(words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="There is no clip in empty"):
        find_clips(["empty"])
