import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.data.batches import WINDOW, BatchSampler, FrameLoader, gather_windows
from lapo_cli.core.data.store import Video

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def video() -> Video:
    frames = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    return Video(frames, np.arange(60) % 20 == 0, "")


@given(
    num_windows=st.integers(1, 40),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=10),
)
def test_a_batch_is_a_pure_function_of_seed_and_step(
    num_windows: int, batch_size: int, seed: int, steps: list[int]
) -> None:
    windows = np.arange(num_windows) * 3 + 1
    used = BatchSampler(windows, batch_size, seed)
    for step in steps:
        fresh = BatchSampler(windows, batch_size, seed).indices(step)
        np.testing.assert_array_equal(used.indices(step), fresh)
        assert fresh.shape == (batch_size,)
        assert fresh.dtype == np.int64


@given(num_windows=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_each_epoch_covers_every_window_once(num_windows: int, batch_size: int, seed: int) -> None:
    windows = np.arange(num_windows) * 3 + 1
    sampler = BatchSampler(windows, batch_size, seed)
    steps = -(-3 * num_windows // batch_size)
    stream = np.concatenate([sampler.indices(step) for step in range(steps)])
    for epoch in range(3):
        part = stream[epoch * num_windows : (epoch + 1) * num_windows]
        np.testing.assert_array_equal(np.sort(part), windows)
        order = np.random.default_rng([seed, epoch]).permutation(num_windows)
        np.testing.assert_array_equal(part, windows[order])


def test_another_seed_gives_another_order() -> None:
    windows = np.arange(100)
    assert not np.array_equal(BatchSampler(windows, 50, 0).indices(0), BatchSampler(windows, 50, 1).indices(0))


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_to_draw_is_refused(count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        BatchSampler(np.arange(count), batch_size, 0)


@pytest.mark.parametrize("offsets", [WINDOW, (0,), (0, 1), (-2, 3)])
def test_gathered_windows_are_those_frames(video: Video, offsets: tuple[int, ...]) -> None:
    idx = np.array([30, 5, 5, 56])
    got = gather_windows(video.frames, idx, offsets)
    assert got.flags.c_contiguous
    assert got.dtype == np.uint8
    for b, centre in enumerate(idx):
        for t, offset in enumerate(offsets):
            np.testing.assert_array_equal(got[b, t], video.frames[centre + offset])


@pytest.mark.parametrize("centre", [0, 59])
def test_frames_outside_of_the_store_are_refused(video: Video, centre: int) -> None:
    with pytest.raises(IndexError, match="store of 60"):
        gather_windows(video.frames, np.array([centre]))
    with pytest.raises(IndexError, match="store of 60"):
        FrameLoader(video, "cpu", resident=True).gather(np.array([centre]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resident", [False, True])
def test_batches_come_in_order_and_unaltered(video: Video, device: str, resident: bool) -> None:
    sampler = BatchSampler(video.windows(), 16, 5)
    loader = FrameLoader(video, device, resident=resident)
    seen = list(loader.batches(sampler, 7, 12))
    assert len(seen) == 12
    for step, batch in enumerate(seen, start=7):
        assert batch.dtype == torch.uint8
        assert batch.device.type == device
        expected = gather_windows(video.frames, sampler.indices(step))
        np.testing.assert_array_equal(batch.cpu().numpy(), expected)
        np.testing.assert_array_equal(loader.gather(sampler.indices(step)).cpu().numpy(), expected)


def test_resuming_gives_the_batches_that_would_have_come(video: Video) -> None:
    sampler = BatchSampler(video.windows(), 16, 5)
    unbroken = list(FrameLoader(video, "cpu").batches(sampler, 0, 10, (0,)))
    resumed = list(FrameLoader(video, "cpu").batches(BatchSampler(video.windows(), 16, 5), 4, 6, (0,)))
    assert all(torch.equal(a, b) for a, b in zip(unbroken[4:], resumed, strict=True))


def _threads() -> int:
    return sum(thread.name == "lapo-batches" for thread in threading.enumerate())


def test_the_thread_ends_when_the_consumer_stops_early(video: Video) -> None:
    sampler = BatchSampler(video.windows(), 4, 0)
    for _ in FrameLoader(video, "cpu").batches(sampler, 0, 1000):
        assert _threads() == 1
        break
    assert _threads() == 0
    stopped = FrameLoader(video, "cpu").batches(sampler, 0, 1000)
    next(stopped)
    stopped.close()
    assert _threads() == 0


def test_what_goes_wrong_in_the_thread_is_raised_here(video: Video) -> None:
    beyond = BatchSampler(np.array([1000]), 1, 0)
    with pytest.raises(IndexError, match="store of 60"):
        next(FrameLoader(video, "cpu").batches(beyond, 0, 10))
    assert _threads() == 0
