"The film: batches and cuts, colours that stay, actors that stand out, five styles, and a truth that fits the pixels."
import colorsys
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sora_edu.world.film import LOOKS, _blur, _page, _pixelate, render, truth
from sora_edu.world.landscape import landscape
from sora_edu.world.motion import choreograph
from sora_edu.world.stage import COLOUR_RGB, COLOURS, STYLES, Group, Shot


def one(size="big", colour="red", kind="star", action="stays still", setting="over a meadow", time="by day", weather="clear", **how):
    return Shot((Group(size, colour, kind, (action,)),), setting, time, weather, **how)


MIXED = [one("big", "red", "car", "moves right", seed=1), one("small", "white", "fish", "zigzags", "underwater", None, None, seed=2),
         Shot((Group("small", "purple", "bird", ("bounces", "spins"), 4),), "in the desert", "at night", "stars", "shakes", seed=3),
         Shot((Group("small", "yellow", "ball", ("hides behind",)), Group("big", "brown", "tree")), "in the forest", "at sunset", seed=4),
         one("medium", "blue", "rocket", "grows", "in space", None, None, camera="zooms in", seed=5)]


def grey_levels(a, b):
    return (a - b).abs().max() * 127.5


# -- laws --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("style", STYLES)
def test_alone_or_in_a_batch_whole_or_cut(style):
    shots = [replace(shot, style=style) for shot in MIXED]
    batch = render(shots, 6, 48, 64)
    assert batch.shape == (5, 3, 6, 48, 64) and batch.abs().max() <= 1 and torch.isfinite(batch).all()
    for i in (1, 2, 3):
        assert grey_levels(render(shots[i], 6, 48, 64), batch[i:i + 1]) <= 1
    assert grey_levels(render(shots[2:4], 3, 48, 64, start=3), batch[2:4, :, 3:]) <= 1


def test_styles_in_one_batch_keep_their_places():
    shots = [replace(MIXED[0], style=style) for style in reversed(STYLES)]
    batch = render(shots, 1, 48, 48)
    for i, shot in enumerate(shots):
        assert grey_levels(render(shot, 1, 48, 48), batch[i:i + 1]) <= 1


@pytest.mark.parametrize("frames, height, width", [(1, 16, 16), (2, 32, 112), (1, 96, 32), (3, 17, 65)])
def test_any_size(frames, height, width):
    for style in STYLES:
        assert render(replace(MIXED[2], style=style), frames, height, width).shape == (1, 3, frames, height, width)
    assert truth(MIXED[2], frames, height, width).masks.shape == (4, frames, height, width)


def test_at_any_size_it_is_the_same_scene():
    small, large = render(MIXED[:1], 1, 48, 48), render(MIXED[:1], 1, 144, 144)
    assert (F.avg_pool2d(large[:, :, 0], 3) - small[:, :, 0]).abs().mean() * 127.5 < 6


# -- truth -------------------------------------------------------------------------------------------------------------
def test_masks_and_background_share_every_pixel():
    known = truth(MIXED, 6, 48, 64)
    assert len(known.kinds) == len(known.masks) == 9 and known.tracks.shape == (9, 4, 6) and known.camera.shape == (5, 3, 6)
    for b in range(5):
        total = known.masks[known.owner == b].sum(0) + known.background[b]
        assert (total - 1).abs().max() < 1e-5
        assert sorted(known.order[known.owner == b, 0].tolist()) == list(range(int((known.owner == b).sum())))
    assert (known.masks <= known.covers + 1e-6).all() and known.masks.min() >= 0


def test_what_hides_is_there_and_not_seen():
    known = truth(MIXED[3], 33, 64, 64)
    seen, there = known.masks.sum((2, 3)), known.covers.sum((2, 3))
    assert (seen[0] < 0.02 * there[0]).any() and (seen[0] > 0.98 * there[0]).any() and there[0].min() > 20
    assert torch.allclose(seen[1], there[1])


