"Schedules and predictions: the same levels as diffusers', and translations that lose nothing."
import math

import numpy as np
import pytest
import torch

from sora_edu.diffusion import schedules as S
from sora_edu.diffusion.flow import shift_sigma
from sora_edu.diffusion.samplers import make_noise, sample, sigma_schedule

X0, NOISE = (make_noise([k], (2, 3, 2, 2)).double() for k in (1, 2))
PATHS = {"flow": (0.35, 0.65), "variance preserving": (0.6, 0.8), "with tensors": (torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("source", S.PREDICTIONS)
@pytest.mark.parametrize("target", S.PREDICTIONS)
def test_every_translation_is_right_and_comes_back(path, source, target):
    alpha, sigma = PATHS[path]
    x = alpha * X0 + sigma * NOISE
    truth = {"epsilon": NOISE, "sample": X0, "v_prediction": alpha * NOISE - sigma * X0, "flow_prediction": NOISE - X0}
    said = S.convert(truth[source], x, alpha, sigma, source, target)
    assert torch.allclose(said, truth[target], atol=1e-12)
    assert torch.allclose(S.convert(said, x, alpha, sigma, target, source), truth[source], atol=1e-12)


@pytest.mark.parametrize("kind, ours", [("epsilon", "epsilon"), ("v_prediction", "v_prediction"), ("sample", "sample")])
def test_clean_guesses_are_diffusers(kind, ours):
    from diffusers import DDIMScheduler
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[20]
    a = scheduler.alphas_cumprod[t].double()
    theirs = scheduler.step(X0.float(), t, NOISE.float()).pred_original_sample
    assert torch.allclose(S.clean_and_noise(X0, NOISE, a.sqrt(), (1 - a).sqrt(), ours)[0].float(), theirs, atol=1e-5)


@pytest.mark.parametrize("kind, theirs", [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")])
def test_tables_are_diffusers(kind, theirs):
    from diffusers import DDPMScheduler
    assert torch.allclose(S.vp_alphas_cumprod(kind).float(), DDPMScheduler(beta_schedule=theirs).alphas_cumprod, atol=1e-5)


def test_spacings_are_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler, ends = FlowMatchEulerDiscreteScheduler(), torch.tensor([80.0, 0.002])
    for ours, theirs in ((S.karras_sigmas(21), scheduler._convert_to_karras(ends, 20)), (S.exponential_sigmas(21), scheduler._convert_to_exponential(ends, 20))):
        assert torch.allclose(ours[1:-1].double(), torch.as_tensor(theirs / (1 + theirs)).double(), atol=1e-6) and ours[[0, -1]].tolist() == [1, 0]


def test_the_resolution_s_shift_is_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler, levels = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), np.linspace(1, 0.05, 20)
    for tokens in (256, 1000, 4096):
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        scheduler.set_timesteps(sigmas=levels, mu=mu)
        ours = shift_sigma(torch.tensor(levels), S.resolution_shift(tokens))
        assert torch.allclose(ours.float(), scheduler.sigmas[:-1], atol=1e-6)


def test_a_shift_adds_in_half_log_snr():
    for sigma in (0.1, 0.5, 0.97):
        moved = float(shift_sigma(torch.tensor(sigma, dtype=torch.float64), 4.0))
        assert S.half_log_snr(moved) - S.half_log_snr(sigma) == pytest.approx(-math.log(4))
    assert (S.half_log_snr(0.0), S.half_log_snr(1.0)) == (math.inf, -math.inf)


def test_both_paths_have_the_same_ratios():
    level = torch.linspace(0, 1, 50, dtype=torch.float64)
    alpha, sigma = S.vp_of(level)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(50, dtype=torch.float64)) and torch.allclose(S.flow_of(alpha, sigma), level)


@pytest.mark.parametrize("kind", S.PREDICTIONS)
def test_a_network_of_the_older_path_in_our_loop(kind):
    "The perfect predictor of normal data, in each language, leads to the flow's own samples."
    def guess(x, alpha, s):
        return 1.5 + alpha * 0.16 / (alpha**2 * 0.16 + s**2) * (x - alpha * 1.5)

    def model(x, alpha, s):
        return S.convert(guess(x, alpha, s), x, alpha, s, "sample", kind)

    def field(y, sigma):
        s = sigma[:, None, :, None, None]
        return (y - guess(y, 1 - s, s)) / s
    start, sigmas = make_noise(range(20), (1, 2, 1, 1)).double(), S.vp_sigmas(S.vp_alphas_cumprod(), range(980, -1, -70))
    ends = [list(sample(f, start, sigmas))[-1].latents for f in (S.vp_velocity(model, kind), field)]
    assert torch.allclose(*ends, atol=1e-9)


def test_given_frames_do_not_hurt_a_network_that_predicts_samples():
    mask, given = torch.tensor([[1, 0]]), torch.full((1, 1, 2, 1, 1), 5.0)
    made = list(sample(S.vp_velocity(lambda x, a, s: x * 0, "sample"), make_noise([1], (1, 2, 1, 1)), sigma_schedule(4), given=given, given_mask=mask))[-1]
    assert made.latents[0, 0, 0] == 5 and torch.isfinite(made.latents).all()


@pytest.mark.parametrize("call, name", [
    (lambda: S.convert(X0, X0, 0.5, 0.5, "noise", "sample"), "source: got 'noise'"),
    (lambda: S.convert(X0, X0, 0.5, 0.5, "sample", "x0"), "target: got 'x0'"),
    (lambda: S.clean_and_noise(X0, X0, 0.0, 1.0, "epsilon"), "prediction_type: got 'epsilon' where alpha is 0"),
    (lambda: S.clean_and_noise(X0, X0, 1.0, torch.tensor([0.0]), "sample"), "prediction_type: got 'sample' where sigma is 0"),
    (lambda: S.vp_velocity(None, "noise"), "prediction_type: got 'noise'"),
    (lambda: next(sample(S.vp_velocity(lambda x, a, s: x), NOISE, sigma_schedule(4))), "prediction_type: got 'epsilon' where alpha is 0"),
    (lambda: S.vp_alphas_cumprod("sigmoid"), "kind: got 'sigmoid'"), (lambda: S.vp_alphas_cumprod(beta_start=0.1, beta_end=0.01), "beta_start, beta_end: got 0.1"),
    (lambda: S.vp_sigmas(S.vp_alphas_cumprod(), [5, 7]), r"timesteps: got \[5, 7\]"), (lambda: S.vp_sigmas(S.vp_alphas_cumprod(), [1000, 3]), "timesteps: got "),
    (lambda: S.vp_sigmas(S.vp_alphas_cumprod(), []), "timesteps: got "), (lambda: S.karras_sigmas(2), "num_steps: got 2"),
    (lambda: S.karras_sigmas(9, rho=0), "rho: got 0"), (lambda: S.exponential_sigmas(9, low=90.0), "high, low: got 80.0 and 90.0"),
    (lambda: S.resolution_shift(0), "tokens: got 0"), (lambda: S.resolution_shift(9, base_tokens=4096), "base_tokens, max_tokens: got 4096"),
    (lambda: S.half_log_snr(1.2), "sigma: got 1.2")])
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}.*allowed"):
        call()
