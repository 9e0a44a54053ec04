"The sixteen actors: within their circle, of like size, true to distance, told apart, with an up and a right."
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sora_edu.world.render import SHAPES
from sora_edu.world.shapes import FOOT, REACH, draw
from sora_edu.world.stage import ACTORS

LINE = torch.linspace(-1.4, 1.4, 281)
Y, X = torch.meshgrid(LINE, LINE, indexing="ij")
PIXELS = (torch.arange(36) + 0.5 - 18) / 12         # 12 pixels are one radius
PY, PX = torch.meshgrid(PIXELS, PIXELS, indexing="ij")


def turned(kind, angle):
    "Coverage and tone of an actor that has turned clockwise, at 12 pixels' radius."
    c, s = math.cos(angle), math.sin(angle)
    d, tone = draw(kind, c * PX + s * PY, c * PY - s * PX, 1 / 12)
    return (0.5 - 12 * d).clamp(0, 1), tone


@pytest.mark.parametrize("kind", ACTORS)
def test_reach_size_and_foot(kind):
    d, _ = draw(kind, X, Y)
    inside = d < 0
    assert torch.hypot(X, Y)[inside].max() <= REACH + 0.01
    assert 0.6 <= math.sqrt(inside.float().mean() * 2.8**2 / math.pi) <= 1.01
    assert abs(float(Y[inside].max()) - FOOT[kind]) < 0.015


@pytest.mark.parametrize("kind", ACTORS)
def test_distances_are_true_near_the_outline(kind):
    d, _ = draw(kind, X, Y)
    gy, gx = torch.gradient(d, spacing=float(LINE[1] - LINE[0]))
    near = torch.hypot(gx, gy)[d.abs() < 0.2]
    assert ((near > 0.7) & (near < 1.3)).float().mean() > 0.95 and near.quantile(0.999) < 1.3


@pytest.mark.parametrize("kind", ACTORS)
def test_tone_is_inked_sharply_or_softly(kind):
    "Between -1 and 1; a smaller pixel makes sharper details of the same size; a tensor of pixel sizes broadcasts."
    d, sharp = draw(kind, X, Y, 0.001)
    _, soft = draw(kind, X, Y, torch.full((281, 1), 0.08))
    assert sharp.min() >= -1 and sharp.max() <= 1 and sharp.shape == soft.shape == d.shape
    inside = d < 0
    assert (sharp - soft)[inside].mean().abs() < 0.06
    if kind != "heart":
        assert sharp.min() < -0.7 and ((sharp - soft).abs() > 0.2).any()


def test_silhouettes_are_told_apart_in_any_turn():
    angles = [k * math.pi / 12 for k in range(24)]
    ways = {kind: torch.stack([turned(kind, a)[0] for a in angles]) for kind in ACTORS}
    for i, a in enumerate(ACTORS):
        for b in ACTORS[:i]:
            both, either = torch.minimum(ways[a][:1], ways[b]), torch.maximum(ways[a][:1], ways[b])
            assert (both.sum((1, 2)) / either.sum((1, 2))).max() < 0.85, (a, b)


@pytest.mark.parametrize("kind", ACTORS)
def test_a_spin_shows(kind):
    look = [cover * (1 + 0.65 * tone.clamp(-1, 0)) for cover, tone in (turned(kind, a) for a in (0, math.pi / 2, math.pi))]
    assert (look[0] - look[1]).abs().mean() > 0.015 and (look[0] - look[2]).abs().mean() > 0.015


def test_they_look_to_the_right():
    "Eyes of fish and bird, and the light of the car's lamp, are on the right; their mirror images differ."
    for kind in ("fish", "bird"):
        _, tone = draw(kind, X, Y)
        assert X[tone < -0.9].quantile(0.9) > 0.5
    _, tone = draw("car", X, Y)
    assert X[tone > 0.7].max() > 0.85 and X[tone > 0.7].min() > -0.85
    for kind in ("fish", "bird", "car", "boat"):
        assert ((draw(kind, X, Y)[0] < 0) != (draw(kind, -X, Y)[0] < 0)).float().mean() > 0.01


def test_the_small_worlds_shapes_are_used():
    for kind, scale in (("ball", 1.0), ("ring", 1.0), ("box", 0.77)):
        assert torch.allclose(draw(kind, X, Y)[0], SHAPES[kind](X / scale, Y / scale) * scale)


class Count(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ACTORS)
def test_cheap_and_finite(kind):
    with Count() as count:
        draw(kind, torch.zeros(3, 2, 5), torch.zeros(3, 2, 5))
    assert count.n <= 80
    for d in draw(kind, torch.zeros(3, 2, 5), torch.zeros(3, 2, 5)):
        assert d.shape == (3, 2, 5) and torch.isfinite(d).all()


@pytest.mark.parametrize("kind", ["dragon", "", None, "Fish", 3])
def test_what_is_no_actor_is_refused(kind):
    with pytest.raises(ValueError, match="^kind: got .*allowed: ball, box"):
        draw(kind, X, Y)
