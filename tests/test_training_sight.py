"Teaching the oracle to see: the cache, what is spoilt and where, the losses, a run that is killed and goes on."
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from sora_edu.training import sight as S
from sora_edu.training.sight import OracleConfig, batch_of, build_cache, damaged, sight_loss, spoil, torn, train_oracle, worn
from sora_edu.world.sight import Glance, Sight, SightConfig, load_sight

TINY = OracleConfig(sight=SightConfig(widths=(4, 6, 8, 10), drift_width=8, glance_widths=(4, 6, 8)), clips=64, mini_clips=64,
                    steps=6, batch_size=4, warmup=2, glance_steps=4, glance_batch=6, drift_steps=4, drift_batch=6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return build_cache(TINY, tmp_path_factory.mktemp("frames"), workers=0, progress=False)


def test_the_cache_holds_frames_and_their_truth(cache):
    assert cache["frames"].shape == (128, 3, 3, 128, 128) and cache["frames"].dtype == np.uint8
    there = cache["names"][..., 0] >= 0
    assert there.any(1).all() and there[64:].sum() == 64                                   # mini: one actor a clip
    x, y, radius, angle, seen = np.moveaxis(cache["actors"][there], -1, 0)
    assert (0 < x).all() and (x < 1).all() and (0.05 < radius).all() and (radius < 0.4).all() and (0 <= seen).all() and (seen <= 1).all()
    assert np.allclose(cache["camera"][64:], [0, 0, 1])


def test_the_actor_is_where_the_truth_says(cache):
    "Within a mini actor's circle some pixels are unlike those beside it."
    for k in range(64, 80):
        x, y, r = cache["actors"][k, 0, 1, :3] * 128
        frame = cache["frames"][k, 1].astype(int)
        py, px = np.mgrid[:128, :128] + 0.5
        beside = frame[:, int(np.clip(y, 0, 127)), int(np.clip(x + 1.6 * r if x + 1.6 * r < 127 else x - 1.6 * r, 0, 127))]
        far = np.abs(frame - beside[:, None, None]).max(0)
        assert far[np.hypot(px - x, py - y) < 0.9 * r].max() > 40


def test_a_cache_that_was_cut_off_goes_on(tmp_path, cache):
    build_cache(TINY.__class__(**{**vars(TINY), "mini_clips": 0}), tmp_path / "a", workers=0, progress=False)
    whole = build_cache(TINY.__class__(**{**vars(TINY), "mini_clips": 0}), tmp_path / "a", workers=0, progress=False)
    assert all(np.array_equal(whole[name], cache[name][:64]) for name in whole)


def test_batches_come_by_seed_and_cover_every_clip_once(cache):
    seen = [batch_of(cache, TINY, step) for step in range(32)]
    first = torch.cat([b["frames"][:, 0, :, 64].mean((1, 2)) for b in seen])
    every = torch.from_numpy(cache["frames"][:, 0, :, 64].astype(np.float32)).div(127.5).sub(1).mean((1, 2))
    assert torch.allclose(first.sort().values, every.sort().values, atol=1e-5)
    again = batch_of(cache, TINY, 3)
    assert all(torch.equal(again[k], seen[3][k]) for k in again) and not torch.equal(seen[3]["frames"], seen[4]["frames"])


@pytest.mark.parametrize("seed", range(12))
def test_spoiling_changes_the_actor_and_nothing_far_from_it(cache, seed):
    "Far from it: beyond three radii, and where it throws no shadow."
    full = {name: v[:64] for name, v in cache.items()}
    batch = batch_of(full, TINY, seed)
    frames, without, track = batch["frames"][0], batch["without"][0], batch["actors"][0, 0]
    new = spoil(frames, without, track, batch["frames"][1], random.Random(seed))
    x, y, r = (track[:, k, None, None] * 128 for k in range(3))
    around = lambda d: torch.minimum(d.abs(), 128 - d.abs())                  # what is pushed out on one side comes in on the other
    far = torch.hypot(around(torch.arange(128) + 0.5 - x), around(torch.arange(128)[:, None] + 0.5 - y)) > 3.2 * r
    far &= torch.nn.functional.max_pool2d((frames - without).abs().amax(1), 17, 1, 8) == 0
    changed = (new - frames).abs().amax(1)
    assert far.any() and changed[far].max() < 1e-5 and changed.max() > 0.1


def test_the_frames_without_the_first_actor_are_the_same_elsewhere(cache):
    for k in range(8):
        x, y, r = cache["actors"][k, 0, 1, :3] * 128
        py, px = np.mgrid[:128, :128] + 0.5
        changed = (cache["frames"][k, 1] != cache["without"][k, 1]).any(0)
        assert changed[np.hypot(px - x, py - y) < 1.5 * r].sum() > 0.6 * changed.sum() > 6


@pytest.mark.parametrize("seed", range(8))
def test_torn_cells_are_those_that_changed(cache, seed):
    batch = batch_of(cache, TINY, seed)
    new, mask = torn(batch["frames"][0], batch["frames"][1], random.Random(seed))
    changed = torch.nn.functional.avg_pool2d((new - batch["frames"][0]).abs().mean(1, keepdim=True), 4)[:, 0]
    assert mask.shape == (3, 32, 32) and changed[mask].min() > 0.1 and (changed[~mask] <= 0.121).all()


@pytest.mark.parametrize("seed", range(10))
def test_wear_keeps_the_picture(cache, seed):
    frames = batch_of(cache, TINY, seed)["frames"][0]
    new = worn(frames, random.Random(seed))
    assert new.shape == frames.shape and new.abs().max() <= 1 and 0 < (new - frames).abs().mean() < 0.25


def test_a_spoilt_actor_teaches_only_that_it_is_not_whole(cache):
    net = Sight(TINY.sight)
    batch = damaged(batch_of(cache, TINY, 0), TINY.__class__(**{**vars(TINY), "spoilt": 0.0, "torn": 0.0, "worn": 0.0}), 0)
    assert (batch["whole"] == 1).all() and (batch["torn"] == 0).all()
    loss, parts = sight_loss(net, batch)
    _, none = sight_loss(net, batch | {"whole": torch.zeros_like(batch["whole"])})
    assert torch.isfinite(loss) and parts["kind"] > 0 and none["kind"] == none["colour"] == none["radius"] == 0
    assert set(parts) >= {"there", "turn", "whole", "torn", "setting", "style"}


def test_turned_clips_keep_their_truth(cache):
    "A mark in the middle of an actor stays in its middle, and what is turned by an angle says so."
    rng = random.Random(1)
    frames = torch.full((1, 3, 128, 128), -1.0)
    frames[..., 36:44, 84:92] = 1.0
    actors, names = torch.tensor([88 / 128, 40 / 128, 0.1, 0.5, 1.0]).expand(4, 1, 5), torch.tensor([[0, 0], [-1, -1], [-1, -1], [-1, -1]])
    new, where, done = S.turned(frames, actors, names, rng)
    x, y = where[0, 0, :2] * 128
    assert done and new[0, 0, int(y), int(x)] > 0.9 and float(new.max(1).values.gt(0).sum()) < 120
    back = math.atan2(float(y) - 64, float(x) - 64) - math.atan2(40 - 64, 88 - 64)
    assert abs((float(where[0, 0, 3]) - 0.5 - back + math.pi) % (2 * math.pi) - math.pi) < 1e-4


def test_the_closer_look_is_given_what_is_true_of_each_crop(cache):
    batch = S.glance_batch(cache, TINY, 0)
    n = len(batch["kind"])
    assert batch["crop"].shape == (n, 3, 48, 48) and n >= TINY.glance_batch - 1
    assert all(len(v) == n for v in batch.values()) and batch["offset"].abs().max() < 1.5 and batch["radius"].abs().max() < 1
    again = S.glance_batch(cache, TINY, 0)
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    loss, parts = S.glance_loss(Glance((4, 6, 8)), batch)
    assert torch.isfinite(loss) and set(parts) == {"kind", "colour", "turn", "offset", "radius", "whole"}


def test_some_clips_have_one_actor_before_another():
    before = lambda shot: shot.relation in ("in front of", "behind")
    rng = random.Random(0)
    assert all(before(S._shot(rng, 1.0)) for _ in range(10)) and 0 <= sum(before(S._shot(rng, 0.0)) for _ in range(200)) < 30


def test_spoilt_actors_are_cut_out_far_off(cache):
    "As a first look, which takes half an actor for a whole one, would do it."
    batches = [S.glance_batch(cache, TINY, step) for step in range(30)]
    offset, whole = (torch.cat([b[name] for b in batches]) for name in ("offset", "whole"))
    far = offset.norm(dim=1)
    assert 0.25 < far[whole == 0].mean() < 0.6 and 0.08 < far[whole == 1].mean() < 0.25 and far[whole == 1].max() > 0.4


def test_a_second_leg_goes_on_from_the_first_one_s_weights(tmp_path):
    first = train_oracle(TINY, tmp_path / "first", progress=False)
    start = tmp_path / "first" / "oracle.safetensors"
    second = train_oracle(TINY.__class__(**{**vars(TINY), "steps": 2, "learning_rate": 1e-9, "glance_steps": 0, "drift_steps": 0, "seed": 1}), tmp_path / "second", start=start, progress=False)
    near = lambda a, b: all(torch.allclose(p, q, atol=0.02, rtol=0.02) for p, q in zip(a.parameters(), b.parameters()))
    assert near(first, second) and not near(first, Sight(TINY.sight))
    assert not (tmp_path / "second" / "glance.jsonl").exists() and load_sight(tmp_path / "second" / "oracle.safetensors").config == TINY.sight


def test_the_camera_s_lesson_knows_its_way(cache):
    batch = S.drift_batch(cache, TINY, 1)
    assert batch["pair"].shape == (6, 2, 64, 64) and batch["way"].shape == (6, 3)
    again = S.drift_batch(cache, TINY, 1)
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    right = lambda pair: batch["way"]
    assert S.drift_loss(right, batch)[0] == 0 < S.drift_loss(lambda pair: right(pair) + 0.01, batch)[0]
    plain = batch_of(cache, TINY.__class__(**{**vars(TINY), "batch_size": 6}), 1)["camera"]
    assert torch.equal(batch["way"][:, 0], (plain[:, 2, 0] - plain[:, 1, 0]) * torch.tensor([-1.0, 1.0]).repeat(3))


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match="out: got .*checkpoint.pt.*--resume"):
        train_oracle(TINY, tmp_path, progress=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"precious"


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = train_oracle(TINY, tmp_path / "whole", progress=False)
    calls, real = [], S.sight_loss

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return real(*args, **kwargs)
    monkeypatch.setattr(S, "sight_loss", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train_oracle(TINY, tmp_path / "part", progress=False, save_every=2)
    monkeypatch.setattr(S, "sight_loss", real)
    part = train_oracle(TINY, tmp_path / "part", resume=True, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), part.state_dict().values()))
    loaded = load_sight(tmp_path / "part" / "oracle.safetensors")
    assert loaded.config == TINY.sight and all(torch.allclose(a, b, atol=0.02, rtol=0.02) for a, b in zip(loaded.parameters(), part.parameters()))


