"World as a stream: addresses, shards, resuming, worker processes; and its exports, which survive kills and touch nothing of others."
import errno
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import warnings

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import sora_edu
from sora_edu.video import read_metadata, read_video, to_uint8
from sora_edu.world import captions, language, scene, stage
from sora_edu.world import dataset as D
from sora_edu.world.dataset import WORLDS, World, export

TINY = dict(num_frames=2, height=16, width=16)
KEYS = {"video", "caption", "scene", "seed", "index", "fps"}


def tiny(**more):
    return World("mini", **{**TINY, **more})


def numbers(items):
    return [item["index"] for item in items]


def same(a, b):
    "Bit-equal clips with the same words."
    return len(a) == len(b) and all(torch.equal(x["video"], y["video"]) and all(x[k] == y[k] for k in KEYS - {"video"}) for x, y in zip(a, b))


def grey(a, b):
    "The largest difference of two videos in grey levels."
    return (a - b).abs().max().item() * 127.5


# -- one clip ----------------------------------------------------------------------------------------------------------
def test_it_is_the_world_of_chapter_2():
    old, new = scene.World("mini"), World("mini")
    assert sora_edu.World is World and isinstance(new, scene.World) and World().name == "mini"
    for split in ("train", "heldout", "all"):
        assert new.sample(3, 20, split, 5) == old.sample(3, 20, split, 5) and new.scene(1, 2, split) == old.scene(1, 2, split)
    assert World(split="heldout").sample(3, 5) == old.sample(3, 5, "heldout")


def test_the_full_world_draws_from_its_address():
    draw = lambda seed, i, split: stage.draw_shot(random.Random(f"full/{split}/{seed}/{i}"), split)
    assert World("full").sample(4, 6) == [draw(4, i, "train") for i in range(6)] and World("full").scene(4, 9, "heldout") == draw(4, 9, "heldout")
    assert not any(stage.is_heldout(s) for s in World("full").sample(0, 300))


@pytest.mark.parametrize("name", WORLDS)
def test_words_are_those_of_the_scenes(name):
    words, sizes = World(name).words, WORLDS[name].sizes
    for shot in World(name).sample(0, 40, "all"):
        said = {k: v for k, v in vars(shot.description).items() if k in words and v is not None}
        assert len(said) >= 5 and all(value in words[key] for key, value in said.items())
    assert (World(name).num_frames, World(name).height, World(name).width) == sizes


def test_a_clip():
    world = World(seed=7, num_frames=5, height=48, width=32, fps=12, start=2, length=3)
    state = random.getstate(), torch.get_rng_state()
    first, *rest = world
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert set(first) == KEYS and first["video"].shape == (3, 5, 48, 32) and first["video"].dtype == torch.float32 and first["video"].abs().max() <= 1
    assert (first["seed"], first["index"], first["fps"]) == (7, 2, 12.0) and numbers(rest) == [3, 4]
    assert json.loads(first["scene"]) == json.loads(json.dumps(D.asdict(world.scene(7, 2))))
    assert first["video"].untyped_storage().nbytes() == first["video"].numel() * 4      # a kept clip keeps no others


def test_grey_levels_are_those_of_the_files():
    floats, bytes_ = list(tiny(length=3)), list(tiny(length=3, dtype=torch.uint8))
    for a, b in zip(floats, bytes_):
        assert b["video"].dtype == torch.uint8 and (to_uint8(a["video"]) == b["video"].permute(1, 2, 3, 0).numpy()).all()


def test_captions():
    plain = list(tiny(length=20, caption_style="plain", caption_seed=0))
    assert all(item["caption"] == captions.caption(tiny().scene(0, item["index"]), "plain") for item in plain)
    drawn = list(tiny(length=60))
    ways = [[style for style in captions.STYLES if item["caption"] == captions.caption(tiny().scene(0, i), style, D._wording(tiny(), i)[1])]
            for i, item in enumerate(drawn)]
    assert {way for found in ways for way in found} == set(captions.STYLES) and all(ways)
    assert [item["caption"] for item in tiny(length=20, caption_style="plain")] != [item["caption"] for item in plain]
    image = list(tiny(length=20, num_frames=1, caption_style="plain", caption_seed=0))
    assert not any(action in item["caption"] for item in image for action in scene.ACTIONS)