def test_covers_fit_the_tracks():
    known = truth(MIXED, 2, 96, 96)
    grid = (torch.arange(96) + 0.5) / 96
    for cover, (x, y, r, _) in zip(known.covers[:, 0], known.tracks[:, :, 0].tolist()):
        assert abs((cover.sum(0) * grid).sum() / cover.sum() - x) < 0.25 * r and abs((cover.sum(1) * grid).sum() / cover.sum() - y) < 0.3 * r


def test_pixels_change_only_where_an_actor_is():
    shot = MIXED[4]                                     # in space nothing casts a shadow
    known, film = truth(shot, 3, 64, 64), choreograph(shot, 3)
    bare = landscape([shot], film.camera, 3, 64, 64, fps=8) / 127.5 - 1
    change = (render(shot, 3, 64, 64) - bare).abs().amax(1)[0]
    assert change[known.covers[0] == 0].max() * 127.5 < 1 and change[known.covers[0] == 1].median() > 0.1


def test_who_is_nearer_is_painted_later():
    shot = Shot((Group("medium", "red", "ball", ("stays still",)), Group("small", "blue", "box")), "in space", None, None, relation="behind")
    for shot in (shot, replace(shot, relation="in front of")):
        video, known = render(shot, 1, 96, 96), truth(shot, 1, 96, 96)
        both = (known.covers[:, 0] > 0.99).all(0)
        red, _, blue = video[0, :, 0][:, both].mean(1)
        assert both.sum() > 10 and (red > blue) == (shot.relation == "in front of") == bool(known.order[0, 0])


def test_only_what_is_on_the_ground_has_a_shadow():
    def darker(action, setting="over a meadow", **sky):
        "How much darker it is, in all, where the car is not."
        shot = one("big", "red", "car", action, setting, **sky, seed=3)
        bare = landscape([shot], choreograph(shot, 1).camera, 1, 64, 64, fps=8) / 127.5 - 1
        empty = truth(shot, 1, 64, 64).covers[0] == 0
        return float((bare - render(shot, 1, 64, 64)).mean(1)[0][empty].sum())
    assert darker("stays still") > 2
    assert abs(darker("circles around")) + abs(darker("stays still", "in space", time=None, weather=None)) < 0.01


# -- colours -----------------------------------------------------------------------------------------------------------
def paint(shots, amount=0.99):
    "The mean colour over each single actor: [B, 3] in 0..255."
    video, known = (render(shots, 1, 96, 96)[:, :, 0] + 1) * 127.5, truth(shots, 1, 96, 96)
    inside = (known.masks[:, None, 0] > amount).float()
    return (video * inside).sum((2, 3)) / inside.sum((2, 3))


def hue(rgb):
    return colorsys.rgb_to_hsv(*(float(v) / 255 for v in rgb))[0] * 360


@pytest.mark.parametrize("style, degrees", [("flat", 1), ("pixel art", 3), ("pencil", 5), ("neon", 5), ("watercolour", 6)])
def test_colours_keep_their_hue(style, degrees):
    for time in ("by day", "at night"):
        shots = [one(colour=c, kind=k, time=time, style=style) for c, k in zip(COLOURS, itertools.cycle(("ball", "house", "car", "fish")))]
        for colour, seen in zip(COLOURS, paint(shots)):
            off = abs((hue(seen) - hue(COLOUR_RGB[colour]) + 180) % 360 - 180)
            assert off <= degrees or colour == "white" and seen.max() - seen.min() < 16, (colour, off)


def test_at_night_actors_keep_their_light():
    day, night = (paint([one(colour=c, kind="box", time=t) for c in COLOURS]) for t in ("by day", "at night"))
    assert (night.sum(1) / day.sum(1) > 0.9).all()


