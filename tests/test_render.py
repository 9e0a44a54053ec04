"The renderer: golden frames, batch and window laws, visible words."
import itertools
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from sora_edu.video import filmstrip, to_uint8
from sora_edu.world.render import render, render_masks, tracks
from sora_edu.world.scene import ACTIONS, ACTORS, COLOURS, SETTINGS, SIZES, World, make_scene

GOLDEN = Path(__file__).parent / "golden"
SCENES = [make_scene(SIZES[i % 2], COLOURS[i], ACTORS[i % 6], ACTIONS[(3 * i + 1) % 10], SETTINGS[i % 6], seed=i) for i in range(8)]


def strips():
    return np.concatenate([filmstrip(to_uint8(v), n=5) for v in render(SCENES)])


def test_golden_frames():
    "Within one grey level of the frames that the shipped weights were trained on."
    golden = np.asarray(Image.open(GOLDEN / "mini.png"))
    assert np.abs(strips().astype(int) - golden).max() <= 1


def test_alone_or_in_a_batch():
    batch = render(SCENES)
    for i in (0, 3, 7):
        assert (render(SCENES[i]) - batch[i:i + 1]).abs().max() * 127.5 <= 1


def test_a_window_is_a_cut():
    whole = render(SCENES)
    assert (render(SCENES, 5, start=8) - whole[:, :, 8:13]).abs().max() * 127.5 <= 1


def test_nothing_leaves_the_frame():
    scenes = World().sample(5, 400, "all")
    x, y, r, _ = tracks(scenes).unbind(1)
    assert (x - 0.99 * r).min() >= 0 and (x + 0.99 * r).max() <= 1 and (y - 0.99 * r).min() >= 0 and (y + 0.99 * r).max() <= 1


def test_sizes_at_the_first_frame():
    for size, low, high in (("small", 0.18, 0.24), ("big", 0.34, 0.42)):
        radius = tracks([make_scene(size, "red", "ball", "grows", "at night", s) for s in range(200)])[:, 2, 0]
        assert 2 * radius.min() >= low and 2 * radius.max() <= high


def test_actor_and_background_differ():
    for colour, setting in itertools.product(COLOURS, SETTINGS):
        scene = make_scene("big", colour, "ball", "stays still", setting, 3)
        video, mask = render(scene, 1), render_masks(scene, 1)
        inside = video[0, :, 0][:, mask[0, 0] == 1].median(1).values
        outside = video[0, :, 0][:, mask[0, 0] == 0]
        assert (outside - inside[:, None]).abs().amax(0).min() * 127.5 >= 40 * 0.9


@pytest.mark.parametrize("slot, words", [("size", SIZES), ("colour", COLOURS), ("actor", ACTORS), ("action", ACTIONS), ("setting", SETTINGS)])
def test_words_of_a_slot_look_different(slot, words):
    base = dict(size="big", colour="red", actor="star", action="moves right", setting="over a meadow")
    clips = {w: render(make_scene(**{**base, slot: w}, seed=11))[0] for w in words}
    masks = {w: render_masks(make_scene(**{**base, slot: w}, seed=11))[0] for w in words}
    for a, b in itertools.combinations(words, 2):
        union = torch.maximum(masks[a], masks[b]) if slot != "setting" else torch.ones_like(masks[a])
        change = ((clips[a] - clips[b]).abs().mean(0) * union).sum((1, 2)) / union.sum((1, 2)).clamp(min=1) * 127.5
        assert change.max() >= 12, (a, b)


def test_the_background_hardly_moves():
    scene = make_scene("small", "red", "ball", "stays still", "over the ocean", 1)
    video, mask = render(scene), render_masks(scene)
    still = mask.amax(1) == 0
    spread = (video.amax(2) - video.amin(2)).amax(1)[still]
    assert 0 < spread.max() * 127.5 < 10


@pytest.mark.parametrize("kwargs, name", [(dict(num_frames=0), "num_frames"), (dict(num_frames=2.0), "num_frames"), (dict(height=8), "height"),
                                          (dict(width="64"), "width"), (dict(fps=0), "fps")])
def test_bad_sizes_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        render(SCENES[0], **kwargs)
