"From a prompt to frames: laws of the pipeline on a small model with random weights."
import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sora_edu
from sora_edu.diffusion.flow import to_x0
from sora_edu.diffusion import samplers
from sora_edu.pipeline import generate as G
from tiny_weights import OTHER, PROMPT, tiny_folder, tiny_models

PACKAGE = Path(sora_edu.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def models(folder):
    return G.load_models(folder)


# Nothing on the way from a prompt to frames may draw

def imports_of(path, module):
    "Names of sora_edu's modules that a file imports anywhere, also inside functions; `module` is its own name."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] == "sora_edu"}


def reachable(start):
    "All names that the modules in `start` import, and that these import, and so on."
    seen, todo = set(), list(start)
    while todo:
        name = todo.pop()
        path = PACKAGE.parent / Path(*name.split("."))
        path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if name not in seen and path.exists():
            todo += imports_of(path, name)
        seen.add(name)
    return seen


def pipeline_modules():
    return [f"sora_edu.pipeline.{p.stem}" for p in (PACKAGE / "pipeline").glob("*.py") if p.stem != "__init__"]


def test_the_pipeline_cannot_reach_the_world():
    found = {n for n in reachable(pipeline_modules()) if n.startswith("sora_edu.world") or n == "sora_edu.World"}
    assert not found


def test_the_walk_would_find_it():
    assert any(n.startswith("sora_edu.world") for n in reachable(["sora_edu.training.data"]))


@pytest.mark.parametrize("module", pipeline_modules())
def test_no_back_door(module):
    "No import by name and no code from strings, which the walk could not see."
    tree = ast.parse((PACKAGE / "pipeline" / f"{module.split('.')[-1]}.py").read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not names & {"__import__", "import_module", "exec", "compile", "World", "pickle", "urlopen", "hf_hub_download"}


# Sampling

def test_shapes(models):
    made = G.generate([PROMPT, OTHER], weights=models, seed=[1, 2])
    assert made.frames.shape == (2, 17, 64, 64, 3) and made.frames.dtype == np.uint8
    assert [r["prompt"] for r in made.records] == [PROMPT, OTHER] and [r["seed"] for r in made.records] == ["1", "2"]


@pytest.mark.parametrize("num_frames", [1, 5, 9, 13, 17])
def test_every_length(models, num_frames):
    assert G.generate(PROMPT, weights=models, num_frames=num_frames).frames.shape[1] == num_frames


def test_prompt_and_seed_matter_and_nothing_else(models):
    first = G.generate(PROMPT, weights=models, seed=3).frames
    torch.manual_seed(99)                                    # the global generator is not looked at
    assert np.array_equal(first, G.generate(PROMPT, weights=models, seed=3).frames)
    assert not np.array_equal(first, G.generate(PROMPT, weights=models, seed=4).frames)
    assert not np.array_equal(first, G.generate(OTHER, weights=models, seed=3).frames)


def test_a_batch_makes_what_each_alone_makes(models):
    batch = G.generate([PROMPT, OTHER, PROMPT], weights=models, seed=[1, 2, 3]).frames
    alone = [G.generate(p, weights=models, seed=s).frames[0] for p, s in ((PROMPT, 1), (OTHER, 2), (PROMPT, 3))]
    assert np.abs(batch.astype(int) - np.stack(alone)).max() <= 1


def test_one_prompt_with_several_seeds(models):
    made = G.generate(PROMPT, weights=models, seed=[1, 2])
    assert len(made.frames) == 2 and not np.array_equal(*made.frames)


def test_guidance_zero_ignores_the_prompt_and_one_is_plain(models):
    zero = [G.generate(p, weights=models, guidance_scale=0).frames for p in (PROMPT, OTHER)]
    assert np.abs(zero[0].astype(int) - zero[1]).max() <= 1
    one, three = (G.generate(PROMPT, weights=models, guidance_scale=g).frames for g in (1, 3))
    assert not np.array_equal(one, three)


def test_the_whole_is_what_its_parts_give(folder):
    "The pipeline's frames, from the samplers' formulas written out."
    models = G.load_models(folder, dtype=torch.float32)
    request = G.check(G.Request(PROMPT, seed=7, num_inference_steps=3, guidance_scale=2.5), models)
    text = [models.text_encoder(G.tokenize([t], models.tokenizer, 16)) for t in (PROMPT, "")]
    sigmas = torch.linspace(1, 0, 4)
    sigmas = models.config.shift * sigmas / (1 + (models.config.shift - 1) * sigmas)
    x, net = torch.randn(16, 5, 8, 8, generator=torch.Generator().manual_seed(7))[None], G.network(models)
    for now, then in zip(sigmas, sigmas[1:]):
        yes, no = (net(x, now.expand(1, 5), t) for t in text)
        x = x + (then - now) * (no + 2.5 * (yes - no))
    assert np.abs(G.decode(x, weights=models).astype(int) - G._sampled(request, models, G.Hooks())).max() <= 1


def test_guidance_keeps_to_the_interval_of_the_weights(tmp_path):
    "Two of four steps lie inside: the formula written out, and what the network was asked."
    models = G.load_models(tiny_folder(tmp_path / "w", guidance_interval=(0.8, 1.0)), dtype=torch.float32)
    text = [models.text_encoder(G.tokenize([t], models.tokenizer, 16)) for t in (PROMPT, "")]
    x, net, sigmas = torch.randn(16, 5, 8, 8, generator=torch.Generator().manual_seed(7))[None], G.network(models), G.sigma_schedule(4, shift=3.0)
    for now, then in zip(sigmas, sigmas[1:]):
        yes, no = (net(x, now.expand(1, 5), t) for t in text)
        x = x + (then - now) * (no + (2.5 if now >= 0.8 else 1) * (yes - no))
    made = G.generate_unmarked(PROMPT, weights=models, seed=7, guidance_scale=2.5)
    assert (sigmas[:-1] >= 0.8).sum() == 2 and np.abs(G.decode(x, weights=models).astype(int) - made).max() <= 1
    assert G.generate(PROMPT, weights=models).record["guidance_interval"] == [0.8, 1.0]


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.5, 1.5), (0.9, 0.2), (float("nan"), 1.0), ("0", 1), 0.5, None, (0, 0.5, 1), ()])
def test_weights_with_a_bad_interval_are_refused(interval):
    with pytest.raises(ValueError, match="^guidance_interval: got .*, allowed: "):
        tiny_models(guidance_interval=interval)


