"Flow matching: paths, levels for every frame, the loss, and its zero."
import pytest
import torch

from sora_edu.diffusion.flow import SigmaMix, add_noise, expand_sigma, flow_loss, per_token, sample_sigma_map, shift_sigma, to_x0, velocity

G = torch.Generator().manual_seed(0)
X0, NOISE = torch.randn(4, 3, 5, 2, 2, generator=G, dtype=torch.float64), torch.randn(4, 3, 5, 2, 2, generator=G, dtype=torch.float64)
ONLY = dict(shared=0, independent=0, given=0, ramp=0)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5), (4, 1, 5, 1, 1)])
def test_the_path_leads_from_data_to_noise(shape):
    sigma = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = add_noise(X0, NOISE, sigma)
    assert torch.allclose(to_x0(x, velocity(X0, NOISE), sigma), X0)
    assert torch.equal(add_noise(X0, NOISE, sigma * 0), X0) and torch.equal(add_noise(X0, NOISE, sigma * 0 + 1), NOISE)


def test_velocity_is_the_derivative():
    at = lambda s: add_noise(X0, NOISE, torch.full((4,), s, dtype=torch.float64))
    for low, high in ((0.0, 0.1), (0.5, 0.9), (0.2, 1.0)):          # a straight path: any step tells it
        assert torch.allclose((at(high) - at(low)) / (high - low), velocity(X0, NOISE))


def test_each_frame_has_its_own_level():
    sigma = torch.tensor([[0.0, 1, 0, 1, 0]]).expand(4, -1)
    x = add_noise(X0, NOISE, sigma)
    assert torch.equal(x[:, :, ::2], X0[:, :, ::2]) and torch.equal(x[:, :, 1::2], NOISE[:, :, 1::2])


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 1), ()])
def test_levels_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match="^sigma: got .*, allowed: "):
        expand_sigma(torch.zeros(shape), X0)


def test_the_loss_is_zero_at_the_truth_only():
    sigma = torch.full((4,), 0.5)
    v = velocity(X0, NOISE).float()
    assert flow_loss(v, X0.float(), NOISE.float(), sigma) < 1e-10
    assert abs(flow_loss(v + 2, X0.float(), NOISE.float(), sigma) - 4) < 1e-4


def test_given_frames_and_weights_count():
    v = velocity(X0, NOISE)
    wrong = v.clone()
    wrong[:, :, 0] += 10
    given = torch.full((4, 5), 0.5)
    given[:, 0] = 0
    assert flow_loss(wrong, X0, NOISE, given) < 1e-6                # a mistake where nothing was asked is none
    weight = torch.ones(4, 1, 5, 2, 2)
    weight[:, :, 0] = 3
    plain, heavy = (flow_loss(wrong, X0, NOISE, torch.full((4,), 0.5), w) for w in (None, weight))
    assert abs(plain - 100 / 5) < 1e-3 and abs(heavy - 300 / 7) < 1e-3


def test_a_loss_of_nothing_is_zero():
    assert flow_loss(velocity(X0, NOISE) + 1, X0, NOISE, torch.zeros(4)) == 0


def test_the_shift_is_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigma = torch.linspace(1, 0.1, 10)
    scheduler.set_timesteps(sigmas=sigma.numpy())
    assert (scheduler.sigmas[:-1] - shift_sigma(sigma, 3.0)).abs().max() < 1e-6


def test_the_shift_keeps_its_ends_and_its_order():
    sigma = torch.linspace(0, 1, 50)
    for shift in (0.3, 1.0, 7.0):
        moved = shift_sigma(sigma, shift)
        assert moved[0] == 0 and abs(moved[-1] - 1) < 1e-6 and (moved.diff() > 0).all()
        assert torch.allclose(shift_sigma(moved, 1 / shift), sigma, atol=1e-6)
    assert (shift_sigma(sigma, 3.0) >= sigma - 1e-7).all()


