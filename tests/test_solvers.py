"Solvers: equal to diffusers', of the order that is claimed, with a memory that can be gone back to; and the figures about them."
import math

import pytest
import torch

from sora_edu.diffusion import solvers as S
from sora_edu.diffusion.samplers import SOLVERS, Moment, ancestral, euler, make_noise, sample, sigma_schedule
from sora_edu.evaluate import solvers as E

NOISE = make_noise(range(6), (2, 3, 2, 2)).double()
FIELD = S.exact_mixture([[-1.0, 0.5], [1.5, -0.5]], 0.6, [0.4, 0.6])
ALL = ("euler", "heun", "ancestral", "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
LEVELS = sigma_schedule(8, shift=2.0)
G = lambda seed=3: torch.Generator().manual_seed(seed)


def run(solver, levels=LEVELS, x=NOISE, **options):
    return list(sample(FIELD, x, levels, solver=solver, **options))


def test_names():
    assert tuple(SOLVERS) == ALL


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "ddpm", "ddim", "ddim, eta 0.5"])
def test_it_is_diffusers_solver(name, monkeypatch):
    stock = {name: E.stock_schedulers()[name]}
    monkeypatch.setattr(E, "stock_schedulers", lambda: stock)
    assert E.parity(50)[name] <= 1e-5


def test_the_parity_finds_another_sampler(monkeypatch):
    "Ours against a scheduler that does something else."
    stock = E.stock_schedulers()
    monkeypatch.setattr(E, "stock_schedulers", lambda: {"unipc": stock["dpmpp_2m"], "dpmpp_2m": stock["unipc"]})
    assert min(E.parity(20).values()) > 1e-3


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "unipc"])
def test_orders_of_convergence(solver):
    ns = (40, 80, 160)
    assert abs(S.observed_order(S.convergence(solver, ns), ns) - S.NOMINAL[solver]) < 0.25


def test_an_order_that_is_lost_at_the_end_is_seen(monkeypatch):
    def tired(at):
        return S.dpmpp_2m(at) if at.then > 0.06 else euler(at)
    ns = (40, 80, 160)
    assert S.observed_order(S.convergence(tired, ns), ns) < S.observed_order(S.convergence("dpmpp_2m", ns), ns)


def test_the_ends_of_the_dial():
    at = Moment(NOISE, FIELD(NOISE, torch.full((6, 3), 0.7).double()), NOISE * 0.3, 0.7, 0.5, None, lambda: NOISE.flip(0))
    at = Moment(at.x, at.v, at.x - 0.7 * at.v, 0.7, 0.5, None, at.fresh)
    assert torch.allclose(S.ddim(0.0)(at), euler(at), atol=1e-12) and torch.allclose(S.ddim(1.0)(at), ancestral(at), atol=1e-12)
    assert not torch.allclose(S.ddim(0.5)(at), euler(at), atol=1e-2)


@pytest.mark.parametrize("solver", ALL)
def test_the_data_s_moments(solver):
    x, v = make_noise(range(400), (1, 8, 1, 1)).double(), S.exact_mixture([[1.5]], 0.5)
    end = list(sample(v, x, sigma_schedule(60), solver=solver, generator=G()))[-1].latents
    assert abs(end.mean() - 1.5) < 0.04 and abs(end.std() - 0.5) < 0.05


@pytest.mark.parametrize("solver", ALL)
def test_what_is_given_stays(solver):
    given, mask, seen = torch.full_like(NOISE, 7.0), torch.tensor([[1, 0, 0]]).expand(6, -1), []

    def watch(x, sigma):
        seen.append((x[:, :, 0].clone(), sigma.clone()))
        return FIELD(x, sigma)
    steps = list(sample(watch, NOISE, LEVELS, solver=solver, given=given, given_mask=mask, generator=G()))
    assert all((s.latents[:, :, 0] == 7).all() and (s.x0[:, :, 0] == 7).all() for s in steps) and torch.isfinite(steps[-1].latents).all()
    assert all((x == 7).all() and (sigma[:, 0] == 0).all() and sigma.shape == (6, 3) for x, sigma in seen)


@pytest.mark.parametrize("solver", ALL)
def test_one_generator_a_clip(solver):
    ends = lambda some: run(solver, x=NOISE[some], generator=[G(10 + k) for k in some])[-1].latents
    assert torch.allclose(ends([1, 2, 3])[1], ends([2])[0], atol=1e-9)


@pytest.mark.parametrize("solver", ALL)
def test_a_kept_step_goes_on_as_it_would_have(solver):
    steps = run(solver, generator=G())
    for k in (0, 3):
        on = list(sample(FIELD, steps[k].latents, LEVELS[k + 1:], solver=solver, generator=steps[k].generator, history=steps[k].history))
        assert torch.equal(on[-1].latents, steps[-1].latents)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_going_back_by_message(solver):
    steps, made = run(solver, generator=G()), sample(FIELD, NOISE, LEVELS, solver=solver, generator=G())
    for _ in range(3):
        last = next(made)
    back = made.send({"latents": last.latents, "history": last.history, "generator": last.generator})
    assert back.history == last.history and torch.equal(list(made)[-1].latents, steps[-1].latents)


