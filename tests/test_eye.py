"The eye: what it reads in clean clips, what it refuses, and how a reading is held against what was said."
from dataclasses import replace

import pytest
import torch

from sora_edu.world import eye, film
from sora_edu.world.oracle import Reading
from sora_edu.world.stage import FullDescription, Group, Shot

BALL = Shot((Group("small", "red", "ball", ("moves right",)),), "in the desert", seed=4)
TWO = Shot((Group("small", "green", "fish", ("orbits",)), Group("medium", "blue", "house")), "over a meadow", seed=2)
EASY = [BALL, TWO, Shot((Group("small", "yellow", "star", ("bounces",), 3),), "in the snow", "at night", seed=1),
        Shot((Group("big", "blue", "car", ("grows",)),), "in the city", camera="pans left", seed=8),
        Shot((Group("medium", "pink", "heart", ("rises", "falls")),), "over a meadow", seed=3),
        Shot((Group("small", "white", "ring", ("hides behind",)), Group("big", "orange", "box")), "in the forest", "by day", "rain", seed=6)]


@pytest.fixture(scope="module")
def clips():
    return film.render(EASY)


@pytest.fixture(scope="module")
def readings(clips):
    return eye.read(clips)


@pytest.mark.parametrize("i", range(len(EASY)))
def test_easy_shots_are_read_whole(readings, i):
    wrong = {a: (getattr(readings[i].description, a), getattr(EASY[i].description, a)) for a, good in eye.agrees(readings[i], EASY[i].description).items() if not good}
    assert readings[i].unreadable is None and wrong == {}
    assert readings[i].description.action and all(0 <= v <= 1 for v in readings[i].confidence.values())


def test_reading_is_deterministic_and_alone_as_in_a_batch(clips, readings):
    assert eye.read(clips[1:2])[0].description == readings[1].description


def test_an_image_has_no_action(clips):
    reading = eye.read(clips[:1, :, :1])[0]
    said = reading.description
    assert (said.action, said.camera, said.second) == (None, None, None)
    assert (said.colour, said.actor, said.setting, said.count) == ("red", "ball", "in the desert", 1) and reading.unreadable is None


@pytest.mark.parametrize("height, width", [(96, 96), (192, 192), (256, 256)])
def test_other_sizes_are_harmless(height, width):
    reading = eye.read(film.render(BALL, 33, height, width))[0]
    assert all(eye.agrees(reading, BALL.description).values())


def test_other_frame_rates_are_harmless():
    reading = eye.read(film.render(BALL, 97, fps=24), fps=24)[0]
    assert all(eye.agrees(reading, BALL.description).values())


@pytest.mark.parametrize("way", ["shuffled", "cut", "swapped halves"])
def test_what_is_no_clip_is_unreadable(clips, way):
    clip = clips[0]
    if way == "shuffled":
        clip = clip[:, torch.randperm(33, generator=torch.Generator().manual_seed(0))]
    elif way == "cut":
        clip = torch.cat([clip[:, :16], clips[3][:, 16:]], 1)
    else:
        clip = torch.cat([clip[:, 16:], clip[:, :16]], 1)
    assert eye.read(clip[None])[0].unreadable


