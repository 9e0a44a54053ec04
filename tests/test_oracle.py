"The oracle: right on true clips, silent on broken ones, blind to how they were made."
import ast
from pathlib import Path

import pytest
import torch

from sora_edu.world import oracle, scene
from sora_edu.world.oracle import Reading, matches, read
from sora_edu.world.render import _background, render
from sora_edu.world.scene import Description, World, make_scene

SCENES = World().sample(31, 40, "all")
MOVING = [s for s in SCENES if s.description.action != "stays still"][:16]


@pytest.fixture(scope="module")
def clips():
    return render(SCENES)


@pytest.fixture(scope="module")
def moving():
    return render(MOVING)


def right(video, scenes):
    return sum(all(matches(r, s.description).values()) for r, s in zip(read(video), scenes))


def test_true_clips_are_read_right(clips):
    assert right(clips, SCENES) == 40


def test_images_have_no_action(clips):
    readings = read(clips[:, :, :1])
    assert all(r.description.action is None for r in readings)
    good = sum(r.unreadable is None and (r.description.colour, r.description.actor) == (s.description.colour, s.description.actor)
               for r, s in zip(readings, SCENES))
    assert good >= 38


@pytest.mark.parametrize("frames", [9, 13])
def test_shorter_clips_can_be_read(clips, frames):
    readings = read(clips[:, :, :frames])
    assert sum(r.unreadable is None and r.description.actor == s.description.actor for r, s in zip(readings, SCENES)) >= 37


def test_a_reading_is_its_own(clips):
    assert read(clips[3:5], batch_size=1) == read(clips[:8])[3:5] == read(clips[3:5])


def test_the_camera_s_noise_is_no_matter(moving):
    g = torch.Generator().manual_seed(0)
    assert right((moving + 0.02 * torch.randn(moving.shape, generator=g)).clamp(-1, 1), MOVING) >= 15


def two_thirds(video):
    "The last third from another scene's clip."
    return torch.cat([video[:, :, :11], video.roll(1, 0)[:, :, 11:]], 2)


def erased(video):
    "The actor is gone from one frame: only the background is left."
    video = video.clone()
    video[:, :, 8:9] = _background(MOVING, 1, 64, 64, fps=8, start=8, device=None) / 127.5 - 1
    return video


SPOILED = {
    "static noise": lambda v: SPOILED["noise"](v[:, :, :1]).expand_as(v),
    "erased": erased,
    "noise": lambda v: torch.rand(v.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1,
    "grey": lambda v: torch.zeros_like(v),
    "frozen": lambda v: v[:, :, :1].expand_as(v),
    "shuffled": lambda v: v[:, :, torch.randperm(17, generator=torch.Generator().manual_seed(2))],
    "another's": lambda v: v.roll(1, 0),
    "cut together": two_thirds,
    "a black frame": lambda v: torch.cat([v[:, :, :8], v[:, :, 8:9] * 0 - 1, v[:, :, 9:]], 2),
    "recoloured": lambda v: torch.cat([v[:, :, :9], v[:, [1, 2, 0], 9:]], 2),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_clips_are_not_right(moving, name):
    assert right(SPOILED[name](moving), MOVING) <= 1


@pytest.mark.parametrize("name", ["noise", "static noise", "grey", "erased", "cut together", "a black frame"])
def test_no_scene_is_unreadable(moving, name):
    assert sum(r.unreadable is not None for r in read(SPOILED[name](moving))) >= 15


def test_melting_is_unreadable():
    words = ("big", "orange", None, "moves right", "over the ocean")
    one, two = (render([make_scene(*words[:2], kind, *words[3:], seed=4)]) for kind in ("star", "ball"))
    reading = read(torch.cat([one[:, :, :8], two[:, :, 8:]], 2))[0]
    assert reading.unreadable is not None


def test_the_unreadable_is_wrong_and_the_unsaid_is_left_out():
    said = Description(size="big", colour="red")
    seen = Description("big", "red", "ball", "falls", "at night")
    assert matches(Reading(seen, {}), said) == {"size": True, "colour": True}
    assert matches(Reading(seen, {}, "melts"), said) == {"size": False, "colour": False}
    assert matches(Reading(seen, {}), Description(colour="blue")) == {"colour": False}


def test_it_shares_no_code_with_the_renderer():
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} | {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    ours = {m for m in modules if m in ("render", "captions", "scene", "video") or "sora_edu" in m}
    assert ours == {"scene"}
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "scene" for a in n.names}
    assert not {n.module for n in ast.walk(ast.parse(Path(scene.__file__).read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)} - {"dataclasses"}
    assert names == {"ACTIONS", "ACTORS", "ATTRIBUTES", "COLOUR_RGB", "COLOURS", "SETTINGS", "SIZES", "Description"}    # words, no geometry


@pytest.mark.parametrize("video", [None, torch.zeros(3, 17, 64, 64), torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 0, 64, 64), torch.zeros(1, 1, 17, 64, 64), torch.full((1, 3, 1, 64, 64), float("nan"))])
def test_bad_clips_are_named(video):
    with pytest.raises(ValueError, match="^video: got .*, allowed: "):
        read(video)


@pytest.mark.parametrize("fps", [0, -8, float("nan")])
def test_bad_rates_are_named(fps):
    with pytest.raises(ValueError, match="^fps: got .*, allowed: more than 0"):
        read(torch.zeros(1, 3, 1, 64, 64), fps=fps)
