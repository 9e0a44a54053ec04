"Patches: the cut and its inverse, the order of tokens against an independent count, positions, and bad input."
import itertools
import pytest
import torch
from sora_edu.model.patches import grid_size, patchify, positions, unpatchify

PATCHES = list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 3, 6)))


@pytest.fixture(scope="module")
def video():
    return torch.arange(2 * 3 * 4 * 4 * 6.0).view(2, 3, 4, 4, 6)      # every number different: a misplaced one shows


@pytest.mark.parametrize("patch", PATCHES)
def test_round_trip_is_exact(video, patch):
    assert torch.equal(unpatchify(patchify(video, patch), grid_size(video.shape, patch), patch), video)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 3), (4, 1, 6)])
def test_each_number_is_where_loops_put_it(video, patch):
    (pt, ph, pw), (nt, nh, nw) = patch, grid_size(video.shape, patch)
    tokens = patchify(video, patch)
    assert tokens.shape == (2, nt * nh * nw, pt * ph * pw * 3)
    for c, t, h, w in itertools.product(range(3), range(4), range(4), range(6)):
        token = ((t // pt) * nh + h // ph) * nw + w // pw
        inside = (((t % pt) * ph + h % ph) * pw + w % pw) * 3 + c     # (pt ph pw c), channels innermost, as Wan's output layer
        assert tokens[1, token, inside] == video[1, c, t, h, w]


@pytest.mark.parametrize("grid", [(5, 4, 4), (1, 2, 3), (2, 3, 1)])
def test_positions_follow_the_order_of_tokens(grid):
    axes = [torch.arange(float(n)) for n in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    assert torch.equal(patchify(coordinates, (1, 1, 1))[0].long(), positions(grid))


def test_a_clip_may_have_any_shape():
    counts = {shape: patchify(torch.zeros(1, 16, *shape)).shape[1] for shape in ((1, 8, 8), (5, 8, 8), (5, 4, 16), (17, 8, 8))}
    assert list(counts.values()) == [16, 80, 80, 272]


def test_one_token_is_one_block_of_pixels(video):
    tokens = patchify(video, (2, 2, 2))
    tokens[:, 7] = -1                                                 # grid (2, 2, 3): token 7 is at (1, 0, 1)
    changed = unpatchify(tokens, (2, 2, 3), (2, 2, 2)) == -1
    assert changed.sum() == 2 * 3 * 8 and changed[:, :, 2:4, 0:2, 2:4].all()


@pytest.mark.parametrize("shape, name", [((1, 16, 5, 8, 9), "W = 9"), ((1, 16, 5, 7, 8), "H = 7")])
def test_a_size_that_does_not_divide_is_refused(shape, name):
    with pytest.raises(ValueError, match=f"shape: got {name}, allowed: multiples"):
        patchify(torch.zeros(shape))


@pytest.mark.parametrize("patch", [(2, 2), (1, 0, 2), (1, 2, -2), (1, 2, 2.0)])
def test_a_patch_size_that_is_none_is_refused(video, patch):
    with pytest.raises(ValueError, match="patch_size: got"):
        patchify(video, patch)


def test_tokens_that_do_not_fill_the_grid_are_refused(video):
    with pytest.raises(ValueError, match="tokens: got 12 tokens of 24 numbers"):
        unpatchify(patchify(video, (2, 2, 2)), (2, 2, 2), (2, 2, 2))
    with pytest.raises(ValueError, match="video: got shape"):
        patchify(torch.zeros(16, 5, 8, 8))
