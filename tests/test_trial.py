"The full world's oracle on trial: corruptions do what they say, readings are counted right, and nothing is forgiven unasked."
from dataclasses import replace

import pytest
import torch

from sora_edu.evaluate import speed, trial as T
from sora_edu.model.vae import psnr
from sora_edu.world import eye, film
from sora_edu.world.dataset import World
from sora_edu.world.oracle import Reading
from sora_edu.world.stage import Group, Shot

SMALL = dict(num_frames=9, height=64, width=64)
NAMES = {"oracle_worst_attribute", "oracle_all", "false_unreadable", "oracle_loss_h264", "oracle_loss_pca", "corruptions_worst", "oracles_agree"}
WITNESSES = {
    "one": Shot((Group("small", "yellow", "star", ("moves right",)),), "over a meadow", "at sunset", seed=5),
    "three": Shot((Group("small", "red", "fish", ("spins",), 3),), "underwater", None, None, style="neon", seed=2),
    "pair": Shot((Group("small", "white", "flower", ("grows",)), Group("big", "red", "ball")), "in the snow", "in the morning", relation="in front of"),
}
SECOND_HALF = ("teleport", "recolour", "duplicate", "cut")


def _grey(a, b):
    "How far two clips are apart, in grey levels: [T, H, W]."
    return (a - b).abs().amax(0) * 127.5


@pytest.fixture(scope="module", params=list(WITNESSES))
def take(request):
    return T.Take(WITNESSES[request.param], 3, **SMALL)


@pytest.fixture(scope="module")
def single():
    return T.Take(WITNESSES["one"], 3, **SMALL)


def _corrupt(take, name):
    "A fresh draw each time, whatever was drawn before."
    take.rng.seed(name)
    return T.CORRUPTIONS[name](take)


def test_every_figure_has_a_measure_and_is_slow():
    assert NAMES <= set(speed.MEASURES["world"]) and T.__name__ in speed.HOMES["world"]
    assert all(speed.MEASURES["world"][name][2] for name in NAMES)


def test_there_are_nine_corruptions():
    assert list(T.CORRUPTIONS) == ["melting", "teleport", "recolour", "duplicate", "debris", "half", "shuffled", "frozen", "cut"]


# -- one actor taken out -----------------------------------------------------------------------------------------------
def test_without_the_actor_the_rest_plays_on(take):
    assert torch.equal(take.clip, film.render(take.shot, **SMALL)[0])
    there, apart = take.mask > 0.9, _grey(take.clip, take.empty)
    assert apart[there].mean() > 25                                       # it is gone
    others = (take.truth.masks.sum(0) - take.mask > 0.9) & ~take.within(2)
    assert (apart[others] < 12).float().mean() > 0.97 if others.any() else len(take.truth.kinds) == 1
    assert not torch.equal(take.clip, take.alone) or len(take.truth.kinds) == 1
    seen = take.cover > 0.9
    assert (_grey(take.alone, take.clip)[there] < 12).float().mean() > 0.9 and seen.sum() >= there.sum()


def test_what_stands_behind_is_there_when_the_front_is_gone():
    take = next(t for t in (T.Take(WITNESSES["pair"], seed, **SMALL) for seed in range(9)) if t.group == 0)
    hidden = (take.mask > 0.9) & (take.truth.covers[1 - take.who] > 0.9)
    assert hidden.any()
    red, green, _ = (take.empty[:, hidden].mean(1) + 1) * 127.5
    assert red > green + 60                                               # the ball, not the snow


# -- corruptions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(T.CORRUPTIONS))
def test_a_corruption_is_a_clip_and_changes_one(take, name):
    broken = _corrupt(take, name)
    if broken is None:
        assert name in ("teleport", "duplicate")
        return
    assert broken.shape == take.clip.shape and torch.isfinite(broken).all() and broken.abs().max() <= 1.0001
    change = (_grey(broken, take.clip) > 20).flatten(1).sum(1)            # pixels a frame
    assert change[4:].max() > 8
    if name in SECOND_HALF:
        assert torch.equal(broken[:, :4], take.clip[:, :4]) and (change[4:] > 5).all()
    if name in ("melting", "half", "debris"):
        assert (change > 0).all()