def test_an_empty_stage_and_noise_are_unreadable():
    assert eye.read(film.render(BALL, actors=()))[0].unreadable
    assert eye.read(torch.rand(1, 3, 9, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1)[0].unreadable


@pytest.mark.parametrize("video, name", [
    (None, "NoneType"), (torch.zeros(3, 9, 64, 64), "(3, 9, 64, 64)"), (torch.zeros(1, 1, 9, 64, 64), "(1, 1, 9, 64, 64)"),
    (torch.zeros(1, 3, 9, 64, 64, dtype=torch.uint8), "uint8"), (torch.full((1, 3, 9, 64, 64), 255.0), "255"),
    (torch.full((1, 3, 9, 64, 64), float("nan")), "nan"), (torch.zeros(1, 3, 9, 32, 32), "32 x 32"), (torch.zeros(1, 3, 9, 64, 256), "64 x 256"),
    (torch.zeros(1, 3, 2000, 48, 48), "2000 frames"), (torch.zeros(1, 3, 0, 64, 64), "(1, 3, 0, 64, 64)")])
def test_bad_videos_are_refused_by_name(video, name):
    with pytest.raises(ValueError) as error:
        eye.read(video)
    assert "video: got" in str(error.value) and name in str(error.value) and "allowed" in str(error.value)


@pytest.mark.parametrize("fps", [0, 1, -8, True, "8", float("inf"), 1000])
def test_bad_rates_are_refused_by_name(fps):
    with pytest.raises(ValueError, match="fps: got .*allowed: 4 to 240"):
        eye.read(torch.zeros(1, 3, 9, 64, 64), fps=fps)


SAID = FullDescription("small", "red", "ball", "stays still", "in the desert", 1, relation="left of", other_size="big", other_colour="blue", other_actor="box")


def test_agreement_leaves_out_what_was_not_said():
    assert eye.agrees(Reading(SAID, {}), FullDescription(colour="red", setting="in the snow")) == {"colour": True, "setting": False}
    assert not any(eye.agrees(Reading(SAID, {}, "torn"), SAID).values())


def test_of_two_that_stay_still_either_may_be_told_first():
    other = replace(SAID, size="big", colour="blue", actor="box", relation="right of", other_size="small", other_colour="red", other_actor="ball")
    assert all(eye.agrees(Reading(other, {}), SAID).values())
    spins = replace(SAID, action="spins"), replace(other, action="spins")
    assert not all(eye.agrees(Reading(spins[1], {}), spins[0]).values())


def test_a_verdict_names_the_first_reason():
    fine = {name: 0 for name in eye.LIMITS}
    assert eye.verdict(fine) is None
    for name, (most, reason) in eye.LIMITS.items():
        assert eye.verdict(fine | {name: most + 0.01}) == reason and eye.verdict(fine | {name: most}) is None
        assert eye.verdict(fine | {name: float("nan")}) == reason


def seen(xs, n=24, place=None):
    "A view of one ball at these places, before a still camera, in the desert."
    from sora_edu.world.sight import PLACE
    from sora_edu.world.stage import ACTORS, COLOURS
    from sora_edu.world.tracking import Camera, Spot, Track
    sharp = lambda words, i: torch.full((len(words),), -5.0).index_fill(0, torch.tensor(i), -0.05)
    track = Track({f: Spot(x, 0.5, 0.1, 0.0, 0.9, 1.0, 1.0, sharp(ACTORS, 0), sharp(COLOURS, 0)) for f, x in enumerate(xs)})
    words = {name: torch.stack([sharp(options, (place or (lambda f: 1))(f)) for f in range(n)]) for name, options in PLACE.items()}
    still = Camera("still", torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(n, 3), {"still": 1.0}, 0.0)
    return eye.View(torch.arange(n, dtype=torch.float64) / 8, words, still, [track], [], 0.0, 8)


def measured(view):
    return eye.faults(view, eye.tell(view))


def test_a_leap_is_measured_in_sides_a_second():
    calm = measured(seen([0.3 + 0.01 * f for f in range(24)]))
    leap = measured(seen([0.2 if f < 12 else 0.75 for f in range(24)]))
    assert abs(calm["leap"] - 0.08) < 1e-6 and eye.verdict(calm) is None
    assert abs(leap["leap"] - 4.4) < 1e-6 and leap["leap"] > eye.LIMITS["leap"][0] > calm["leap"] and eye.verdict(leap)


def test_a_place_that_changes_is_measured():
    steady, changed = measured(seen([0.5] * 24)), measured(seen([0.5] * 24, place=lambda f: 1 if f < 12 else 3))
    assert steady["change"] == 0 and changed["change"] > eye.LIMITS["change"][0]
    assert eye.verdict(steady) is None and eye.verdict(changed) == "the place changes"


def test_an_actor_that_is_gone_for_half_the_clip_is_missing():
    assert measured(seen([0.5] * 12))["missing"] == 12 and eye.verdict(measured(seen([0.5] * 12))) == eye.LIMITS["missing"][1]


def with_other(view, x, kind, frames=range(24), radius=0.1, **more):
    "The same view with a second actor at `x`."
    from sora_edu.world.stage import ACTORS
    from sora_edu.world.tracking import Track
    spot = view.tracks[0][0]
    logs = torch.full((len(ACTORS),), -5.0).index_fill(0, torch.tensor(kind), -0.05)
    return replace(view, tracks=[*view.tracks, Track({f: replace(spot, x=x, kind=logs, radius=radius, **more) for f in frames})])


def test_a_twin_is_no_excuse_for_who_is_missing():
    "Who looks different may stand before an actor; who looks the same stands beside it, in this world."
    gone = seen([0.5] * 10)
    assert eye._missing(with_other(gone, 0.52, kind=3)) == 0
    assert eye._missing(with_other(gone, 0.52, kind=0)) == 14


@pytest.mark.parametrize("doubt, beside, radius, broken", [(0.1, None, 0.1, True), (0.1, 0.55, 0.1, False), (0.1, 0.9, 0.1, True), (0.1, None, 0.05, False), (0.9, None, 0.1, False)])
def test_only_who_shows_plainly_can_be_called_broken(doubt, beside, radius, broken):
    view = seen([0.5] * 24)
    view.tracks[0].update({f: replace(s, whole=doubt, radius=radius) for f, s in view.tracks[0].items()})
    view = view if beside is None else with_other(view, beside, kind=3)
    assert (eye._broken(view, view.tracks[0]) > eye.LIMITS["broken"][0]) == broken


def test_of_several_beats_the_first_tells_the_size():
    view = seen([0.5] * 24)
    grown = {f: replace(s, radius=0.11 if f < 10 else 0.18) for f, s in view.tracks[0].items()}
    view.tracks[0].update(grown)
    size = lambda said: eye.size_of(view.tracks, view.camera, 8, said)
    assert (size(("stays still", "grows", "spins")), size(("stays still",))) == ("small", "big")
    late = with_other(view, 0.9, kind=0, radius=0.2)
    assert eye.size_of(late.tracks, view.camera, 8, ("stays still", "grows", "spins")) == "medium"          # the mean of 0.11 and 0.2


@pytest.mark.parametrize("colour, beside, changed", [(5, 0.9, True), (5, 0.55, True), (0, 0.55, False), (3, 0.55, False), (3, 0.9, True)])
def test_a_colour_that_is_nobody_s_counts_in_a_crowd(colour, beside, changed):
    "The second actor is of colour 3: seen in the crowd, that may be its own colour shining through; anything else is not."
    from sora_edu.world.stage import COLOURS
    sharp = lambda i: torch.full((len(COLOURS),), -5.0).index_fill(0, torch.tensor(i), -0.05)
    view = with_other(seen([0.5] * 24), beside, kind=3, colour=sharp(3))
    view.tracks[0].update({f: replace(s, colour=sharp(colour)) for f, s in view.tracks[0].items() if f >= 14})
    assert (eye._disagree(view, view.tracks[0], "colour") > eye.LIMITS["colour"][0]) == changed
