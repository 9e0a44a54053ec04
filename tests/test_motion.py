"Motion: everybody in the frame, laws of actions and pairs, beats without jumps, a camera that follows, frames that depend on time alone."
import itertools
import math
import random

import pytest
import torch

from sora_edu.world.motion import RADIUS, choreograph
from sora_edu.world.stage import ACTIONS, ACTORS, CAMERAS, GROUNDED, INTERACTIONS, RELATIONS, SIZES, Group, Shot, draw_shot

REACH = 1.15


def shots(n, seed=0):
    rng = random.Random(seed)
    return [draw_shot(rng, "all") for _ in range(n)]


def alone(*actions, size="small", count=1, kind="ball", **shot):
    return Shot((Group(size, "red", kind, actions, count),), "over a meadow", **shot)


def pair(action, relation=None, sizes=("small", "small"), kinds=("star", "ball"), **shot):
    a, b = (Group(size, colour, kind, does) for size, colour, kind, does in zip(sizes, ("red", "blue"), kinds, ((action,), ())))
    return Shot((a, b), "over a meadow", relation=relation, **shot)


def pairs(action, relation=None, n=40, seed=0):
    "Shots of two with random sizes, kinds and cameras."
    rng, found = random.Random(seed), []
    while len(found) < n:
        try:
            found.append(pair(action, relation, rng.choices(SIZES, k=2), rng.choices(ACTORS, k=2),
                              camera=rng.choice(("still", "zooms out", "shakes")), seed=rng.getrandbits(30)))
        except ValueError:
            pass
    return found


def outside(film):
    "By how much each actor leaves the frame at worst: [N]."
    x, y, r, _ = film.screen.unbind(1)
    return torch.stack([-x, x - 1, -y, y - 1]).amax(0).add(REACH * r).amax(1)


def both(film):
    "The world tracks of firsts and seconds: two [B, 4, T]."
    return film.world[film.group == 0], film.world[film.group == 1]


def gap(film):
    "Between the centres of two: [B, T], and the sum of their radii."
    a, b = both(film)
    return (a[:, :2] - b[:, :2]).norm(dim=1), a[:, 2] + b[:, 2]


# -- the frame ---------------------------------------------------------------------------------------------------------
def test_everybody_stays_in_the_frame():
    assert outside(choreograph(shots(1000))).max() < 0


def test_the_most_crowded_shots_fit():
    worst = itertools.product(itertools.permutations(("grows", "swings", "pulses", "circles around"), 3),
                              ("zooms in", "pans left", "tilts up", "shakes"), (("small", 4), ("medium", 2), ("big", 1)))
    crowd = [alone(*actions, size=size, count=count, camera=camera, seed=i) for i, (actions, camera, (size, count)) in enumerate(worst)]
    crowd += [alone("grows", "stays still", "grows", size="medium", count=2, camera="zooms in", seed=s) for s in range(20)]
    crowd += [pair(a, sizes=("big", "small"), camera="shakes", seed=s) for a in INTERACTIONS if "hides" not in a for s in range(20)]
    assert outside(choreograph(crowd)).max() < 0


@pytest.mark.parametrize("start, fps", [(33, 8), (400, 8), (5, 0.5), (7 * 10**5, 8)])
def test_the_camera_follows_at_all_later_times(start, fps):
    assert outside(choreograph(shots(200), 33, start=start, fps=fps)).max() < 0.001


def test_the_first_clip_is_not_followed_and_the_world_goes_on():
    film = choreograph(alone("moves right", seed=1), 400)
    assert film.camera[0, 0, :33].abs().max() == 0 and film.camera[0, 0, -1] > 3
    assert (film.world[0, 0].diff() - film.world[0, 0].diff()[0]).abs().max() < 1e-5
    assert abs(film.screen[0, 0, -1] - 0.5) < 0.01


def test_radii_at_the_first_frame_are_those_of_the_words():
    many = shots(200)
    film = choreograph(many, 1)
    sizes = [g.size for shot in many for g in shot.groups for _ in range(g.count)]
    for size, radius in zip(sizes, film.world[:, 2, 0].tolist()):
        assert RADIUS[size][0] - 1e-6 <= radius <= RADIUS[size][1] + 1e-6


def test_what_stands_on_the_ground_stands_low():
    film = choreograph([alone("stays still", kind=kind, size=size, seed=s) for kind in GROUNDED for size in SIZES for s in range(5)], 1)
    foot = film.world[:, 1, 0] + film.world[:, 2, 0]
    assert foot.min() > 0.7 and foot.max() < 0.91


# -- time --------------------------------------------------------------------------------------------------------------
def test_a_frame_depends_on_its_time_alone():
    many = shots(100)
    whole, late = choreograph(many), choreograph(many, 13, start=20)
    fast = choreograph(many, 65, fps=16)
    for name in ("world", "screen", "camera"):
        assert (getattr(whole, name)[..., 20:] - getattr(late, name)).abs().max() < 1e-5
        assert (getattr(whole, name) - getattr(fast, name)[..., ::2]).abs().max() < 1e-5


