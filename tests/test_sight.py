"Sight: the network's shape and size, the comparison of shifts, and what the packaged eye sees."
import pytest
import torch

from sora_edu.world import film
from sora_edu.world.sight import CELLS, CROP, crops, PLACE, SHIFT, SPOTS, Sight, SightConfig, grey, load_sight, mismatch, pairs_of
from sora_edu.world.stage import ACTORS, COLOURS, STYLES, Group, Shot


@pytest.fixture(scope="module")
def eye():
    return load_sight()


def shot(style="flat", kind="fish", colour="red", size="medium", seed=0, **more):
    return Shot((Group(size, colour, kind, ("stays still",)),), "in the desert", style=style, seed=seed, **more)


def test_every_cell_says_all_and_the_frame_its_place():
    net = Sight(SightConfig(widths=(4, 6, 8, 10), drift_width=8, glance_widths=(4, 6, 8))).eval()
    with torch.no_grad():
        said = net(torch.zeros(2, 3, 128, 160))
    assert {name: tuple(said[name].shape) for name in SPOTS} == {name: (2, n, 32, 40) for name, n in SPOTS.items()}
    assert {name: tuple(said[name].shape) for name in PLACE} == {name: (2, len(words)) for name, words in PLACE.items()}
    assert said["there"].sigmoid().max() < 0.2                     # at first, nothing is anywhere


def test_the_packaged_eye_is_small(root):
    file = root / "sora_edu" / "data" / "oracle.safetensors"
    assert file.stat().st_size <= 2 * 2 ** 20
    assert file.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("right, down", [(0, 0), (2, 0), (-1, 3), (3, -2)])
def test_the_best_shift_is_the_true_one(right, down):
    g = torch.Generator().manual_seed(0)
    a = torch.rand(1, 1, 64, 64, generator=g)
    pair = torch.cat([a, a.roll((down, right), (2, 3))], 1)
    cost, much = mismatch(pair, 4)
    assert cost.shape == (1, (2 * SHIFT + 1) ** 2, 16, 16) and (much > 0).all()
    best = cost[0, :, 4:12, 4:12].flatten(1).mean(1).argmin().item()
    assert divmod(best, 2 * SHIFT + 1) == (down + SHIFT, right + SHIFT)


@pytest.mark.parametrize("size", [(128, 128), (128, 192), (160, 128)])
def test_a_crop_holds_what_lies_around_its_point_turned_back(size):
    h, w = size
    frames = torch.zeros(2, 3, h, w)
    frames[1, :, h // 2 + 20, w // 2 - 30] = 1.0                     # 20 pixels below the middle, 30 to its left
    at = lambda x, y, r, a: crops(frames, torch.tensor([1]), *(torch.tensor([v]) for v in (x, y, r, a)))[0, 0]
    middle = at(0.5 - 30 / 128, 0.5 + 20 / 128, 0.1, 0.0)
    assert middle.shape == (CROP, CROP) and middle[22:26, 22:26].sum() == middle.sum() > 0
    right = at(0.5 - 50 / 128, 0.5 + 20 / 128, 0.2, 0.0)             # 20 pixels right of its point
    row, column = divmod(int(right.argmax()), CROP)
    assert abs(row - 23.5) < 1 and abs((column - 23.5) * 2 * 0.2 * 1.35 * 128 / CROP - 20) < 1.5
    turned = at(0.5 - 50 / 128, 0.5 + 20 / 128, 0.2, 1.5707963)      # turned back by a quarter, it lies above
    row, column = divmod(int(turned.argmax()), CROP)
    assert abs(column - 23.5) < 1 and row < 20
    assert crops(frames, torch.tensor([0]), *(torch.tensor([v]) for v in (0.5, 0.5, 0.2, 0.0))).sum() == 0


@pytest.mark.parametrize("frames, fps, strides", [(33, 8, {2, 4}), (2, 8, {1}), (9, 4, {1, 2}), (4, 8, {2, 3})])
def test_the_camera_is_looked_for_between_frames_a_quarter_and_half_a_second_apart(frames, fps, strides):
    first, second = pairs_of(frames, fps)
    assert set((second - first).tolist()) == strides and first.min() == 0 and second.max() == frames - 1


def test_grey_weighs_colours_and_halves():
    frame = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert grey(frame).shape == (1, 4, 4) and torch.allclose(grey(frame), torch.tensor(0.3))


@pytest.mark.parametrize("style", STYLES)
def test_the_eye_finds_an_actor_in_every_style(eye, style):
    one = shot(style, seed=3)
    frames, truth = film.render(one, 1)[:, :, 0], film.truth(one, 1, 64, 64)
    with torch.no_grad():
        said = eye(frames)
    heat = said["there"][0].amax(0)
    row, column = divmod(int(heat.argmax()), CELLS)
    x, y = truth.tracks[0, :2, 0].tolist()
    assert abs((column + 0.5) / CELLS - x) < 0.06 and abs((row + 0.5) / CELLS - y) < 0.06
    assert int(said["kind"][0, :, row, column].argmax()) == ACTORS.index("fish")
    assert int(said["colour"][0, :, row, column].argmax()) == COLOURS.index("red")
    assert int(said["style"][0].argmax()) == STYLES.index(style)


def test_the_eye_feels_the_camera(eye):
    def steps(camera):
        one = shot(camera=camera, seed=5)
        light = grey(film.render(one, 9)[0].transpose(0, 1))
        with torch.no_grad():
            return eye.drift(light[torch.tensor([[0, 2], [2, 4], [4, 6], [6, 8]])]).sum(0)
    still, right, down, near = (steps(c) for c in ("still", "pans right", "tilts down", "zooms in"))
    assert still.abs().max() < 0.03
    assert right[0] > 0.04 and down[1] > 0.04 and near[2] > 0.04


def test_weights_of_another_shape_are_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises((RuntimeError, ValueError)):
        load_sight(tmp_path / "bad.safetensors")
