"Samplers: orders of convergence, equality with diffusers, what is given stays, and a course that can be changed."
import pytest
import torch

from sora_edu.diffusion.samplers import Step, make_noise, sample, sigma_schedule

MEAN, STD = 1.5, 0.5


def gaussian(x, sigma):
    "The exact velocity where the data is N(MEAN, STD^2): E[noise - x0 | x]."
    s = sigma[:, None, :, None, None].to(x)
    gain = ((1 - s) * STD**2 * -1 + s) / ((1 - s) ** 2 * STD**2 + s**2)
    return -MEAN + gain * (x - (1 - s) * MEAN)


def ends(solver, n, noise, **options):
    return list(sample(gaussian, noise, torch.linspace(1, 0, n + 1, dtype=torch.float64), solver=solver, **options))[-1].latents


NOISE = torch.randn(64, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_orders_of_convergence(solver, order):
    exact = MEAN + STD * NOISE                                     # the flow of a Gaussian is a line
    errors = [(ends(solver, n, NOISE) - exact).abs().max().item() for n in (40, 80, 160)]
    observed = [torch.log2(torch.tensor(a / b)).item() for a, b in zip(errors, errors[1:])]
    assert all(abs(o - order) < 0.25 for o in observed), observed


@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral"])
def test_samples_have_the_data_s_moments(solver):
    noise = torch.randn(500, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = ends(solver, 100, noise, generator=torch.Generator().manual_seed(2))
    assert abs(x.mean() - MEAN) < 0.03 and abs(x.std() - STD) < 0.03


@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral"])
def test_every_step_lies_on_the_path(solver):
    "Latents at level s are spread as the data's and the noise's mixture is."
    noise = torch.randn(500, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = torch.linspace(1, 0, 101, dtype=torch.float64)
    for step in sample(gaussian, noise, levels, solver=solver, generator=torch.Generator().manual_seed(2)):
        std = ((1 - step.sigma) ** 2 * STD**2 + step.sigma**2) ** 0.5
        assert abs(step.latents.std() / std - 1) < 0.05 and abs(step.latents.mean() - (1 - step.sigma) * MEAN) < 0.03


def test_euler_is_diffusers_euler():
    from diffusers import FlowMatchEulerDiscreteScheduler
    scheduler, sigmas = FlowMatchEulerDiscreteScheduler(), sigma_schedule(20, shift=3.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
    x = theirs = NOISE.float()
    for t, s in zip(scheduler.timesteps, scheduler.sigmas):
        theirs = scheduler.step(gaussian(theirs, s.expand(64, 3)), t, theirs).prev_sample
    ours = list(sample(gaussian, x, sigmas))[-1].latents
    assert len(scheduler.timesteps) == 20 and (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral"])
def test_what_is_given_stays(solver):
    given, mask = torch.full_like(NOISE, 7.0), torch.tensor([[1, 0, 0]]).expand(64, -1)
    seen = []

    def watch(x, sigma):
        seen.append((x[:, :, 0].clone(), sigma.clone()))
        return gaussian(x, sigma)
    steps = list(sample(watch, NOISE, sigma_schedule(5), given=given, given_mask=mask, solver=solver))
    assert all((s.latents[:, :, 0] == 7).all() and (s.x0[:, :, 0] == 7).all() for s in steps)
    assert all((x == 7).all() and (sigma[:, 0] == 0).all() for x, sigma in seen) and (seen[0][1][:, 1] == 1).all()
    assert (steps[-1].latents[:, :, 1:] != 7).all()


def test_steps_tell_where_they_are():
    steps = list(sample(gaussian, NOISE, sigma_schedule(4)))
    assert [s.index for s in steps] == [0, 1, 2, 3] and steps[-1].sigma == 0 and isinstance(steps[0], Step)
    assert torch.equal(steps[-1].latents, steps[-1].x0) or torch.allclose(steps[-1].latents, steps[-1].x0, atol=1e-9)


def test_it_asks_only_when_it_is_asked():
    calls = []
    made = sample(lambda x, s: calls.append(1) or gaussian(x, s), NOISE, sigma_schedule(10))
    next(made), next(made)
    made.close()
    assert len(calls) == 2


def test_its_course_can_be_changed():
    made = sample(gaussian, NOISE, sigma_schedule(3))
    next(made)
    answer = made.send({"latents": torch.zeros_like(NOISE), "velocity_fn": lambda x, s: torch.zeros_like(x)})
    assert answer.index == 0 and (answer.latents == 0).all()
    assert all((s.latents == 0).all() for s in made)


def test_what_remains_of_the_schedule_can_be_changed():
    made = sample(gaussian, NOISE, sigma_schedule(4))
    step = next(made)
    made.send({"sigmas": torch.tensor([step.sigma, 0.5, 0.25, 0.1, 0.05, 0.0])})
    rest = list(made)
    assert [s.index for s in rest] == [1, 2, 3, 4, 5] and [round(s.sigma, 2) for s in rest] == [0.5, 0.25, 0.1, 0.05, 0.0]
    made = sample(gaussian, NOISE, sigma_schedule(4))
    next(made)
    with pytest.raises(ValueError, match="^sigmas: got levels from 0.3000, allowed: from 0.7500"):
        made.send({"sigmas": torch.tensor([0.3, 0.0])})


def test_a_part_can_be_given_on_the_way():
    made, mask = sample(gaussian, NOISE, sigma_schedule(4)), torch.tensor([[0, 0, 1]]).expand(64, -1)
    next(made)
    answer = made.send({"given": torch.full_like(NOISE, 3.0), "given_mask": mask})
    assert (answer.latents[:, :, 2] == 3).all() and (answer.latents[:, :, 0] != 3).all()
    assert all((s.latents[:, :, 2] == 3).all() for s in made)


@pytest.mark.parametrize("sent, word", [({"steps": 3}, "send: got steps"), ({"given": NOISE}, "given, given_mask")])
def test_messages_that_mean_nothing_are_refused(sent, word):
    made = sample(gaussian, NOISE, sigma_schedule(4))
    next(made)
    with pytest.raises(ValueError, match=f"^{word}"):
        made.send(sent)


def test_regions_can_be_given():
    mask, seen = torch.zeros(64, 1, 3, 2, 2), []
    mask[..., 0] = 1

    def still(x, sigma):
        seen.append(sigma)
        return torch.ones_like(x)
    steps = list(sample(still, NOISE, sigma_schedule(3), given=torch.full_like(NOISE, 7.0), given_mask=mask))
    assert all((s.latents[..., 0] == 7).all() and (s.x0[..., 0] == 7).all() for s in steps) and (steps[-1].latents[..., 1] != 7).all()
    assert all((sigma[..., 0] == 0).all() and (sigma[..., 1] > 0).all() for sigma in seen)


def test_chance_comes_from_the_generator_alone():
    run = lambda seed: ends("ancestral", 5, NOISE, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_noise_belongs_to_its_seed():
    many = make_noise([5, 6, 7], (2, 3))
    assert torch.equal(many[1], make_noise([6], (2, 3))[0]) and not torch.equal(many[0], many[1])


def test_schedules_fall_from_one_to_zero():
    for shift in (1.0, 3.0):
        sigmas = sigma_schedule(7, shift=shift)
        assert len(sigmas) == 8 and sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None])
def test_bad_numbers_of_steps_are_named(n):
    with pytest.raises(ValueError, match="^num_steps: got .*, allowed: a whole number from 1"):
        sigma_schedule(n)


def test_bad_solvers_are_named():
    with pytest.raises(ValueError, match="^solver: got 'magic', allowed: euler, heun, ancestral"):
        next(sample(gaussian, NOISE, sigma_schedule(2), solver="magic"))


@pytest.mark.parametrize("options", [dict(given=NOISE), dict(given_mask=torch.ones(64, 3))])
def test_given_and_its_mask_belong_together(options):
    with pytest.raises(ValueError, match="^given, given_mask: got .* only, allowed: both or neither"):
        next(sample(gaussian, NOISE, sigma_schedule(2), **options))


def test_a_level_may_come_twice():
    steps = list(sample(gaussian, NOISE, torch.tensor([1.0, 1.0, 0.5, 0.0]), solver="ancestral", generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(steps[-1].latents).all() and torch.equal(steps[0].latents, NOISE)


def test_one_generator_a_clip():
    ends = lambda seeds: [s.latents for s in sample(gaussian, make_noise(seeds, NOISE.shape[1:]), sigma_schedule(5), solver="ancestral",
                                                    generator=[torch.Generator().manual_seed(10 + s) for s in seeds])][-1]
    assert torch.allclose(ends([1, 2, 3])[1], ends([2])[0], atol=1e-6) and not torch.allclose(ends([1, 2])[0], ends([1, 2])[1])


def test_noise_from_a_generator_goes_on():
    g = torch.Generator().manual_seed(4)
    first, second = make_noise([g], (2, 3)), make_noise([g], (2, 3))
    assert torch.equal(first, make_noise([4], (2, 3))) and not torch.equal(first, second)


G = lambda seed: torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("generators", [lambda: G(3), lambda: [G(k) for k in range(64)]])
def test_a_kept_step_meets_the_same_dice_twice(generators):
    steps = list(sample(gaussian, NOISE, sigma_schedule(6), solver="ancestral", generator=generators()))
    on = lambda step: list(sample(gaussian, step.latents, sigma_schedule(6)[step.index + 1:], solver="ancestral", generator=step.generator))[-1].latents
    assert torch.equal(on(steps[1]), steps[-1].latents) and torch.equal(on(steps[3]), steps[-1].latents)
    ends = []
    for _ in range(2):                                              # back by message: the kept step's generators are not used up
        made = sample(gaussian, NOISE, sigma_schedule(6), solver="ancestral", generator=generators())
        next(made), next(made)
        made.send({"latents": steps[1].latents, "generator": steps[1].generator})
        ends.append(list(made)[-1].latents)
    assert torch.equal(ends[0], steps[-1].latents) and torch.equal(ends[1], ends[0])


@pytest.mark.parametrize("generator", [[G(0)], [G(0)] * 65, (G(0), G(1)), 7, [7] * 64])
def test_bad_generators_are_named(generator):
    with pytest.raises(ValueError, match="^generator: got .*, allowed: a torch.Generator, or a list with one for each of 64 clips"):
        next(sample(gaussian, NOISE, sigma_schedule(2), solver="ancestral", generator=generator))


@pytest.mark.parametrize("levels", [[], [0.3, 0.6, 0.0], [1.2, 0.0], [0.5, -0.1]])
@pytest.mark.parametrize("solver", ["euler", "ancestral"])
def test_bad_levels_are_named(levels, solver):
    with pytest.raises(ValueError, match=r"^sigmas: got \[.*allowed: one or more levels that fall"):
        next(sample(gaussian, NOISE, torch.tensor(levels), solver=solver))


def test_levels_sent_are_checked_too():
    made = sample(gaussian, NOISE, sigma_schedule(4))
    next(made)
    with pytest.raises(ValueError, match="^sigmas: got "):
        made.send({"sigmas": torch.tensor([0.75, 0.8, 0.0])})
