"A recipe and its plain twin: three things undone and nothing else, crossings by hand, and the whole path in slices."
import dataclasses
import json

import numpy as np
import pytest
import torch

from sora_edu.diffusion.flow import SigmaMix, sample_sigma_map
from sora_edu.evaluate import efficiency as E
from sora_edu.evaluate import speed
from sora_edu.training.configs import MINI
from sora_edu.world.render import render
from sora_edu.world.scene import make_scene

SMALL = E.PAIRS["miniature"]
LEG = dataclasses.replace(SMALL.recipe.legs[0], steps=8, batch_size=4, image_batch=8, warmup=2)
TINY = dataclasses.replace(SMALL, recipe=dataclasses.replace(SMALL.recipe, name="tiny-pair", clips=32, legs=(LEG, LEG)), every=24, cases=6, threshold=0.9, most=2)


def curve(*shares, n=100, step=10):
    "Evaluations that are right in the first so many of n prompts."
    return [{"samples": step * (k + 1), "right": [int(i < share * n) for i in range(n)]} for k, share in enumerate(shares)]


# -- what is undone ----------------------------------------------------------------------------------------------------
def test_even_levels_are_even_and_of_the_same_kinds():
    mix, draw = SigmaMix(mean=1.0), lambda how, mix: how(mix, 20_000, 5, torch.Generator().manual_seed(1))
    ours, even = draw(sample_sigma_map, mix), draw(E.even_levels, mix)
    assert torch.equal(ours == 0, even == 0) and (even.gather(1, ours.argsort(1)).diff(dim=1) > -1e-6).all()
    shared = draw(E.even_levels, SigmaMix(1.0, 0.0, 0.0, 0.0, mean=1.0))[:, 0].sort().values
    assert (shared - torch.linspace(0, 1, 20_000)).abs().max() < 0.02 and (draw(sample_sigma_map, SigmaMix(1.0, 0.0, 0.0, 0.0, mean=1.0)).mean() - 0.5).abs() > 0.15


def test_raw_latents_lose_their_alignment_and_nothing_else():
    vae = E._frozen_vae()
    raw, video = E.Raw(vae), render([make_scene("big", "blue", "box", "moves right", "in the desert", seed=s) for s in range(4)], 9)
    with torch.no_grad():
        tidy, plain, mean = vae.encode(video), raw.encode(video), vae.posterior(video)[0].transpose(1, 2)
        torch.testing.assert_close(raw.decode(plain), vae.decode(tidy), atol=1e-4, rtol=0)
        torch.testing.assert_close(plain[:, :, 1:], mean[:, :, 1:], atol=1e-4, rtol=0)
        torch.testing.assert_close(plain[:, :, 0].norm(dim=1), mean[:, :, 0].norm(dim=1), atol=1e-3, rtol=0)
        assert (plain[:, :, 0] - mean[:, :, 0]).abs().mean() > 0.3
        torch.testing.assert_close(E.Raw(vae).turn, raw.turn)


def test_one_optimizer_has_every_weight_once():
    net = torch.nn.ModuleDict({"blocks": torch.nn.Linear(3, 3), "out": torch.nn.Linear(3, 1)})
    optimizer, before = E.AdamWAlone(net, 0.1), {k: v.clone() for k, v in net.state_dict().items()}
    net["out"](net["blocks"](torch.ones(2, 3))).sum().backward()
    optimizer.step(0.01)
    for name, p in net.state_dict().items():                       # the first step of Adam goes by the rate, against the gradient's sign
        torch.testing.assert_close((before[name] - p).abs(), torch.full_like(p, 0.01), atol=1e-5, rtol=0)


# -- the pair ----------------------------------------------------------------------------------------------------------
def test_the_plain_twin_has_the_same_legs_and_more_like_the_last():
    pair = E.PAIRS["mini"]
    ours, plain = pair.config("ours"), pair.config("plain")
    assert ours is MINI and plain.legs[:len(MINI.legs)] == MINI.legs and set(plain.legs[len(MINI.legs):]) == {MINI.legs[-1]} and pair.threshold == 0.8 and pair.most == 5
    assert dataclasses.replace(plain, name="mini", legs=MINI.legs) == MINI
    assert list(E.marks(plain, 10**9)[-1].values())[0] >= 5 * list(E.marks(ours, 10**9)[-1].values())[0]


