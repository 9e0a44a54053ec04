"The model behind diffusers' classes makes what the plain pipeline makes."
import json

import numpy as np
import pytest
import torch
from diffusers import (DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
                       UniPCMultistepScheduler, WanTransformer3DModel)

from sora_edu.pipeline import face as F
from sora_edu.pipeline import generate as G
from tiny_weights import OTHER, PROMPT, tiny_folder, tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def pipe(folder):
    pipe = F.SoraPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("saved")
    F.SoraPipeline.from_pretrained(folder).save_pretrained(target)
    return target


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def grey(frames):
    return np.rint(frames * 255).astype(int)


def test_the_face_makes_what_generate_makes(pipe, folder):
    for frames in (1, 9, 17):
        plain = G.generate(PROMPT, weights=folder, seed=5, num_frames=frames).frames
        made = pipe(PROMPT, generator=seeded(5), num_frames=frames).frames
        assert made.shape == plain.shape and made.dtype == np.float32
        assert np.abs(grey(made) - plain).max() <= 1


def test_a_batch_with_one_generator_a_clip(pipe, folder):
    plain = G.generate([PROMPT, OTHER], weights=folder, seed=[1, 2], guidance_scale=2, num_inference_steps=3).frames
    made = pipe([PROMPT, OTHER], generator=[seeded(1), seeded(2)], guidance_scale=2, num_inference_steps=3).frames
    assert np.abs(grey(made) - plain).max() <= 1


def test_the_face_knows_the_sizes_that_go_together(tmp_path):
    "Weights of several shapes, as those of the full world: saved, loaded, asked for a shape of theirs and for another."
    models = tiny_models(world="full", num_frames=(1, 5, 9), height=(48, 64), width=(64,), sizes=((64, 64), (48, 64)))
    F.SoraPipeline.from_models(models).save_pretrained(tmp_path)
    pipe = F.SoraPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPT, height=48, num_inference_steps=1, num_frames=5).frames.shape == (1, 5, 48, 64, 3)
    with pytest.raises(ValueError, match="^height: got 32"):
        pipe(PROMPT, height=32)


def test_the_face_guides_where_the_weights_say(tmp_path):
    folder = tiny_folder(tmp_path / "w", guidance_interval=(0.8, 1.0))
    F.SoraPipeline.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    plain = G.generate(PROMPT, weights=folder, seed=5, guidance_scale=6).frames
    for source in (folder, tmp_path / "saved"):
        pipe = F.SoraPipeline.from_pretrained(source)
        pipe.set_progress_bar_config(disable=True)
        assert np.abs(grey(pipe(PROMPT, generator=seeded(5), guidance_scale=6).frames) - plain).max() <= 1
    everywhere = G.generate(PROMPT, weights=tiny_folder(tmp_path / "other"), seed=5, guidance_scale=6).frames
    assert np.abs(everywhere.astype(int) - plain).max() > 1


def test_the_face_draws_the_same_fresh_noise(tmp_path):
    "In float32: in bfloat16 the last bit of a sum may turn over a rounding, thirty times."
    folder = tiny_folder(tmp_path / "w", sampler="ancestral")
    F.SoraPipeline.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    plain = G.generate([PROMPT, OTHER], weights=G.load_models(folder, dtype=torch.float32), seed=[1, 2], num_inference_steps=6).frames
    for source in (folder, tmp_path / "saved"):
        pipe = F.SoraPipeline.from_pretrained(source, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe.scheduler) is F.FlowMatchAncestralScheduler and pipe.transformer.dtype == torch.float32
        made = pipe([PROMPT, OTHER], generator=[seeded(1), seeded(2)], num_inference_steps=6).frames
        assert np.abs(grey(made) - plain).max() <= 1
    euler = G.generate(PROMPT, weights=tiny_folder(tmp_path / "other"), seed=1, num_inference_steps=6).frames
    assert np.abs(euler[0].astype(int) - plain[0]).max() > 1


def test_a_seed_and_latents_fix_an_ancestral_clip(tmp_path):
    pipe = F.SoraPipeline.from_pretrained(tiny_folder(tmp_path / "w", sampler="ancestral"))
    pipe.set_progress_bar_config(disable=True)
    run = lambda **k: pipe(PROMPT, num_frames=1, output_type="latent", latents=torch.randn(1, 16, 1, 8, 8, generator=seeded(3)), **k).frames
    assert torch.equal(run(generator=seeded(1)), run(generator=seeded(1)))
    assert not torch.equal(run(generator=seeded(1)), run(generator=seeded(2)))


