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
