"Guides: equal to diffusers', exact at their limits, and mixed where the masks say."
import pytest
import torch

from sora_edu.diffusion import guides as D
from sora_edu.diffusion.guidance import cfg
from sora_edu.diffusion.samplers import make_noise, sample, sigma_schedule

X, V, WITHOUT = torch.randn(3, 2, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.full((2, 5), 0.6, dtype=torch.float64)
S = 0.6
YES, NO = torch.full((2, 5, 6), 2.0), torch.full((1, 5, 6), -1.0)


@pytest.fixture
def model():
    calls = []

    def f(x, sigma, text):
        calls.append(len(x))
        return x * text.to(x).mean((1, 2)).view(-1, 1, 1, 1, 1) + sigma[:, None, :, None, None]
    f.calls = calls
    return f


@pytest.mark.parametrize("scale, interval", [(0.0, (0.0, 1.0)), (3.0, (0.0, 1.0)), (3.0, (0.5, 1.0)), (3.0, (0.7, 1.0))])
def test_the_plain_guide_is_chapter_12_s(model, scale, interval):
    sigma = SIGMA.clone()
    sigma[:, :2] = 0.4
    ours, theirs = D.guided(model, YES, NO, D.plain(scale), interval), cfg(model, YES, NO, scale, interval)
    assert torch.allclose(ours(X, sigma), theirs(X, sigma)) and model.calls[0] == model.calls[1] == (2 if interval[0] > 0.6 else 4)


def test_the_interval_holds_for_any_guide(model):
    sigma = SIGMA.clone()
    sigma[:, :2] = 0.4
    v = D.guided(model, YES, NO, D.projected(5.0), (0.5, 1.0))(X, sigma)
    honest = model(X, sigma, YES)
    assert torch.allclose(v[:, :, :2], honest[:, :, :2]) and not torch.allclose(v[:, :, 2:], honest[:, :, 2:])


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_is_diffusers(phi):
    from diffusers.guiders.guider_utils import rescale_noise_cfg
    theirs = rescale_noise_cfg(WITHOUT + 4 * (V - WITHOUT), V, phi)
    assert torch.allclose(D.rescaled(4.0, phi)(V, WITHOUT, X, SIGMA), theirs)


@pytest.mark.parametrize("eta, norm", [(0.0, None), (0.5, None), (1.0, None), (0.0, 3.0), (0.3, 1e6)])
def test_projection_is_diffusers(eta, norm):
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
    clean = normalized_guidance(X - S * V, X - S * WITHOUT, 4.0 - 1, None, eta, norm or 0.0, True)
    assert torch.allclose(D.projected(4.0, eta, norm)(V, WITHOUT, X, SIGMA), (X - clean) / S)


def test_limits():
    assert torch.allclose(D.projected(4.0, eta=1.0)(V, WITHOUT, X, SIGMA), D.plain(4.0)(V, WITHOUT, X, SIGMA))
    assert torch.allclose(D.projected(1.0)(V, WITHOUT, X, SIGMA), V) and torch.allclose(D.rescaled(1.0)(V, WITHOUT, X, SIGMA), V)
    assert torch.allclose(D.rescaled(4.0, 0.0)(V, WITHOUT, X, SIGMA), D.plain(4.0)(V, WITHOUT, X, SIGMA))


def test_nothing_along_the_clean_guess():
    change = (V - D.projected(4.0)(V, WITHOUT, X, SIGMA)) * S                    # of the clean guess
    clean = X - S * V
    assert (change * clean).sum((1, 2, 3, 4)).abs().max() < 1e-9 < change.abs().max()


def test_clips_do_not_touch_each_other():
    for guide in (D.rescaled(4.0), D.projected(4.0, norm=3.0)):
        assert torch.allclose(guide(V, WITHOUT, X, SIGMA)[1:], guide(V[1:], WITHOUT[1:], X[1:], SIGMA[1:]))


def test_frames_that_are_given_do_not_hurt(model):
    mask, given = torch.tensor([[1, 0, 0, 0, 0]]).expand(2, -1), torch.full_like(X, 3.0)
    made = list(sample(D.guided(model, YES, NO, D.projected(3.0)), X, sigma_schedule(4), given=given, given_mask=mask))[-1].latents
    assert (made[:, :, 0] == 3).all() and torch.isfinite(made).all()


@pytest.mark.parametrize("masks", [[torch.tensor([[1.0, 1.0, 0.25, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.75, 1.0, 1.0]])],
                                   [torch.zeros(1, 1, 5, 4, 4).index_fill_(4, torch.tensor([0, 1]), 1.0), torch.zeros(1, 1, 5, 4, 4).index_fill_(4, torch.tensor([2, 3]), 1.0)]])
def test_mixed_answers_lie_where_their_masks_say(masks):
    one, two = (lambda x, s: torch.full_like(x, 1.0)), (lambda x, s: torch.full_like(x, -1.0))
    v = D.mixed([one, two], masks)(X, SIGMA)
    shares = [m[:, None, :, None, None] if m.ndim == 2 else m for m in masks]
    assert torch.allclose(v, (shares[0] - shares[1]).to(X).expand_as(v))


@pytest.mark.parametrize("call, name", [
    (lambda: D.plain(-1), "guidance_scale: got -1"), (lambda: D.plain(float("nan")), "guidance_scale: got nan"), (lambda: D.rescaled(101), "guidance_scale: got 101"),
    (lambda: D.rescaled(2.0, phi=1.5), "phi: got 1.5"), (lambda: D.projected(2.0, eta=-0.5), "eta: got -0.5"), (lambda: D.projected(2.0, norm=0), "norm: got 0"),
    (lambda: D.guided(None, YES, NO, D.plain(2.0), (0.9, 0.1)), r"guidance_interval: got \(0.9, 0.1\)"),
    (lambda: D.mixed([None], []), "masks: got 0"), (lambda: D.mixed([None, None], [torch.ones(1, 5)] * 2), "masks: got shares that sum to 2"),
    (lambda: D.mixed([None, None], [torch.full((1, 5), 2.0), torch.full((1, 5), -1.0)]), "masks: got shares")])
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}.*allowed"):
        call()


def test_noise_is_not_needed_for_one_prompt_everywhere():
    v = lambda x, s: x * 0.3
    start = make_noise([1], (2, 5, 4, 4))
    both = [list(sample(f, start, sigma_schedule(3)))[-1].latents for f in (v, D.mixed([v, v], [torch.full((1, 5), 0.5)] * 2))]
    assert torch.allclose(*both)
