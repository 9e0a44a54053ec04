"Clips from outside: every fault is listed and none is fatal, time and turns are honoured, the cache survives, training reads it."
import dataclasses
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_figures import faults_fatal, small_vae, write_clips
from sora_edu.model.vae import psnr
from sora_edu.training import clips as C
from sora_edu.training.clips import Buckets, Clip, build_clip_cache, clip_batch_at, decode, find_clips, windows, write_file
from sora_edu.video import from_uint8, to_uint8
from sora_edu.world.render import render
from sora_edu.world.scene import World

LEG = SimpleNamespace(image_share=0.3, batch_size=8, image_batch=16, mid_clip_share=0.2, cond_dropout=0.1, oversample=())


@pytest.fixture(scope="module")
def frames():
    return to_uint8(render(World().sample(3, 1)))[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_clips(tmp_path_factory.mktemp("clips"), 12)
    C.spoil(folder, "9000", "no caption", to_uint8(render(World().sample(3, 1)))[0], "")
    C.spoil(folder, "9001", "audio only", None, "a song")
    wide = to_uint8(render(World().sample(4, 1), 12, 48, 80))[0]
    C.spoil(folder, "9002", "whole", wide, "a blue box, wide")
    return folder


def build(data, folder, seed=0, **options):
    return build_clip_cache(data, small_vae(seed), folder, progress=False, **{"workers": 0, "shard_mb": 0.05, **options})


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory):
    return build(data, tmp_path_factory.mktemp("cache"))


def greys(levels, height=32, width=32):
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def levels_of(data, fps=8):
    "The grey level of each frame, in tens."
    clips = list(windows(io.BytesIO(data), Buckets(((32, 32),), (5,), fps)))
    return [round(float(frame.mean()) / 10) for clip in clips for frame in clip]


# Files

def test_no_fault_is_fatal_and_none_goes_unlisted():
    assert faults_fatal(2 * len(C.SPOILERS))["value"] == 0          # more than eight files: in workers


def test_frames_are_those_on_screen_at_their_moment():
    steady = greys(range(10, 240, 10))
    assert levels_of(write_file(steady[:10])) == list(range(1, 11))
    assert levels_of(write_file(steady[:20]), fps=4) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    uneven = write_file(steady[:5], times=[0, 1, 4, 5, 9])           # frame 2 stays for three eighths, frame 4 for four
    assert levels_of(uneven) == [1, 2, 2, 2, 3, 4, 4, 4, 4, 5]


def test_a_turned_video_is_shown_upright():
    corner = np.zeros((17, 48, 80, 3), np.uint8)
    corner[:, :24, :40] = 255                                        # top left, and after a turn by a quarter to the right: top right
    clip, = windows(io.BytesIO(C.turned(write_file(corner))), Buckets())
    assert clip.shape == (17, 80, 48, 3) and clip[:, :35, 30:].mean() > 240 and clip[:, :35, :18].mean() < 15 and clip[:, 45:].mean() < 15


@pytest.mark.parametrize("kind, least", [("whole", 33), ("10-bit", 30), ("odd sizes", 22)])
def test_pixels_come_through(frames, kind, least, tmp_path):
    C.spoil(tmp_path, "x", kind, frames, "c")
    clip, = decode(find_clips(tmp_path)[0][0], Buckets())[0]
    assert psnr(from_uint8(clip)[None], from_uint8(frames)[None]) > least


def test_a_clip_goes_to_the_nearest_shape_and_its_middle_is_kept():
    b = Buckets()
    assert [b.size(*hw) for hw in ((100, 101), (720, 1280), (1920, 1080), (480, 640))] == [(64, 64), (48, 80), (80, 48), (48, 80)]
    bars = np.zeros((5, 64, 128, 3), np.uint8)
    bars[:, :, 32:96] = 200
    clip, = windows(io.BytesIO(write_file(bars)), Buckets(sizes=((64, 64),)))
    assert clip.mean() > 195


@pytest.mark.parametrize("n, lengths", [(40, [17, 17, 5]), (17, [17]), (16, [9, 5]), (4, [])])
def test_a_long_clip_is_cut(n, lengths):
    assert [len(w) for w in windows(io.BytesIO(write_file(greys([90] * n))), Buckets())] == lengths


