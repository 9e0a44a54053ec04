"Open video models, driven by our sampler: equal to their own pipelines, steerable, refused with a reason. Tiny random networks of the real classes."
import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sora_edu.pipeline import open_weights as O
from sora_edu.pipeline.open_weights import FAMILIES, TINY, as_negative, decode, drive, family_of, follow, memory_of, pack, tiny, tiny_embeds, unpack

NAMES = tuple(TINY)
SIZE = dict(height=32, width=64, num_frames=9, num_inference_steps=5, guidance_scale=4.0)
PIPES = {}


def pipe_of(name):
    if name not in PIPES:
        PIPES[name] = tiny(name)
    return PIPES[name]


def told(name, seed=1, clips=1):
    "A prompt's embeddings, and a negative prompt's where two passes want them."
    return tiny_embeds(name, seed, clips) | (as_negative(tiny_embeds(name, seed + 50, clips)) if name != "HunyuanVideo" else {})


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def theirs(pipe, seed=3, **options):
    generator = [seeded(s) for s in seed] if isinstance(seed, list) else seeded(seed)
    return pipe(**SIZE | dict(output_type="latent") | options, generator=generator).frames


def ours(pipe, **options):
    "The last latents, as the pipeline would hand them out."
    last = follow(drive(pipe, **SIZE | dict(seed=3) | options))
    run = O.Run(pipe, **SIZE)
    return pack(run.family, last.latents, run.patches)


def same(a, b):
    assert a.abs().max() > 0.1                                       # something was made
    assert_close(a, b, atol=1e-4, rtol=0)


# -- equal
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", (5, 7))
def test_latents_are_those_of_the_familys_pipeline(name, steps):
    pipe, clips = pipe_of(name), 2
    options = told(name, clips=clips) | dict(num_inference_steps=steps)
    same(ours(pipe, seed=[3, 4], **options), theirs(pipe, [3, 4], **options))


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_those_of_the_familys_pipeline(name):
    pipe = pipe_of(name)
    last = follow(drive(pipe, seed=3, **SIZE, **told(name)))
    same((decode(pipe, last.latents).transpose(1, 2) + 1) / 2, theirs(pipe, output_type="pt", **told(name)))


@pytest.mark.parametrize("name", NAMES)
def test_components_do_as_well_as_a_pipeline(name):
    parts = {n: getattr(pipe_of(name), n) for n in ("transformer", "scheduler", "vae")}
    assert torch.equal(ours(parts, **told(name)), ours(pipe_of(name), **told(name)))


def test_two_passes_on_top_of_embedded_guidance():
    pipe, options = pipe_of("HunyuanVideo"), tiny_embeds("HunyuanVideo", 1) | as_negative(tiny_embeds("HunyuanVideo", 2)) | dict(true_cfg_scale=3.0)
    same(ours(pipe, **options), theirs(pipe, **options))
    assert not torch.allclose(ours(pipe, **options), ours(pipe, **tiny_embeds("HunyuanVideo", 1)), atol=1e-3)
    assert not torch.allclose(ours(pipe, **told("HunyuanVideo")), ours(pipe, **told("HunyuanVideo") | {"guidance_scale": 9.0}), atol=1e-4)


def test_without_guidance_no_negative_prompt_is_asked_for():
    for name in ("Wan", "LTX-Video", "CogVideoX"):
        options = tiny_embeds(name, 1) | dict(guidance_scale=1.0)
        same(ours(pipe_of(name), **options), theirs(pipe_of(name), **options))