def test_clips_of_the_full_world():
    world = World("full", seed=3, num_frames=3, height=32, width=48, length=6)
    for i, item in enumerate(world):
        shot = world.scene(3, i)
        assert item["video"].shape == (3, 3, 32, 48) and stage.from_json(item["scene"]) == shot and item["scene"] == stage.to_json(shot)
        truth = D._truth(world, item)
        assert vars(language.parse(item["caption"])) == truth["said"] and truth["description"] == vars(shot.description)
        assert len(truth["tracks"]) == sum(g.count for g in shot.groups) and [len(v) for v in truth["camera"].values()] == [3, 3, 3]
        alone = world[i]["video"]
        assert np.abs(to_uint8(alone).astype(int) - to_uint8(item["video"])).max() <= 1
    batch = next(iter(DataLoader(World("full", num_frames=1, height=32, width=32), batch_size=2, num_workers=1)))
    assert batch["video"].shape == (2, 3, 1, 32, 32) and not any(vars(language.parse(text))["action"] for text in batch["caption"])


def test_an_export_of_the_full_world(tmp_path):
    export(World("full", num_frames=2, height=32, width=32, fps=4), tmp_path / "set", 2, progress=False)
    frames, fps = read_video(tmp_path / "set" / "000001.mp4")
    assert frames.shape == (2, 32, 32, 3) and fps == 4 and "zoom" in (tmp_path / "set" / "README.md").read_text()


# -- the same clip, whoever asks ---------------------------------------------------------------------------------------
def test_a_clip_does_not_depend_on_where_the_stream_begins_or_ends():
    whole = list(tiny(length=30))
    for start, length in ((0, 1), (5, 3), (7, 14), (8, 8), (13, 17)):
        assert same(list(tiny(start=start, length=length)), whole[start:start + length])
    endless = iter(tiny(start=25))
    assert same([next(endless) for _ in range(5)], whole[25:])
    assert all(grey(tiny()[i]["video"], whole[i]["video"]) <= 1 for i in (0, 9, 29))
    assert all(grey(a["video"], b["video"]) <= 1 for a, b in zip(tiny(length=30, batch=5), whole))


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_shares_make_up_the_whole(workers, size):
    warnings.simplefilter("ignore")             # of more workers than cores
    whole, seen = {item["index"]: item for item in tiny(start=3, length=29)}, []
    for rank in range(size):
        world = tiny(start=3, length=29, rank=rank, world_size=size)
        mine = list(DataLoader(world, batch_size=None, num_workers=workers))
        assert len(mine) == len(world) and len({i["index"] for i in mine}) == len(mine)
        seen += mine
    assert sorted(numbers(seen)) == list(range(3, 32))
    assert all(grey(item["video"], whole[item["index"]]["video"]) <= 1 and item["caption"] == whole[item["index"]]["caption"] for item in seen)


@pytest.mark.parametrize("rank, size, start, length", [(r, s, a, n) for s in (1, 2, 3, 5) for r in range(s) for a, n in ((0, 20), (4, 17), (7, 2), (6, 0))])
def test_shares_by_arithmetic(rank, size, start, length):
    "Without rendering: a rank's clips are every `size`-th, shared out among any number of workers."
    world, expected = tiny(rank=rank, world_size=size, start=start, length=length, batch=3), [i for i in range(start, start + length) if i % size == rank]
    assert len(world) == len(expected)
    for workers in (1, 2, 4):
        found = [indices[k] for worker in range(workers) for indices, mine in D._blocks(world, worker, workers) for k in mine]
        assert sorted(found) == expected and (workers > 1 or found == expected)


def test_order_is_kept_with_workers_where_loader_and_blocks_agree():
    loader = DataLoader(tiny(length=40, batch=4), batch_size=4, num_workers=2)
    assert torch.cat([batch["index"] for batch in loader]).tolist() == list(range(40)) and len(loader) == 10