def test_a_very_long_one_is_cut_short_and_says_so(tmp_path):
    C.spoil(tmp_path, "x", "whole", greys([90] * 60), "c")
    made, why = decode(find_clips(tmp_path)[0][0], Buckets(frames=(5,), most=3))
    assert len(made) == 3 and why == "long: its first 3 windows"


def test_a_file_cut_between_two_frames_says_what_is_missing(tmp_path):
    "What is left decodes without a fault; only the header knows that there were five seconds."
    import av
    whole = write_file(greys(range(10, 250, 6)), pix_fmt="yuv420p", format="matroska")
    with av.open(io.BytesIO(whole)) as file:
        begins = [packet.pos for packet in file.demux(video=0) if packet.size]
    (tmp_path / "half.mkv").write_bytes(whole[:begins[20]])
    (tmp_path / "whole.mkv").write_bytes(whole)
    made, why = {}, {}
    for name in ("half", "whole"):
        made[name], why[name] = decode(Clip(name, "c", str(tmp_path / f"{name}.mkv")), Buckets(((32, 32),), (5,)))
    assert why == {"half": "truncated: 2.5 s of 5.0", "whole": None} and (len(made["half"]), len(made["whole"])) == (0, 8)


@pytest.mark.parametrize("change", [dict(sizes=()), dict(sizes=((60, 64),)), dict(frames=(4,)), dict(frames=()), dict(fps=0), dict(fps=float("nan")), dict(most=0)])
def test_bad_buckets_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: got .* allowed"):
        Buckets(**change)


def test_buckets_of_a_config_have_about_its_pixels():
    for size in (32, 64, 128):
        b = C.buckets_for(size, 17)
        assert b.sizes[0] == (size, size) and b.frames == (17, 9, 5) and all(0.7 < h * w / size**2 < 1.6 for h, w in b.sizes)
    assert C.buckets_for(32, 5).frames == (5,)


def killing(clip, buckets, decode=C.decode):
    if "killer" in clip.name:
        os._exit(9)
    return decode(clip, buckets)


@pytest.mark.skipif(sys.platform != "linux", reason="a patch reaches forked workers alone")
def test_a_file_that_kills_its_worker_is_listed_and_the_others_used(tmp_path, monkeypatch):
    data = write_clips(tmp_path / "data", 7)
    for stem in ("0000-killer", "0003-killer"):
        C.spoil(data, stem, "whole", greys([90] * 5), "c")
    monkeypatch.setattr(C, "decode", killing)
    cache = build(data, tmp_path / "cache", workers=2)
    assert len(cache) == 7 and {f.name for f in cache.faults.values()} == {"0000-killer.mp4", "0003-killer.mp4"}
    assert all(f.reason.startswith("crash: ") for f in cache.faults.values())
    monkeypatch.setattr(C, "decode", None)                                          # a second call asks for none of them again
    assert equal(build(data, tmp_path / "cache", workers=2), cache)


# Captions

def test_captions_come_from_four_places(tmp_path):
    video = write_file(greys([90] * 5))
    for stem in "abcdef":
        (tmp_path / f"{stem}.mp4").write_bytes(video)
    (tmp_path / "a.txt").write_text("\ufeffeine  Möwe\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("deux œufs", encoding="utf-16")
    (tmp_path / "c.json").write_text('{"text": "three"}')
    (tmp_path / "captions.csv").write_text('file,caption\nd.mp4,"four, and more"\na.mp4,not this\ngone.mp4,nobody\n')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "e.mp4", "caption": "five"}\n')
    found, faults = find_clips(tmp_path)
    assert [c.caption for c in found] == ["eine Möwe", "deux œufs", "three", "four, and more", "five"]
    assert {(f.name, f.reason) for f in faults} == {("f.mp4", "caption: missing"), ("gone.mp4", "listed with a caption, but no such file")}


def test_folders_within_are_searched_and_closed_ones_listed(tmp_path, monkeypatch):
    (tmp_path / "in" / "locked").mkdir(parents=True)
    C.spoil(tmp_path / "in", "x", "no caption", greys([90] * 5), "")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "in/x.mp4", "text": "a wall"}')
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)
    monkeypatch.setattr(os, "scandir", guarded)
    (clip,), (fault,) = find_clips(tmp_path)
    assert (clip.name, clip.caption) == ("in/x.mp4", "a wall") and fault.name.endswith("locked") and fault.reason == "folder: Permission denied"


