"Distances of heaps: closed forms, the bias of small samples, features that see what they should, variety, copies, flicker, motion."
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from sora_edu.evaluate import frechet as R
from sora_edu.evaluate.adherence import rendered, suite
from sora_edu.model.vae import VAE, VAEConfig
from sora_edu.video import to_uint8
from sora_edu.world.sight import PLACE, SPOTS, Sight


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def heap(n, d=4, seed=0, scale=1.0):
    return torch.randn(n, d, generator=rng(seed), dtype=torch.float64) * scale


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VAE(VAEConfig(width=16, deep_width=16, depth=1)).eval()


@pytest.fixture(scope="module")
def clips():
    return rendered([c for c in suite("seen", 40) if c.description.action in ("moves right", "rises")][:2])


# -- the distance ------------------------------------------------------------------------------------------------------
def test_moments_are_numpys():
    x = heap(9)
    mean, cov = R.mean_cov(x.float())
    assert mean.dtype == torch.float64 == cov.dtype
    np.testing.assert_allclose(cov, np.cov(x.float().numpy().astype(float), rowvar=False), atol=1e-12)
    np.testing.assert_allclose(mean, x.float().double().mean(0), atol=1e-12)


def test_the_closed_form_of_gaussians_that_share_their_axes():
    turn = torch.linalg.qr(heap(5, 5, seed=3))[0]
    a, b = torch.tensor([1., 2., 3., 0., 5.]).double(), torch.tensor([2., 2., 1., 4., 0.]).double()
    mean = torch.tensor([1., 0., -2., 0., 0.]).double()
    got = R.frechet((mean, turn @ torch.diag(a ** 2) @ turn.T), (torch.zeros(5).double(), turn @ torch.diag(b ** 2) @ turn.T))
    assert got == pytest.approx(5 + float((a - b).square().sum()), abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_scipys_matrix_root(seed):
    (ma, ca), (mb, cb) = R.mean_cov(heap(40, 6, seed) @ heap(6, 6, seed + 10)), R.mean_cov(heap(30, 6, seed + 20) + 1)
    wanted = (ma - mb).square().sum() + np.trace(ca + cb) - 2 * np.trace(scipy.linalg.sqrtm((ca @ cb).numpy())).real
    assert R.frechet((ma, ca), (mb, cb)) == pytest.approx(float(wanted), rel=1e-9)


def test_symmetric_zero_at_home_and_unmoved_by_rotation():
    x, y, turn = heap(50, 5, 1), heap(60, 5, 2, 2.0), torch.linalg.qr(heap(5, 5, 3))[0]
    assert R.distance(x, y) == pytest.approx(R.distance(y, x), rel=1e-9) and R.distance(x, x) < 1e-10
    assert R.distance(x @ turn, y @ turn) == pytest.approx(R.distance(x, y), rel=1e-9)
    assert R.distance(3 * x, 3 * y) == pytest.approx(9 * R.distance(x, y), rel=1e-9)


def test_fewer_clips_than_features_are_no_trouble():
    x = heap(5, 80)
    assert R.distance(x, x) < 1e-6 and R.distance(x, x + 0.5) == pytest.approx(20, abs=1e-6)
    assert R.distance(x, torch.zeros(3, 80)) == pytest.approx(float(x.mean(0).square().sum() + x.var(0).sum()), rel=1e-9)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.zeros(3), torch.zeros(3, 0), torch.tensor([[0., math.nan], [1., 2.]]), torch.zeros(2, 2, 2)])
def test_features_that_are_none(bad):
    with pytest.raises(ValueError, match="features: got .* allowed"):
        R.mean_cov(bad)
    with pytest.raises(ValueError, match="allowed"):
        R.diversity(bad)


def test_heaps_of_different_features():
    with pytest.raises(ValueError, match="b: got 3 features, allowed: 4"):
        R.distance(heap(9), heap(9, 3))


