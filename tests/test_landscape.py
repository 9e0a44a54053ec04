"The landscape's laws: endless, the same in any batch and from any frame, layers by their shares, told apart by sight; and bad input."
import itertools

import pytest
import torch

from sora_edu.world.landscape import SHARES, _draw, _field, _hash, _noise, landscape
from sora_edu.world.stage import COLOUR_RGB, SETTINGS, SKYLESS, TIMES, WEATHERS, Group, Shot

BALL = (Group("small", "red", "ball", ("spins",)),)


def place(setting, time="by day", weather="clear", seed=3):
    return Shot(BALL, setting, *((None, None) if setting in SKYLESS else (time, weather)), seed=seed)


def camera(frames, x=0.0, y=0.0, zoom=1.0):
    "Moves on by (x, y) a frame, zooms by a factor a frame: [1, 3, T]."
    k = torch.arange(frames, dtype=torch.float32)
    return torch.stack([x * k, y * k, zoom**k])[None]


def film(shot, frames=1, size=64, start=0, **way):
    return landscape(shot, camera(frames, **way), frames, size, size, fps=8, start=start)


def every_sky():
    for setting in SETTINGS:
        for time, weather in [(None, None)] if setting in SKYLESS else itertools.product(TIMES, WEATHERS):
            if weather != "stars" or time == "at night":
                yield setting, time, weather


# -- what it gives -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", SETTINGS)
def test_shape_and_range(setting):
    video = landscape(place(setting, weather="snow"), camera(3, x=0.1), 3, 32, 48, fps=8)
    assert video.shape == (1, 3, 3, 32, 48) and video.dtype == torch.float32
    assert torch.isfinite(video).all() and 0 <= video.min() and video.max() <= 255 and video.std() > 5


@pytest.mark.parametrize("height, width", [(16, 16), (16, 160), (160, 16), (33, 47)])
def test_any_size(height, width):
    shots = [place(s, weather=w) for s, w in zip(SETTINGS, ("clear", "rain", "snow", "fog") * 3)]
    video = landscape(shots, torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1).expand(len(shots), 3, 1), 1, height, width)
    assert video.shape == (len(shots), 3, 1, height, width) and torch.isfinite(video).all()


def test_the_middle_of_a_wide_frame_is_the_square_one():
    for setting in SETTINGS:
        square, wide = film(place(setting)), landscape(place(setting), camera(1), 1, 64, 128)
        assert (square - wide[..., 32:96]).abs().mean() < 0.5


# -- laws --------------------------------------------------------------------------------------------------------------
def test_the_same_alone_and_in_a_batch():
    shots = [place(s, TIMES[k % 4], WEATHERS[k % 3], seed=k) for k, s in enumerate(SETTINGS)]
    way = torch.cat([camera(4, x=0.05 * (k % 3), y=-0.03 * (k % 2), zoom=1 + 0.02 * (k % 4)) for k in range(10)])
    together = landscape(shots, way, 4, 32, 32)
    for k, shot in enumerate(shots):
        assert (landscape(shot, way[k:k + 1], 4, 32, 32) - together[k:k + 1]).abs().max() < 1


@pytest.mark.parametrize("x", [0.0, 0.04])
def test_a_cut_equals_the_whole(x):
    for k, setting in enumerate(SETTINGS):
        shot, way = place(setting, "at night", ("rain", "snow", "fog", "stars")[k % 4]), camera(7, x=x)
        whole, late = landscape(shot, way, 7, 32, 32, fps=8), landscape(shot, way[:, :, 4:], 3, 32, 32, fps=8, start=4)
        assert (whole[:, :, 4:] - late).abs().max() < 1


def test_a_still_camera_is_painted_as_a_moving_one_would_be():
    "The short way for still cameras gives the same picture: a hair's breadth of movement switches it off."
    for k, setting in enumerate(SETTINGS):
        shot = place(setting, TIMES[k % 4], ("clear", "rain", "snow")[k % 3])
        assert (film(shot, 3, 48) - film(shot, 3, 48, x=1e-7)).abs().mean() < 0.2