@pytest.mark.parametrize("name", list(T.CORRUPTIONS))
def test_a_corruption_repeats(name):
    a, b = (T.CORRUPTIONS[name](T.Take(WITNESSES["one"], 1, **SMALL)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["melting", "half"])
def test_what_is_far_from_the_actor_stays(take, name):
    away = _grey(_corrupt(take, name), take.clip)[~take.within(2.6)]
    assert (away > 12).float().mean() < 0.02


def test_a_recoloured_actor_leaves_the_scenery_alone(take):
    truth, change = take.truth, _grey(_corrupt(take, "recolour"), take.clip)[4:]
    background = truth.background[0, 4:] > 0.999
    mine = truth.masks[truth.group == take.group].sum(0)[4:] > 0.9
    assert change[mine].mean() > 15
    assert (change[background] > 20).float().mean() < 0.1                 # outlines, and the glow of neon


def test_melting_melts_more_and_more_and_does_not_slide(single):
    single.rng.seed(0)
    wax = T._wax(single)
    near = single.within(1.0)
    strength = [float(w[n].square().sum(1).mean().sqrt()) for w, n in zip(wax, near)]
    assert strength == sorted(strength) and 0.2 < strength[-1] < 0.9 and strength[0] < 0.3 * strength[-1]
    drift = wax[-1][near[-1]].mean(0).norm()
    assert drift < 0.45 * strength[-1]


def test_small_actors_melt_as_much_as_big_ones():
    def strength(size, seed):
        take = T.Take(Shot((Group(size, "red", "ball", ("stays still",)),), "in the desert", seed=1), seed, **SMALL)
        w = T._wax(take)[-1][take.within(1.0)[-1]]
        return float((w - w.mean(0)).square().sum(1).mean().sqrt())
    assert all(0.85 < strength("small", seed) / strength("big", seed) < 1.15 for seed in range(4))


def test_teleport_takes_it_away_and_duplicate_does_not(single):
    moved, doubled = _corrupt(single, "teleport"), _corrupt(single, "duplicate")
    there = single.mask[4:] > 0.9
    assert (_grey(moved, single.empty)[4:][there] < 2).float().mean() > 0.95
    assert (_grey(doubled, single.clip)[4:][there] < 2).float().mean() > 0.95
    new = _grey(moved, single.empty)[4:] > 20
    assert new.flatten(1).any(1).all() and not (new & single.within(1.2)[4:]).any()


def test_an_actor_is_moved_whole(take):
    take.rng.seed(1)
    frames = slice(4, 9)
    far = T._elsewhere(take, frames)
    if far is None:
        return
    x, y, r = (take.track[k, frames] * 64 for k in range(3))
    for v, d in ((x, far[0]), (y, far[1])):
        assert (v + d - 1.15 * r > -1).all() and (v + d + 1.15 * r < 65).all()      # nothing comes in again on the other side
    for other in take.truth.tracks[:, :3, frames] * 64:                                 # nor does it stand before anybody
        assert (torch.hypot(other[0] - x - far[0], other[1] - y - far[1]) > other[2] + r).all()


def test_elsewhere_is_no_step_away():
    take, far = T.Take(Shot((Group("small", "red", "star", ("shrinks",)),), "in the desert", seed=1), **SMALL), []
    for seed in range(40):
        take.rng.seed(seed)
        far.append(T._elsewhere(take, slice(4, 9)))
    assert min((x * x + y * y)**0.5 for x, y in far) > 0.25 * 64 - 1 and len(set(far)) > 30


def test_who_is_put_elsewhere_is_whole_though_it_was_hidden(monkeypatch):
    hidden = Shot((Group("small", "white", "flower", ("stays still",)), Group("big", "red", "ball")), "in the desert", relation="behind")
    take = next(t for t in (T.Take(hidden, seed, **SMALL) for seed in range(9)) if t.group == 0)
    assert take.mask[4:].sum() < 0.8 * take.cover[4:].sum()
    left, up = (round(float(take.track[k, 4:].mean() - 0.2) * 64) for k in (0, 1))
    monkeypatch.setattr(T, "_elsewhere", lambda *a: (-left, -up))
    put = T._put(take, take.empty)[:, 4:]
    there = take.cover[4:].roll((-up, -left), (1, 2)) > 0.95
    white = take.alone[:, 4:].roll((-up, -left), (2, 3))
    assert there.any() and (_grey(put, white)[there] < 12).float().mean() > 0.95


def test_half_takes_half(take):
    gone = _grey(_corrupt(take, "half"), take.empty) < 1
    plain = (take.mask > 0.5) & (_grey(take.clip, take.empty) > 20)
    assert 0.25 < float((gone & plain).sum() / plain.sum()) < 0.75


def test_debris_comes_in_blocks(single):
    change = (_grey(_corrupt(single, "debris"), single.clip) > 0).view(9, 8, 8, 8, 8).any(4).any(2).flatten(1).sum(1)
    assert (change >= 6).all() and (change <= 12).all()


def test_shuffled_frozen_and_cut_keep_every_frame_whole(single):
    shuffled, frozen, cut = (_corrupt(single, name) for name in ("shuffled", "frozen", "cut"))
    of = lambda clip: sorted(float(f.double().sum()) for f in clip.unbind(1))
    assert of(shuffled) == of(single.clip) and not torch.equal(shuffled, single.clip)
    assert all(torch.equal(frame, single.clip[:, 0]) for frame in frozen.unbind(1))
    assert (_grey(cut, single.clip)[4:] > 20).float().mean() > 0.3


# -- where there is none -----------------------------------------------------------------------------------------------
def test_none_where_no_place_is_free_or_nothing_moves():
    number = 0
    full = Shot((Group("big", "blue", "box", ("grows",)),), "in the desert")
    still = Shot((Group("small", "red", "ball", ("stays still",)),), "in the desert")
    assert T.Broken("teleport", **SMALL)(None, full, number) is None and T.Broken("duplicate", **SMALL)(None, full, number) is None
    assert T.Broken("shuffled", **SMALL)(None, still, number) is None
    assert T.Broken("half", **SMALL)(None, full, number) is not None and T.Broken("shuffled", **SMALL)(None, full, number) is not None
    assert T.Broken("half", **SMALL)(None, full, number).shape == (3, 9, 64, 64)
    panned = replace(still, camera="pans right")
    assert T.Broken("shuffled", **SMALL)(None, panned, number) is not None


# -- counting ----------------------------------------------------------------------------------------------------------
def test_score_counts_hand_made_readings():
    one, pair = WITNESSES["one"], WITNESSES["pair"]
    true = lambda shot, why=None, **wrong: (shot, Reading(replace(shot.description, **wrong), {}, why))
    told = T.score([true(one), true(one, camera="shakes"), true(one, colour="red", camera="shakes"), true(one, "it melts"), true(pair)])
    assert (told["n"], told["all_right"], told["unreadable"], told["all"]) == (5, 2, 1, 40)
    assert told["asked"]["camera"] == 5 and told["right"]["camera"] == 2 and told["each"]["camera"] == 40
    assert told["right"]["colour"] == 3 and told["right"]["setting"] == 4                 # the unreadable is right in nothing
    assert told["asked"]["other_actor"] == told["right"]["other_actor"] == 1 and "second" not in told["asked"]


def test_caught():
    shot = WITNESSES["one"]
    moves, still = shot.description, replace(shot.description, action="stays still")
    assert all(T.caught(kind, shot, Reading(moves, {}, "it melts")) for kind in T.CORRUPTIONS)
    assert not any(T.caught(kind, shot, Reading(moves, {})) for kind in T.CORRUPTIONS)
    assert [kind for kind in T.CORRUPTIONS if T.caught(kind, shot, Reading(still, {}))] == ["frozen"]
    assert not T.caught("frozen", shot, Reading(replace(still, camera="pans left"), {}))
    assert not T.caught("frozen", shot, Reading(replace(still, second="spins"), {}))


def test_a_share_has_an_interval_around_it():
    share = T._row(196, 200)
    assert share["value"] == 98 and share["n"] == 200 and share["interval"][0] < 97 and 98.5 < share["interval"][1] < 100


@pytest.fixture
def told(monkeypatch):
    "An oracle of one answer, that finds bright clips unreadable; what it was shown."
    heard = []

    def read(video):
        heard.append(video.shape)
        return [Reading(replace(WITNESSES["one"].description), {}, None if float(v.mean()) < 2 else "too bright") for v in video]
    monkeypatch.setattr(eye, "read", read)
    return heard


def test_readings_pass_the_altered_clip_on(told):
    got = T.readings([4, 7], lambda clip, shot, number: None if number == 4 else clip + 9, workers=0, progress=False, **SMALL)
    shots = [World("full").scene(T.FRESH, n, "all") for n in (4, 7)]
    assert [shot for shot, _ in got] == shots and got[0][1] is None and got[1][1].unreadable == "too bright"
    assert told == [(1, 3, 9, 64, 64)]


def test_workers_read_the_same():
    size = dict(num_frames=2, height=48, width=48)
    two, none = (T.readings(range(9), workers=n, progress=False, **size) for n in (2, 0))
    assert [(s, r.description, r.unreadable) for s, r in two] == [(s, r.description, r.unreadable) for s, r in none]
    assert [s for s, _ in two] == [World("full").scene(T.FRESH, n, "all") for n in range(9)]


def test_workers_are_not_made_for_a_few_clips(told, monkeypatch):
    made, real = [], T.DataLoader
    monkeypatch.setattr(T, "DataLoader", lambda clips, **k: made.append(k["num_workers"]) or real(clips, **k | {"num_workers": 0}))
    T.readings(range(8), lambda *a: None, progress=False, num_frames=1, height=48, width=48)
    T.readings(range(9), lambda *a: None, progress=False, num_frames=1, height=48, width=48)
    assert made == [0, 2]


def test_reading_leaves_the_threads_alone(told):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        T.readings([0], workers=0, progress=False, **SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_points_lost_compares_the_same_clips(monkeypatch):
    shot = WITNESSES["one"]
    good, bad = (shot, Reading(shot.description, {})), (shot, Reading(shot.description, {}, "worn"))
    asked = []

    def readings(numbers, alter=None):
        asked.append(list(numbers))
        return [bad if alter and n < 2 else good for n in numbers]
    monkeypatch.setattr(T, "readings", readings)
    assert T.points_lost(T.through_h264, 8) == {"value": 25.0, "n": 8} and asked[0] == asked[1] == list(range(8))


def test_all_caught_leaves_out_what_could_not_be_broken(monkeypatch):
    shot, numbers = WITNESSES["one"], []

    def readings(some, alter):
        numbers.extend(some)
        whys = {"teleport": [None, "gone"], "half": ["half", None]}.get(alter.kind, ["why", "why"])
        return [(shot, None if why is None and alter.kind == "teleport" else Reading(shot.description, {}, why)) for why in whys]
    monkeypatch.setattr(T, "readings", readings)
    T.all_caught.cache_clear()
    found = T.all_caught(2)
    T.all_caught.cache_clear()
    assert found["teleport"] == (1, 1) and found["half"] == (1, 2) and found["cut"] == (2, 2)
    assert len(set(numbers)) == len(numbers) == 18 and min(numbers) >= 4000                # other shots than the fresh ones


# -- codecs ------------------------------------------------------------------------------------------------------------
def test_through_h264_wears_a_clip_a_little(single):
    worn, fine = T.through_h264(single.clip), T.through_h264(single.clip, crf=8)
    assert worn.shape == single.clip.shape and worn.dtype == torch.float32 and worn.abs().max() <= 1
    assert 22 < psnr(worn, single.clip) < psnr(fine, single.clip)
    assert psnr(worn.roll(1, 1), single.clip) < psnr(worn, single.clip)                    # frames in their order


@pytest.fixture
def cheap(monkeypatch):
    "The linear code of small clips, since its sizes do not matter here."
    real = film.render
    monkeypatch.setattr(film, "render", lambda shots, *a, **k: real(shots, 5, 48, 48))
    T.linear_code.cache_clear()
    yield
    T.linear_code.cache_clear()


def test_the_linear_code_reaches_its_decibels_and_no_more(cheap):
    clips = torch.cat([film.render(World("full").sample(90_002, 12, "all", start=12 * k)) for k in (3,)])
    coarse, fine = T.linear_code(20.0), T.linear_code(25.0)
    copied = lambda code: psnr(code.decode(code.encode(clips)), clips)
    assert copied(coarse) >= 20 and copied(fine) >= 25 and coarse.channels < fine.channels
    less = {12: 8, 16: 12, 24: 16, 32: 24, 48: 32, 64: 48, 96: 64, 128: 96, 192: 128}[fine.channels]
    fine.bases = [(mean, basis[:, :less]) for mean, basis in fine.bases]
    assert copied(fine) < 25                                                              # the smallest that does
    with pytest.raises(ValueError, match="decibel: got 99"):
        T.linear_code(99.0)


def test_both_oracles_are_asked_about_the_same_clips(monkeypatch):
    seen = []
    says = Reading("said", {})
    monkeypatch.setattr(T.render, "render", lambda scenes: list(scenes))
    monkeypatch.setattr(T.oracle, "read", lambda video: [replace(says, unreadable="no" if i == 1 else None) for i in range(len(video))])
    monkeypatch.setattr(T.eye, "read_mini", lambda video: seen.extend(video) or ["other" if i == 0 else "said" for i in range(len(video))])
    assert T.both_read(25) == 25 - 2 * 2 and len(seen) == 25 == len(set(map(str, seen)))