def test_the_ancestral_scheduler_steps_as_the_sampler_does():
    from sora_edu.diffusion.samplers import sample
    x, field = torch.randn(3, 2, 4, 2, 2, generator=seeded(0)), lambda x, sigma: x / 3 + sigma.mean()
    ours = list(sample(field, x, G.sigma_schedule(7, shift=3.0), solver="ancestral", generator=[seeded(k) for k in range(3)]))[-1].latents
    theirs, scheduler, chance = x, F.FlowMatchAncestralScheduler(shift=3.0), [seeded(k) for k in range(3)]
    scheduler.set_timesteps(sigmas=G.sigma_schedule(7)[:-1].numpy())
    for t, s in zip(scheduler.timesteps, scheduler.sigmas):
        theirs = scheduler.step(field(theirs, s.expand(3, 4)), t, theirs, generator=chance).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_ancestral_scheduler_adds_in_float32_and_takes_no_index():
    scheduler, x = F.FlowMatchAncestralScheduler(shift=3.0), torch.randn(1, 2, 4, 2, 2, generator=seeded(0))
    step = lambda dtype: (scheduler.set_timesteps(4), scheduler.step(x.to(dtype) / 3, scheduler.timesteps[0], x.to(dtype), generator=seeded(1)).prev_sample)[1]
    half, whole = step(torch.bfloat16), step(torch.float32)
    assert half.dtype == torch.bfloat16 and (half.float() - whole).abs().max() < 0.03
    with pytest.raises(ValueError, match="^timestep: got 0, allowed: one of scheduler.timesteps"):
        scheduler.step(x, 0, x)


def test_the_same_noise_levels(pipe):
    pipe.scheduler.set_timesteps(sigmas=G.sigma_schedule(30)[:-1].numpy())
    assert torch.allclose(pipe.scheduler.sigmas, G.sigma_schedule(30, shift=3.0), atol=1e-6)


@pytest.mark.parametrize("kind, shape", [("pt", (1, 5, 3, 64, 64)), ("np", (1, 5, 64, 64, 3)), ("latent", (1, 16, 2, 8, 8))])
def test_output_types(pipe, kind, shape):
    assert tuple(pipe(PROMPT, num_frames=5, output_type=kind).frames.shape) == shape


def test_pictures_and_tuples(pipe):
    clips = pipe(PROMPT, num_frames=5, output_type="pil").frames
    assert len(clips) == 1 and len(clips[0]) == 5 and clips[0][0].size == (64, 64)
    assert isinstance(pipe(PROMPT, num_frames=1, return_dict=False), tuple)


def test_several_videos_of_a_prompt(pipe):
    frames = pipe([PROMPT, OTHER], num_frames=1, num_videos_per_prompt=2, generator=seeded(0)).frames
    assert len(frames) == 4 and not np.array_equal(frames[0], frames[1])


def test_given_latents(pipe):
    latents = torch.randn(1, 16, 1, 8, 8, generator=seeded(3))
    a, b = (pipe(PROMPT, num_frames=1, **k).frames for k in ({"latents": latents}, {"generator": seeded(3)}))
    assert np.array_equal(a, b)


def test_frames_are_marked_and_hooks_heard(pipe):
    assert grey(pipe(PROMPT, num_frames=1).frames)[0, 0, -4:, -8:, 0].tolist() == G.mark(np.zeros((4, 8, 3), np.uint8))[..., 0].tolist()

    class No(G.Hooks):
        def before(self, prompt):
            raise ValueError("prompt: not this one")
    pipe.hooks = No()
    with pytest.raises(ValueError, match="not this one"):
        pipe(PROMPT)


def test_callback_may_steer_and_stop(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep)))
        pipe._interrupt = step == 1
        return {"latents": tensors["latents"] * 0}
    latents = pipe(PROMPT, callback_on_step_end=callback, output_type="latent").frames
    assert [s for s, _ in seen] == [0, 1] and seen[0][1] == 1000 and not latents.any()
    pipe(PROMPT, callback_on_step_end=lambda *a: seen.append(a[1]), num_frames=1)
    assert seen[-1] == 3                                     # an old interrupt does not linger


@pytest.mark.parametrize("scheduler", [
    FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)], ids=lambda s: type(s).__name__)