def test_painting_in_pieces_changes_nothing(monkeypatch):
    shot = place("over the ocean", weather="rain")
    whole = film(shot, 5, 32, x=0.03)
    monkeypatch.setattr("sora_edu.world.landscape._PIXELS", 2 * 32 * 32)
    assert (film(shot, 5, 32, x=0.03) - whole).abs().max() < 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_near_ground_goes_with_the_camera(setting):
    "A pan of seven pixels a frame is read back from the lowest rows, at 64 pixels, by day and in snow at night."
    for seed, (time, weather) in itertools.product((1, 4, 9), (("by day", "clear"), ("at night", "snow"))):
        a, b = film(place(setting, time, weather, seed), 2, x=7 / 64)[0].mean(0)[:, -12:]
        fits = torch.stack([(a[:, k:] - b[:, :64 - k]).abs().mean() for k in range(14)])
        assert fits.argmin() == 7 and (a - a.mean(1, keepdim=True)).std() > 2.5


def test_the_sky_hardly_moves_and_the_layers_are_in_order():
    assert SHARES["sky"] < SHARES["far"] < SHARES["middle"] < SHARES["ground"] == 1
    a, b = film(place("in the mountains"), 2, x=0.2)[0].mean(0)
    sky, ground = (a - b).abs()[:12].mean(), (a - b).abs()[-12:].mean()
    assert sky < 3 < ground


def test_a_vertical_pan_leaves_the_land_and_enters_the_earth():
    for setting in SETTINGS[:8]:
        high, deep = film(place(setting), 2, 48, y=-6)[0, :, 1], film(place(setting), 2, 48, y=6)[0, :, 1]
        assert high.mean() > deep.mean() + 20                                        # sky; no sky
        assert deep.mean(0)[8:].std() > 1                                            # with something to fall past


def test_endless():
    "However far the camera goes, there is land: no frame is flat, and it is another place."
    for setting in SETTINGS:
        here, there = film(place(setting), 2, 48, x=3000)[0].unbind(1)
        assert there.std() > 0.4 * here.std() and (here - there).abs().mean() > 2


def test_a_zoom_keeps_the_middle():
    shot = place("in the city")
    near = landscape(shot, torch.tensor([0, 0, 2.0]).view(1, 3, 1), 1, 128, 128)
    far = film(shot, 1, 256)[:, :, :, 64:192, 64:192]
    assert (near - far).abs().mean() < 6


def test_time_moves_what_should_move():
    for setting, weather in [("over the ocean", "clear"), ("underwater", None), ("in the desert", "rain"), ("in the desert", "snow"), ("on the beach", "clear")]:
        early, late = film(place(setting, weather=weather))[0], film(place(setting, weather=weather), start=9)[0]
        assert (early - late).abs().mean() > 0.3


