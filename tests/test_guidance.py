"Guidance: a line through two predictions, asked for in one call."
import pytest
import torch

from sora_edu.diffusion.guidance import cfg

X, SIGMA = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.full((2, 4), 0.5)
YES, NO = torch.full((2, 5, 6), 2.0), torch.full((2, 5, 6), -1.0)


@pytest.fixture
def model():
    calls = []

    def f(x, sigma, text):
        calls.append(len(x))
        assert len(x) == len(sigma) == len(text)
        return x * text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    f.calls = calls
    return f


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
def test_it_is_a_line(model, scale):
    assert torch.allclose(cfg(model, YES, NO, scale)(X, SIGMA), -X + scale * 3 * X)
    assert model.calls == [4]                                      # both questions in one batch


def test_one_is_the_prompt_alone_at_half_the_price(model):
    assert torch.allclose(cfg(model, YES, NO, 1)(X, SIGMA), 2 * X)
    assert model.calls == [2]


def test_zero_ignores_the_prompt(model):
    assert torch.equal(cfg(model, YES, NO, 0)(X, SIGMA), cfg(model, YES * 9, NO, 0)(X, SIGMA))


def test_one_negative_serves_all(model):
    assert torch.equal(cfg(model, YES, NO[:1], 2.0)(X, SIGMA), cfg(model, YES, NO, 2.0)(X, SIGMA))


def test_clips_keep_their_own_prompts(model):
    texts = torch.stack([YES[0], NO[0]])
    v = cfg(model, texts, NO, 3.0)(X, SIGMA)
    assert torch.allclose(v[0], -X[0] + 9 * X[0]) and torch.allclose(v[1], -X[1])


@pytest.mark.parametrize("scale", [-1, 101, float("nan"), float("inf")])
def test_bad_scales_are_named(model, scale):
    with pytest.raises(ValueError, match="^guidance_scale: got .*, allowed: 0 to 100"):
        cfg(model, YES, NO, scale)


def test_guidance_within_an_interval(model):
    low = torch.full((2, 4), 0.5)
    low[:, 2:] = 0.9                                               # two frames inside, two outside
    v = cfg(model, YES, NO, 3.0, (0.8, 1.0))(X, low)
    assert torch.allclose(v[:, :, 2:], 8 * X[:, :, 2:]) and torch.allclose(v[:, :, :2], 2 * X[:, :, :2])
    assert torch.allclose(cfg(model, YES, NO, 3.0, (0.8, 1.0))(X, SIGMA), 2 * X)
    assert model.calls == [4, 2]                                   # nobody inside: one question


def test_each_clip_has_its_own_level(model):
    v = cfg(model, YES, NO, 3.0, (0.8, 1.0))(X, torch.tensor([0.9, 0.5]))
    assert torch.allclose(v[0], 8 * X[0]) and torch.allclose(v[1], 2 * X[1])


def test_a_scale_below_one_holds_everywhere(model):
    assert torch.allclose(cfg(model, YES, NO, 0.5, (0.8, 1.0))(X, SIGMA), 0.5 * X)


@pytest.mark.parametrize("interval", [(-0.1, 1), (0.6, 1.1), (0.9, 0.2), (float("nan"), 1), 0.5, None, (0, 0.5, 1), [], ("0", 1), (False, True)])
def test_bad_intervals_are_named(model, interval):
    with pytest.raises(ValueError, match="^guidance_interval: got .*, allowed: "):
        cfg(model, YES, NO, 2.0, interval)


def test_the_ends_of_an_interval_belong_to_it(model):
    for end in (0.6, 0.7, 0.1 + 0.2):
        level = torch.full((2, 4), end)                              # float32: not quite the number that was meant
        assert torch.allclose(cfg(model, YES, NO, 3.0, (end, 1.0))(X, level), 8 * X)
        assert torch.allclose(cfg(model, YES, NO, 3.0, (0.0, end))(X, level), 8 * X)
        assert torch.allclose(cfg(model, YES, NO, 3.0, (end + 0.01, 1.0))(X, level), 2 * X)