# -- the bias ----------------------------------------------------------------------------------------------------------
def test_the_bias_falls_like_one_over_n():
    x, y = heap(4000, 4, 1), heap(4000, 4, 2)
    at = [R.frechet_at(x, y, n, repeats=100) for n in (40, 80, 160)]
    assert at[0] > at[1] > at[2] > 0
    assert at[0] / at[1] == pytest.approx(2, rel=0.25) and at[1] / at[2] == pytest.approx(2, rel=0.25)


def test_the_corrected_distance_is_right_on_average_at_home_and_abroad():
    at_home = [R.frechet_unbiased(heap(120, 4, s), heap(120, 4, s + 500), repeats=4) for s in range(12)]
    raw = [R.distance(heap(120, 4, s), heap(120, 4, s + 500)) for s in range(12)]
    abroad = [R.frechet_unbiased(heap(120, 4, s), heap(120, 4, s + 500) + 1, repeats=4) for s in range(12)]
    assert abs(np.mean(at_home)) < 0.5 * np.mean(raw) and min(at_home) < 0
    assert np.mean(abroad) == pytest.approx(4, rel=0.1)


def test_the_line_is_a_line():
    "With the means of subsets put in by hand: value = 3 + 5 / n gives 3."
    saved = R.frechet_at
    try:
        R.frechet_at = lambda x, y, n, **kw: 3 + 5 / n
        assert R.frechet_unbiased(heap(60), heap(70)) == pytest.approx(3)
    finally:
        R.frechet_at = saved


def test_seeds_decide():
    x, y = heap(60, seed=1), heap(60, seed=2)
    assert R.frechet_at(x, y, 20, seed=1) == R.frechet_at(x, y, 20, seed=1) != R.frechet_at(x, y, 20, seed=2)


@pytest.mark.parametrize("call", [lambda x: R.frechet_at(x, x, 1), lambda x: R.frechet_at(x, x, 21), lambda x: R.frechet_unbiased(x, x, [10]),
                                  lambda x: R.frechet_unbiased(x, x, [10, 40]), lambda x: R.frechet_unbiased(x[:2], x)])
def test_sizes_that_cannot_be(call):
    with pytest.raises(ValueError, match="got .* allowed"):
        call(heap(20))


# -- features ----------------------------------------------------------------------------------------------------------
def test_shapes_of_the_autoencoders_features(vae, clips):
    assert R.frame_features(clips, vae).shape == (2, 32) and R.clip_features(clips, vae).shape == (2, 48)
    assert R.latent_features(clips, vae).shape == (2, 16 * 5 * 8 * 8)


def test_frames_know_nothing_of_time_and_clips_do(vae, clips):
    still = clips[:, :, 8:9].expand_as(clips)
    assert torch.allclose(R.frame_features(still, vae), R.frame_features(clips, vae), atol=1e-6)
    assert R.clip_features(still, vae)[:, 32:].abs().max() < 1e-5 < 1e-3 < R.clip_features(clips, vae)[:, 32:].max()


class Every4th(torch.nn.Module):
    "An autoencoder whose latents are every fourth frame."
    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def encode(self, video):
        return video[:, :, ::4]


def test_persistence_is_two_steps_over_one():
    line = (0.1 * torch.arange(17.))[None, None, :, None, None].expand(1, 3, -1, 4, 4)       # 0.4 a group, 0.8 in two
    assert torch.allclose(R.clip_features(line, Every4th())[:, 6:], torch.tensor(0.8 / 0.45))
    back = (0.1 * torch.tensor([0., 0, 4, 0, 4]).repeat_interleave(4)[3:])[None, None, :, None, None].expand(1, 3, -1, 4, 4)
    assert R.clip_features(back, Every4th())[:, 6:].abs().max() == 0                         # there and back again


def test_short_clips_have_no_clip_features(vae):
    with pytest.raises(ValueError, match="video: got 9 frames, allowed: 13"):
        R.clip_features(torch.zeros(1, 3, 9, 16, 16), vae)