# -- words are told apart ----------------------------------------------------------------------------------------------
def apart(a, b):
    d = (a - b).abs().mean(0).flatten()
    return float(d.topk(len(d) // 10).values.mean())


@pytest.fixture(scope="module")
def look():
    "Every setting, time and weather at 64 pixels."
    shots = {sky: place(*sky) for sky in every_sky()}
    still = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1).expand(len(shots), 3, 1)
    return dict(zip(shots, landscape(shots.values(), still, 1, 64, 64)))


def test_any_two_words_of_a_slot_are_told_apart(look):
    skies = list(look)
    pairs = [(a, b) for a, b in itertools.combinations(skies, 2) if sum(p == q for p, q in zip(a, b)) == 2]
    assert len(pairs) > 500
    close = [(a, b) for a, b in pairs if apart(look[a], look[b]) < 12]
    assert not close


def test_no_land_hides_an_actor(look):
    land = torch.stack(list(look.values())).flatten(2).transpose(1, 2)
    for name, rgb in COLOUR_RGB.items():
        hidden = ((land - torch.tensor(rgb)).abs().amax(-1) < 30).float().mean(1)
        assert hidden.max() < 0.25 and hidden.mean() < 0.05, name


def test_the_words_leave_the_place_alone_and_the_seed_moves_it():
    assert _draw(place("in the snow", "at night", "fog")) == _draw(place("over a meadow"))
    assert _draw(place("in the snow", seed=1)) != _draw(place("in the snow", seed=2))


# -- the parts ---------------------------------------------------------------------------------------------------------
def test_the_hash_is_even_and_pinned():
    h = _hash(torch.arange(100000) - 50000, 5)
    assert 0 <= h.min() and h.max() < 1
    assert (torch.histc(h, 10, 0, 1) / 10000 - 1).abs().max() < 0.05
    assert abs(torch.corrcoef(torch.stack([h[:-1], h[1:]]))[0, 1]) < 0.02
    assert torch.allclose(_hash(torch.tensor([0, 1, -1, 4000000]), 1), torch.tensor([0.31863031, 0.32389233, 0.70675706, 0.38291851]))


def test_noise_is_continuous():
    x = torch.linspace(-4, 4, 8001)
    assert (_noise(x, 1)[1:] - _noise(x, 1)[:-1]).abs().max() < 0.01


def test_things_stay_where_they_are():
    x, y = torch.linspace(0, 1, 64)[None, None], torch.linspace(0, 1, 64)[None, :, None]
    seen = [{int(n): (float(a), float(b)) for n, a, b in zip(*(v[0] for v in _field(x + dx, y, 0.2, 7)))} for dx in (0, 0.5)]
    both = set(seen[0]) & set(seen[1])
    assert len(both) > 10 and all(seen[0][n] == pytest.approx(seen[1][n], abs=1e-5) for n in both)


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change, word", [
    ({"num_frames": 0}, "num_frames"), ({"num_frames": 2.0}, "num_frames"), ({"num_frames": True}, "num_frames"), ({"height": 8}, "height"),
    ({"width": 2000}, "width"), ({"fps": 0}, "fps"), ({"fps": float("nan")}, "fps"), ({"fps": "8"}, "fps"),
    ({"camera": torch.zeros(1, 3, 3)}, "camera"), ({"camera": torch.zeros(1, 2, 2)}, "camera"), ({"camera": None}, "camera"),
    ({"camera": torch.zeros(1, 3, 2)}, "camera"), ({"camera": torch.tensor([float("nan"), 0, 1]).view(1, 3, 1).repeat(1, 1, 2)}, "camera"), ({"camera": torch.full((1, 3, 2), float("nan"))}, "camera"),
    ({"shots": [place("underwater")] * 2}, "camera")])
def test_bad_input_is_refused_with_what_is_allowed(change, word):
    given = dict(shots=place("underwater"), camera=camera(2), num_frames=2, height=32, width=32, fps=8) | change
    with pytest.raises(ValueError, match=f"^{word}: got .*allowed: "):
        landscape(given.pop("shots"), given.pop("camera"), given.pop("num_frames"), given.pop("height"), given.pop("width"), **given)


@pytest.mark.parametrize("second", [0, 900, 1300, 1700, 20_000])
def test_it_never_stops_raining(second):
    "As much changes from frame to frame after hours as at the beginning."
    moved = [film(place("over a meadow", weather="rain"), 2, start=8 * s).diff(dim=2).abs().mean() for s in (0, second)]
    assert 0.6 < float(moved[1] / moved[0]) < 1.6


@pytest.mark.parametrize("far", [-600.0, -320.0, 320.0, 600.0])
def test_a_street_has_its_marks_on_both_sides(far):
    "However far the camera has gone, left or right, the pavement is not one flat stripe."
    street = landscape(place("in the city"), torch.tensor([[[far], [0.0], [1.0]]]), 1, 96, 96, fps=8, start=0)
    home = landscape(place("in the city"), torch.tensor([[[0.0], [0.0], [1.0]]]), 1, 96, 96, fps=8, start=0)
    rough = lambda picture: picture[0, :, 0, 58:].diff(dim=-1).abs().amax((0, 2))        # the hardest edge of each row of the street
    assert (rough(street) > 0.4 * rough(home)).float().mean() > 0.9