@pytest.mark.parametrize("ending, data", [(".txt", "œuf".encode("cp1252")), (".txt", b" "), (".json", b"{"), (".json", b'{"title": "x"}'), (".json", b"[1]"), (".json", b'{"text": 5}')])
def test_bad_captions_are_refused(ending, data):
    with pytest.raises(C.BadClip, match="caption: .* allowed"):
        C.caption_in(ending, data)


@pytest.mark.parametrize("name, text", [("captions.csv", "clip;words\nx.mp4;y\n"), ("metadata.jsonl", "{oops"), ("metadata.jsonl", "[1]\n")])
def test_a_broken_table_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} can't be read .* allowed"):
        find_clips(tmp_path)


@pytest.mark.parametrize("name, rows, listed", [
    ("captions.csv", 'file,caption\nb.mp4,\na.mp4,good\n\nc.mp4,"' + "long " * 30000 + '"\n,nobody\n', {"b.mp4": "caption: got None", "c.mp4": "caption: missing"}),
    ("metadata.jsonl", '{"file": "b.mp4", "caption": null}\n\n{"file": "c.mp4", "caption": 5}\n{oops\n[1]\n{"file": 7, "caption": "x"}\n{"file": "a.mp4", "text": "good"}\n',
     {"b.mp4": "caption: got None", "c.mp4": "caption: got 5"}),
    ("metadata.jsonl", '{"file": "b.mp4", "caption": ["x"]}\n{"file": "c.mp4", "caption": "\\ud800"}\n' + "[" * 10**5 + '\n{"file": "a.mp4", "caption": "good\u2028"}\n',
     {"b.mp4": "caption: got ['x']", "c.mp4": "caption: has NULs or halves"})])
def test_a_bad_row_is_listed_and_the_others_used(tmp_path, name, rows, listed):
    for stem in "abc":
        (tmp_path / f"{stem}.mp4").write_bytes(b"video")
    (tmp_path / name).write_text(rows, encoding="utf-8")
    (clip,), faults = find_clips(tmp_path)
    assert (clip.name, clip.caption) == ("a.mp4", "good")
    why = {f.name: f.reason for f in faults}
    assert all(why.pop(file).startswith(reason) for file, reason in listed.items())
    assert why and all(file.startswith(f"{name}, row ") and reason.startswith("row: ") for file, reason in why.items())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_captions_with_nuls_are_refused(tmp_path, encoding):
    with pytest.raises(C.BadClip, match="caption: has NULs or halves of characters, as UTF-16 without its mark has"):
        C.caption_in(".txt", "a red ball".encode(encoding))
    (tmp_path / "captions.csv").write_bytes("file,caption\na.mp4,x\n".encode(encoding))
    with pytest.raises(ValueError, match="captions.csv can't be read .*NULs"):
        find_clips(tmp_path)


def test_a_long_caption_is_cut_at_a_word_and_listed(tmp_path, capsys):
    C.spoil(tmp_path, "x", "whole", greys([90] * 5), "a small red ball " * 20)
    fault = build(tmp_path, tmp_path / "cache").faults["x.mp4"]
    assert fault.kept == 1 and fault.reason.startswith("caption: cut to") and fault.reason.endswith("of 80 words")
    assert "data: 1 files are not used, or not wholly, see " in capsys.readouterr().err


# Shards and data sets

def test_what_the_world_exports_is_found_both_ways(tmp_path):
    from sora_edu.world.dataset import World as Stream, export
    world = Stream("mini", seed=3)
    export(world, tmp_path / "folder", 3, progress=False)
    export(world, tmp_path / "tar", 3, format="webdataset", shard_size=2, progress=False)
    (one, none), (two, no) = find_clips(tmp_path / "folder"), find_clips(tmp_path / "tar")
    assert not none and not no and [c.caption for c in one] == [c.caption for c in two] == [item["caption"] for item, _ in zip(world, range(3))]
    for a, b in zip(one, two):
        assert np.array_equal(decode(a, Buckets())[0], decode(b, Buckets())[0])
    assert find_clips(tmp_path / "tar/shard-000000.tar")[0] == two[:2]