def test_the_eyes_features_are_chances_and_counts():
    torch.manual_seed(0)
    net, video = Sight().eval(), torch.rand(2, 3, 2, 128, 128, generator=rng()) * 2 - 1
    got, words = R.eye_features(video, net), [len(w) for w in PLACE.values()]
    assert got.shape == (2, sum(words) + SPOTS["kind"] + SPOTS["colour"]) and (got >= 0).all()
    parts = got.split([*words, SPOTS["kind"], SPOTS["colour"]], 1)
    assert all(torch.allclose(p.sum(1), torch.ones(2), atol=1e-5) for p in parts[:-2])
    assert torch.allclose(parts[-2].sum(1), parts[-1].sum(1), rtol=1e-4)        # every actor has one kind and one colour
    assert torch.allclose(R.eye_features(video.flip(2), net), got, atol=1e-5)   # frames in any order
    with torch.no_grad():
        heat = net(video.transpose(1, 2).flatten(0, 1))["there"].sigmoid().sum((1, 2, 3)).view(2, 2).mean(1)
    assert torch.allclose(parts[-1].sum(1), heat, rtol=1e-3)                    # as many as are there, and no cell counts without heat


def test_embed_takes_both_kinds_of_clips_in_any_batches(clips):
    mean = lambda v: v.mean((2, 3, 4))
    assert torch.allclose(R.embed(clips, mean, batch_size=1), mean(clips))
    assert torch.allclose(R.embed(to_uint8(clips), mean), mean(clips), atol=0.01)


@pytest.mark.parametrize("features", [lambda v: v.mean((1, 2, 3, 4)), lambda v: v[:1].flatten(1), lambda v: None])
def test_features_that_are_no_rows(features, clips):
    with pytest.raises(ValueError, match=r"features: got .* allowed: a tensor \[2, D\]"):
        R.embed(clips, features)


def test_a_figure_carries_its_name():
    real, made = (torch.rand(16, 3, 1, 4, 4, generator=rng(s)) for s in (1, 2))
    mean = lambda v: v.mean((2, 3, 4))
    row = R.frechet_of(real, made + 1, mean, "mean colour")
    assert row["name"] == "Fréchet distance, mean colour" and (row["n"], row["features"]) == (16, 3)
    assert row["value"] == R.distance(mean(real), mean(made + 1)) and row["unbiased"] == pytest.approx(3, abs=0.3)
    with pytest.raises(ValueError, match="name: got ''"):
        R.frechet_of(real, made, mean, "")
    with pytest.raises(ValueError, match="got 16 and 11 clips"):
        R.frechet_of(real, made[:11], mean, "mean colour")


# -- beyond the mean ---------------------------------------------------------------------------------------------------
def test_diversity_is_the_mean_of_pairs():
    assert R.diversity(torch.tensor([[0., 0.], [3., 4.], [0., 0.]])) == pytest.approx(10 / 3)
    assert R.diversity(torch.ones(4, 7)) == 0


def test_nearest_and_copying():
    bank = torch.tensor([[0., 0.], [10., 0.]])
    far, number = R.nearest(torch.tensor([[9., 0.], [1., 0.], [10., 0.]]), bank)
    assert number.tolist() == [1, 0, 1] and far.tolist() == [1, 1, 0]
    fresh = torch.tensor([[0., 2.], [10., 2.], [10., 9.]])
    assert R.copying(torch.tensor([[10., 0.], [0., -1.]]), bank, fresh).tolist() == [0, 0.5]
    with pytest.raises(ValueError, match="bank: got 3 features, allowed: 2"):
        R.nearest(bank, torch.zeros(4, 3))


def test_steady_light_moves_and_neither_flickers_nor_jerks():
    rising = torch.linspace(-0.5, 0.5, 11)[None, None, :, None, None].expand(1, 3, -1, 8, 8)
    assert float(R.motion(rising)) == pytest.approx(12.75, rel=1e-4)
    assert float(R.flicker(rising)) == 0 and float(R.smoothness(rising)) == pytest.approx(1, abs=1e-4)


def test_what_is_undone_flickers():
    lamp = 0.1 * (-1.0) ** torch.arange(9)[None, None, :, None, None].expand(1, 3, -1, 8, 8)
    assert float(R.flicker(lamp)) == pytest.approx(25.5, rel=1e-4) == float(R.motion(lamp))
    assert float(R.smoothness(lamp)) == pytest.approx(1, abs=1e-4)              # a steady flicker is steady


