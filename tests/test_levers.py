"Levers: each one learns, equal seconds, a screening that survives a kill, and verdicts by hand."
import dataclasses
import json
import types

import numpy as np
import pytest
import torch

from sora_edu.diffusion.flow import flow_loss
from sora_edu.evaluate import levers as L
from sora_edu.evaluate.adherence import generator
from sora_edu.training.configs import NANO
from sora_edu.training.data import CAPTIONS, batch_at
from sora_edu.training.loop import State, train_step
from sora_edu.world.captions import caption, parse
from sora_edu.world.scene import World

LEG = dataclasses.replace(NANO.legs[0], steps=3, batch_size=2, image_batch=4, image_share=0.4, mid_clip_share=0.2, warmup=2, ema_half_life=2)
RECIPE = dataclasses.replace(NANO, name="tiny-levers", clips=4, legs=(LEG,), eval_every=10**9, prompts=NANO.prompts[:1],
                             text=dataclasses.replace(NANO.text, dim=16), dit=dataclasses.replace(NANO.dit, num_attention_heads=1, attention_head_dim=16, num_layers=2, ffn_dim=16, text_dim=16, freq_dim=8))


def bright(models, n):
    "A judge for tests, through the same door as the real one: is a clip in two steps brighter than grey?"
    clips = generator(models, sampler="ancestral", num_inference_steps=2)(["a small red ball stays still in the snow"] * n, range(n))
    return [int(clip.mean() > 127.5) for clip in clips]


SOME = (L.AS_IT_IS, "whitened", "terse captions", "course", "text in context")
TINY = L.Screening(RECIPE, {name: L.LEVERS[name] for name in SOME}, world=World(), judge=bright, cases=4, held=4, bands=((0.0, 0.5), (0.5, 1.0)), best=1,
                   seeds=(0, 1), rounds=1, save_every=1)
PACE = {name: [1.0] * len(lever.shares()) for name, lever in TINY.levers.items()}


def numbers(n=4, frames=2):
    "A cache of nothing but dice."
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 1000, (n, 4, RECIPE.text.max_length), generator=g)
    return types.SimpleNamespace(latents=torch.randn(n, 16, frames, 4, 4, generator=g), coverage=torch.randint(256, (n, frames, 4, 4), generator=g), tokens=tokens, image_tokens=tokens)


# -- each lever --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", L.LEVERS)
def test_every_lever_learns(name):
    lever, cache = L.LEVERS[name], numbers()
    cfg = lever.config(RECIPE)
    assert sum(lever.shares()) == pytest.approx(1) and len(cfg.legs) == len(lever.stages()) == len(lever.shares())
    for leg, parts in zip(cfg.legs, lever.stages()):
        torch.manual_seed(0)
        state = State(parts.model(cfg), leg.learning_rate, parts.optimizer)
        before = {k: v.clone() for k, v in state.model.state_dict().items()}
        losses = [train_step(state, batch_at(cache, leg, 0, step), leg, parts.loss) for step in range(2)]
        moved = {k for k, v in state.model.state_dict().items() if not torch.equal(v, before[k])}
        assert np.isfinite(losses).all() and {k for k in before if "attn1.to_q.weight" in k or k.endswith("proj_out.weight")} <= moved


def test_every_lever_changes_something_and_says_what():
    plain = L.LEVERS[L.AS_IT_IS]
    assert plain.config(RECIPE) == RECIPE and len({lever.what for lever in L.LEVERS.values()}) == len(L.LEVERS)
    for name, lever in L.LEVERS.items():
        changed = lever.config(RECIPE) != RECIPE or lever.parts or lever.power or lever.wording is not None
        assert bool(changed) == (name != L.AS_IT_IS), name
    recipe = L.LAB.recipe
    assert len(recipe.legs) == 1 and recipe.legs[0].image_share == 0.2 and recipe.sampler == "ancestral" and L.LAB.cases == 240 and L.LAB.seeds == (0, 1, 2) and L.LAB.best == 4


def test_no_lever_is_the_labs_own_recipe():
    recipe = L.LAB.recipe
    told = lambda lever: (dataclasses.replace(lever.config(recipe), name=""), lever.stages(), lever.power, lever.wording)
    plain, leg = told(L.LEVERS[L.AS_IT_IS]), recipe.legs[0]
    assert [name for name, lever in L.LEVERS.items() if told(lever) == plain] == [L.AS_IT_IS]
    large = L.LEVERS["large batches"].config(recipe).legs[0]
    assert large == dataclasses.replace(leg, batch_size=2 * leg.batch_size, image_batch=2 * leg.image_batch)