def test_a_damaged_shard_gives_what_is_whole(tmp_path):
    from sora_edu.world.dataset import World as Stream, export
    export(Stream("mini"), tmp_path, 2, format="webdataset", progress=False)
    shard = tmp_path / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        middle = tar.getmember("000001.mp4").offset_data
    shard.write_bytes(shard.read_bytes()[:middle + 100])
    found, faults = find_clips(tmp_path)
    assert [c.name for c in found] == ["shard-000000.tar/000000.mp4"] and any("damaged" in f.reason for f in faults)


def test_endings_in_capitals_and_names_with_dots_are_read(tmp_path):
    video, files = write_file(greys([90] * 5)), {}
    for name, text in (("0.mp4", "0.TXT"), ("my.clip.mp4", "my.clip.txt"), ("a.b/7.video.mp4", "a.b/7.txt")):
        files |= {name: video, text: name.encode()}
    files |= {"._0.mp4": b"", "alone.MOV": video}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    found, faults = find_clips(tmp_path / "shard.tar")
    assert [c.caption for c in found] == ["0.mp4", "my.clip.mp4", "a.b/7.video.mp4"] and [f.name for f in faults] == ["shard.tar/alone.MOV"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("0.mp4", "0.TXT", "my.clip.mp4", "my.clip.txt", "._0.mp4"):
        (folder / name).write_bytes(files[name])
    found, faults = find_clips(folder)
    assert [c.caption for c in found] == ["0.mp4", "my.clip.mp4"] and not faults


def test_a_stray_table_does_not_hide_videos_and_a_damaged_one_is_refused(tmp_path, frames):
    C.spoil(tmp_path, "x", "whole", frames, "a ball")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/stats.parquet").write_bytes(b"x")
    assert [c.caption for c in find_clips(tmp_path)[0]] == ["a ball"]
    with pytest.raises(ValueError, match="data: .*sub can't be read .*, allowed: what `save_to_disk` wrote, or whole Parquet files"):
        find_clips(tmp_path / "sub")


def test_data_sets_need_their_package(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    C._hf_splits.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="package datasets, which is not installed, allowed: pip install"):
        find_clips(tmp_path)
    C._hf_splits.cache_clear()


@pytest.fixture
def rows(tmp_path, monkeypatch):
    "Three rows of a real data set, one without a caption, videos beside it."
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    C._hf_splits.cache_clear()
    for k in range(3):
        (tmp_path / f"{k}.mp4").write_bytes(write_file(greys([90 + 20 * k] * 5)))
    kinds = datasets.Features({"clip": datasets.Video(decode=False), "text": datasets.Value("string")})
    yield datasets.Dataset.from_dict({"clip": [str(tmp_path / f"{k}.mp4") for k in range(3)], "text": ["a wall", None, "a door"]}, features=kinds)
    datasets.enable_progress_bars()
    C._hf_splits.cache_clear()


def found_there(path, split):
    "The last clip of a data set has the last video's grey, and the row without a caption is listed."
    (wall, door), (fault,) = find_clips(path)
    assert (wall.caption, door.caption, fault.name, fault.reason) == ("a wall", "a door", f"{split}/1", "caption: got None, allowed: some words")
    assert wall.time and [round(decode(clip, Buckets())[0][0].mean() / 10) for clip in (wall, door)] == [9, 13]


@pytest.mark.parametrize("split", ["all", "train"])
def test_data_sets_saved_by_hugging_face(tmp_path, rows, split):
    from datasets import DatasetDict
    (rows if split == "all" else DatasetDict(train=rows)).save_to_disk(tmp_path / "saved")
    found_there(tmp_path / "saved", split)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("file", ["data/train-00000-of-00001.parquet", "one.parquet"])
def test_parquet_files_as_on_the_hub(tmp_path, rows, file, bare):
    "Videos as bytes in the file, and its columns as those of type Video, or, as other programs write them, bytes and path."
    import datasets
    import pyarrow
    from pyarrow import parquet
    inside = [{"clip": {"bytes": (tmp_path / f"{k}.mp4").read_bytes(), "path": None}, "text": text} for k, text in enumerate(rows["text"])]
    (tmp_path / "hub" / file).parent.mkdir(parents=True)
    if bare:
        parquet.write_table(pyarrow.Table.from_pylist(inside), tmp_path / "hub" / file)
    else:
        datasets.Dataset.from_list(inside, features=rows.features).to_parquet(tmp_path / "hub" / file)
    (tmp_path / "hub" / "metadata.parquet").write_bytes(b"no data set")
    for path in (tmp_path / "hub", tmp_path / "hub" / file):
        found_there(path, "all")


# Nothing to learn from

def test_folders_without_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_clips(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ValueError, match="holds no video, allowed"):
        find_clips(tmp_path)
    C.spoil(tmp_path, "x", "audio only", None, "a song")
    C.spoil(tmp_path, "y", "no caption", greys([90] * 5), "")
    with pytest.raises(ValueError, match="none of 2 files can be used .*faults.jsonl"):
        build(tmp_path, tmp_path / "cache")
    assert len((tmp_path / "cache/faults.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"none of the 1 captioned videos in .* can be used \(\S.*\), allowed: whole"):
        C.some_windows(tmp_path, Buckets(), progress=False)


def test_some_windows_walks_past_bad_files(tmp_path):
    for k in range(4):
        C.spoil(tmp_path, f"{k}", "whole" if k == 3 else "no video at all", greys([90] * 10), "c")
    made = C.some_windows(tmp_path, Buckets(frames=(5,)), most=2, progress=False)
    assert len(made) == 2


# The cache

def test_latents_are_those_of_the_windows(data, cache):
    clip = next(c for c in find_clips(data)[0] if c.name == "0007.mp4")
    window, = decode(clip, Buckets())[0]
    with torch.no_grad():
        z = small_vae().encode(from_uint8(window)[None])[0]
    assert (z - cache.buckets["17x64x64"].latents[7].float()).abs().max() < 0.02 * z.abs().max() + 0.02
    assert {s: len(b.latents) for s, b in cache.buckets.items()} == {"17x64x64": 12, "9x48x80": 1}
    assert {f.name: f.kept for f in cache.faults.values()} == {"9000.mp4": 0, "9001.mp4": 0}


def equal(a, b):
    return a.buckets.keys() == b.buckets.keys() and all(torch.equal(a.buckets[s].latents, b.buckets[s].latents) and
                                                         torch.equal(a.buckets[s].tokens, b.buckets[s].tokens) for s in a.buckets)


def stop_after(monkeypatch, n, error):
    "The n-th shard is the last that can be written."
    save, left = C.save_file, [n]

    def stops(*args):
        left[0] -= 1
        if left[0] < 0:
            Path(args[1]).write_bytes(b"half a shard")
            raise error
        return save(*args)
    monkeypatch.setattr(C, "save_file", stops)


def test_a_killed_build_goes_on_and_gives_the_same(data, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2, KeyboardInterrupt())
        build(data, tmp_path)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2
    seen = []
    monkeypatch.setattr(C, "decode", lambda clip, buckets, decode=decode: seen.append(clip.name) or decode(clip, buckets))
    again = build(data, tmp_path)
    assert equal(again, cache) and again.faults == cache.faults and 0 < len(seen) < 13
    seen.clear()
    assert equal(build(data, tmp_path), cache) and not seen


def test_a_full_disk_is_said_and_what_is_done_stays(data, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full.*stay, the same call goes on"):
        stop_after(patch, 1, RuntimeError("No space left on device"))
        build(data, tmp_path)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 1 and equal(build(data, tmp_path), cache)


def test_a_shard_that_is_gone_or_damaged_is_made_again(data, cache, tmp_path):
    build(data, tmp_path)
    gone = sorted(tmp_path.glob("shard-*.safetensors"))[1]
    gone.unlink()
    assert equal(build(data, tmp_path), cache)
    gone.write_bytes(b"scratched")
    with pytest.raises(ValueError, match=f"{gone.name} is damaged .*delete this one"):
        build(data, tmp_path)


def test_a_cache_of_another_kind_is_refused_and_kept(data, cache, tmp_path):
    before = {p: p.read_bytes() for p in cache.folder.iterdir()}
    for name, make in (("vae", lambda: build(data, cache.folder, seed=1)), ("frames", lambda: build(data, cache.folder, buckets=Buckets(frames=(5,)))),
                       ("max_length", lambda: build(data, cache.folder, max_length=9)), ("data", lambda: build(write_clips(tmp_path, 1), cache.folder))):
        with pytest.raises(ValueError, match=f"was made with {name} .*allowed: .*delete the folder"):
            make()
    assert before == {p: p.read_bytes() for p in cache.folder.iterdir()}


def test_files_that_come_later_are_added_and_mended_ones_tried_again(tmp_path):
    data = write_clips(tmp_path / "data", 2)
    whole = (data / "0001.mp4").read_bytes()
    (data / "0001.mp4").write_bytes(whole[:300])
    assert len(build(data, tmp_path / "cache")) == 1
    (data / "0001.mp4").write_bytes(whole)
    made = build(data, tmp_path / "cache")
    assert len(made) == 2 and not made.faults


def test_what_changed_or_is_gone_is_not_used(tmp_path, capsys):
    data = write_clips(tmp_path / "data", 5)
    C.spoil(data, "broken", "half an mp4", greys([90] * 17), "c")
    assert len(build(data, tmp_path / "cache")) == 5 and "cache:" not in capsys.readouterr().err
    (data / "0000.txt").write_text("a blue box")                                    # another caption
    (data / "0001.mp4").unlink()                                                    # no video any more
    other = write_file(greys([90] * 17))
    (data / "0002.mp4").write_bytes(other)                                          # another video
    same = (data / "0003.mp4").read_bytes()
    (data / "0003.mp4").write_bytes(same[:-1] + bytes([same[-1] ^ 1]))              # of the same size
    (data / "broken.mp4").unlink()
    later, anew = build(data, tmp_path / "cache"), build(data, tmp_path / "anew")
    assert "cache: 5 files in" in capsys.readouterr().err and not later.faults
    learned = lambda cache: sorted((z.float().sum().item(), *ids[0].tolist()) for b in cache.buckets.values() for z, ids in zip(b.latents, b.tokens))
    assert len(later) == 4 and learned(later) == learned(anew)


def test_a_cache_that_does_not_know_when_files_changed_is_refused(data, tmp_path):
    build(data, tmp_path)
    note = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({name: value for name, value in note.items() if name != "stamps"}))
    with pytest.raises(ValueError, match="was made with stamps None.*delete the folder"):
        build(data, tmp_path)


@pytest.mark.parametrize("text", ["{oops", "[1]", "null", "\udcff", ""])
def test_a_damaged_note_of_the_cache_is_said(tmp_path, text):
    (tmp_path / "cache.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match="cache.json is damaged.*delete the folder"):
        C.ClipCache(tmp_path, {"vae": "x"}).open()


def test_a_name_that_is_no_text_is_listed(tmp_path):
    cache = C.ClipCache(tmp_path, {}).open()
    cache.list_faults([C.Fault("\udcff.mp4", "caption: missing")])
    assert json.loads((tmp_path / "faults.jsonl").read_text())["name"] == "\udcff.mp4"


# Batches

def test_batches_are_functions_of_their_step_and_of_every_shape(cache):
    shapes = set()
    for step in range(150):
        a, b = clip_batch_at(cache, LEG, 0, step), clip_batch_at(cache, LEG, 0, step)
        assert torch.equal(a["x0"], b["x0"]) and torch.equal(a["ids"], b["ids"]) and a["coverage"].shape == a["x0"][:, 0].shape
        assert not a["coverage"].any() and torch.isfinite(a["x0"]).all()
        shapes.add(tuple(a["x0"].shape[2:]))
    assert {(5, 8, 8), (4, 8, 8), (1, 8, 8), (3, 6, 10)} <= shapes


def test_adapt_learns_stays_near_and_resumes(frames, tmp_path):
    torch.manual_seed(0)
    vae, made = small_vae(), [frames[:5], frames[5:10]]
    options = dict(steps=6, batch_size=1, progress=False)
    video, after = from_uint8(frames[:5])[None], C.adapt(vae, made, **options)
    with torch.no_grad():
        assert psnr(after.decode(after.encode(video)), video) > psnr(vae.decode(vae.encode(video)), video)
    assert C.vae_hash(vae) == C.vae_hash(small_vae()) != C.vae_hash(after)

    class Stop(Exception):
        pass
    calls = []

    def windows_at(*args, real=C._windows_at):
        calls.append(args)
        if len(calls) == 5:
            raise Stop
        return real(*args)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(C, "_windows_at", windows_at)
        C.adapt(vae, made, out=tmp_path, save_every=2, **options)
    assert C.vae_hash(C.adapt(vae, made, out=tmp_path, save_every=2, **options)) == C.vae_hash(after)


def test_an_anchor_keeps_what_the_latents_mean(frames):
    vae, made = small_vae(), [frames[:5, 16:32, 16:32].copy()]
    video = from_uint8(made[0])[None]

    def shift(**anchor):
        after = C.adapt(vae, made, steps=8, batch_size=1, progress=False, **anchor)
        with torch.no_grad():
            return (after.encode(video) - vae.encode(video)).square().mean().item()
    free = shift(anchor=0.0)
    assert 0 < shift(anchor=1.0) < 0.5 * free and shift() != free    # there is one by default, too


def test_training_reads_clips_and_a_stopped_run_goes_on_bit_by_bit(data, tmp_path):
    from sora_edu.training.loop import train
    from test_loop import TINY
    cfg = dataclasses.replace(TINY, legs=(dataclasses.replace(TINY.legs[0], steps=4, oversample=("no such word",)),))
    vae, net = train(cfg, data=data, out=tmp_path / "a", progress=False, save_every=2)
    assert (tmp_path / "a/vae-data.safetensors").exists() and (tmp_path / "a/clips/faults.jsonl").exists()

    def stop(state, *_):
        if state.step == 3:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(cfg, data=data, out=tmp_path / "b", progress=False, save_every=2, on_step=stop)
    _, again = train(cfg, data=data, out=tmp_path / "b", progress=False, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    with pytest.raises(ValueError, match="data: got"):
        train(cfg, data=tmp_path / "nowhere", out=tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()


def test_windows_are_drawn_from_all_of_a_folder(tmp_path):
    for k in range(12):
        C.spoil(tmp_path, f"{k:02d}", "whole", greys([20 * k] * 5), "a wall")
    levels = [round(w.mean() / 20) for w in C.some_windows(tmp_path, Buckets(((32, 32),), (5,)), most=4, progress=False)]
    assert len(levels) == 4 and levels != [0, 1, 2, 3]


def test_more_latents_than_memory_are_refused_and_stay(data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(C, "memory", lambda: 1000)
    with pytest.raises(ValueError, match="cache: .* GiB to learn from, allowed: half of this machine's memory"):
        build(data, tmp_path)
    assert [p.name for p in sorted(tmp_path.glob("shard-*"))] == [p.name for p in cache.shards()]
    monkeypatch.setattr(C, "memory", lambda: sum(p.stat().st_size for p in cache.shards()))           # twice what half of the files need
    few = C.ClipCache(tmp_path, cache.key, {(f"{k:04d}.mp4", stamp) for k in range(3) for name, stamp in cache.done if name == f"{k:04d}.mp4"}).open()
    assert few.stale and len(few.load()) > 0


def test_a_run_keeps_to_the_videos_its_autoencoder_was_adapted_to(data, tmp_path):
    from sora_edu.training.loop import adapted
    from test_loop import TINY
    vae = adapted(small_vae(), TINY, data, tmp_path, progress=False)
    assert C.vae_hash(adapted(small_vae(1), TINY, data, tmp_path, progress=False)) == C.vae_hash(vae)      # from the folder
    with pytest.raises(ValueError, match=r"data: got .*other, .* steps, but the VAE in .* was adapted to .*, allowed: the same, or another out"):
        adapted(small_vae(), TINY, tmp_path / "other", tmp_path, progress=False)


def test_the_command_tunes_weights_on_videos(data, tmp_path, monkeypatch, capsys):
    "From weights, in a leg of its own, and again after a kill; words and shapes of the videos go into the new weights, and none are written over."
    from sora_edu.pipeline.generate import generate_unmarked, package, read_config
    from sora_edu.studio import cli
    from sora_edu.training import configs, loop
    from test_loop import TINY
    tiny = dataclasses.replace(TINY, tune=dataclasses.replace(TINY.legs[0], steps=3, oversample=("no such word",)))
    for module in (configs, loop):
        monkeypatch.setattr(module, "get_config", lambda name: tiny)
    begun = loop.Trainee(tiny)
    package(tmp_path / "before", small_vae(), begun.text_encoder, begun.dit, tiny, legs=[{"leg": 0, "steps": 9}])
    command = ["train", "nano", "--data", str(data), "--from", str(tmp_path / "before"), "--device", "cpu", "--json"]
    monkeypatch.chdir(tmp_path)
    step = loop.train_step

    def killed(state, *args):
        if state.step == 2:
            raise KeyboardInterrupt
        return step(state, *args)
    monkeypatch.setattr(loop, "train_step", killed)
    monkeypatch.setattr(loop.train, "__kwdefaults__", loop.train.__kwdefaults__ | {"save_every": 1})
    assert cli.run(command) != 0 and not Path("runs/nano-tune/legtune.safetensors").exists()
    monkeypatch.setattr(loop, "train_step", step)
    assert cli.run(command) == 2 and "legtune.pt" in capsys.readouterr().err
    assert cli.run([*command, "--resume"]) == 0
    told, out = json.loads(capsys.readouterr().out), Path("runs/nano-tune")
    config, made = read_config(out / "weights"), json.loads((out / "weights/model.json").read_text())["info"]["legs"]
    assert told["legs"] == ["tune"] and [(leg["leg"], leg["steps"], leg.get("data")) for leg in made] == [(0, 9, None), ("tune", 3, "videos")]
    assert [json.loads(row)["step"] for row in (out / "legtune.jsonl").read_text().splitlines()] == [3] and (out / "legtune-step00003.png").exists()
    assert config.sizes == ((32, 32), (32, 48)) and config.num_frames == (1, 5)           # no video is tall
    clip = generate_unmarked("a blue box, wide", weights=out / "weights", height=32, width=48, num_inference_steps=2)
    assert clip.shape == (1, 5, 32, 48, 3)
    other = tmp_path / "tall"
    other.mkdir()
    C.spoil(other, "x", "whole", np.ascontiguousarray(greys([90] * 9, 80, 48)), "a wall of zebras")
    again = [*command[:3], str(other), "--from", str(out / "weights"), *command[6:]]
    assert cli.run([*again, "--out", str(out)]) == 2 and "legtune.safetensors" in capsys.readouterr().err
    for name in ("legtune.pt", "legtune.safetensors"):
        (out / name).unlink()
    for resumed in ([], ["--resume"]):
        assert cli.run([*again, "--out", str(out), *resumed]) == 2 and "out: got runs/nano-tune, which has weights" in capsys.readouterr().err
    assert cli.run([*again, "--out", "second"]) == 0
    config, words = read_config("second/weights"), json.loads(Path("second/weights/words.json").read_text())
    assert set(config.sizes) == {(32, 32), (32, 48), (48, 32)} and {"zebras", "wide", "wall"} <= {*words}         # what was known stays known


def test_a_run_s_own_autoencoder_goes_on_with_its_leg(data, tmp_path):
    "Be the leg named by its file or by its folder."
    from sora_edu.training.loop import load_vae, train
    from test_loop import TINY
    tiny = dataclasses.replace(TINY, tune=dataclasses.replace(TINY.legs[0], steps=1))
    vae, _ = train(tiny, out=tmp_path / "run", progress=False)
    for start in ("run", "run/leg0.safetensors"):
        train(tiny, leg="tune", data=data, from_weights=tmp_path / start, out=tmp_path / start.replace("/", "-") / "tuned", progress=False)
        assert C.vae_hash(load_vae(tmp_path / start.replace("/", "-") / "tuned/vae.safetensors")) == C.vae_hash(vae)


def test_packaged_weights_are_what_videos_tune(tmp_path, monkeypatch, capsys):
    "Where a config has some and nobody names others or a leg; else the chain begins as ever."
    from sora_edu.pipeline.generate import resolve_weights
    from sora_edu.studio import cli
    told = []
    monkeypatch.setattr(cli, "_train_legs", lambda config, legs, out, start, resume, device, **given: told.append((list(legs), str(out), start and str(start))) or {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()                                            # a name goes before a folder
    for words in (["mini"], ["nano"], ["mini", "--leg", "0"]):
        assert cli.run(["train", *words, "--data", "x", "--device", "cpu"]) == 0
    assert told == [(["tune"], "runs/mini-tune", str(resolve_weights("mini"))), ([0], "runs/nano", None), ([0], "runs/mini", None)]