def test_fresh_noise_is_a_matter_of_the_seed_alone(tmp_path):
    "The ancestral sampler: same clip alone, in a batch, and again from its record."
    models = G.load_models(tiny_folder(tmp_path / "w", sampler="ancestral"))
    batch = G.generate([PROMPT, OTHER, PROMPT], weights=models, seed=[1, 2, 3])
    alone = [G.generate(p, weights=models, seed=s).frames[0] for p, s in ((PROMPT, 1), (OTHER, 2), (PROMPT, 3))]
    assert np.abs(batch.frames.astype(int) - np.stack(alone)).max() <= 1
    assert not np.array_equal(alone[0], alone[2]) and batch.record["sampler"] == "ancestral"
    assert G.replay(G.generate(PROMPT, weights=models, seed=9).record, weights=models).equal


def test_fresh_noise_is_not_the_first_noise_again(tmp_path, monkeypatch):
    models, drawn, real = G.load_models(tiny_folder(tmp_path / "w", sampler="ancestral")), [], samplers.make_noise
    keep = lambda seeds, shape: drawn.append(real(seeds, shape)) or drawn[-1]
    monkeypatch.setattr(samplers, "make_noise", keep), monkeypatch.setattr(G, "make_noise", keep)
    G.generate(PROMPT, weights=models, num_inference_steps=4)
    assert len(drawn) == 4 and all(not torch.equal(drawn[0], other) for other in drawn[1:])      # the last step draws none


def test_a_request_may_name_its_solver(models):
    "The clip is that solver's, the record says so, and a replay keeps to it."
    made = {name: G.generate(PROMPT, weights=models, seed=4, num_frames=5, num_inference_steps=3, sampler=name) for name in (None, "euler", "unipc", "ddpm")}
    assert np.array_equal(made[None].frames, made["euler"].frames) and made[None].record["sampler"] == "euler"
    assert len({m.record["sha256"] for m in made.values()}) == 3 and made["unipc"].record["sampler"] == "unipc"
    assert all(G.replay(m.record, weights=models).equal for m in made.values())
    old = {k: v for k, v in made[None].record.items() if k != "sampler"}
    assert G.replay(old, weights=models).equal


@pytest.mark.parametrize("sampler", ["magic", 3, ["euler"], ""])
def test_an_unknown_solver_is_refused(models, sampler):
    with pytest.raises(ValueError, match="^sampler: got .*allowed: euler, heun, ancestral, ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, unipc"):
        G.generate(PROMPT, weights=models, sampler=sampler)