@pytest.mark.parametrize("colour, setting, time, weather", [
    ("white", "in the snow", "by day", "snow"), ("white", "in the mountains", "in the morning", "fog"),
    ("brown", "in the forest", "at sunset", "clear"),
    ("purple", "in the city", "at night", "fog"), ("blue", "over the ocean", "at night", "clear"), ("green", "over a meadow", "by day", "clear"),
    ("orange", "in the desert", "at sunset", "clear"), ("turquoise", "underwater", None, None), ("brown", "in space", None, None)])
def test_actors_stand_out(colour, setting, time, weather):
    "Along nine tenths of the outline, light changes by 40 grey levels in some channel within two pixels to each side."
    for style in ("flat", "neon", "pencil"):
        shot = one("big", colour, "star", setting=setting, time=time, weather=weather, style=style)
        frame, cover = (render(shot, 1)[:, :, 0] + 1) * 127.5, truth(shot, 1).covers[0, 0]
        step = (F.max_pool2d(frame, 5, 1, 2) + F.max_pool2d(-frame, 5, 1, 2)).amax(1)[0]
        assert (step[(cover > 0.3) & (cover < 0.7)] >= 40).float().mean() > 0.9, style


# -- styles ------------------------------------------------------------------------------------------------------------
def test_styles_are_unmistakable():
    for shot in MIXED:
        videos = render([replace(shot, style=style) for style in STYLES], 1)
        for a, b in itertools.combinations(range(len(STYLES)), 2):
            assert (videos[a] - videos[b]).abs().mean() * 127.5 > (6 if {a, b} == {0, 4} or {a, b} == {0, 1} else 12), (STYLES[a], STYLES[b])
    flat, pixels, pencil, neon, _ = render([replace(MIXED[0], style=style) for style in STYLES], 1)
    assert neon.mean() < -0.7 and pencil.mean() > flat.mean() and torch.equal(pixels[..., 3:6, 3:6], pixels[..., 4:5, 4:5].expand(3, 1, 3, 3))


@pytest.mark.parametrize("style", STYLES)
def test_styles_do_not_flicker(style):
    "The same picture in all frames stays the same picture."
    frames = landscape(MIXED[:1], choreograph(MIXED[:1], 1).camera, 1, 48, 48, fps=8).expand(-1, -1, 3, -1, -1).clone()
    look = LOOKS[style]
    done = look.finish(look.scenery(frames, _page(48, 48, torch.device("cpu"))))
    assert done.shape == frames.shape and torch.equal(done[:, :, 0], done[:, :, 2])


def test_pixel_art_has_few_rows():
    for side in (32, 64, 128, 250):
        rows = _pixelate(torch.rand(1, 3, 1, side, side) * 255)[0, :, 0]
        changes = (rows[:, 1:] != rows[:, :-1]).flatten(2).any(0).any(1).sum()
        assert 10 < changes + 1 <= 48


def test_blur_keeps_light():
    v = torch.rand(2, 9, 11)
    assert torch.allclose(_blur(torch.full((1, 5, 7), 3.0)), torch.full((1, 5, 7), 3.0)) and abs(_blur(v).mean() - v.mean()) < 0.02
    weights = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    assert torch.allclose(_blur(v)[:, 1:-1, 1:-1], F.conv2d(v[:, None], weights)[:, 0], atol=1e-6)


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [render, truth])
@pytest.mark.parametrize("shots, how, name", [
    ([], {}, "shots"), ("a red ball", {}, "shots"), ([None], {}, "shots"), (MIXED, dict(num_frames=0), "num_frames"),
    (MIXED, dict(num_frames=2.5), "num_frames"),
    (MIXED, dict(height=8), "height"), (MIXED, dict(width=5000), "width"), (MIXED, dict(width="wide"), "width"), (MIXED, dict(fps=0), "fps"),
    (MIXED, dict(fps="fast"), "fps"), (MIXED, dict(start=-1), "start")])
def test_bad_input_is_named(make, shots, how, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        make(shots, **how)