def test_marks_are_evenly_apart_and_at_the_ends_of_legs():
    legs = E.marks(MINI, 100_000)
    assert [max(leg) for leg in legs] == [leg.steps for leg in MINI.legs] and legs[0] == {741 + 82: 100_077, 1100: 133_760}
    samples = [s for leg in legs for s in leg.values()]
    assert samples[-1] == sum(leg.steps * E.per_step(leg) for leg in MINI.legs) and set(range(1, 11)) <= {s // 100_000 for s in samples}


@pytest.mark.parametrize("shares, threshold, wanted", [((0.2, 0.6), 0.4, 15), ((0.5,), 0.25, 5), ((0.2, 0.6, 0.1, 0.9), 0.75, 35), ((0.2, 0.4), 0.4, 20),
                                                       ((0.6, 0.1, 0.2), 0.7, 30)])
def test_crossings_by_hand(shares, threshold, wanted):
    rows = curve(*shares)
    assert E.crossing([r["samples"] for r in rows], np.array([r["right"] for r in rows]), threshold) == pytest.approx(wanted)


def test_the_ratio_its_interval_and_its_limit():
    pair = E.Pair(cases=100, threshold=0.5, most=5)
    told = E.efficiency(curve(0.4, 0.6), curve(0.1, 0.2, 0.4, 0.6), pair)
    assert told["value"] == round(35 / 15, 2) and told["interval"][0] < told["value"] < told["interval"][1] and told == E.efficiency(curve(0.4, 0.6), curve(0.1, 0.2, 0.4, 0.6), pair)
    narrow = E.efficiency(curve(0.4, 0.6, n=1600), curve(0.1, 0.2, 0.4, 0.6, n=1600), dataclasses.replace(pair, cases=1600))
    assert np.diff(narrow["interval"]) < 0.5 * np.diff(told["interval"])
    assert E.efficiency(curve(0.4, 0.6), curve(*[0.1] * 9), pair)["value"] == 5
    with pytest.raises(ValueError, match="plain: got a run that ends at 2.0 times our samples, allowed: the goal, or 5 times"):
        E.efficiency(curve(0.4, 0.6), curve(0.1, 0.2, 0.3), pair)
    with pytest.raises(ValueError, match="ours: got 40.0% at best, allowed: a recipe that reaches 50%"):
        E.efficiency(curve(0.4), curve(0.1), pair)


def test_the_judge_of_the_corner_asks_for_nothing_else(monkeypatch):
    asked = []
    monkeypatch.setattr(E, "rightness", lambda models, cases, sampler, steps, **_: asked.extend(cases) or [True, False] * 120)
    assert E.all_right_there(None, 240) == [1, 0] * 120 and len({case.prompt for case in asked}) == 240
    assert {case.description.actor for case in asked} == {"ball", "box"} and all(E.EASY.fits(case.description) for case in asked)


def test_a_run_learns_from_its_own_world(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(E, "train", lambda cfg, *, parts, out, leg, **_: seen.append((parts.world, type(parts.vae).__name__, parts.optimizer.__name__)) or (out / f"leg{leg}.safetensors").touch())
    pair = dataclasses.replace(TINY, world=E.EASY, recipe=dataclasses.replace(TINY.recipe, legs=(LEG,)), most=1)
    for name in ("ours", "plain"):
        E.run(pair, name, tmp_path, progress=False)
    assert seen == [(E.EASY, "VAE", "Optimizers"), (E.EASY, "Raw", "AdamWAlone")]


# -- the path ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A tiny pair, trained without a stop."
    out = tmp_path_factory.mktemp("whole")
    return out, {name: E.run(TINY, name, out, most=10**9 if name == "ours" else 250, progress=False) for name in ("ours", "plain")}


def test_a_run_is_judged_where_it_should_be(whole):
    out, curves = whole
    assert [row["samples"] for row in curves["ours"]] == [24, 48, 72, 96] and all(len(row["right"]) == TINY.cases for row in curves["ours"])
    assert not list(out.glob("*/*.pt")) and (out / "plain" / "leg0.safetensors").exists()
    with pytest.raises(ValueError, match="out: got .*ours, where another recipe has begun"):
        E.run(dataclasses.replace(TINY, every=30), "ours", out, progress=False)


def test_slices_give_the_same_curve(whole, tmp_path, capsys):
    "Stopped in every evaluation, before it is written down; the next slice goes on, and tells where it is."
    stops = []

    def judge(models, n):
        if len(stops) < 3 and len(stops) == len(seen()):
            stops.append(n)
            raise KeyboardInterrupt
        return E.nearest_sky(models, n)
    seen = lambda: json.loads((tmp_path / "ours" / "curve.json").read_text()) if (tmp_path / "ours" / "curve.json").exists() else []
    pair = dataclasses.replace(TINY, judge=judge)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            E.run(pair, "ours", tmp_path, progress=False)
    assert E.run(pair, "ours", tmp_path, progress=True) == whole[1]["ours"] and len(stops) == 3
    assert "ours: 48 samples, " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ours", "plain"])
def test_a_run_ends_with_the_leg_of_its_goal_or_at_the_limit(name, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(E, "_shipped", lambda average, *_: average)

    def fake_train(cfg, *, leg, out, on_step, **_):
        trained.append(leg)
        for step in range(1, cfg.legs[leg].steps + 1):
            on_step(type("State", (), {"step": step, "ema": None})(), 0.0, None)
        (out / f"leg{leg}.safetensors").touch()
    monkeypatch.setattr(E, "train", fake_train)
    pair = dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, legs=(LEG,) * 4))
    good = dataclasses.replace(pair, judge=lambda _, n: [int(len(trained) > 1)] * n)
    bad = dataclasses.replace(pair, judge=lambda _, n: [0] * n)
    assert [row["samples"] for row in E.run(good, name, tmp_path / "good", progress=False)] == [24, 48, 72, 96] and trained == [0, 1]
    (tmp_path / "good" / name / "leg2.pt").touch()                           # begun before the goal was known: it is finished
    E.run(good, name, tmp_path / "good", progress=False)
    assert trained == [0, 1, 2] and not list((tmp_path / "good").glob("*/*.pt"))
    trained.clear()
    assert E.run(bad, name, tmp_path / "bad", most=120, progress=False)[-1]["samples"] == 144 and trained == [0, 1, 2]


def test_more_prompts_than_the_corner_has_are_refused():
    with pytest.raises(ValueError, match="n: got 5000, allowed: 1 to "):
        E.all_right_there(None, 5000)


def test_another_world_is_another_pair(whole):
    with pytest.raises(ValueError, match="out: got .*ours, where another recipe has begun"):
        E.run(dataclasses.replace(TINY, world=E.EASY), "ours", whole[0], progress=False)


def test_the_figure_is_measured_by_its_command(whole, monkeypatch, tmp_path, capsys):
    "`sora-edu bench evaluation --only sample_efficiency` on the tiny pair, from the runs that are there: a row and the curves."
    from sora_edu.studio.cli import run
    (tmp_path / "runs" / "efficiency").mkdir(parents=True), (tmp_path / "figures").mkdir()
    (tmp_path / "runs" / "efficiency" / "corner").symlink_to(whole[0])
    reach = E.best(whole[1]["ours"])
    monkeypatch.setitem(E.PAIRS, "corner", dataclasses.replace(TINY, threshold=reach))
    for module in (E, speed):
        monkeypatch.setattr(module, "_repository", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reach > 0 and run(["bench", "evaluation", "--only", "sample_efficiency"]) == 0
    row, = json.loads((tmp_path / "figures" / "evaluation.json").read_text())
    assert row["unit"] == "×" and 0 < row["value"] <= TINY.most and row["n"] == TINY.cases and "sample_efficiency" in row["command"]
    told = json.loads((tmp_path / "figures" / "efficiency.json").read_text())
    assert told["pair"] == "corner" and told["ours"] == whole[1]["ours"] and told["plain"][:1] == whole[1]["plain"][:1]
    assert f"sample_efficiency: {row['value']} ×" in capsys.readouterr().out