def test_default_collate():
    batch = next(iter(DataLoader(tiny(seed=2**63 - 1), batch_size=3)))
    assert batch["video"].shape == (3, 3, 2, 16, 16) and len(batch["caption"]) == 3 and batch["index"].tolist() == [0, 1, 2]
    assert batch["seed"].tolist() == [2**63 - 1] * 3 and batch["fps"].tolist() == [8, 8, 8]


def test_ranks_come_from_torch_distributed(monkeypatch):
    world, early = tiny(length=9), pickle.dumps(tiny(length=9))
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert numbers(world) == [1, 3, 5, 7] and len(world) == 4 and numbers(pickle.loads(early)) == [1, 3, 5, 7]
    sent = pickle.dumps(world)
    monkeypatch.undo()
    assert numbers(pickle.loads(sent)) == [1, 3, 5, 7] and numbers(world) == list(range(9))     # a worker process knows no ranks


def test_length():
    assert len(tiny(length=0)) == 0 and list(tiny(length=0)) == [] and bool(tiny(length=0)) and bool(tiny())
    with pytest.raises(TypeError, match="length"):
        len(tiny())


# -- resuming ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start, rank", [(0, None), (5, 1)])
def test_resuming_goes_on_bit_for_bit(start, rank):
    made = lambda: tiny(start=start, length=21, batch=4, rank=rank, world_size=rank and 2)
    whole = list(made())
    for k in (*range(6), len(whole) - 1, len(whole)):
        world, again = made(), made()
        stream = iter(world)
        before = [next(stream) for _ in range(k)]
        again.load_state_dict(json.loads(json.dumps(world.state_dict())))
        assert again.state_dict() == world.state_dict() and same(before + list(again), whole)
        assert numbers(again) == numbers(whole)             # the pass after that is a whole one


def test_a_finished_pass_begins_anew():
    world = tiny(length=3)
    assert numbers(world) == numbers(world) == [0, 1, 2] and world.state_dict()["done"] == 0


@pytest.mark.parametrize("change, word", [(dict(seed=1), "seed"), (dict(start=1), "start"), (dict(batch=3), "batch"), (dict(height=32), "height"),
                                          (dict(rank=1, world_size=2), "rank"), (dict(split="all"), "split")])
def test_a_state_of_another_stream_is_refused(change, word):
    with pytest.raises(ValueError, match=f"state: got {word} = .*allowed:"):
        tiny().load_state_dict(tiny(**change).state_dict())