@pytest.mark.parametrize("wording, gaps", [("dense", False), ("terse", True)])
def test_dense_captions_leave_nothing_out_and_terse_ones_do(wording, gaps):
    style, scenes = CAPTIONS[L.LEVERS[f"{wording} captions"].wording], L.LAB.world.sample(5, 40)
    said = [parse(caption(scene, *style)) for scene in scenes]
    assert style[0] == wording and any(None in vars(one).values() for one in said) == gaps and (said != [scene.description for scene in scenes]) == gaps


def test_whitened_latents_are_equally_loud_and_half_whitened_ones_less():
    from sora_edu.world.render import render
    vae, r = L._frozen_vae(), RECIPE
    video = render(TINY.world.sample(8, 32), r.num_frames, r.size, r.size)                  # others than those that were measured
    spread = lambda codec: codec.encode(video).std((0, 2, 3, 4))
    with torch.no_grad():
        plain, half, whole = spread(vae), *(spread(TINY.codec(L.LEVERS[name])) for name in ("half whitened", "whitened"))
    uneven = lambda loud: (loud.max() / loud.min()).item()
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=0.2)
    torch.testing.assert_close(half, plain.sqrt(), rtol=0.1, atol=0)
    assert uneven(whole) < uneven(half) < uneven(plain)


def test_only_the_labs_networks_leave_wans_state_dict():
    names = lambda lever: set(dict(lever.stages()[0].model(lever.config(RECIPE)).dit.named_parameters()))
    plain = names(L.LEVERS[L.AS_IT_IS])
    assert {name for name, lever in L.LEVERS.items() if names(lever) != plain} == {name for name, lever in L.LEVERS.items() if not lever.wan} == {"value residual", "text in context"}


def test_a_contrast_by_hand():
    v, x0, noise = torch.tensor([[1.0], [2.0]])[..., None, None, None], torch.zeros(2, 1, 1, 1, 1), torch.tensor([[3.0], [7.0]])[..., None, None, None]
    sigma = torch.full((2, 1), 0.5)                                 # errors 2 and 5 to one's own target, 6 and 1 to the other's
    assert L.apart(v, x0, noise, sigma, share=0.1).item() == pytest.approx((4 + 25) / 2 - 0.1 * (36 + 1) / 2)
    assert torch.equal(L.apart(v, x0, noise, sigma, share=0.0), flow_loss(v, x0, noise, sigma))


def test_a_value_residual_adds_the_first_blocks_values():
    torch.manual_seed(1)
    desk, x = [], torch.randn(2, 5, 16)
    first, later = L.Echo(16, 2, desk, True), L.Echo(16, 2, desk, False)
    (_, told), (_, own) = first.keys_values(x), later.keys_values(x + 1)
    torch.nn.init.constant_(later.share, 2.0)
    torch.testing.assert_close(later.keys_values(x + 1)[1], own + 2 * told)


def test_short_clips_are_the_first_half():
    seen, batch = [], batch_at(numbers(frames=5), dataclasses.replace(LEG, image_share=0.0, mid_clip_share=0.0), 0, 0)
    L.short_loss(lambda x, sigma, ids: seen.append(x.shape) or x, batch, LEG)
    assert seen[0][2] == 3 and batch["x0"].shape[2] == 5