def test_alone_or_in_a_batch():
    many = shots(30)
    whole = choreograph(many)
    for i in (0, 11, 29):
        film = choreograph(many[i])
        assert torch.equal(film.screen, whole.screen[whole.owner == i]) and torch.equal(film.camera[0], whole.camera[i])


def test_beats_meet_without_a_jump():
    film = choreograph([alone(*random.Random(s).sample(ACTIONS, 3), seed=s) for s in range(200)], 4 * 64, fps=64)
    assert film.world[:, :2].diff(dim=-1).abs().max() < 0.05 and film.world[:, 3].diff(dim=-1).abs().max() < 0.15
    assert film.world[:, 2].diff(dim=-1).abs().max() < 0.01


def test_a_beat_that_ends_has_landed():
    before, after = (choreograph(alone(a, "stays still", seed=3), 33).world[0] for a in ("bounces", "swings"))
    for track in (before, after):
        assert (track[:, -1] - track[:, 0]).abs().max() < 1e-5


def test_tensors_have_their_shapes():
    many = shots(20)
    film = choreograph(many, 7)
    n = sum(g.count for shot in many for g in shot.groups)
    assert film.world.shape == film.screen.shape == (n, 4, 7) and film.camera.shape == (20, 3, 7) and len(film.kinds) == n
    assert film.owner.shape == film.group.shape == film.rank.shape == (n,) and film.rank.dtype == torch.long
    pan, zoom = film.camera[film.owner, :2], film.camera[film.owner, 2:]
    assert torch.allclose(film.screen[:, :2], 0.5 + (film.world[:, :2] - pan - 0.5) * zoom, atol=1e-5)


# -- laws --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action, x, y", [("moves right", 1, 0), ("moves left", -1, 0), ("rises", 0, -1), ("falls", 0, 1), ("rolls right", 1, 0),
                                          ("rolls left", -1, 0)])
def test_what_travels_travels_evenly(action, x, y):
    film = choreograph([alone(action, seed=s, size=size) for s in range(10) for size in SIZES])
    speed = film.world[:, :2].diff(dim=-1) * 8
    along, across = (speed[:, 0] * x, speed[:, 1]) if x else (speed[:, 1] * y, speed[:, 0])
    assert along.min() > 0.0599 and along.max() < 0.161 and across.abs().max() < 1e-5
    if "rolls" in action:
        assert torch.allclose(film.world[:, 3], x * along[:, :1] * torch.arange(33) / 8 / film.world[:, 2], atol=1e-4)


@pytest.mark.parametrize("action, row, low, high", [("grows", 2, 1.45, 1.5), ("shrinks", 2, 0.5, 0.55), ("pulses", 2, 1.2, 1.25)])
def test_sizes_change_by_law(action, row, low, high):
    r = choreograph([alone(action, seed=s) for s in range(10)]).world[:, row]
    end = r[:, -1] if action != "pulses" else r.amax(1)
    assert (end / r[:, 0]).min() > low and (end / r[:, 0]).max() <= high + 1e-6


def test_a_pendulum_hangs_from_its_peg():
    x, y, _, angle = choreograph(alone("swings", seed=5), 64, fps=16).world[0]
    length = (x.max() - x.min()) / 2 / math.sin(angle.abs().max())
    peg = (x + length * torch.sin(angle), y - length * torch.cos(angle))
    assert angle.abs().max() > 0.5 and peg[0].std() < 0.005 and peg[1].std() < 0.005


@pytest.mark.parametrize("count, size", [(2, "small"), (3, "small"), (4, "small"), (2, "medium")])
def test_members_never_overlap(count, size):
    crowd = [alone(*random.Random(s).sample(ACTIONS, 3), size=size, count=count, seed=s) for s in range(100)]
    tracks = choreograph(crowd, 65, fps=16).world.view(len(crowd), count, 4, 65)
    for i, j in itertools.combinations(range(count), 2):
        apart = (tracks[:, i, :2] - tracks[:, j, :2]).norm(dim=1)
        assert (apart - REACH * (tracks[:, i, 2] + tracks[:, j, 2])).min() > 0


def test_a_pair_goes_side_by_side():
    right, up = (choreograph(alone(action, count=2, seed=0), 1).world[:, :2, 0] for action in ("moves right", "rises"))
    assert (right[0] - right[1]).abs().argmax() == 1 and (up[0] - up[1]).abs().argmax() == 0


# -- two at once -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", ["chases", "orbits", "jumps over"])
def test_two_that_never_touch(action):
    apart, radii = gap(choreograph(pairs(action), 66, fps=16))
    assert (apart / radii).min() > 1.09


def test_a_chase_is_one_path_with_a_lag():
    film = choreograph(pair("chases", seed=4), 800, fps=100)
    (a, b), found = ((v[0, :2] for v in both(film))), []
    for lag in range(20, 150):
        found.append((a[:, lag:] - b[:, :-lag]).norm(dim=0).max())
    assert min(found) < 0.01 and both(film)[1][0, :2].std(1).min() > 0.1