@pytest.mark.parametrize("start", [0, 1, 7, 14])
def test_windows_that_a_codec_gave_back_are_the_same_windows(start):
    "Near to what was drawn, not equal to it, and nearer to that than to a frame later; the truth is that of the plain ones."
    rng = random.Random(0)
    shots = [S.draw_shot(rng, "all") for _ in range(6)]
    plain = S._windows(shots, start, None, TINY, random.Random(0))
    for seed in range(3):
        again = S._windows(shots, start, None, replace(TINY, stored=1.0), random.Random(seed))
        off = (again - plain).square().mean()
        assert again.shape == plain.shape and again.abs().max() <= 1
        assert 0.0001 < off < 0.02 and off < 0.9 * (again[:, :, :-1] - plain[:, :, 1:]).square().mean()


def test_stored_clips_differ_in_strength_and_come_by_seed():
    clip = S.film.render(S.draw_shot(random.Random(4), "all"), 9, 128, 128)
    off = [float((S.stored(clip, 0, random.Random(seed)) - clip).square().mean()) for seed in range(6)]
    assert len(set(off)) > 3 and max(off) > 1.2 * min(off)
    assert off[0] == float((S.stored(clip, 0, random.Random(0)) - clip).square().mean())


def test_frames_of_another_leg_are_refused(tmp_path):
    few = replace(TINY, mini_clips=0)
    build_cache(few, tmp_path, workers=0, progress=False)
    with pytest.raises(ValueError, match="out: got .* drawn with seed 0, allowed: 1"):
        build_cache(replace(few, seed=1), tmp_path, workers=0, progress=False)


@pytest.mark.parametrize("seen, layer", [(1.0, 0), (0.5, 1), (0.1, None)])
def test_who_is_covered_has_a_map_of_their_own(seen, layer):
    actors, names = torch.tensor([[[0.5, 0.5, 0.1, 0.0, seen]]]), torch.zeros(1, 1, 2, dtype=torch.long)
    heat = S._spots(actors, names, torch.ones(1, 1))[0]
    assert [float(heat[0, k].max()) == 1 for k in (0, 1)] == [layer == 0, layer == 1]