def test_averages_are_those_of_their_half_lives():
    net = torch.nn.ModuleDict({"blocks": torch.nn.Linear(2, 2)})
    optimizer = L.Averaging(net, 0.1)
    for step in range(120):
        net["blocks"].weight.grad, net["blocks"].bias.grad = torch.ones(2, 2), torch.ones(2)
        optimizer.step(0.1)
    far = {h: (average["blocks"].bias - net["blocks"].bias).abs().sum().item() for h, average in optimizer.averages.items()}
    assert list(far) == [1, 5, 20, 80] and 0 < far[1] < far[5] < far[20] and optimizer.steps == 120
    other = L.Averaging(net, 0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.steps == 120 and torch.equal(other.averages[1]["blocks"].bias, optimizer.averages[1]["blocks"].bias)


# -- equal seconds -----------------------------------------------------------------------------------------------------
def test_seconds_are_equal_whatever_a_step_costs(monkeypatch, tmp_path):
    "A clock that knows: an image costs 1 second, a clip 5, one without its first latent 4."
    now = [0.0]

    def fake(state, batch, leg, loss):
        now[0] += 1 if batch["image"] else 5 if leg.mid_clip_share == 0 else 4
    monkeypatch.setattr(L, "train_step", fake), monkeypatch.setattr(L, "clock", lambda: now[0]), monkeypatch.setattr(L, "held_out", lambda *_: numbers())
    pace = L.rates(TINY, tmp_path, progress=False)
    mixed = 0.4 * 1 + 0.6 * 0.8 * 5 + 0.6 * 0.2 * 4
    assert pace[L.AS_IT_IS] == pytest.approx([mixed]) and pace["course"] == pytest.approx([1, 5, mixed])
    steps = L.steps_of(TINY.levers["course"], 1000, pace["course"])
    assert steps == [300, 60, round(400 / mixed)] and np.dot(steps, pace["course"]) == pytest.approx(1000, rel=0.01)
    monkeypatch.setattr(L, "train_step", None)
    assert L.rates(TINY, tmp_path, progress=False) == pace          # once written down, it stays


# -- the screening -----------------------------------------------------------------------------------------------------
def begun(out):
    out.mkdir()
    (out / "rates.json").write_text(json.dumps(PACE))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A tiny screening without a stop."
    out = begun(tmp_path_factory.mktemp("levers") / "whole")
    return out, L.screen(out, 4, lab=TINY, progress=False)


def test_all_levers_then_the_best_again(whole):
    out, results = whole
    best, = L.best_of(results[:5], 1)
    assert [(r["lever"], r["seed"]) for r in results] == [(name, 0) for name in SOME] + [(L.AS_IT_IS, 1), (best, 1)]
    assert [r["steps"] for r in results[:5]] == [[4], [4], [4], [1, 1, 2], [4]]
    assert [r["losses"] is None for r in results[:5]] == [False, True, False, False, False] and len(results[0]["losses"]) == 2
    assert set(results[0]["averages"]) == {"1", "5", "20", "80"} and "averages" not in results[1]
    assert not list(out.glob("*/*.pt")) and {p.name for p in (out / "cache").iterdir()} >= {"held", "0-0", "1-0", "0-1"}


def test_captions_of_one_wording(whole):
    shared, mine = (np.load(whole[0] / name / "tokens.npy") for name in ("cache/0-0", "terse-captions-0/cache"))
    assert (mine == shared[:, 2:3]).all() and (shared != mine).any() and (whole[0] / "terse-captions-0" / "cache" / "latents.npy").is_symlink()


def test_a_stopped_screening_goes_on_as_if_nothing_had_happened(whole, tmp_path, monkeypatch):
    "Stopped in a step, after a checkpoint, of the first run; in a judging; and then left alone."
    out, real, steps = begun(tmp_path / "out"), L.training_loss, []

    def stops(*args, **more):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)
    stops.__qualname__ = real.__qualname__                          # else it would be another loss
    plain = dataclasses.replace(TINY.levers[L.AS_IT_IS], parts=dict(loss=stops))
    assert plain.what == TINY.levers[L.AS_IT_IS].what
    monkeypatch.setattr(L.Screening, "told", lambda *_: "the same")
    with pytest.raises(KeyboardInterrupt):
        L.screen(out, 4, lab=dataclasses.replace(TINY, levers=TINY.levers | {L.AS_IT_IS: plain}), progress=False)
    assert (out / "as-it-is-0" / "leg0.pt").exists() and not (out / "as-it-is-0" / "leg0.safetensors").exists()
    with pytest.raises(ZeroDivisionError):
        L.run(dataclasses.replace(TINY, judge=lambda *_: 1 / 0), L.AS_IT_IS, 0, out, seconds=4, progress=False)
    assert not (out / "as-it-is-0" / "result.json").exists()
    assert L.run(TINY, L.AS_IT_IS, 0, out, seconds=4, progress=False) == whole[1][0]
    monkeypatch.setattr(L, "train", None)
    assert L.run(TINY, L.AS_IT_IS, 0, out, seconds=4, progress=False) == whole[1][0] and json.loads((out / "as-it-is-0" / "cpu.json").read_text()) > 0


def test_two_processes_make_what_one_makes(whole, tmp_path):
    out = begun(tmp_path / "out")
    assert L.screen(out, 4, lab=TINY, processes=2, progress=False) == whole[1]


def divided(by):
    return 1 / by