def test_any_flow_scheduler_goes_to_the_same_place(folder, scheduler):
    pipe = F.SoraPipeline.from_pretrained(folder, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler is scheduler
    made = grey(pipe(PROMPT, generator=seeded(5), num_inference_steps=25, num_frames=5).frames)
    fine = G.generate(PROMPT, weights=folder, seed=5, num_inference_steps=150, num_frames=5).frames
    assert np.abs(made - fine).mean() < 3
    assert np.abs(made - G.generate(PROMPT, weights=folder, seed=6, num_frames=5).frames).mean() > 20


def test_saved_and_loaded_again_makes_the_same(pipe, saved):
    assert not [p for p in saved.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    again = F.SoraPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    again.set_progress_bar_config(disable=True)
    first = F.SoraPipeline.from_pretrained(saved.parent / saved.name, dtype=torch.float32)
    first.set_progress_bar_config(disable=True)
    expected = {torch.bfloat16: again, torch.float32: first}[pipe.transformer.blocks[0].ffn.net[2].weight.dtype]
    a, b = (p(PROMPT, generator=seeded(5)).frames for p in (pipe, expected))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("name, face", [("vae", F.SoraVAE), ("text_encoder", F.SoraTextEncoder), ("transformer", F.SoraTransformer3DModel)])
def test_each_face_loads_alone(pipe, saved, name, face):
    net, again = getattr(pipe, name), face.from_pretrained(saved / name)
    state = again.state_dict()
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(v.float(), state[k].float()) for k, v in net.state_dict().items())
    own = {k: v for k, v in again.config.items() if not k.startswith("_")}
    assert own == json.loads(json.dumps({k: v for k, v in net.config.items() if not k.startswith("_")}))


def test_calls_as_diffusers_makes_them(pipe):
    video = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    latents = pipe.vae.encode(video).latents
    assert latents.shape == (1, 16, 2, 8, 8) and pipe.vae.decode(latents).sample.shape == video.shape
    assert torch.equal(pipe.vae(video).sample, pipe.vae.decode(latents, return_dict=False)[0])
    text = pipe.text_encoder(torch.ones(1, 16, dtype=torch.long)).last_hidden_state
    assert pipe.transformer(latents, torch.tensor([500.0]), text).sample.shape == latents.shape


def test_the_stock_transformer_takes_our_place(folder):
    "Same weights, diffusers' own class: the pipeline does not see the difference."
    pipe = F.SoraPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    ours = pipe(PROMPT, generator=seeded(5)).frames
    config = {k: v for k, v in pipe.transformer.config.items() if not k.startswith("_")}
    stock = WanTransformer3DModel(**config, rope_max_seq_len=1024, qk_norm="rms_norm_across_heads", cross_attn_norm=True)
    stock.load_state_dict(pipe.transformer.state_dict(), strict=True)
    pipe.transformer = stock.eval()
    assert np.abs(grey(pipe(PROMPT, generator=seeded(5)).frames) - grey(ours)).max() <= 1


@pytest.mark.parametrize("options, part", [
    ({"num_frames": 16}, "the nearest is 17"), ({"height": 65}, "height: got 65"), ({"num_inference_steps": 2.5}, "num_inference_steps: got 2.5"),
    ({"guidance_scale": float("nan")}, "guidance_scale: got nan"), ({"output_type": "gif"}, "output_type: got 'gif'"),
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt: got 0"), ({"latents": torch.zeros(1, 16, 4, 8, 8)}, "latents: got shape (1, 16, 4, 8, 8)"),
    ({"generator": [seeded(0), seeded(1)]}, "generator: got 2"), ({"negative_prompt": [PROMPT, OTHER]}, "negative_prompt: got "),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs: got ")])
def test_bad_arguments(pipe, options, part):
    with pytest.raises(ValueError) as caught:
        pipe(PROMPT, **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["", 3, None, [], "a small rad star", "red " * 40])
def test_bad_prompts(pipe, prompt):
    with pytest.raises(ValueError, match="prompt: got"):
        pipe(prompt)


def test_unknown_words_when_allowed(pipe):
    pipe("a smol star", allow_unknown=True, num_frames=1)


def test_nothing_is_downloaded(monkeypatch):
    import huggingface_hub
    for name in ("hf_hub_download", "snapshot_download", "model_info"):
        monkeypatch.setattr(huggingface_hub, name, lambda *a, **k: pytest.fail("asked the network"))
    with pytest.raises(ValueError, match="weights: got 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'"):
        F.SoraPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")


def test_an_unknown_option_of_from_pretrained(folder):
    with pytest.raises(ValueError, match="variant: got a value"):
        F.SoraPipeline.from_pretrained(folder, variant="fp16")
