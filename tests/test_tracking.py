"Tracking: peaks become spots, spots become tracks, and the camera's law comes out of noisy steps."
import math

import pytest
import torch

from sora_edu.world.sight import CELLS, PLACE, SPOTS
from sora_edu.world.stage import ACTORS, CAMERAS, COLOURS
from sora_edu.world.tracking import Spot, Track, assign, camera_of, in_world, is_part, join, one_each, spots


def spot(x, y, kind=0, colour=0, radius=0.1, sure=0.9):
    logs = lambda n, i: torch.full((n,), -5.0).index_fill(0, torch.tensor(i), -0.05)
    return Spot(x, y, radius, 0.0, sure, 1.0, 1.0, logs(len(ACTORS), kind), logs(len(COLOURS), colour))


def maps(*actors, frames=1, covered=0):
    "What the network would say of actors (x, y, radius, kind, colour) that it sees well; something stands before the last `covered` ones."
    said = {name: torch.zeros(frames, n, CELLS, CELLS) for name, n in SPOTS.items()}
    said["there"] -= 6
    for i, (x, y, r, kind, colour) in enumerate(actors):
        row, column = int(y * CELLS), int(x * CELLS)
        said["there"][:, int(i >= len(actors) - covered), row, column] = 3
        said["offset"][:, 0, row, column], said["offset"][:, 1, row, column] = x * CELLS - column - 0.5, y * CELLS - row - 0.5
        said["radius"][:, 0, row, column] = math.log(8 * r)
        said["turn"][:, 0, row, column] = 1
        said["kind"][:, kind, row, column] = said["colour"][:, colour, row, column] = 9
    return said


def test_peaks_become_spots_with_all_they_say():
    found = spots(maps((0.3, 0.4, 0.11, 2, 5), (0.71, 0.62, 0.2, 7, 1)), 0)
    assert len(found) == 2
    a = min(found, key=lambda s: s.x)
    assert abs(a.x - 0.3) < 1e-4 and abs(a.y - 0.4) < 1e-4 and abs(a.radius - 0.11) < 1e-4 and int(a.kind.argmax()) == 2 and int(a.colour.argmax()) == 5


def test_two_peaks_on_one_actor_are_one():
    assert len(spots(maps((0.5, 0.5, 0.15, 3, 3), (0.57, 0.5, 0.15, 3, 3)), 0)) == 1
    assert len(spots(maps((0.5, 0.5, 0.15, 3, 3), (0.57, 0.5, 0.15, 4, 3)), 0)) == 2


def test_a_small_actor_right_before_a_big_one_is_not_lost():
    two = (0.5, 0.5, 0.1, 3, 3), (0.54, 0.5, 0.2, 4, 4)                                # centres in neighbouring cells
    said = maps(*two, covered=1)
    said["there"][:, 0, int(0.5 * CELLS), int(0.5 * CELLS)] = 2                        # less sure than the other
    assert len(spots(said, 0)) == 2
    said["there"] = said["there"].amax(1, keepdim=True).expand(-1, 2, -1, -1)          # as if both were on one map
    assert len(spots(said, 0)) == 1


def test_a_petal_is_a_part_and_a_ball_before_a_flower_is_not():
    flower = Track({f: spot(0.5, 0.5, radius=0.2) for f in range(20)})
    petal = lambda x, sure, n, colour=0: Track({f: spot(x, 0.5, kind=3, colour=colour, radius=0.08, sure=sure) for f in range(n)})
    assert is_part(petal(0.6, 0.4, 15), flower) and not is_part(flower, petal(0.6, 0.4, 15))
    assert not is_part(petal(0.6, 0.4, 15, colour=2), flower) and is_part(petal(0.6, 0.4, 2, colour=2), flower)     # another's colour, not just once
    assert not is_part(petal(0.6, 0.8, 15), flower)                                     # the eye is sure of it
    assert not is_part(petal(0.75, 0.4, 15), flower)                                    # beyond its edge
    assert not is_part(petal(0.6, 0.4, 33), Track({f: spot(0.5, 0.5, radius=0.2) for f in range(12)}))      # mostly alone


def test_of_lookalikes_that_overlap_the_first_is_kept():
    assert len(one_each([spot(0.5, 0.5), spot(0.57, 0.5)])) == 1 and len(one_each([spot(0.5, 0.5), spot(0.6, 0.5)])) == 2
    assert len(one_each([spot(0.5, 0.5), spot(0.57, 0.5, colour=1)])) == 2