def test_two_experts_of_wan_2_2():
    one, two = pipe_of("Wan"), tiny("Wan", seed=8)
    pipe = diffusers.WanPipeline(None, None, one.vae, one.scheduler, transformer=one.transformer, transformer_2=two.transformer, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    options = told("Wan")
    made = ours(pipe, guidance_scale_2=2.0, **options)
    same(made, theirs(pipe, guidance_scale_2=2.0, **options))
    assert not torch.allclose(made, ours(pipe, **options), atol=1e-3) and not torch.allclose(ours(pipe, **options), ours(one, **options), atol=1e-3)


def test_levels_for_every_token_as_in_wan_2_2s_small_model():
    one = pipe_of("Wan")
    pipe = diffusers.WanPipeline(None, None, one.vae, one.scheduler, transformer=one.transformer, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    same(ours(pipe, **told("Wan")), theirs(pipe, **told("Wan")))


def test_ltx_places_its_frames_in_time():
    pipe = pipe_of("LTX-Video")
    slow = ours(pipe, frame_rate=8, **told("LTX-Video"))
    same(slow, theirs(pipe, frame_rate=8, **told("LTX-Video")))
    assert not torch.allclose(slow, ours(pipe, **told("LTX-Video")), atol=1e-4)


def test_cogvideox_with_patches_in_time_fills_up_and_drops():
    one = tiny("CogVideoX", patch_size_t=2, patch_bias=False, sample_height=16, sample_width=16)
    made, want = ours(one, **told("CogVideoX")), theirs(one, **told("CogVideoX"))
    assert made.shape[1] == 4                                        # three latent frames, filled up to two tokens
    same(made, want)
    frames = decode(one, follow(drive(one, seed=3, **SIZE, **told("CogVideoX"))).latents, num_frames=9)
    same((frames.transpose(1, 2) + 1) / 2, theirs(one, output_type="pt", **told("CogVideoX")))


def test_ltx_decoders_that_take_away_the_last_noise():
    pipe = tiny("LTX-Video", vae=dict(timestep_conditioning=True))
    last = follow(drive(pipe, seed=3, **SIZE, **told("LTX-Video")))
    frames = decode(pipe, last.latents, decode_timestep=0.05, decode_noise_scale=0.0)
    same((frames.transpose(1, 2) + 1) / 2, theirs(pipe, output_type="pt", decode_timestep=0.05, decode_noise_scale=0.0, **told("LTX-Video")))
    noisy = [decode(pipe, last.latents, decode_timestep=0.05, decode_noise_scale=0.5, seed=s) for s in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])


def test_offloaded_weights_are_brought_and_sent_back():
    from accelerate import cpu_offload
    pipe = tiny("Wan")
    want = ours(pipe, **told("Wan"))
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    assert next(pipe.transformer.parameters()).is_meta
    same(ours(pipe, **told("Wan")), want)


def test_half_precision_networks_keep_float32_latents():
    pipe = tiny("Wan").to(torch.bfloat16)
    last = follow(drive(pipe, seed=3, **SIZE, **told("Wan")))
    assert last.latents.dtype == torch.float32
    assert (last.latents - follow(drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan"))).latents).abs().max() < 0.3


# -- layouts and paths
def test_packing_is_ltx_pipelines_own_and_comes_back():
    z, row = torch.randn(2, 3, 4, 6, 8), FAMILIES["LTXVideoTransformer3DModel"]
    packed = pack(row, z, (2, 2, 2))
    assert torch.equal(packed, diffusers.LTXPipeline._pack_latents(z, 2, 2))
    assert torch.equal(unpack(row, packed, (2, 3, 4), (2, 2, 2)), z)


@pytest.mark.parametrize("kind", ("v_prediction", "epsilon", "sample"))
@pytest.mark.parametrize("spacing, to_one", (("trailing", True), ("leading", True), ("linspace", True), ("trailing", False)))
def test_ddim_is_euler_on_our_path(kind, spacing, to_one):
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type=kind, timestep_spacing=spacing, set_alpha_to_one=to_one, rescale_betas_zero_snr=kind == "v_prediction")
    model = lambda z, t: torch.sin(3 * z) + 0.3 * torch.cos(z + t.reshape(-1)[0] / 300)
    for steps in (1, 5, 30, 64):
        z = noise = torch.randn(1, 2, 1, 4, 4, generator=seeded(0)).double()
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            z = scheduler.step(model(z, t), t, z).prev_sample
        path = O.path_of(FAMILIES["CogVideoXTransformer3DModel"], scheduler, steps)
        sigmas = path.sigmas
        walk = O.sample(lambda x, sigma: path.velocity(model, x, sigma), path.start(noise, float(sigmas[0])), sigmas)
        assert_close(follow(walk).latents, z, atol=1e-4, rtol=1e-5)


def test_levels_are_the_pipelines_and_never_shifted_twice():
    for name in NAMES:
        pipe, seen = tiny(name), []
        before = pipe.scheduler.timesteps.clone()
        steps = list(drive(pipe, **SIZE, **told(name)))
        assert torch.equal(pipe.scheduler.timesteps, before)                  # the pipeline's own scheduler was not touched
        used = torch.tensor([float(O.Run(pipe, **SIZE).path.sigmas[0])] + [s.sigma for s in steps])
        again = list(drive(pipe, sigmas=used, **SIZE, **told(name)))
        assert_close(again[-1].latents, steps[-1].latents, atol=1e-5, rtol=0)
        theirs(pipe, callback_on_step_end=lambda p, i, t, kw: seen.append(float(t)) or kw, **told(name))
        if name != "CogVideoX":
            assert_close(1000 * used[:-1], torch.tensor(seen), atol=1e-2, rtol=0)


def test_levels_between_those_of_a_discrete_schedule():
    halves = torch.tensor([1.0, 0.83, 0.61, 0.44, 0.2, 0.0])
    steps = list(drive(pipe_of("CogVideoX"), sigmas=halves, **SIZE, **told("CogVideoX")))
    assert_close(torch.tensor([s.sigma for s in steps]), halves[1:]) and steps[-1].latents.isfinite().all()
    assert torch.equal(steps[-1].latents, steps[-1].x0)


# -- steering
def steered(name, message, at=2):
    "Which steps differ from those of a run that was left alone."
    plain = [s.latents for s in drive(pipe_of(name), seed=3, **SIZE, **told(name))]
    steps, seen = drive(pipe_of(name), seed=3, **SIZE, **told(name)), []
    for step in steps:
        seen.append(step.latents.clone())
        if step.index == at:
            steps.send(message)
    return [not torch.equal(a, b) for a, b in zip(plain, seen, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_steering_changes_what_comes_after(name):
    for message in (tiny_embeds(name, 9), {"guidance_scale": 8.0}, {"seed": 77}):
        assert steered(name, message) == [False] * 3 + [True] * 2, message
    assert steered(name, {"seed": 77} | tiny_embeds(name, 9)) == [False] * 3 + [True] * 2


def test_a_steered_run_is_the_run_that_was_always_like_that():
    name = "Wan"
    steps = drive(pipe_of(name), seed=3, **SIZE, **told(name))
    first = next(steps)
    steps.send(tiny_embeds(name, 9))
    rest = [s.latents for s in steps]
    levels = torch.tensor([first.sigma, *[s.sigma for s in drive(pipe_of(name), **SIZE, **told(name))][1:]])
    fresh = [s.latents for s in drive(pipe_of(name), noise=first.latents, sigmas=levels, **SIZE, **told(name) | tiny_embeds(name, 9))]
    assert_close(rest, fresh)


def test_a_new_seed_keeps_the_goal():
    steps = drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan"))
    step = next(steps)
    moved = steps.send({"seed": 5})
    noise = O._noise(O.Run(pipe_of("Wan"), **SIZE), O._generators(5))
    assert_close(moved.latents, (1 - step.sigma) * step.x0 + step.sigma * noise)
    same_noise = next(drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan")))
    assert not torch.allclose(moved.latents, same_noise.latents)


def test_each_clip_of_a_batch_is_the_clip_alone():
    for name in NAMES:
        both = follow(drive(pipe_of(name), seed=[3, 4], **SIZE, **told(name))).latents
        alone = follow(drive(pipe_of(name), seed=4, **SIZE, **told(name))).latents
        assert both.shape[0] == 2
        assert_close(both[1:], alone, atol=1e-5, rtol=0)


def test_the_ancestral_solver_repeats_itself():
    runs = [follow(drive(pipe_of("Wan"), seed=s, solver="ancestral", **SIZE, **told("Wan"))).latents for s in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", ("Wan", "LTX-Video"))
def test_given_frames_are_held_and_seen(name):
    shape = O.Run(pipe_of(name), **SIZE).shape
    mask = torch.zeros(1, shape[1])
    mask[:, 0] = 1
    made = []
    for value in (0.0, 2.0):
        given = torch.full((1, *shape), value)
        last = follow(drive(pipe_of(name), seed=3, given=given, given_mask=mask, **SIZE, **told(name)))
        assert torch.equal(last.latents[:, :, 0], given[:, :, 0])
        made.append(last.latents[:, :, 1:])
    assert not torch.allclose(*made, atol=1e-4)                      # the others look at it


def test_frames_may_be_given_on_the_way():
    steps = drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan"))
    shape = next(steps).latents.shape
    mask = torch.tensor([[1.0, 0, 0]])
    steps.send({"given": torch.zeros(shape), "given_mask": mask})
    assert follow(steps).latents[:, :, 0].abs().max() == 0


# -- stopping
class Counted:
    "Components that count how often offloaded parts were sent back."
    def __init__(self, pipe):
        self.transformer, self.vae, self.scheduler, self.freed = pipe.transformer, pipe.vae, pipe.scheduler, 0

    def maybe_free_model_hooks(self):
        self.freed += 1


def test_a_stop_hands_out_what_is_there():
    pipe = Counted(pipe_of("LTX-Video"))
    last = follow(drive(pipe, **SIZE, **told("LTX-Video")), lambda step: step.index < 1)
    assert last.index == 1 and pipe.freed == 1
    assert decode(pipe, last.x0).isfinite().all() and pipe.freed == 2


def test_a_watcher_that_fails_closes_the_run():
    pipe = Counted(pipe_of("Wan"))
    steps = drive(pipe, **SIZE, **told("Wan"))
    with pytest.raises(ZeroDivisionError):
        follow(steps, lambda step: 1 / 0)
    assert pipe.freed == 1 and next(steps, None) is None


def test_a_watcher_may_steer():
    plain = follow(drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan")))
    other = follow(drive(pipe_of("Wan"), seed=3, **SIZE, **told("Wan")), lambda step: {"guidance_scale": 9.0} if step.index == 1 else None)
    assert other.index == plain.index == 4 and not torch.equal(other.latents, plain.latents)


# -- texts
def spoken():
    "A tiny Wan with a tokenizer and a text encoder."
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
    from sora_edu.model.text import load_tokenizer
    torch.manual_seed(0)
    pipe = pipe_of("Wan")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(), pad_token=load_tokenizer().id_to_token(0))
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=load_tokenizer().get_vocab_size(), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
    made = diffusers.WanPipeline(tokenizer, encoder, pipe.vae, pipe.scheduler, transformer=pipe.transformer)
    made.set_progress_bar_config(disable=True)
    return made


def test_prompts_are_encoded_as_the_pipeline_does():
    pipe = spoken()
    made = ours(pipe, prompt="a red boat", negative_prompt="fog")
    same(made, theirs(pipe, prompt="a red boat", negative_prompt="fog"))
    same(ours(pipe, prompt="a red boat"), theirs(pipe, prompt="a red boat"))                 # an empty negative prompt
    steps = drive(pipe, prompt=["a red boat", "a dog"], seed=3, **SIZE)
    next(steps)
    assert steps.send({"prompt": "a cat"}).latents.shape[0] == 2 and follow(steps).latents.isfinite().all()
    with pytest.raises(ValueError, match="prompt: got .*allowed: a text or prompt_embeds, not both"):
        drive(pipe, prompt="a", prompt_embeds=torch.zeros(1, 16, 32), **SIZE)
    for prompt in ([], 3, [3]):
        with pytest.raises(ValueError, match="prompt: got .*allowed: a text, or a list of texts"):
            drive(pipe, prompt=prompt, **SIZE)


# -- refused
class Mochi(torch.nn.Module):
    pass


BAD = {
    "height: got 40, allowed: multiples of 16 (the nearest is": dict(height=40),
    "width: got 0": dict(width=0),
    "num_frames: got 10, allowed: 1 + multiples of 4 (the nearest is 9)": dict(num_frames=10),
    "num_inference_steps: got 0": dict(num_inference_steps=0),
    "guidance_scale: got nan": dict(guidance_scale=float("nan")),
    "fps: got 8, allowed: height": dict(fps=8),
    "seed: got -1": dict(seed=-1),
    "seed: got '2 clips', allowed: one, or one for each of 3 prompts": dict(seed=[1, 2], **told("Wan", clips=3)),
    "prompt_embeds: got (2, 16, 32), allowed: a tensor [3, L, 32]": dict(seed=[1, 2, 3], **told("Wan", clips=2)),
    "noise: got (1, 16, 3, 4, 5), allowed: [B, 16, 3, 4, 8]": dict(noise=torch.zeros(1, 16, 3, 4, 5)),
    "prompt_embeds: got (1, 16, 31), allowed: a tensor [1, L, 32]": dict(prompt_embeds=torch.zeros(1, 16, 31)),
    "prompt_embeds: got (16, 32)": dict(prompt_embeds=torch.zeros(16, 32)),
    "prompt_embeds: got None": dict(prompt_embeds=None),
    "negative_prompt_embeds: got None, allowed: a tensor [1, 16, 32], as guidance asks twice": dict(negative_prompt_embeds=None),
    "negative_prompt_embeds: got (1, 12, 32)": dict(negative_prompt_embeds=torch.zeros(1, 12, 32)),
    "prompt_embeds: got 'a tensor on meta', allowed: cpu": dict(prompt_embeds=torch.zeros(1, 16, 32, device="meta")),
    "prompt: got 'a boat', allowed: prompt_embeds": dict(prompt="a boat", prompt_embeds=None),
    "given: got (1, 16, 2, 4, 6)": dict(given=torch.zeros(1, 16, 2, 4, 6), given_mask=torch.ones(1, 2)),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_requests_are_refused_at_once(said):
    with pytest.raises(ValueError) as error:
        drive(pipe_of("Wan"), **SIZE | told("Wan") | BAD[said])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_solvers_and_levels_are_checked_by_the_sampler():
    for bad in (dict(solver="magic"), dict(sigmas=[0.2, 0.9])):
        with pytest.raises(ValueError, match="solver|sigmas"):
            next(drive(pipe_of("Wan"), **SIZE, **told("Wan"), **bad))


def test_what_families_need_is_asked_for():
    for name, missing in (("LTX-Video", "prompt_attention_mask"), ("HunyuanVideo", "pooled_prompt_embeds")):
        with pytest.raises(ValueError, match=f"^{missing}: got None"):
            drive(pipe_of(name), **SIZE, **{k: v for k, v in told(name).items() if k != missing})
    for name in ("CogVideoX", "HunyuanVideo"):
        with pytest.raises(ValueError, match=f"given_mask: .*one level for all in {name}"):
            drive(pipe_of(name), given=torch.zeros(1), given_mask=torch.ones(1, 3), **SIZE, **told(name))
    learned = tiny("CogVideoX", use_rotary_positional_embeddings=False)
    with pytest.raises(ValueError, match=r"prompt_embeds: got \(1, 12, 32\), allowed: a tensor \[1, 16, 32\]"):
        drive(learned, **SIZE, **{k: v[:, :12] for k, v in told("CogVideoX").items()})


def test_bad_messages_are_refused():
    for message, said in (({"colour": 1}, "send: got colour"), ({"guidance_scale": -1}, "guidance_scale: got -1"), ({"prompt_embeds": torch.zeros(1, 16, 3)}, "prompt_embeds: got"),
                          ({"prompt": "a"}, "prompt: got 'a'")):
        steps = drive(pipe_of("Wan"), **SIZE, **told("Wan"))
        next(steps)
        with pytest.raises(ValueError) as error:
            steps.send(message)
        assert said in str(error.value)


def test_schedulers_that_do_not_fit_are_refused():
    flow, ddim = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.CogVideoXDDIMScheduler
    for name, scheduler in (("Wan", ddim()), ("CogVideoX", flow()), ("Wan", flow(invert_sigmas=True)), ("Wan", diffusers.FlowMatchHeunDiscreteScheduler()),
                            ("Wan", flow(use_dynamic_shifting=True)), ("HunyuanVideo", diffusers.DDIMScheduler()), ("Wan", None)):
        with pytest.raises(ValueError, match="^scheduler: got .*(allowed|gives no levels)"):
            drive({"transformer": pipe_of(name).transformer, "scheduler": scheduler}, **SIZE, **told(name))


def test_levels_of_multistep_schedulers_are_taken():
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    last = follow(drive(pipe_of("Wan").components | {"scheduler": scheduler}, **SIZE, **told("Wan")))
    assert last.sigma == 0 and last.latents.isfinite().all()


def test_other_models_are_refused_by_name(tmp_path):
    assert [family_of(pipe_of(name)).name for name in NAMES] == list(NAMES)
    for pipe, said in ((({"transformer": Mochi()}), "got 'Mochi', allowed: Wan (WanTransformer3DModel)"), (diffusers.DDIMScheduler(), "DDIMScheduler"),
                       (tmp_path, "model_index.json"), (tiny("Wan", in_channels=36), "needs an image (36 channels in, 16 out)")):
        with pytest.raises(ValueError) as error:
            family_of(pipe)
        assert said in str(error.value)
    with pytest.raises(ValueError, match="name: got 'Sora'"):
        tiny("Sora")


# -- memory
def test_memory_is_told_by_part_and_shrinks_with_offloading():
    pipe = pipe_of("Wan")
    size = dict(height=32, width=48, num_frames=9)
    plain = memory_of(pipe, **size)
    weights = sum(t.nbytes for net in (pipe.transformer, pipe.vae) for t in (*net.parameters(), *net.buffers()))
    assert plain["transformer"] + plain["vae"] == weights
    assert plain["peak"] == weights + max(plain["denoise"], plain["decode"])
    assert plain["peak"] == plain["peaks"][None] > plain["peaks"]["model"] > plain["peaks"]["sequential"] > plain["decode"]
    assert memory_of(pipe, offload="model", **size)["peak"] == plain["peaks"]["model"]
    larger = memory_of(pipe, **size | dict(height=64))
    assert larger["denoise"] > plain["denoise"] and larger["decode"] > 1.5 * plain["decode"]
    assert memory_of(pipe, device="cuda", **size)["decode"] < plain["decode"]                 # no unfolding there
    for bad in (dict(offload="disk"), dict(height=33)):
        with pytest.raises(ValueError, match="offload|height"):
            memory_of(pipe, **size | bad)


def test_the_work_does_not_depend_on_depth_and_memory_of_weights_does(monkeypatch):
    size, two, six = dict(height=32, width=64, num_frames=9), tiny("HunyuanVideo", num_layers=2), tiny("HunyuanVideo", num_layers=6, num_single_layers=5)
    whole = O._on_paper
    short = memory_of(six, **size)
    monkeypatch.setattr(O, "_on_paper", lambda part, dtype, **cut: whole(part, dtype))        # rehearse every layer
    full = memory_of(six, **size)
    assert short == full and short["transformer"] > 2 * memory_of(two, **size)["transformer"]


def test_memory_is_told_from_configs_alone(tmp_path):
    pipe = pipe_of("HunyuanVideo")
    pipe.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    size = dict(height=32, width=48, num_frames=9)
    assert memory_of(tmp_path, dtype=torch.float32, device="cpu", **size) == memory_of(pipe, **size)
    half = memory_of(tmp_path, dtype=torch.bfloat16, **size)
    assert 0.4 < half["transformer"] / memory_of(pipe, **size)["transformer"] < 0.6
    with pytest.raises(ValueError, match="what: got 'transformer', allowed: components with a vae"):
        memory_of({"transformer": pipe.transformer}, **size)


def test_loading_passes_options_on(tmp_path, monkeypatch):
    pipe_of("LTX-Video").save_pretrained(tmp_path)
    again = O.load(tmp_path, dtype=torch.float32, tiling=True)
    assert again.vae.use_tiling and family_of(again).name == "LTX-Video"
    assert torch.equal(ours(again, **told("LTX-Video")), ours(pipe_of("LTX-Video"), **told("LTX-Video")))
    seen = {}
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda folder, **options: seen.update(options) or pipe_of("LTX-Video"))
    O.load(tmp_path, quantization_config="four bits")
    assert seen == {"dtype": torch.bfloat16, "quantization_config": "four bits", "text_encoder": None, "tokenizer": None}
    with pytest.raises(ValueError, match="offload: got 'disk'"):
        O.load(tmp_path, offload="disk")


def test_previews_are_pictures_of_every_latent_frame():
    shown = O.preview(torch.randn(2, 16, 3, 4, 6))
    assert shown.shape == (2, 3, 4, 6, 3) and shown.dtype == np.uint8 and 60 < shown.mean() < 195
    assert O.preview(torch.zeros(1, 16, 1, 2, 2)).std() == 0