@pytest.mark.parametrize("sent", [{"latents": NOISE}, {"velocity_fn": FIELD}, {"given": NOISE, "given_mask": torch.tensor([[1, 0, 0]]).expand(6, -1)}])
def test_other_latents_or_fields_clear_the_memory(sent):
    made = sample(FIELD, NOISE, LEVELS, solver="dpmpp_2m")
    next(made), next(made)
    assert made.send(sent).history == ()
    after = next(made)
    assert len(after.history) == 1                                  # the first step after it is Euler's
    made = sample(FIELD, NOISE, LEVELS, solver="dpmpp_2m")
    next(made), next(made)
    assert len(made.send({"sigmas": LEVELS[2:]}).history) == 2 and len(made.send({"generator": G()}).history) == 2


def test_without_memory_the_first_step_is_euler_s():
    for solver in ("dpmpp_2m", "unipc"):
        assert torch.allclose(run(solver)[0].latents, run("euler")[0].latents, atol=1e-6)
        assert not torch.allclose(run(solver)[4].latents, run("euler")[4].latents, atol=1e-3)


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("levels", [[1.0, 1.0, 0.6, 0.6, 0.6, 0.2, 0.0, 0.0], [0.7, 0.4, 0.1], [0.5], [1.0, 0.0], [0.9, 0.9 - 1e-6, 0.9 - 2e-6, 0.4, 0.0]])
def test_odd_schedules(solver, levels):
    steps = run(solver, torch.tensor(levels, dtype=torch.float64), generator=G())
    assert len(steps) == len(levels) - 1 and all(torch.isfinite(s.latents).all() for s in steps)


def test_a_rule_of_one_s_own():
    asked = []

    def rule(at):
        asked.append((at.now, at.then, len(at.history)))
        return euler(at)
    assert torch.equal(run(rule)[-1].latents, run("euler")[-1].latents) and [a[2] for a in asked[:4]] == [0, 1, 2, 2]


@pytest.mark.parametrize("call, name", [
    (lambda: run("dpmpp_3m"), "solver: got 'dpmpp_3m', allowed: euler, heun, ancestral, ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, unipc"),
    (lambda: run(["euler"]), r"solver: got \['euler'\], allowed: euler"), (lambda: run("unipc", torch.tensor([0.2, 0.5, 0.0])), r"sigmas: got \[0.2, 0.5, 0.0\], allowed: "),
    (lambda: run("dpmpp_2m", torch.tensor([80.0, 1.0, 0.0])), r"sigmas: got \[80.0, 1.0, 0.0\], allowed: "),
    (lambda: S.ddim(-0.1), "eta: got -0.1, allowed: 0 to 1"), (lambda: S.ddim(float("nan")), "eta: got nan"), (lambda: S.ddim("1"), "eta: got '1'")])
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()


# -- the figures ---------------------------------------------------------------------------------------------------------
def test_figures_are_registered():
    from sora_edu.evaluate.speed import HOMES, MEASURES
    assert {"sampler_parity", "order_deviation", "ten_steps"} <= set(MEASURES["parity"]) and "sora_edu.evaluate.solvers" in HOMES["parity"]
    assert MEASURES["parity"]["ten_steps"][2] and not MEASURES["parity"]["sampler_parity"][2]


def test_prompts_are_different_balanced_and_seen():
    from sora_edu.world.scene import is_heldout
    cases = E.prompts("trial", 60)
    assert len({c.prompt for c in cases}) == len({c.seed for c in cases}) == 60 and not any(is_heldout(c.scene) for c in cases)
    assert cases == E.prompts("trial", 60) and not {c.seed for c in cases} & {c.seed for c in E.prompts("practice", 60)}


@pytest.fixture
def fake(monkeypatch):
    "A generator and a judge: a clip is right if a coin that belongs to its solver and seed says so."
    calls = []

    def generator(weights, *, sampler, num_inference_steps):
        def generate(prompts, seeds):
            calls.append((sampler, len(prompts)))
            return [(sampler, seed) for seed in seeds]
        return generate
    better = {"euler": 5, "unipc": 7, "dpmpp_2m": 9}
    monkeypatch.setattr(E, "generator", generator)
    monkeypatch.setattr(E, "judge", lambda clips, said: [{"all": seed % 10 < better[sampler]} for sampler, seed in clips])
    return calls


def test_the_winner_of_the_practice_meets_the_rival(fake, tmp_path):
    told = E.ten_steps(None, n=200, practice=48, out=tmp_path, candidates=(("unipc", 10), ("dpmpp_2m", 10)), progress=False)
    assert told["winner"] == ("dpmpp_2m", 10) and told["n"] == 200 and told["only_one"] == 0 and 0.3 < told["difference"] < 0.5
    assert told["low"] < told["difference"] < told["high"] and ("unipc", 16) in fake


def test_verdicts_are_kept_and_gone_on_from(fake, tmp_path):
    cases, path = E.prompts("trial", 40), tmp_path / "v.txt"
    whole = E.rightness(None, cases, "euler", 30, path, progress=False)
    path.write_text(path.read_text()[:17])
    fake.clear()
    assert E.rightness(None, cases, "euler", 30, path, progress=False) == whole and sum(n for _, n in fake) == 23
    path.write_text("01x")
    with pytest.raises(ValueError, match="^path: got .*allowed: up to 40, each 0 or 1"):
        E.rightness(None, cases, "euler", 30, path, progress=False)


def test_kernels_of_unipc_s_weights_meet_at_small_steps():
    for r in (0.5, 1.0, 3.0):
        near, limit = S._weights(1.1e-3, r), S._weights(0.9e-3, r)
        assert near == pytest.approx(limit, abs=2e-3) and math.isclose(sum(S._weights(1e-9, r)), 0.5)