@pytest.mark.parametrize("shift", [0, -1, float("nan")])
def test_bad_shifts_are_named(shift):
    with pytest.raises(ValueError, match="^shift: got .*, allowed: more than 0"):
        shift_sigma(torch.ones(1), shift)


def maps(**shares):
    return sample_sigma_map(SigmaMix(**{**ONLY, **shares}), 4000, 5, torch.Generator().manual_seed(2))


def test_four_kinds_of_maps():
    shared, each, given, ramp = (maps(**{k: 1.0}) for k in ("shared", "independent", "given", "ramp"))
    assert (shared == shared[:, :1]).all() and ((shared > 0) & (shared < 1)).all()
    assert (each[:, 0] != each[:, 1]).all()
    assert (ramp.diff(dim=1) >= 0).all()
    kept = (given == 0).sum(1)
    assert kept.min() >= 1 and kept.max() <= 4
    both = (given[:, 0] == 0) & (given[:, -1] == 0)
    assert 0.2 < both.float().mean() < 0.35 and (given[:, 0] == 0).float().mean() > 0.6


def test_shares_are_obeyed():
    mixed = maps(shared=0.4, independent=0.1, given=0.3, ramp=0.2)
    given, shared = (mixed == 0).any(1), (mixed == mixed[:, :1]).all(1)
    ramp = (mixed.diff(dim=1) > 0).all(1)                           # of independent levels, one in 120 rises by chance
    for kind, share in ((given, 0.3), (shared, 0.4), (ramp, 0.2), (~given & ~shared & ~ramp, 0.1)):
        assert abs(kind.float().mean() - share) < 0.03


@pytest.mark.parametrize("frames", [2, 3, 5, 9])
def test_something_is_given_and_something_is_not(frames):
    sigma = sample_sigma_map(SigmaMix(**{**ONLY, "given": 1}), 2000, frames, torch.Generator().manual_seed(5))
    kept = (sigma == 0).sum(1)
    assert sigma.shape == (2000, frames) and set(kept.tolist()) == set(range(1, frames))
    assert (torch.where(sigma == 0, sigma.amax(1, True), sigma) == sigma.amax(1, True)).all()     # the rest shares a level


def test_maps_come_from_their_generator_alone():
    draw = lambda seed: sample_sigma_map(SigmaMix(), 50, 5, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_levels_lean_towards_noise():
    low, high = (sample_sigma_map(SigmaMix(mean=m), 4000, 5, torch.Generator().manual_seed(3)) for m in (0.0, 0.8))
    assert high[high > 0].mean() > low[low > 0].mean() + 0.1


def test_images_have_one_level():
    sigma = sample_sigma_map(SigmaMix(), 500, 1, torch.Generator().manual_seed(4))
    assert sigma.shape == (500, 1) and (sigma > 0).all()


@pytest.mark.parametrize("shares", [dict(shared=0.9), dict(shared=-0.1, independent=0.9)])
def test_bad_shares_are_named(shares):
    with pytest.raises(ValueError, match="^shared, independent, given, ramp: got .*, allowed: shares that sum to 1"):
        SigmaMix(**shares)


@pytest.mark.parametrize("mix, name", [(dict(shared=float("nan")), "shared, independent, given, ramp"), (dict(std=-1.0), "std"), (dict(std=float("nan")), "std")])
def test_bad_mixes_are_named(mix, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, allowed: "):
        SigmaMix(**mix)


def test_a_patch_that_is_partly_noise_has_its_highest_level():
    sigma = torch.zeros(1, 1, 2, 4, 4)
    sigma[0, 0, 1, 1, 3] = 0.8
    assert per_token(sigma, (1, 2, 2)).shape == (1, 8) and per_token(sigma, (1, 2, 2))[0, 5] == 0.8
    for plain in (torch.rand(3), torch.rand(3, 2)):
        assert per_token(plain, (1, 2, 2)) is plain