def test_work_in_processes_keeps_its_order_and_its_error():
    moved = []
    for processes in (1, 2):
        assert L.at_once(divided, [(4,), (2,), (1,)], processes, lambda: moved.append(1)) == [0.25, 0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            L.at_once(divided, [(0,), (1,)], processes)
    assert len(moved) == 6


def test_what_is_published(whole, tmp_path):
    told = L.publish(whole[0], tmp_path / "levers.json", seconds=4, lab=TINY)
    assert told == json.loads((tmp_path / "levers.json").read_text()) and len(told["rows"]) == 7 + 8 and told["cpu_hours"] >= 0 and told["threads"] == torch.get_num_threads()
    assert all(0 <= row["low"] <= row["right"] / row["n"] <= row["high"] <= 1 and row["difference"]["n"] == row["n"] == 4 for row in told["rows"])
    from matplotlib.figure import Figure
    ax = Figure().subplots()
    L.drawn(ax, told)
    assert len(ax.patches) == 4 + 4


def test_refusals(whole, tmp_path):
    with pytest.raises(ValueError, match="out: got .*, where another screening has begun, allowed: this one's, or a new folder"):
        L.screen(whole[0], 5, lab=TINY, progress=False)
    with pytest.raises(ValueError, match="where another screening has begun"):
        L.screen(whole[0], 4, lab=dataclasses.replace(TINY, levers=TINY.levers | {"course": L.LEVERS["AdamW"]}), progress=False)
    with pytest.raises(ValueError, match="seconds: got 0, allowed: more than 0"):
        L.screen(tmp_path / "none", 0, lab=TINY)
    with pytest.raises(ValueError, match="levers: got as it is, whitened, allowed: 'as it is' and at least 2 others"):
        L.screen(tmp_path / "none", 4, lab=dataclasses.replace(TINY, best=2, levers={name: L.LEVERS[name] for name in SOME[:2]}))
    assert not (tmp_path / "none").exists()


def test_a_screening_says_the_same_of_itself_twice():
    assert L.LAB.told(480) == L.LAB.told(480) and "0x" not in L.LAB.told(480) and L.LAB.told(480) != L.LAB.told(60)


# -- verdicts by hand --------------------------------------------------------------------------------------------------
def row(lever, seed, right, n=100):
    return {"lever": lever, "seed": seed, "right": [1] * right + [0] * (n - right), "steps": [9], "step_seconds": [1.0], "samples": 9, "losses": None,
            "threads": 1}


def test_the_best_by_hand():
    rows = [row(L.AS_IT_IS, 0, 90), row("a", 0, 60), row("b", 0, 70), row("c", 0, 60), row("d", 0, 80)]
    assert L.best_of(rows, 3) == ["d", "b", "a"]


def test_the_seed_that_chose_has_no_vote():
    "Lever a is far ahead in the screening and behind later; b is ahead with all seeds; c with all, but hardly; e with p = 2.4%, one of four."
    rows = [row(L.AS_IT_IS, s, 40) for s in range(3)] + [row(*one) for one in (("a", 0, 90), ("a", 1, 39), ("a", 2, 40), ("b", 0, 42), ("b", 1, 60), ("b", 2, 55),
                                                                              ("c", 0, 41), ("c", 1, 41), ("c", 2, 41), ("d", 0, 10))]
    rows += [row("e", s, 0) | {"right": [0] * 5 + [1] * 47 + [0] * 48} for s in range(3)]
    told = L.verdicts(rows)
    assert list(told) == ["a", "b", "c", "e"] and [v["wins"] for v in told.values()] == [False, True, False, False]
    assert told["e"]["fresh"]["low"] > 0 and L.verdicts([r for r in rows if r["lever"] in (L.AS_IT_IS, "e")])["e"]["wins"]
    assert told["a"]["fresh"]["difference"] == pytest.approx(-1 / 200) and told["b"]["differences"] == pytest.approx([0.02, 0.2, 0.15]) and told["b"]["fresh"]["n"] == 200
    table = L.table(rows)
    assert [r["difference"]["difference"] for r in table[:3]] == [0, 0, 0] and table[3]["difference"]["difference"] == pytest.approx(0.5)


def test_a_winner_outside_wans_state_dict_stays_in_the_lab(tmp_path, monkeypatch):
    rows = [row(L.AS_IT_IS, s, 40) | {"averages": {"10": {"right": [1] * 70 + [0] * 30, "losses": None}}} for s in range(2)]
    rows += [row(name, s, 70) for name in ("text in context", "whitened") for s in range(2)]
    monkeypatch.setattr(L, "screen", lambda *_, **__: rows)
    (tmp_path / "out").mkdir(), (tmp_path / "out" / "cpu.json").write_text("3600")
    told = L.publish(tmp_path / "out", tmp_path / "levers.json", seconds=4, lab=TINY)
    assert [v["wins"] for v in told["verdicts"].values()] == [True] * 3 and sorted(told["adopt"]) == ["average over 10 steps", "whitened"] and told["cpu_hours"] == 1
    from levers import lines
    assert lines(told)[-1].startswith("into the configs: ") and "text in context, seed 1: 70 of 100 right, +30.0 points (" in "\n".join(lines(told))
