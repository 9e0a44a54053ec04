"Figures of parity: they are registered, they see a difference, films agree, and the races run."
import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sora_edu.diffusion.samplers import sigma_schedule
from sora_edu.evaluate import parity as P
from sora_edu.evaluate import speed
from sora_edu.model.dit import DiT, DiTConfig
from sora_edu.model.vae import VAE
from sora_edu.model.wan import parameters
from sora_edu.model.wan_vae import WanVAE, WanVAEConfig
from tiny_weights import OTHER, PROMPT, tiny_models

NAMES = {"dit_parity", "vae_parity", "stock_frames", "speed_dit_1", "speed_dit_16", "dit_floor_share", "speed_train", "speed_vae", "playback_single"}


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def test_registered():
    assert P.__name__ in speed.HOMES["parity"] and NAMES <= set(speed.MEASURES["parity"])
    quick = {name for name in NAMES if not speed.MEASURES["parity"][name][2]}
    assert quick == {"dit_parity", "vae_parity", "stock_frames"}


def test_networks_agree():
    assert P.dit_difference(P.shaken(DiT(P.TINY)), (3, 4, 6), 5) <= 1e-5
    assert P.vae_difference(P.shaken(WanVAE(P.CODECS[0])), 5) <= 1e-4


@pytest.mark.parametrize("name", ["rope_table", "time_frequencies"])
def test_a_difference_is_seen(monkeypatch, name):
    import sora_edu.model.dit as module
    right = getattr(module, name)
    changed = {"rope_table": lambda positions, d: right(positions + 0.1 * positions**2, d), "time_frequencies": lambda t, d: right(t * 1.001, d)}
    monkeypatch.setattr(module, name, changed[name])
    assert P.dit_difference(P.shaken(DiT(P.TINY)), (3, 4, 6), 5) > 1e-4


def test_a_difference_of_codecs_is_seen(monkeypatch):
    from sora_edu.model.wan_vae import CausalConv3d
    monkeypatch.setattr(CausalConv3d, "forward", lambda self, x, memory: torch.nn.Conv3d.forward(self, torch.cat([x[:, :, :1]] * self.look_back + [x], dim=2)))
    assert P.vae_difference(P.shaken(WanVAE(P.CODECS[0])), 5) > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0, 1.001])