def test_two_that_cross_keep_their_names():
    "Nearest neighbours would swap them; momentum and the least cost in all do not."
    frames = [[spot(0.2 + 0.03 * f, 0.5), spot(0.8 - 0.03 * f, 0.52)] for f in range(21)]
    tracks = assign(frames)
    assert len(tracks) == 2
    for track in tracks:
        xs = [track[f].x for f in range(21)]
        assert len(track) == 21 and abs(abs(xs[-1] - xs[0]) - 0.6) < 1e-6


def test_what_looks_different_is_not_taken_for_the_other():
    frames = [[spot(0.4, 0.5, kind=1), spot(0.5, 0.5, kind=4)] if f % 2 else [spot(0.5, 0.5, kind=1), spot(0.4, 0.5, kind=4)] for f in range(8)]
    assert sorted(track.kind for track in assign(frames)) == [1, 4]


def test_a_hidden_actor_is_one_track_and_two_at_once_are_two():
    gap = [[spot(0.1 + 0.02 * f, 0.5)] if f < 6 or f > 22 else [] for f in range(30)]
    assert len(join(assign(gap))) == 1
    twins = [[spot(0.2, 0.5), spot(0.8, 0.5)] for _ in range(10)]
    assert len(join(assign(twins))) == 2
    others = [[spot(0.2, 0.5, kind=1)] if f < 5 else [] if f < 20 else [spot(0.2, 0.5, kind=6)] for f in range(25)]
    assert len(join(assign(others))) == 2


def test_a_track_adds_up_its_frames():
    track = Track({f: spot(0.5, 0.5, kind=3 if f else 8) for f in range(4)})
    assert track.kind == 3 and track.total("kind").shape == (len(ACTORS),)


def steps_of(word, t, size=1.0):
    "What a camera with this word does between frames."
    ramp = 1 - torch.exp(-t / 1.5)
    way = torch.zeros(len(t), 3, dtype=torch.float64)
    axis, sign = {"pans right": (0, 1), "pans left": (0, -1), "tilts down": (1, 1), "tilts up": (1, -1), "zooms in": (2, 1), "zooms out": (2, -1)}.get(word, (0, 0))
    way[:, axis] = sign * 0.16 * size * ramp
    if word == "shakes":
        for k in (0, 1):
            way[:, k] = 0.015 * size * (0.6 * torch.sin(2 * math.pi * 1.7 * t + k) + 0.4 * torch.sin(2 * math.pi * math.sqrt(8) * t + 2 * k))
    return way.diff(dim=0), way


@pytest.mark.parametrize("word", CAMERAS)
@pytest.mark.parametrize("frames", [17, 33, 49])
def test_the_camera_s_word_comes_out_of_noisy_steps(word, frames):
    t = torch.arange(frames, dtype=torch.float64) / 8
    g = torch.Generator().manual_seed(frames)
    steps, way = steps_of(word, t)
    camera = camera_of(steps + 0.0025 * torch.randn(steps.shape, generator=g, dtype=torch.float64), t)
    assert camera.word == word
    assert (camera.way[:, :2] - (way[:, :2] - way[:1, :2])).abs().max() < 0.02 and camera.left < 0.006


def test_one_frame_has_a_still_camera():
    camera = camera_of(torch.zeros(0, 3), torch.zeros(1, dtype=torch.float64))
    assert camera.word == "still" and camera.way.tolist() == [[0, 0, 1]]


def test_in_the_world_the_camera_is_taken_away():
    t = torch.arange(17, dtype=torch.float64) / 8
    camera = camera_of(steps_of("pans right", t)[0], t)
    seen = Track({f: spot(0.5 - float(camera.way[f, 0]), 0.4) for f in range(17)})
    world = in_world(seen, camera)
    assert all(abs(world[f][0] - 0.5) < 1e-6 and abs(world[f][1] - 0.4) < 1e-6 for f in range(17))


def test_all_place_words_are_known():
    assert set(PLACE) == {"setting", "time", "weather", "style"}


def test_the_order_in_which_spots_are_found_does_not_matter():
    frames = [[spot(0.2 + 0.01 * f, 0.5), spot(0.5, 0.5), spot(0.8, 0.5 - 0.01 * f)][::1 if f % 2 else -1] for f in range(12)]
    tracks = assign(frames)
    assert len(tracks) == 3 and all(len(track) == 12 for track in tracks)
    assert sorted(round(track[11].x - track[0].x, 2) for track in tracks) == [0, 0, 0.11]


def test_the_least_cost_in_all_is_not_the_nearest_first():
    "A row that steps on: the nearest pair alone would leave the last one without a partner."
    a, b = [spot(0.30, 0.5), spot(0.42, 0.5)], [spot(0.41, 0.5), spot(0.56, 0.5)]
    tracks = assign([a, b])
    assert sorted(round(track[1].x - track[0].x, 2) for track in tracks) == [0.11, 0.14]