def test_weights_with_an_unknown_sampler_are_refused():
    with pytest.raises(ValueError, match="^sampler: got 'magic', allowed: euler, ancestral"):
        tiny_models(sampler="magic")


def test_text_is_encoded_once(models, monkeypatch):
    calls, real = [], type(models.dit).text_cache
    monkeypatch.setattr(type(models.dit), "text_cache", lambda self, text: calls.append(len(text)) or real(self, text))
    G.generate(PROMPT, weights=models, num_inference_steps=5)
    assert calls == [2]


def test_text_is_encoded_twice_with_an_interval(tmp_path, monkeypatch):
    models, calls, real = G.load_models(tiny_folder(tmp_path / "w", guidance_interval=(0.8, 1.0))), [], G.DiT.text_cache
    monkeypatch.setattr(G.DiT, "text_cache", lambda self, text: calls.append(len(text)) or real(self, text))
    G.generate(PROMPT, weights=models, num_inference_steps=8)
    assert calls == [2, 1]                                          # with and without the prompt, then with it alone


def test_the_packaged_weights_are_sampled_as_their_config_says():
    from sora_edu.training.configs import get_config
    shipped, cfg = G.load_models("mini").config, get_config("mini")
    assert (shipped.sampler, shipped.guidance_interval) == (cfg.sampler, cfg.guidance_interval)


def test_the_cache_changes_nothing(models):
    latents, sigma, text = torch.randn(2, 16, 5, 8, 8), torch.full((2, 5), 0.7), torch.randn(2, 16, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=models.dtype != torch.float32):
        plain = models.dit(latents, 1000 * sigma, text).float()
    net = G.network(models)
    first, kept = net(latents, sigma, text), net(latents, sigma, text)
    assert torch.equal(kept, first) and torch.equal(G.network(models)(latents, sigma, text), first)
    assert (first - plain).abs().max() <= (1e-5 if models.dtype == torch.float32 else 0.05)            # chapter 9c rounds elsewhere


def test_float32_and_bfloat16_agree(folder):
    a, b = (G.generate(PROMPT, weights=G.load_models(folder, dtype=d)) for d in (torch.float32, torch.bfloat16))
    assert np.abs(a.frames.astype(int) - b.frames).mean() < 2
    assert (a.record["dtype"], b.record["dtype"]) == ("float32", "bfloat16")


# Steps

def test_steps_end_where_generate_does(models):
    steps = list(G.steps(PROMPT, weights=models, seed=5))
    assert [s.index for s in steps] == [0, 1, 2, 3] and steps[-1].sigma == 0
    assert np.array_equal(G.decode(steps[-1].latents, weights=models), G.generate_unmarked(PROMPT, weights=models, seed=5))
    assert torch.allclose(steps[-1].x0, steps[-1].latents, atol=1e-5)


def test_steps_can_be_steered_and_stopped(models):
    steps = G.steps(PROMPT, weights=models)
    first = next(steps)
    steered = steps.send({"latents": first.latents * 0})
    assert torch.equal(steered.latents, first.latents * 0)
    first.latents.add_(1)                                    # a plain tensor, not one of inference mode
    steps.close()


def test_steps_leave_the_callers_gradients_on(models):
    for _ in G.steps(PROMPT, weights=models):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_steps_check_before_the_first_step(models):
    with pytest.raises(ValueError, match="seed"):
        G.steps(PROMPT, weights=models, seed=-1)