def test_stop_and_go_is_not_smooth():
    go = torch.arange(0, 9) // 2 * 0.1
    video = go[None, None, :, None, None].expand(1, 3, -1, 8, 8)
    assert float(R.smoothness(video)) == pytest.approx(0, abs=1e-4) and float(R.flicker(video)) == 0


def test_a_still_clip_is_smooth_and_bytes_are_clips_too(clips):
    still = clips[:, :, :1].expand_as(clips)
    assert (R.motion(still) == 0).all() and (R.flicker(still) == 0).all() and (R.smoothness(still) == 1).all()
    assert torch.allclose(R.motion(to_uint8(clips)), R.motion(clips), atol=0.3)


@pytest.mark.parametrize("measure, least", [(R.motion, 2), (R.flicker, 3), (R.smoothness, 3)])
def test_too_short_to_move(measure, least):
    assert measure(torch.zeros(1, 3, least, 4, 4)).shape == (1,)
    for bad in (torch.zeros(1, 3, least - 1, 4, 4), torch.zeros(3, least, 4, 4), torch.zeros(1, 1, least, 4, 4)):
        with pytest.raises(ValueError, match="video: got shape"):
            measure(bad)


# -- the model ---------------------------------------------------------------------------------------------------------
def test_the_loss_by_noise_level(clips):
    from sora_edu.pipeline.generate import load_models
    models, prompts = load_models("mini", device="cpu", dtype=torch.float32), [c.prompt for c in suite("seen", 2)]
    got = R.sigma_loss(models, clips, prompts, (0.2, 1.0))
    assert got == R.sigma_loss(models, clips, prompts, (0.2, 1.0)) and len(got) == 2 and all(0 < v < 4 for v in got)
    assert got[1:] == R.sigma_loss(models, clips, prompts, (1.0,))              # the same noise at every level
    for args in ((prompts[:1], (0.5,)), (prompts, (0.0,)), (prompts, (1.1,))):
        with pytest.raises(ValueError, match="prompts, sigmas: got"):
            R.sigma_loss(models, clips, *args)


def test_the_trade_off_of_a_renderer_that_loses_its_nerve():
    "A source whose scale is how many seeds it still tells apart: it is right at any scale, and less and less varied."
    from dataclasses import replace
    cases = suite("seen", 2)
    by_prompt = {c.prompt: c for c in cases}
    source = lambda scale: lambda prompts, seeds: rendered([replace(by_prompt[p], seed=s % scale) for p, s in zip(prompts, seeds)])
    rows = R.trade_off(source, (2, 1), cases, lambda v: v[:, :, ::8, ::8, ::8].flatten(1), seeds=range(2), progress=False)
    assert [r["scale"] for r in rows] == [2, 1] and all(r["n"] == 4 and r["adherence"]["right"] == 4 for r in rows)
    assert rows[0]["diversity"] > 0.5 and rows[1]["diversity"] < 1e-6
    with pytest.raises(ValueError, match="cases, seeds: got 2"):
        R.trade_off(source, (1,), cases, None, seeds=[0])


@pytest.mark.parametrize("loud", [1, 3])
def test_the_true_clips_have_all_of_their_own_variety(loud):
    from dataclasses import replace
    cases, features = suite("seen", 2), lambda v: loud * v[:, :, ::8, ::8, ::8].flatten(1)
    by_prompt = {c.prompt: c for c in cases}
    true = lambda prompts, seeds: rendered([replace(by_prompt[p], seed=by_prompt[p].seed + 1 + s) for p, s in zip(prompts, seeds)])
    dull = lambda prompts, seeds: true(prompts, seeds) / 2
    full, half = R.trade_off({"true": true, "dull": dull}.get, ("true", "dull"), cases, features, seeds=range(2), progress=False)
    assert full["diversity"] == pytest.approx(1, rel=1e-6) and full["frechet"] < 1e-6
    assert half["diversity"] == pytest.approx(0.5, rel=1e-6)         # whatever the features' scale