@pytest.mark.parametrize("state", [None, {}, {"done": 3}, {"done": -1, "stream": {}}, {"done": "3", "stream": {}}, {"done": 1, "stream": []}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="state"):
        tiny().load_state_dict(state)


@pytest.mark.parametrize("name, value", [
    ("name", "maxi"), ("name", None), ("name", ["mini"]), ("seed", -1), ("seed", 1.5), ("seed", True), ("seed", 2**63), ("split", "test"), ("split", None),
    ("num_frames", 0), ("num_frames", "9"), ("height", 15), ("width", 2000), ("fps", 0), ("fps", float("nan")), ("fps", float("inf")), ("fps", "8"),
    ("caption_style", "rude"), ("caption_seed", -1), ("start", -1), ("start", None), ("length", -1), ("length", 2.0), ("dtype", torch.float16),
    ("dtype", "uint8"), ("batch", 0), ("rank", 0), ("world_size", 2)])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*got .*allowed: "):
        World(**{name: value})


def test_bad_ranks_and_addresses():
    for rank in (-1, 2, 0.0):
        with pytest.raises(ValueError, match="rank: got"):
            World(rank=rank, world_size=2)
    for index in (-1, 1.0, "3"):
        with pytest.raises(ValueError, match="index: got"):
            World()[index]
    with pytest.raises(ValueError, match="split: got 'test'"):
        World().sample(0, 1, "test")


# -- exporting ---------------------------------------------------------------------------------------------------------
def contents(folder):
    "Name -> bytes of all files of a folder."
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder(tmp_path):
    world = World(seed=5, start=3, num_frames=5)
    assert export(world, tmp_path / "a" / "set", 4, progress=False) == tmp_path / "a" / "set"
    names = sorted(contents(tmp_path / "a" / "set"))
    assert names == sorted([".export.json", "README.md", "metadata.jsonl", *(f"{i:06d}.{e}" for i in range(3, 7) for e in ("mp4", "txt", "json"))])
    rows = [json.loads(line) for line in (tmp_path / "a/set/metadata.jsonl").read_text().splitlines()]
    for item, row in zip(World(seed=5, start=3, num_frames=5, length=4), rows):
        path = tmp_path / "a/set" / row["file_name"]
        frames, fps = read_video(path)
        truth = json.loads(path.with_suffix(".json").read_text())
        assert fps == 8 and np.abs(frames.astype(int) - to_uint8(item["video"])).mean() < 4
        assert item["caption"] == path.with_suffix(".txt").read_text() == row["caption"] == truth["caption"] == read_metadata(path)["title"]
        assert "no model" in read_metadata(path)["comment"] and (row["index"], row["scene"]) == (item["index"], item["scene"])
        assert truth["scene"] == json.loads(item["scene"]) and truth["captions"] == {s: row[s] for s in captions.STYLES}
        assert vars(captions.parse(item["caption"])) == truth["said"] and [len(truth["tracks"][0][k]) for k in ("x", "y", "radius", "angle")] == [5] * 4


def test_webdataset(tmp_path):
    world = tiny(seed=5)
    for name in ("a", "b"):
        export(world, tmp_path / name, 7, format="webdataset", shard_size=3, progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [".export.json", "README.md", *(f"shard-{k:06d}.tar" for k in range(3))]
    found = {}
    for k in range(3):
        with tarfile.open(tmp_path / "a" / f"shard-{k:06d}.tar") as shard:
            assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in shard)
            found |= {m.name: shard.extractfile(m).read() for m in shard}
    assert list(found) == [f"{i:06d}.{e}" for i in range(7) for e in ("json", "mp4", "txt")]
    export(world, tmp_path / "c", 7, progress=False)
    assert {name: data for name, data in contents(tmp_path / "c").items() if name in found} == found     # both forms hold the same files


@pytest.mark.parametrize("format", D.FORMATS)
def test_the_card(tmp_path, monkeypatch, format):
    export(tiny(seed=4, split="heldout"), tmp_path / "set", 3, format=format, progress=False)
    text = (tmp_path / "set" / "README.md").read_text()
    front, body = yaml.safe_load(text.split("---\n")[1]), text.split("---\n", 2)[2]
    assert front["license"] == "apache-2.0" and front["task_categories"] == ["text-to-video"] and front["size_categories"] == ["n<1K"]
    told = front["sora_edu"]
    assert (told["name"], told["n"], told["seed"], told["split"], told["version"]) == ("mini", 3, 4, "heldout", sora_edu.__version__) and "commit" in told
    assert (told["num_frames"], told["height"], told["width"], told["fps"]) == (2, 16, 16, 8)
    assert front["configs"][0]["data_files"][0]["split"] == "heldout" and not re.search(r"\{[a-z_]*\}|OUT/.*LAST", body)
    for word in ("Synthetic", "held out", "load_dataset", "webdataset", "av" if format == "folder" else "tarfile"):
        assert word in body
    code = next(block.split("```")[0] for block in body.split("```python\n") if "export(world" in block)
    monkeypatch.chdir(tmp_path)
    exec(code, {})                                      # what the card says makes the same data again
    assert contents(tmp_path / "again") == contents(tmp_path / "set")


@pytest.mark.parametrize("format", D.FORMATS)
def test_an_interrupted_export_goes_on(tmp_path, monkeypatch, format):
    options = dict(format=format, shard_size=None if format == "folder" else 2, progress=False)
    export(tiny(batch=3), tmp_path / "whole", 7, **options)
    real, made = D._record, []

    def stops(world, item):
        made.append(item["index"])
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(world, item)
    monkeypatch.setattr(D, "_record", stops)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        export(tiny(batch=3), tmp_path / "part", 7, **options)
    before = contents(tmp_path / "part")
    assert "README.md" not in before and len(before) == (10 if format == "folder" else 2)
    export(tiny(batch=3), tmp_path / "part", 7, **options)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole") and len(made) < 4 + 7     # not all over again
    for name in ("000002.mp4", "shard-000001.tar"):
        (tmp_path / "part" / name).unlink(missing_ok=True)
    export(tiny(batch=3), tmp_path / "part", 7, **options)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    seen = len(made)
    export(tiny(batch=3), tmp_path / "part", 7, **options)
    assert len(made) == seen                            # complete: nothing to do


def test_a_killed_export_goes_on(tmp_path, root):
    made, count = World(num_frames=5, height=32, width=32), 120
    code = f"from sora_edu.world.dataset import World, export; export(World(num_frames=5, height=32, width=32), {str(tmp_path / 'part')!r}, {count})"
    work = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not (tmp_path / "part" / "000005.json").exists() and time.time() < deadline:
        time.sleep(0.01)
    work.send_signal(signal.SIGKILL)
    work.wait()
    there = [path for path in (tmp_path / "part").iterdir() if not path.name.startswith(".")]
    assert 16 <= len(there) < 3 * count and all(len(read_video(path)[0]) == 5 for path in there if path.suffix == ".mp4")
    (tmp_path / "part" / ".000013.mp4.abcdefgh").write_bytes(b"half a clip")
    for name in ("part", "whole"):
        export(made, tmp_path / name, count, progress=False)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change, options, word", [
    (dict(seed=1), {}, "seed"), (dict(split="all"), {}, "split"), (dict(num_frames=1), {}, "num_frames"), (dict(caption_style="plain"), {}, "caption_style"),
    (dict(), dict(n=3), "n"), (dict(), dict(format="webdataset"), "format"), (dict(start=1), {}, "start")])
