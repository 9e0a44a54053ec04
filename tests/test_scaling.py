"The scaling lab: operations counted as torch counts them, runs that survive a kill, laws that are found again, rates that fit every width."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sora_edu.evaluate import scaling as S, speed
from sora_edu.model.dit import DiTConfig
from sora_edu.model.text import TextConfig
from sora_edu.training import loop
from sora_edu.training.configs import get_config
from sora_edu.training.data import LatentCache
from sora_edu.training.loop import Trainee

CPU = S.LABS["cpu"]
LEG = replace(CPU.leg, steps=3, batch_size=4, warmup=2, ema_half_life=2)
RECIPE = replace(CPU.recipe, name="test", size=32, num_frames=5, clips=12, legs=(LEG,), text=TextConfig(dim=32, num_layers=1, num_heads=2),
                 dit=DiTConfig(num_attention_heads=2, attention_head_dim=16, num_layers=1, ffn_dim=64, text_dim=32), prompts=CPU.recipe.prompts[:2])
TINY = replace(CPU, recipe=RECIPE, budgets=(1, 2), held=8, cases=2, sampling_steps=2, save_every=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, S.run_lab(TINY, out, progress=False)


# -- operations --------------------------------------------------------------------------------------------------------
def counted(cfg, clips=2):
    "Forward, and forward with backward, by torch's counter; operations of one clip."
    net, side = Trainee(cfg), cfg.size // 8
    frames = 1 + (cfg.num_frames - 1) // 4
    args = torch.randn(clips, 16, frames, side, side), torch.rand(clips, frames), torch.randint(1, 1000, (clips, cfg.text.max_length))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(*args)
    with FlopCounterMode(display=False) as both:
        net(*args).square().mean().backward()
    return forward.get_total_flops() / clips, both.get_total_flops() / clips


DEEP = replace(RECIPE, dit=replace(RECIPE.dit, patch_size=(1, 1, 1), num_layers=3))


@pytest.mark.parametrize("cfg", [CPU.recipe, get_config("nano"), RECIPE, DEEP])
def test_operations_are_those_that_torch_counts(cfg):
    assert (sum(S.matmul_flops(cfg).values()), S.train_flops(cfg)) == counted(cfg)


def test_a_budget_is_steps_times_clips_times_operations():
    assert CPU.compute(32) == 32 * CPU.compute(1) == 32 * CPU.leg.steps * CPU.leg.batch_size * S.train_flops(CPU.recipe)
    rates = [CPU.config(k).legs[0].rate for k in (1, 4)]
    assert rates[0](CPU.leg.steps - 1) < 0.01 * CPU.leg.learning_rate < rates[1](CPU.leg.steps - 1)      # a decay of its own


@pytest.mark.parametrize("legs", [(), (LEG, LEG), (replace(LEG, image_share=0.1),), (replace(LEG, mid_clip_share=0.1),)])
def test_a_recipe_whose_steps_differ_in_cost_is_refused(legs):
    with pytest.raises(ValueError, match="recipe"):
        replace(TINY, recipe=replace(RECIPE, legs=legs))


def test_variants_cost_the_same_and_differ_in_one_thing():
    for name, lab in S.variants(CPU).items():
        assert abs(lab.compute(4) / CPU.compute(4) - 1) < 0.01, name
        same = replace(lab.recipe, legs=(replace(lab.leg, steps=CPU.leg.steps, clips=None),), dit=CPU.recipe.dit)
        assert same == CPU.recipe and (lab.leg.clips is None) != (lab.recipe.dit == CPU.recipe.dit), name


# -- the held-out loss -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cache():
    fake, g = LatentCache(".", 96), torch.Generator().manual_seed(0)
    fake.latents, fake.tokens = torch.randn(96, 16, 2, 4, 4, generator=g), torch.randint(1, 1000, (96, 4, 24), generator=g)
    fake.coverage = torch.zeros(96, 2, 4, 4, dtype=torch.uint8)
    fake.coverage[:, :, 0, 0] = 255
    fake.image_tokens = fake.tokens
    return fake


def test_the_loss_of_a_band_is_told_by_hand(cache):
    zero = lambda x, sigma, ids: torch.zeros_like(x)
    noise = S.make_noise(range(96), cache.latents.shape[1:])
    error = (noise - cache.latents).square()
    assert S.band_losses(zero, cache, CPU.bands) == pytest.approx([error.mean().item()] * 5, rel=1e-5)
    actor, rest = error[..., 0, 0].mean().item(), error.flatten(3)[..., 1:].mean().item()
    assert S.band_losses(zero, cache, [(0.2, 0.4)], actor_weight=4.0) == pytest.approx([(4 * actor + 15 * rest) / 19], rel=1e-5)


def test_levels_fill_their_band_and_captions_are_the_plain_ones(cache):
    seen, said = [], []
    S.band_losses(lambda x, sigma, ids: seen.append(sigma) or said.append(ids) or x, cache, [(0.2, 0.4)])
    levels = torch.cat(seen)
    assert 0.2 < levels.min() < 0.203 and 0.397 < levels.max() < 0.4 and (levels[:, 0] == levels[:, 1]).all()
    assert torch.equal(torch.cat(said), cache.tokens[:, 0])


# -- runs --------------------------------------------------------------------------------------------------------------
def told(result):
    "All of a result but its seconds."
    return {k: v for k, v in result.items() if k != "seconds"}


def test_a_run_is_complete(whole):
    out, rows = whole
    for row, k in zip(rows, (1, 2)):
        assert (row["budget"], row["steps"], row["samples"]) == (k, 3 * k, 12 * k) and row["flops"] == TINY.compute(k)
        assert row["loss"] == pytest.approx(np.mean(row["losses"])) and len(row["losses"]) == 5 and row["adherence"]["all"]["n"] == 2
        assert row == json.loads((out / row["name"] / "result.json").read_text())
        assert {"weights", "clips.png", "clips.safetensors", "leg0.safetensors"} <= {p.name for p in (out / row["name"]).iterdir()}
    assert rows[0]["loss"] != rows[1]["loss"]


def test_budgets_begin_alike(whole, monkeypatch):
    "The first steps of two budgets have the same weights and the same batches: the same losses, while both warm up."
    losses = {}
    step = loop.train_step
    for k in (1, 2):
        keep = losses.setdefault(k, [])
        monkeypatch.setattr(loop, "train_step", lambda *a, **o: keep.append(step(*a, **o)) or keep[-1])
        S.run_budget(TINY, k, whole[0], name=f"again-{k}", progress=False)
    assert losses[1][0] == losses[2][0] and len(losses[2]) == 6


def test_a_finished_budget_is_not_run_again(whole, monkeypatch):
    monkeypatch.setattr(S, "train", lambda *a, **o: pytest.fail("trained again"))
    assert S.run_lab(TINY, whole[0], progress=False) == whole[1]


def test_killed_and_resumed_is_the_same(whole, monkeypatch, tmp_path):
    steps, step = [], loop.train_step

    def dies(*args, **options):
        if len(steps) == 6:                                         # in the second budget, after its checkpoint
            raise KeyboardInterrupt
        steps.append(1)
        return step(*args, **options)
    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        S.run_lab(TINY, tmp_path, progress=False)
    assert (tmp_path / "budget-1x/result.json").exists() and not (tmp_path / "budget-2x/result.json").exists()
    left = []
    monkeypatch.setattr(loop, "train_step", lambda *a, **o: left.append(1) or step(*a, **o))
    again = S.run_lab(TINY, tmp_path, progress=False)
    assert len(left) == 4 and [told(r) for r in again] == [told(r) for r in whole[1]]      # from step 2 of 6
    for name in ("leg0.safetensors", "clips.safetensors"):
        assert (tmp_path / "budget-2x" / name).read_bytes() == (whole[0] / "budget-2x" / name).read_bytes()


@pytest.mark.parametrize("other", [replace(TINY, held=9), replace(TINY, recipe=replace(RECIPE, seed=1)), replace(TINY, cases=1)])
def test_another_recipe_is_refused_in_the_same_folder(whole, other):
    with pytest.raises(ValueError, match="another recipe"):
        S.run_budget(other, 1, whole[0], progress=False)


def test_side_by_side_is_a_row_a_budget(whole):
    picture = S.side_by_side(whole[0], ["budget-1x", "budget-2x"], which=1, n=3)
    assert picture.shape == (2 * 34 - 2, 3 * 34 - 2, 3) and (picture[:32, :32] != picture[34:66, :32]).any()


def test_rows_have_names():
    page = S.labelled(np.zeros((66, 34, 3), np.uint8), ["1x", "32x"], "a red ball")
    assert page.shape == (86, 78, 3) and not page[20:, 44:].any()           # the picture itself
    marked = [(page[rows] < 128).any() for rows in (np.s_[:20, 44:], np.s_[20:53, :44], np.s_[53:, :44])]
    assert all(marked)


def test_published_is_what_was_found(whole, tmp_path):
    told = S.publish(whole[0], tmp_path / "scaling.json", tmp_path / "scaling.png", "a red ball")
    assert told == json.loads((tmp_path / "scaling.json").read_text()) and told["budgets"] == whole[1]
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_axes_are_published_beside_the_lab_itself(whole, monkeypatch, tmp_path):
    few = replace(TINY, recipe=replace(RECIPE, legs=(replace(RECIPE.legs[0], clips=1),)))
    monkeypatch.setattr(S, "variants", lambda lab: {"1 clips": few})
    told = S.publish_axes(TINY, whole[0], tmp_path / "axes.json", budget=1, progress=False)
    assert told == json.loads((tmp_path / "axes.json").read_text()) and [row["name"] for row in told["rows"]] == ["budget-1x", "1-clips"]
    assert told["rows"][0] == whole[1][0] and told["rows"][1]["loss"] != told["rows"][0]["loss"]
    assert S.publish(whole[0], tmp_path / "scaling.json", tmp_path / "scaling.png", "a red ball")["budgets"] == whole[1]      # budgets alone


# -- laws --------------------------------------------------------------------------------------------------------------
C = 1e12 * 2.0 ** np.arange(6)


@pytest.mark.parametrize("floor, scale, exponent", [(0.4, 0.5, 0.35), (0.0, 2.0, 0.15), (1.2, 0.3, 1.0), (0.9, 0.1, 0.5)])
def test_known_laws_are_found_again(floor, scale, exponent):
    true = S.Law(floor, scale, exponent, 1e12)
    found = S.fit_law(C, true(C))
    assert found.exponent == pytest.approx(exponent, abs=1e-3) and found.floor == pytest.approx(floor, abs=1e-3)
    rng, wrong = np.random.default_rng(0), []
    for _ in range(5):
        y = true(C) + 1e-3 * scale * rng.standard_normal(6)
        wrong.append(abs(S.law_error(C, y)["error"]))
    assert np.median(wrong) < 10


def test_order_and_unit_of_the_points_do_not_matter():
    y = S.Law(0.4, 0.5, 0.35, 1e12)(C)
    assert S.fit_law(C[::-1], y[::-1]) == S.fit_law(C, y)
    assert S.fit_law(C / 1e12, y)(C / 1e12) == pytest.approx(y, abs=1e-6)


def test_the_error_is_told_in_parts_of_the_last_drop():
    y = S.Law(0.4, 0.5, 0.35, 1e12)(C)
    drop = y[-2] - y[-1]
    better = np.append(y[:-1], y[-1] - drop)                        # twice the drop that the law expects
    told = S.law_error(C, better)
    assert told["error"] == pytest.approx(50, abs=0.5) and told["low"] == pytest.approx(50, abs=0.5) == told["high"]
    assert abs(S.law_error(C, y)["error"]) < 0.1


def test_bands_have_laws_of_their_own():
    "A mean of power laws is none: one law for the mean misses what laws for its parts foretell."
    parts = [S.Law(0.9, 2.0, 1.5, 1e12), S.Law(0.1, 0.5, 0.3, 1e12)]
    bands = np.stack([law(C) for law in parts], 1)
    assert abs(S.law_error(C, bands)["error"]) < 0.1 < 3 < abs(S.law_error(C, bands.mean(1))["error"])
    assert S.law_error(C[::-1], bands[::-1])["error"] == S.law_error(C, bands)["error"]
    assert S.fit_laws(C, bands)(C) == pytest.approx(bands.mean(1), abs=1e-6) and len(S.fit_laws(C, bands).laws) == 2
    with pytest.raises(ValueError, match="got 6 and 12 numbers"):
        S.fit_law(C, bands)


def test_effort_is_compute_at_full_rate():
    "A rate that climbs for half of its steps and stays: three quarters of the steps, nearly."
    lab = replace(CPU, recipe=replace(CPU.recipe, legs=(replace(CPU.leg, warmup=150, decay=0.0),)))
    assert lab.effort(1) / lab.compute(1) == pytest.approx(0.75, abs=0.01) and lab.effort(32) / lab.compute(32) > 0.99


def test_a_bend_is_an_error():
    y = S.Law(0.4, 0.5, 0.35, 1e12)(C)
    bent = np.append(y[:-1], y[-2] - 1e-4)                          # stops improving
    assert abs(S.law_error(C, bent)["error"]) > 100


@pytest.mark.parametrize("points, function", [(3, S.fit_law), (5, S.law_error)])
def test_too_few_points_are_refused(points, function):
    with pytest.raises(ValueError, match=f"at least {points + 1} different"):
        function(C[:points], 1 / C[:points])


@pytest.mark.parametrize("compute, loss", [(C, [1.0] * 5), (C, [np.nan] * 6), ([0, 1, 2, 3, 4, 5], range(6)), ([1] * 6, range(6))])
def test_points_that_are_none_are_refused(compute, loss):
    with pytest.raises(ValueError, match="compute, loss"):
        S.law_error(compute, loss)


def test_a_largest_budget_that_is_no_better_is_refused():
    with pytest.raises(ValueError, match="better"):
        S.law_error(C, [5, 4, 3, 2, 1, 1])


# -- rates across widths -----------------------------------------------------------------------------------------------
def test_each_matrix_is_slowed_by_what_it_reads():
    wide = S.widened(RECIPE, 4)
    net = Trainee(wide)
    groups = S.width_groups(net, Trainee(RECIPE), 1e-2)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert len(rate) == len(list(net.parameters()))                 # each once
    rates = {name: rate[id(p)] for name, p in net.named_parameters()}
    slow = {"dit.blocks.0.attn1.to_q.weight", "dit.blocks.0.attn2.to_k.weight", "dit.blocks.0.ffn.net.2.weight", "dit.proj_out.weight",
            "dit.condition_embedder.time_proj.weight", "dit.condition_embedder.text_embedder.linear_2.weight"}
    fast = {"dit.patch_embedding.weight", "dit.blocks.0.attn1.to_q.bias", "dit.blocks.0.norm2.weight", "dit.blocks.0.scale_shift_table",
            "dit.scale_shift_table", "dit.condition_embedder.time_embedder.linear_1.weight", "dit.condition_embedder.text_embedder.linear_1.weight",
            "text_encoder.token_embedding.weight", "text_encoder.blocks.0.to_qkv.weight"}
    assert {rates[name] for name in slow} == {0.0025} and {rates[name] for name in fast} == {0.01}


def test_at_the_base_width_the_rule_changes_nothing(cache):
    cfg = replace(RECIPE, legs=(replace(LEG, steps=4),))
    assert S.final_loss(cfg, cache, 1e-2, base=cfg) == S.final_loss(cfg, cache, 1e-2)
    assert S.final_loss(S.widened(cfg, 2), cache, 1e-2, base=cfg) != S.final_loss(S.widened(cfg, 2), cache, 1e-2)


def test_the_step_of_a_wide_output_does_not_grow():
    "One AdamW step at the same rate moves what a hidden matrix gives by r times as much in a net r times as wide; by the rule it does not."
    def moved(factor, ruled):
        torch.manual_seed(0)
        cfg = S.widened(RECIPE, factor)
        net = Trainee(cfg)
        groups = S.width_groups(net, Trainee(RECIPE), 1e-3) if ruled else [{"params": list(net.parameters()), "lr": 1e-3}]
        layer, x = net.dit.blocks[0].attn1.to_v, torch.ones(1, cfg.dit.dim)
        before = layer(x).detach()
        layer(x).sum().backward()
        layer.bias.grad = None
        torch.optim.AdamW(groups, weight_decay=0).step()
        return (layer(x) - before).abs().mean().item()
    assert moved(4, False) == pytest.approx(4 * moved(1, False), rel=0.01) and moved(4, True) == pytest.approx(moved(1, True), rel=0.01)


# -- the figure --------------------------------------------------------------------------------------------------------
def test_the_figure_is_the_error_of_the_law(monkeypatch, tmp_path):
    laws = [S.Law(0.9, 0.5, 0.9, CPU.effort(1)), S.Law(0.1, 0.5, 0.35, CPU.effort(1))]
    rows = [{"budget": k, "losses": [float(law(CPU.effort(k))) for law in laws]} for k in CPU.budgets]
    rows[-1]["losses"] = [2 * last - before for before, last in zip(rows[-2]["losses"], rows[-1]["losses"])]      # twice the drop
    for row in rows:
        row |= {"flops": CPU.compute(row["budget"]), "loss": sum(row["losses"]) / 2}
    monkeypatch.setattr(S, "_repository", lambda: tmp_path)
    monkeypatch.setattr(S, "run_lab", lambda lab, out: rows if (lab, out) == (CPU, tmp_path / "runs" / "scaling") else None)
    monkeypatch.setattr(S, "publish", lambda *a: None)
    unit, function, slow = speed.MEASURES["evaluation"]["scaling_error"]
    assert (unit, slow) == ("%", True) and S.__name__ in speed.HOMES["evaluation"]
    found = function()
    assert found["value"] == pytest.approx(50, abs=0.5) and found["n"] == 6 and found["interval"] == pytest.approx([50, 50], abs=0.5)
    assert found["note"].endswith("% by one law for the mean loss over all operations, which was tried first") and not found["note"].startswith("50.0")