def test_a_schedule_shifted_twice_is_refused(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler
    sigmas, scheduler = sigma_schedule(10, shift=3.0), FlowMatchEulerDiscreteScheduler(shift=shift)
    if shift == 1:
        assert (P.explicit(scheduler, sigmas).sigmas - sigmas).abs().max() <= 1e-6
    else:
        with pytest.raises(ValueError, match=f"its shift of {shift} is applied on top, set it to 1"):
            P.explicit(scheduler, sigmas)


@pytest.mark.parametrize("interval, scale", [((0.0, 1.0), 3.0), ((0.5, 0.9), 3.0), ((0.0, 1.0), 1.0)])
def test_films_agree(interval, scale):
    models = tiny_models(guidance_interval=interval, guidance_scale=scale)
    theirs, ours = P.film_difference(models, [PROMPT, OTHER], [1, 2], steps=6)
    assert theirs.shape == (2, 17, 64, 64, 3) and abs(theirs.astype(int) - ours).max() <= 1 and theirs.std() > 5
    other, _ = P.film_difference(models, [OTHER, PROMPT], [1, 2], steps=6)
    assert abs(theirs.astype(int) - other).max() > 1                    # the prompt matters


def test_ratios_are_theirs_over_ours(monkeypatch):
    clock = iter([0, 100, 100, 101] + [0, 3, 3, 4] + [0, 5, 5, 6] + [0, 4, 4, 5])      # a slow first round, then 3, 5 and 4
    monkeypatch.setattr(P.time, "perf_counter", lambda: next(clock))
    order = []
    row = P.ratios(lambda: order.append("theirs"), lambda: order.append("ours"), 3)
    assert row == {"value": 4, "interval": [3, 5], "n": 3} and order == ["theirs", "ours"] * 4


def test_the_races_run(models):
    for row in (P.dit_speed(2, models=models, steps=2, n=1), P.train_speed(models.config.dit, batch=2, n=1), P.floor_share(models.dit, n=1, length=8),
                P.vae_speed(models.vae, WanVAEConfig(base_dim=4, num_res_blocks=1), (2, 2, 2), n=1)):
        assert row["value"] > 0 and row["interval"][0] == row["value"] == row["interval"][1] and row["n"] == 1


def test_half_precision_keeps_what_theirs_wants_exact():
    stock = P.stock_dit(DiT(P.TINY), torch.bfloat16)
    kinds = {name: p.dtype for name, p in stock.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16 and kinds["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert kinds["blocks.0.scale_shift_table"] == torch.float32 == kinds["blocks.0.norm2.weight"]


def test_the_floor_does_the_same_products():
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
    kernel = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    net = DiT(dataclasses.replace(DiTConfig(), num_layers=2)).eval()
    cache = net.text_cache(torch.randn(2, 24, 192))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernel) as ours:
        net(torch.randn(2, 16, 5, 8, 8), torch.full((2,), 500.0), cache=cache)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernel) as bare:
        P.bare_forward(net, (5, 8, 8), 2, 24)()
    steering = 2 * 2 * (256 * 256 + 256 * 256 + 6 * 256 * 256)
    assert ours.get_total_flops() - bare.get_total_flops() == steering


def test_training_steps_are_the_same_step():
    "Both networks, one step each from the same parameters: they stay equal, and have moved."
    ours = P.shaken(DiT(P.TINY))
    theirs, before = P.stock_dit(ours), ours.proj_out.weight.clone()
    g = torch.Generator().manual_seed(0)
    x, target, text = torch.randn(2, 4, 3, 4, 6, generator=g), torch.randn(2, 4, 3, 4, 6, generator=g), torch.randn(2, 5, 16, generator=g)
    for net in (ours, theirs):
        P.train_step(net, x, torch.tensor([100.0, 700.0]), text, target, torch.float32)()
    assert not torch.equal(ours.proj_out.weight, before)
    assert (ours.proj_out.weight - theirs.proj_out.weight).abs().max() < 1e-7


def test_as_many_parameters():
    count = parameters(VAE())
    assert abs(parameters(P.as_large(count)) / count - 1) < 0.1


def test_a_page_of_frames_side_by_side(models, tmp_path):
    "A figure for each prompt and size; pictures hold theirs, ours and their difference."
    rows = P.side_by_side(tmp_path / "page.html", [PROMPT, "<b> & a ball"], ((2, 4, 4), (1, 4, 6)), models=models, steps=2, progress=False)
    assert [(r["frames"], r["height"], r["width"], r["seed"]) for r in rows] == [(5, 32, 32, 0), (1, 32, 48, 1), (5, 32, 32, 2), (1, 32, 48, 3)]
    assert all(r["largest"] <= 1 and r["differ"] < 0.1 for r in rows)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == page.count("<figcaption>") == 4 and "64 times" in page and "&lt;b&gt; &amp; a ball" in page
    assert f"{PROMPT}: 5 frames of 32 x 32, seed 0; <b>largest difference {rows[0]['largest']}; " in page
    inside = [re.fullmatch(r"data:image/png;base64,(.+)", source)[1] for source in re.findall(r'src="([^"]+)"', page)]
    assert len(inside) == 4 and "http" not in page
    for row, code in zip(rows, inside):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")), row["picture"])
    with pytest.raises(ValueError, match="^path: got "):
        P.side_by_side(tmp_path / "nowhere" / "page.html", [PROMPT], models=models)


def test_a_comparison_shows_what_differs():
    theirs = np.random.default_rng(0).integers(40, 200, (3, 16, 16, 3), dtype=np.uint8)
    ours = theirs.copy()
    ours[1, 2, 3, 0] += 2
    told = P.compared(theirs, ours, amplify=100)
    assert told["largest"] == 2 and told["differ"] == 1 / theirs.size and told["picture"].shape == (3 * 16 + 4, 3 * 16 + 4, 3)
    above, between, below = told["picture"][:16], told["picture"][18:34], told["picture"][36:]
    assert np.array_equal(above[:11, :16], theirs[0, :11]) and np.array_equal(between[:11, 18:34], ours[1, :11])
    assert below[2, 18 + 3].tolist() == [200, 0, 0] and below[:, 18:34].astype(int).sum() == 200 and not below[:, :16].any()
    assert not np.array_equal(above[12:, 8:16], theirs[0, 12:, 8:])                      # the mark