def test_an_orbit_is_a_circle_about_one_that_stands():
    film = choreograph(pairs("orbits"))
    apart, _ = gap(film)
    a, b = both(film)
    assert apart.std(1).max() < 1e-5 and b[:, :2].std(2).max() < 1e-5 and a[:, :2].std(2).min() > 0.1


def test_bumping_shows_the_contact_and_knocks_away():
    film = choreograph(pairs("bumps into"))
    apart, radii = gap(film)
    (a, b), hit = both(film), apart.argmin(1)
    assert (apart.amin(1) / radii[:, 0]).max() < 1.13 and (apart.amax(1) / apart.amin(1)).min() > 1.4
    for i, h in enumerate(hit.tolist()):
        assert (b[i, :2, :h] - b[i, :2, :1]).norm(dim=0)[:6].max() < 1e-5         # at rest until it is hit
    assert (b[:, 0].amax(1) - b[:, 0].amin(1)).min() > 0.08


def test_hiding_is_behind_and_comes_out_on_the_other_side():
    film = choreograph(pairs("hides behind"), 33)
    a, b = both(film)
    side = a[:, 0] - b[:, 0]
    assert (side.amax(1) > REACH * (a[:, 2] + b[:, 2])[:, 0]).all() and (side.amin(1) < -REACH * (a[:, 2] + b[:, 2])[:, 0]).all()
    assert ((side.abs() < 1e-5).sum(1) >= 4).all() and (film.rank == film.group).all()


def test_a_jump_goes_over():
    film = choreograph(pairs("jumps over"), 66, fps=16)
    a, b = both(film)
    crossing = (a[:, 0] - b[:, 0]).abs().argmin(1)
    for i, t in enumerate(crossing.tolist()):
        assert a[i, 1, t] < b[i, 1, t] - 1.05 * (a[i, 2, t] + b[i, 2, t])


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_hold_in_every_frame(relation):
    film = choreograph([s for action in ("spins", "swings", "grows", "pulses", "shrinks") for s in pairs(action, relation, 8)])
    a, b = both(film)
    apart, radii = gap(film)
    x, y = (a[:, 0] - b[:, 0]), (a[:, 1] - b[:, 1])
    if relation in ("in front of", "behind"):
        assert (apart[:, 0] < REACH * radii[:, 0]).all() and (film.rank == (film.group if relation == "behind" else 1 - film.group)).all()
        return
    along, across = {"left of": (-x, y), "right of": (x, y), "above": (-y, x), "below": (y, x)}[relation]
    assert (along > REACH * radii).all() and (along[:, 0] > REACH * radii[:, 0] + 0.06 - 1e-6).all()
    assert (across.abs() < 0.7 * along).all() and across[:, 0].abs().max() < 0.13


# -- words that differ -------------------------------------------------------------------------------------------------
def alike(many):
    "Pairs of shots with as many actors whose screen tracks hardly part from where they began: in place, in radius, in angle."
    film = choreograph(many)
    tracks = (film.screen - film.screen[..., :1]).view(len(many), -1, 4, 33)
    for i, j in itertools.combinations(range(len(many)), 2):
        gap = (tracks[i] - tracks[j]).abs()
        if gap[:, :2].max() < 0.05 and gap[:, 2].max() < 0.02 and gap[:, 3].max() < 0.5:
            yield many[i], many[j]


@pytest.mark.parametrize("count", [1, 3])
def test_any_two_actions_differ(count):
    for seed, kind in enumerate(("ball", "house", "bird", "car")):
        assert not list(alike([alone(a, count=count, kind=kind, seed=seed) for a in ACTIONS]))


def test_any_two_interactions_differ():
    for seed in range(10):
        assert not list(alike([pair(a, sizes=("small", "medium"), seed=seed) for a in INTERACTIONS]))


def test_any_two_cameras_differ():
    films = {c: choreograph(alone("stays still", camera=c, seed=2)).camera[0] for c in CAMERAS}
    for a, b in itertools.combinations(CAMERAS, 2):
        assert (films[a] - films[b]).abs().max() > 0.012, (a, b)


def test_seeds_differ():
    a, b = (choreograph(alone("stays still", seed=s)).world for s in (1, 2))
    assert (a - b).abs().max() > 0.01


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given, name", [(dict(num_frames=0), "num_frames"), (dict(num_frames=2.0), "num_frames"), (dict(num_frames=True), "num_frames"),
                                         (dict(start=-1), "start"), (dict(start=0.5), "start"), (dict(fps=0), "fps"), (dict(fps="8"), "fps"),
                                         (dict(fps=math.nan), "fps"), (dict(fps=math.inf), "fps"), (dict(shots=[]), "shots"),
                                         (dict(shots=None), "shots"), (dict(shots=["a ball"]), "shots"), (dict(shots=7), "shots")])
def test_bad_input_is_named(given, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, allowed: "):
        choreograph(**{"shots": alone("spins"), **given})