def test_other_arguments_are_refused_and_nothing_is_lost(tmp_path, change, options, word):
    export(tiny(), tmp_path / "set", 2, progress=False)
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"^{word}: got .* but .*set holds an export with .* allowed: "):
        export(tiny(**change), tmp_path / "set", **{"n": 2, "progress": False, **options})
    assert contents(tmp_path / "set") == before


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".export.json").write_text("[1]")
    for name, word in (("file", "is a file"), ("full", "thesis.txt"), ("odd", "damaged")):
        with pytest.raises(ValueError, match=f"^out: got .*{word}.*allowed: "):
            export(tiny(), tmp_path / name, 2, progress=False)
    assert (tmp_path / "file").read_text() == "mine" and sorted(contents(tmp_path / "full")) == ["thesis.txt"]
    with pytest.raises(OSError):
        export(tiny(), tmp_path / "file" / "sub", 2, progress=False)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".keep").write_text("")
    export(tiny(), tmp_path / "hidden", 1, progress=False)
    assert ".keep" in contents(tmp_path / "hidden")


@pytest.mark.parametrize("world, options, word", [
    (tiny(), dict(n=0), "n"), (tiny(), dict(n=-1), "n"), (tiny(), dict(n=1.0), "n"), (tiny(), dict(n=True), "n"), (tiny(), dict(n=10**9), "n"),
    (tiny(), dict(format="zip"), "format"), (tiny(), dict(shard_size=5), "shard_size"), (tiny(), dict(format="webdataset", shard_size=0), "shard_size"),
    (tiny(height=17), {}, "height"), (tiny(width=31), {}, "width"), (tiny(fps=500), {}, "fps"), (scene.World(), {}, "world"), ("mini", {}, "world")])
def test_what_cannot_be_exported_leaves_no_folder(tmp_path, world, options, word):
    with pytest.raises(ValueError, match=f"^{word}: got .*allowed"):
        export(world, tmp_path / "set", **{"n": 2, "progress": False, **options})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("format", D.FORMATS)
def test_a_full_disk(tmp_path, monkeypatch, format):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)
    monkeypatch.setattr(os, "fsync", full)
    options = dict(format=format, progress=False, **({"shard_size": 1} if format == "webdataset" else {}))
    with pytest.raises(OSError, match="No space left on device .*the same call goes on.*set"):
        export(tiny(), tmp_path / "set", 3, **options)
    assert len(contents(tmp_path / "set")) == 2                     # no half-written file
    monkeypatch.undo()
    export(tiny(), tmp_path / "set", 3, **options)
    export(tiny(), tmp_path / "other", 3, **options)
    assert contents(tmp_path / "set") == contents(tmp_path / "other")
