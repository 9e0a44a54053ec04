"Clips: there and back between floats and bytes, files that are whole or absent, strips, hashes, and bad input."
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sora_edu import video as V


@pytest.fixture()
def clip():
    "A white ball that crosses a dark field, uint8 [17, 64, 64, 3]."
    y, x = np.mgrid[:64, :64]
    ball = [((x - 10 - 2.5 * t) ** 2 + (y - 32) ** 2 < 80) * 200 + 30 for t in range(17)]
    return np.repeat(np.stack(ball)[..., None], 3, -1).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3, st.just(3))))
def test_bytes_survive_floats(frames):
    assert np.array_equal(V.to_uint8(V.from_uint8(frames)), frames)
    assert np.array_equal(V.to_uint8(V.from_uint8(frames[None])), frames[None])


def test_every_grey_level_and_the_axes():
    ramp = torch.linspace(-1, 1, 256)
    assert V.to_uint8(ramp.expand(3, 1, 1, 256))[0, 0, :, 0].tolist() == list(range(256))
    assert V.to_uint8(torch.full((3, 1, 1, 1), 7.0)).item(0) == 255 and V.to_uint8(torch.full((3, 1, 1, 1), -7.0)).item(0) == 0
    video = torch.zeros(2, 3, 5, 16, 32)
    video[1, 2, 4, 8, 30] = 1
    frames = V.to_uint8(video)
    assert frames.shape == (2, 5, 16, 32, 3) and frames[1, 4, 8, 30].tolist() == [128, 128, 255]


def test_file_there_and_back(clip, tmp_path):
    path = tmp_path / "a.mp4"
    assert V.write_video(path, clip, fps=8, metadata={"title": 'a "ball" é', "comment": "AI"}) == path
    frames, fps = V.read_video(path)
    assert frames.shape == clip.shape and fps == 8
    assert np.abs(frames.astype(int) - clip).mean() < 1
    tags = V.read_metadata(path)
    assert (tags["title"], tags["comment"]) == ('a "ball" é', "AI")
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("fps", [8, 12.5, 30, 24000 / 1001])
def test_rate(clip, fps, tmp_path):
    assert V.read_video(V.write_video(tmp_path / "a.mp4", clip, fps))[1] == pytest.approx(fps, rel=1e-3)


def test_one_frame(clip, tmp_path):
    assert V.read_video(V.write_video(tmp_path / "a.mp4", clip[:1]))[0].shape == (1, 64, 64, 3)


def test_same_bytes_each_time(clip):
    assert V.encode_video(clip) == V.encode_video(clip)
    noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
    assert len(V.encode_video(noise, crf=40)) < len(V.encode_video(noise, crf=12)) < len(V.encode_video(noise, crf=0))


def test_encoding_is_repeatable_whatever_the_memory_looks_like():
    "x264's macroblock tree gave other bytes from run to run on such clips."
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 5, 8, 8)))
    soft = V.to_uint8(torch.nn.functional.interpolate(coarse, size=(17, 64, 64), mode="trilinear"))[0]
    noisy, clutter, seen = (soft + rng.integers(0, 12, soft.shape)).clip(0, 255).astype(np.uint8), [], set()
    for _ in range(25):
        seen.add(V.encode_video(noisy))
        clutter = [rng.bytes(int(rng.integers(1, 200_000)))] + clutter[:20]
    assert len(seen) == 1


def test_failure_leaves_what_was_there(clip, tmp_path, monkeypatch):
    path = V.write_video(tmp_path / "a.mp4", clip)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        V.write_video(path, clip[::-1])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_new_files_have_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    assert V.write_bytes(tmp_path / "ours", b"x").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_filmstrip(clip):
    strip = V.filmstrip(clip, n=3, pad=2)
    assert strip.shape == (64, 3 * 64 + 2 * 2, 3)
    for i, t in enumerate((0, 8, 16)):
        assert np.array_equal(strip[:, i * 66:i * 66 + 64], clip[t])
    assert (strip[:, 64:66] == 255).all()
    assert V.filmstrip(clip[:1], n=9).shape == (64, 64, 3)
    assert V.filmstrip(np.stack([clip, clip]), n=2, pad=1).shape == (129, 129, 3)


def test_png(clip, tmp_path):
    from PIL import Image
    image = V.filmstrip(clip)
    assert np.array_equal(np.array(Image.open(V.write_png(tmp_path / "a.png", image))), image)


def test_hash(clip):
    changed = clip.copy()
    changed[3, 4, 5, 1] ^= 1
    assert V.video_hash(clip) == V.video_hash(clip.copy()) != V.video_hash(changed)
    assert V.video_hash(clip[:, ::-1]) == V.video_hash(np.ascontiguousarray(clip[:, ::-1]))


def test_show_escapes_titles(clip, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda html: shown.append(html.data))
    V.show([clip, clip[:1]], titles=["<script>x</script>", "still"], columns=1)
    assert "<script>" not in shown[0] and "&lt;script&gt;" in shown[0]
    assert shown[0].count("<video") == 1 and shown[0].count("<img") == 1 and shown[0].count("<tr>") >= 2
    with pytest.raises(ValueError, match="titles: got 1, allowed: one a clip, 2"):
        V.show([clip, clip], titles=["one"])


BAD_FRAMES = [None, [[1]], np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]


@pytest.mark.parametrize("frames", BAD_FRAMES, ids=str)
@pytest.mark.parametrize("call", [V.encode_video, V.filmstrip, V.video_hash, V.from_uint8, V.show])
def test_bad_frames(call, frames):
    if call is V.show and isinstance(frames, list):
        frames = frames[0]
    with pytest.raises(ValueError, match="frames: got .*allowed"):
        call(frames)


@pytest.mark.parametrize("video", [None, torch.zeros(3, 4, 4), torch.zeros(1, 4, 5, 4, 4), torch.full((3, 1, 2, 2), float("nan")), torch.full((3, 1, 2, 2), float("inf"))])
def test_bad_video(video):
    with pytest.raises(ValueError, match="video: got .*allowed"):
        V.to_uint8(video)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "8", None, True, 1000])
def test_bad_rate(clip, fps):
    with pytest.raises(ValueError, match="fps: got .*allowed"):
        V.encode_video(clip, fps)


def test_odd_sizes_and_bad_files(clip, tmp_path):
    with pytest.raises(ValueError, match="64x63 pixels, allowed: .*64x64"):
        V.encode_video(clip[:, :, :63])
    V.write_bytes(tmp_path / "a.mp4", b"no video")
    with pytest.raises(ValueError, match="path: got .*no readable video"):
        V.read_video(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError):
        V.read_video(tmp_path / "b.mp4")
    with pytest.raises(OSError):
        V.write_video(tmp_path / "missing" / "a.mp4", clip)