def test_progress(models):
    seen = []
    G.generate(PROMPT, weights=models, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Mark and hooks

def test_the_mark_is_small_and_in_its_corner(models):
    marked, plain = G.generate(PROMPT, weights=models).frames, G.generate_unmarked(PROMPT, weights=models)
    changed = (marked != plain).any(axis=(0, 1, 4))
    rows, columns = np.nonzero(changed)
    assert changed.any() and rows.min() >= 60 and columns.min() >= 56
    assert len(np.unique(marked[0, :, -4:, -8:].reshape(17, -1), axis=0)) == 1    # the same in every frame


def test_marking_copies():
    video = np.zeros((2, 64, 64, 3), np.uint8)
    assert G.mark(video).any() and not video.any()


def test_unmarked_frames_reach_no_file(models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("write_video", "write_png", "_write_clip", "_publish"):
        monkeypatch.setattr(G, name, lambda *a, **k: pytest.fail("unmarked frames were written"))
    G.generate_unmarked(PROMPT, weights=models)
    assert not list(tmp_path.iterdir())


def test_hooks_see_everything_in_order(models):
    class Spy(G.Hooks):
        seen = []

        def before(self, prompt):
            self.seen.append(("before", prompt))
            return OTHER

        def noise(self, latents):
            self.seen.append(("noise", tuple(latents.shape)))
            return latents

        def after(self, video, record):
            self.seen.append(("after", record["prompt"]))
            return video // 2

    made = G.generate(PROMPT, weights=models, hooks=Spy())
    assert Spy.seen == [("before", PROMPT), ("noise", (1, 16, 5, 8, 8)), ("after", OTHER)]
    assert np.array_equal(made.frames, G.generate_unmarked(OTHER, weights=models) // 2)
    assert made.record["sha256"] == G.video_hash(made.frames[0])


def test_a_hook_may_refuse(models):
    class No(G.Hooks):
        def before(self, prompt):
            raise ValueError("prompt: not this one")

    with pytest.raises(ValueError, match="not this one"):
        G.generate(PROMPT, weights=models, hooks=No())


# Weights

def test_saved_and_loaded_again_is_the_same(folder, models, tmp_path):
    assert G.save_models(tmp_path / "copy", models, note="another note") == models.weights_hash
    a, b = (load_file(f / "dit.safetensors") for f in (folder, tmp_path / "copy"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_matrices_are_small_and_files_are_plain(folder):
    tensors = load_file(folder / "dit.safetensors")
    assert {v.dtype for v in tensors.values() if v.ndim > 1} == {torch.bfloat16}
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "model.json").read_text())["info"] == {"note": "random"}


def test_big_networks_are_cut_into_shards(tmp_path):
    tensors = {f"t{i}": torch.zeros(1000) for i in range(5)}
    shards = G.shards(tensors, "dit", limit=8000)
    assert list(shards) == ["dit-00001-of-00003.safetensors", "dit-00002-of-00003.safetensors", "dit-00003-of-00003.safetensors"]
    assert [k for part in shards.values() for k in part] == list(tensors)


def test_shards_load_and_replace_the_single_file(tmp_path, monkeypatch, models):
    folder = tiny_folder(tmp_path / "w")
    real = G.shards
    monkeypatch.setattr(G, "shards", lambda t, stem: real(t, stem, limit=100_000))
    G.save_models(folder, models)
    assert not (folder / "dit.safetensors").exists() and len(list(folder.glob("dit-*"))) > 1
    state = G.load_models(folder).dit.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in models.dit.state_dict().items())


def test_a_failed_save_leaves_the_old_weights(tmp_path, monkeypatch, models):
    folder = tiny_folder(tmp_path / "w")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        G.save_models(folder, tiny_models(seed=1))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_loading_leaves_the_callers_random_numbers_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    G.load_models(folder)
    assert torch.equal(torch.rand(3), expected)


def test_loaded_once_until_a_file_changes(tmp_path):
    folder = tiny_folder(tmp_path / "w")
    first = G._models(folder)
    assert G._models(folder) is first
    tiny_folder(folder, seed=1)
    assert G._models(folder).weights_hash != first.weights_hash


def test_x0_points_back(models):
    steps = list(G.steps(PROMPT, weights=models, guidance_scale=1, num_inference_steps=2))
    request = G.check(G.Request(PROMPT, num_inference_steps=2), models)
    noise = G.first_noise(request, models)
    v = (steps[0].latents - noise) / (steps[0].sigma - 1)
    assert torch.allclose(steps[0].x0, to_x0(noise, v, torch.ones(1)), atol=1e-4)


@pytest.mark.parametrize("name", [".", "..", "mini/../mini"])
def test_a_path_is_never_a_packaged_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert G.resolve_weights(name).resolve() == (tmp_path / name).resolve()
    except ValueError as error:
        assert str(error).startswith("weights: got ")


def test_a_level_for_every_token_reaches_the_network(folder):
    models = G.load_models(folder, dtype=torch.float32)
    ask, g = G.network(models), torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 5, 8, 8, generator=g), torch.randn(1, 16, models.config.dit.text_dim, generator=g)
    frames = torch.rand(1, 5, generator=g)
    regions = frames[:, None, :, None, None].expand(1, 1, 5, 8, 8).clone()
    assert torch.allclose(ask(x, frames, text), ask(x, regions, text), atol=1e-5)
    regions[..., :4] = 0
    assert not torch.allclose(ask(x, frames, text), ask(x, regions, text), atol=1e-5)
