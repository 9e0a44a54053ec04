"What anybody expects of a video pipeline who knows diffusers' own: laws, and what is refused."
import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from safetensors.torch import load_file, save_file

from sora_edu.diffusion.samplers import sigma_schedule
from sora_edu.pipeline import face as F
from sora_edu.pipeline import generate as G
from sora_edu.pipeline.open_weights import as_negative, drive, follow, tiny, tiny_embeds
from tiny_weights import OTHER, PROMPT, tiny_models

QUICK = dict(num_frames=1, num_inference_steps=3, output_type="latent")
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(models):
    return quiet(F.SoraPipeline.from_models(models))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def latents(pipe, prompt=PROMPT, **options):
    return pipe(prompt, **QUICK | {"generator": seeded(5)} | options).frames


def refused(pipe, part, prompt=PROMPT, **options):
    with pytest.raises(ValueError) as caught:
        pipe(prompt, **QUICK | options)
    assert part in str(caught.value).replace('"', "'") and "\n" not in str(caught.value)


# -- equal
def test_frames_after_saving_and_loading_are_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = quiet(F.SoraPipeline.from_pretrained(tmp_path, dtype=torch.float32))
    run = lambda p: p(PROMPT, num_frames=5, num_inference_steps=2, generator=seeded(5)).frames
    assert np.array_equal(run(quiet(F.SoraPipeline.from_models(tiny_models(), pipe.scheduler)).to(torch.float32)), run(again))


def test_a_batch_is_its_clips_one_by_one(pipe):
    both = latents(pipe, [PROMPT, OTHER], generator=[seeded(1), seeded(2)], negative_prompt=[OTHER, ""])
    for clip, prompt, seed, negative in zip(both, (PROMPT, OTHER), (1, 2), (OTHER, "")):
        assert (clip - latents(pipe, prompt, generator=[seeded(seed)], negative_prompt=negative)[0]).abs().max() <= 1e-4
    assert (both[0] - both[1]).abs().max() > 0.1


def test_several_videos_are_repeated_prompts(pipe):
    made = latents(pipe, [PROMPT, OTHER], num_videos_per_prompt=2, negative_prompt=[OTHER, ""])
    assert (made - latents(pipe, [PROMPT, PROMPT, OTHER, OTHER], negative_prompt=[OTHER, OTHER, "", ""])).abs().max() <= 1e-4      # texts in another batch
    embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), pipe.encode_prompt([PROMPT, OTHER], [OTHER, ""])))
    assert (made - latents(pipe, None, num_videos_per_prompt=2, **embeds)).abs().max() <= 1e-4


@pytest.mark.parametrize("negative, scale", [(None, None), (OTHER, 4.0), (None, 1.0)])
def test_encoded_prompts_make_what_prompts_make(pipe, negative, scale):
    embeds, other = pipe.encode_prompt(PROMPT, negative, do_classifier_free_guidance=scale != 1)
    assert embeds.shape == (1, 16, 32) and (other is None) == (scale == 1)
    assert torch.equal(latents(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=other, guidance_scale=scale),
                       latents(pipe, negative_prompt=negative, guidance_scale=scale))
    assert not torch.equal(embeds, pipe.encode_prompt(OTHER)[0])


def test_half_precision_stays_half(pipe, models, tmp_path):
    whole, half = latents(pipe), quiet(F.SoraPipeline.from_models(tiny_models())).to(torch.bfloat16)
    kinds = lambda p: {t.dtype for part in (p.vae, p.text_encoder, p.transformer) for t in part.parameters()}
    made = half(PROMPT, num_frames=5, num_inference_steps=3, generator=seeded(5)).frames
    assert kinds(half) == {torch.bfloat16} and np.isfinite(made).all()
    assert 0 < (latents(half) - whole).abs().max() < 0.3 and latents(half).dtype == torch.float32
    half.save_pretrained(tmp_path)
    again = F.SoraPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16 and kinds(again.vae and again) == {torch.bfloat16, torch.float32}


# -- callbacks
def test_a_callback_sees_what_it_asked_for_and_may_change_the_prompt(pipe):
    names, other, seen = list(pipe._callback_tensor_inputs), pipe.encode_prompt(OTHER, PROMPT), []

    def run(change):
        path = []
        def callback(pipe, step, timestep, tensors):
            seen.append(sorted(tensors))
            path.append(tensors["latents"])
            return change(step, tensors)
        path.append(latents(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names))
        return path
    plain = run(lambda step, tensors: None)
    assert all(s == sorted(names) for s in seen) and torch.equal(plain[-1], latents(pipe))
    assert torch.equal(run(lambda step, tensors: tensors)[-1], plain[-1])
    for change in ({"prompt_embeds": other[0]}, {"negative_prompt_embeds": other[1]}):
        changed = run(lambda step, tensors: change if step == 0 else {})
        assert torch.equal(changed[0], plain[0]) and all(not torch.equal(a, b) for a, b in zip(changed[1:], plain[1:]))
    assert torch.equal(run(lambda step, tensors: {"latents": tensors["latents"].double() * 0})[-1] * 0, plain[-1] * 0)


def test_a_new_prompt_before_the_first_step_is_that_prompt(pipe):
    "A course changed after step 0 goes on as a call with the other prompt from these latents and levels."
    levels = sigma_schedule(3, shift=3.0)[:-1]
    begun = []
    def callback(pipe, step, timestep, tensors):
        begun.append(tensors["latents"])
        return {"prompt_embeds": pipe.encode_prompt(OTHER)[0]}
    made = latents(pipe, callback_on_step_end=callback)
    assert (made - latents(pipe, OTHER, latents=begun[0], sigmas=levels[1:], num_inference_steps=2)).abs().max() <= 1e-4


def test_diffusers_own_kind_of_callback_ends_guidance(pipe, monkeypatch):
    class Cutoff(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            assert list(callback_kwargs) == ["prompt_embeds"] and pipeline.num_timesteps == 3
            assert pipeline.current_timestep == timesteps and pipeline.do_classifier_free_guidance == (step_index == 0)
            pipeline._guidance_scale = 1.0
            return callback_kwargs
    asked, forward = [], F.SoraTransformer3DModel.forward
    monkeypatch.setattr(F.SoraTransformer3DModel, "forward", lambda self, x, *a, **k: (asked.append(len(x)), forward(self, x, *a, **k))[1])
    latents(pipe, callback_on_step_end=Cutoff(cutoff_step_index=0, cutoff_step_ratio=None))
    assert asked == [2, 1, 1] and pipe.guidance_scale == 1 and pipe.current_timestep is None


def test_an_error_in_a_callback_comes_through_and_leaves_the_pipeline_usable(pipe, monkeypatch):
    class Mine(Exception):
        pass
    freed, error, before = [], Mine("enough"), latents(pipe)
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    def callback(*_):
        raise error
    with pytest.raises(Mine) as caught:
        latents(pipe, callback_on_step_end=callback)
    assert caught.value is error and freed and pipe.current_timestep is None
    assert torch.equal(latents(pipe), before)


@pytest.mark.parametrize("returned, part", [
    (3, "callback_on_step_end: its answer: got 3"), ([], "its answer: got []"), ({"noise": 1}, "its answer: got ['noise'], allowed: None, or a dict of latents, prompt_embeds"),
    ({"latents": None}, "callback_on_step_end: its latents: got None"),
    ({"latents": torch.zeros(1, 16, 1, 8, 9)}, "its latents: got shape (1, 16, 1, 8, 9), allowed: [1, 16, 1, 8, 8]"),
    ({"latents": torch.full((1, 16, 1, 8, 8), torch.nan)}, "its latents: got"), ({"prompt_embeds": torch.zeros(2, 16, 32)}, "its prompt_embeds: got shape (2, 16, 32)"),
    ({"negative_prompt_embeds": torch.zeros(1, 16, 32, dtype=torch.long)}, "its negative_prompt_embeds: got 'torch.int64 on cpu'")])
def test_nonsense_from_a_callback(pipe, returned, part):
    with pytest.raises(ValueError) as caught:
        latents(pipe, callback_on_step_end=lambda *_: returned)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert torch.isfinite(latents(pipe)).all()


def test_a_stop_in_the_middle_returns_what_is_there(pipe):
    kept = []
    def callback(pipe, step, timestep, tensors):
        kept.append(tensors["latents"])
        pipe._interrupt = step == 1
    assert torch.equal(latents(pipe, callback_on_step_end=callback, num_inference_steps=9), kept[-1]) and len(kept) == 2 and pipe.interrupt
    frames = pipe(PROMPT, num_frames=1, num_inference_steps=9, generator=seeded(5), callback_on_step_end=callback).frames
    want = G.mark(F.to_uint8(pipe.vae.decode(kept[-1]).sample))
    assert np.abs(np.rint(frames * 255) - want).max() <= 1


def test_the_bar_is_as_it_is_told(models, capsys):
    pipe = F.SoraPipeline.from_models(models)
    pipe.set_progress_bar_config(desc="making", ascii=True)
    latents(pipe)
    shown = capsys.readouterr().err
    assert "making" in shown and "3/3" in shown
    pipe.set_progress_bar_config(disable=True)
    latents(pipe)
    assert "making" not in capsys.readouterr().err


# -- components
def test_words_and_limits_may_be_missing(pipe):
    bare = quiet(F.SoraPipeline(**pipe.components))
    assert bare.config.words is None and bare.config.limits is None
    assert torch.equal(latents(bare, num_inference_steps=3), latents(pipe))
    refused(pipe, "unknown word", "a smol star")
    assert latents(bare, "a smol star").shape == (1, 16, 1, 8, 8)


def test_the_text_encoder_may_be_missing(pipe, tmp_path):
    embeds, negative = pipe.encode_prompt(PROMPT)
    bare = F.SoraPipeline(**pipe.components | {"text_encoder": None, "tokenizer": None}, words=pipe.config.words, limits=pipe.config.limits)
    bare.save_pretrained(tmp_path)
    for one in (bare, F.SoraPipeline.from_pretrained(tmp_path, dtype=torch.float32)):
        quiet(one)
        assert one.text_encoder is None
        made = latents(one, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
        assert (made - latents(pipe)).abs().max() <= 1e-4
    refused(bare, "prompt: got a text and no text encoder, allowed: prompt_embeds")
    refused(bare, "negative_prompt: got a text and no text encoder", None, prompt_embeds=embeds)
    refused(bare, "negative_prompt_embeds: got shape (1, 5, 32), allowed: [1, 16, 32]", None, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 5, 32))
    assert torch.isfinite(latents(bare, None, prompt_embeds=embeds, guidance_scale=1.0)).all()


def test_two_pipelines_share_components(pipe):
    before, other = latents(pipe), F.SoraPipeline.from_pipe(pipe)
    assert other.transformer is pipe.transformer and other.config.words == pipe.config.words
    quiet(other)
    assert not torch.equal(latents(other, OTHER, num_inference_steps=5), before)
    assert torch.equal(latents(pipe), before) and torch.equal(latents(other), before)


def test_offloaded_weights_are_brought_before_decoding(pipe):
    brought = []
    pipe.vae._hf_hook = type("Hook", (), {"pre_forward": lambda self, module: brought.append(module)})()
    pipe(PROMPT, num_frames=1, num_inference_steps=1)
    assert brought == [pipe.vae]


def test_the_stock_transformer_in_half_precision(pipe):
    config = {k: v for k, v in pipe.transformer.config.items() if not k.startswith("_")}
    stock, whole = diffusers.WanTransformer3DModel(**config, rope_max_seq_len=1024), latents(pipe)
    stock.load_state_dict(pipe.transformer.state_dict())
    other = quiet(F.SoraPipeline(**pipe.components | {"transformer": stock.eval().to(torch.bfloat16)}, limits=pipe.config.limits))
    assert 0 < (latents(other) - whole).abs().max() < 0.3


def test_a_rule_that_reads_prompts_keeps_embeddings_out(pipe):
    embeds, negative = pipe.encode_prompt(PROMPT)
    class Rule(G.Hooks):
        heard = []

        def before(self, prompt):
            self.heard.append(prompt)
            return prompt
    pipe.hooks = Rule()
    refused(pipe, "prompt_embeds: got 'embeddings', allowed: a text", None, prompt_embeds=embeds)
    refused(pipe, "negative_prompt_embeds: got 'embeddings', allowed: a text", negative_prompt_embeds=negative)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        refused(pipe, f"its {name}: got 'embeddings', allowed: a text", callback_on_step_end=lambda *_: {name: embeds + 1})
    Rule.heard.clear()
    latents(pipe, negative_prompt="blue")
    assert Rule.heard == [PROMPT, "blue"]                   # a negative text steers, too


# -- schedulers
class Nothing:
    "No scheduler at all."


FIT = [diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
       diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
       diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), diffusers.FlowMatchHeunDiscreteScheduler(), diffusers.FlowMatchLCMScheduler(),
       diffusers.UniPCMultistepScheduler(**FLOW), diffusers.DPMSolverMultistepScheduler(**FLOW), diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
       diffusers.DPMSolverSinglestepScheduler(**FLOW), F.FlowMatchAncestralScheduler(shift=3.0)]
UNFIT = [diffusers.DDIMScheduler(), diffusers.DDIMScheduler(prediction_type="v_prediction"), diffusers.DDIMScheduler(prediction_type="sample"), diffusers.DDPMScheduler(),
         diffusers.EulerDiscreteScheduler(), diffusers.EulerAncestralDiscreteScheduler(), diffusers.HeunDiscreteScheduler(), diffusers.LMSDiscreteScheduler(), diffusers.PNDMScheduler(),
         diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"), diffusers.UniPCMultistepScheduler(), diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
         diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="v_prediction"), diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
         diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"), diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True),
         diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), Nothing()]


def called(scheduler):
    return "-".join([type(scheduler).__name__, *(str(getattr(scheduler, "config", {}).get(k)) for k in ("prediction_type", "use_dynamic_shifting"))])


@pytest.mark.parametrize("scheduler", FIT, ids=called)
def test_flow_schedulers_fit(pipe, scheduler):
    pipe.scheduler = scheduler
    with torch.random.fork_rng(devices=[]):
        made, start = latents(pipe, guidance_scale=1.0), torch.randn(1, 16, 1, 8, 8, generator=seeded(5))
    assert torch.isfinite(made).all() and not torch.equal(made, start)


@pytest.mark.parametrize("scheduler", UNFIT, ids=called)
def test_other_schedulers_are_refused_by_name(pipe, scheduler):
    state = torch.get_rng_state()
    pipe.scheduler = scheduler
    refused(pipe, f"scheduler: got {type(scheduler).__name__}(")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_refusal_says_where_the_scheduler_ended(pipe):
    pipe.scheduler = diffusers.DEISMultistepScheduler(**FLOW)                # its last step stops short of the data, the more so the fewer steps
    refused(pipe, "prediction_type='flow_prediction'; tried on data that is 3, it ended at 2.13, with timesteps off")


def test_many_steps_begin_at_the_first():
    "UniPC's whole timesteps repeat where levels are dense: looked up, the first would be the second."
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=8.0)
    timesteps = F._schedule(scheduler, 300, "cpu")
    assert timesteps[0] == timesteps[1]
    scheduler.step(torch.ones(1, 2), timesteps[0], torch.ones(1, 2))
    assert scheduler.step_index == 1


def test_a_scheduler_that_wants_to_be_told_gets_the_weights_shift(pipe):
    want = latents(pipe)
    for kind in ("exponential", "linear"):
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        assert (latents(pipe) - want).abs().max() <= 1e-4


@pytest.mark.parametrize("scheduler", [
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0),
    diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), F.FlowMatchAncestralScheduler(shift=3.0)], ids=called)
def test_explicit_levels_are_not_shifted_again(pipe, scheduler):
    sigmas = sigma_schedule(3, shift=3.0)[:-1]
    pipe.scheduler = scheduler
    for given in (sigmas, sigmas.tolist(), sigmas.numpy()):
        latents(pipe, sigmas=given)
        assert (scheduler.sigmas - sigma_schedule(3, shift=3.0)).abs().max() <= 1e-5


def test_explicit_levels_make_what_the_same_levels_made(pipe):
    want = latents(pipe)
    assert (latents(pipe, sigmas=sigma_schedule(3, shift=3.0)[:-1], num_inference_steps=None) - want).abs().max() <= 1e-4
    assert (latents(pipe, sigmas=sigma_schedule(3)[:-1]) - want).abs().max() > 1e-3


def test_explicit_levels_that_cannot_be_kept(pipe):
    levels = [1.0, 0.5, 0.25]
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    refused(pipe, "sigmas: got 'levels for a FlowMatchHeunDiscreteScheduler'", sigmas=levels)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    refused(pipe, "sigmas: got 'levels that FlowMatchEulerDiscreteScheduler turns into", sigmas=levels)


def test_our_scheduler_steps_diffusers_pipeline_as_our_sampler_does():
    class Seeded(F.FlowMatchAncestralScheduler):
        chance = None

        def step(self, *args, **options):
            return super().step(*args, **options | {"generator": self.chance})
    wan = tiny("Wan")
    wan.scheduler = Seeded(shift=3.0)
    wan.scheduler.chance = seeded(3)
    noise, how = torch.randn(1, 16, 3, 4, 8, generator=seeded(1)), dict(height=32, width=64, num_frames=9, num_inference_steps=4, guidance_scale=4.0)
    told = tiny_embeds("Wan", 1) | as_negative(tiny_embeds("Wan", 2))
    theirs = wan(latents=noise, output_type="latent", **how, **told).frames
    wan.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = follow(drive(wan, noise=noise, seed=3, solver="ancestral", **how, **told)).latents
    assert theirs.abs().max() > 0.1 and (theirs - ours).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["LTX-Video", "HunyuanVideo"])
def test_our_scheduler_in_other_pipelines(name):
    pipe = tiny(name)
    pipe.scheduler = F.FlowMatchAncestralScheduler.from_config(pipe.scheduler.config)
    told = tiny_embeds(name, 1) | (as_negative(tiny_embeds(name, 2)) if name == "LTX-Video" else {})
    def run(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return pipe(height=32, width=64, num_frames=9, num_inference_steps=3, generator=seeded(1), output_type="latent", **told).frames
    assert torch.equal(run(1), run(1)) and torch.isfinite(run(1)).all() and not torch.equal(run(1), run(2))


# -- refused
@pytest.mark.parametrize("options, part", [
    (dict(prompt_embeds=torch.zeros(1, 16, 32)), "prompt: got both a text and prompt_embeds"),
    (dict(negative_prompt=OTHER, negative_prompt_embeds=torch.zeros(1, 16, 32)), "negative_prompt: got both a text and negative_prompt_embeds"),
    (dict(negative_prompt_embeds=torch.zeros(2, 16, 32)), "negative_prompt_embeds: got shape (2, 16, 32), allowed: [1, 16, 32]"),
    (dict(negative_prompt="red " * 40), "negative_prompt: got 41 tokens, allowed: at most 15"),
    (dict(sigmas=[]), "sigmas: got []"), (dict(sigmas=[0.5, 0.7, 0.1]), "sigmas: got [0.5"), (dict(sigmas=[1.0, 0.5, 0.0]), "sigmas: got [1.0"), (dict(sigmas="all"), "sigmas: got 'all'"),
    (dict(sigmas=[1.0, 0.5]), "num_inference_steps: got 3, allowed: 2"), (dict(callback_on_step_end=3), "callback_on_step_end: got 3"),
    (dict(callback_on_step_end_tensor_inputs="latents"), "callback_on_step_end_tensor_inputs: got 'latents'"), (dict(generator=5), "generator: got 5"), (dict(sigmas=["a"]), "sigmas: got ['a']"),
    (dict(sigmas=[None]), "sigmas: got [None]"), (dict(generator=[None]), "generator: got [None]"),
    (dict(latents=torch.zeros(1, 16, 1, 8, 8, dtype=torch.long)), "latents: got 'torch.int64 on cpu'"), (dict(latents=torch.zeros(1, 16, 1, 8, 8, device="meta")), "latents: got 'torch.float32 on meta'"),
    (dict(latents=torch.full((1, 16, 1, 8, 8), torch.inf)), "latents: got 'NaN or infinite values'"), (dict(height=72), "height: got 72"), (dict(num_frames=4), "num_frames: got 4")])
def test_bad_arguments(pipe, options, part):
    refused(pipe, part, **options)


@pytest.mark.parametrize("embeds, part", [
    (torch.zeros(1, 16, 33), "prompt_embeds: got shape (1, 16, 33), allowed: [any, 16, 32]"), (torch.zeros(1, 12, 32), "prompt_embeds: got shape (1, 12, 32)"),
    (torch.zeros(16, 32), "prompt_embeds: got shape (16, 32)"), (torch.zeros(1, 16, 32, dtype=torch.int), "prompt_embeds: got 'torch.int32 on cpu'"), ([1.0], "prompt_embeds: got [1.0]")])
def test_bad_embeddings(pipe, embeds, part):
    refused(pipe, part, None, prompt_embeds=embeds)


def test_embeddings_and_latents_of_another_kind_are_cast(pipe):
    embeds, negative = pipe.encode_prompt(PROMPT)
    noise = torch.randn(1, 16, 1, 8, 8, generator=seeded(5))
    made = latents(pipe, None, prompt_embeds=embeds.double(), negative_prompt_embeds=negative.half(), latents=noise.double())
    assert made.dtype == torch.float32 and (made - latents(pipe)).abs().max() <= 1e-2


def test_components_in_two_places(pipe):
    pipe.transformer = F.SoraTransformer3DModel(**F.asdict(pipe.transformer.net_config)).to("meta")
    refused(pipe, "device: got 'vae on cpu, text_encoder on cpu, transformer on meta'")


# -- loading
@pytest.fixture
def stored(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("change, part", [
    (lambda s: {("proj_in.weight" if k == "proj_out.weight" else k): v for k, v in s.items()}, "missing 1: proj_out.weight (nearest: proj_in.weight); extra 1: proj_in.weight (nearest: proj_out.weight)"),
    (lambda s: s | {"proj_out.weight": torch.zeros(3, 3)}, "misshapen 1: proj_out.weight (3, 3) instead of (64, 64)")])
@pytest.mark.parametrize("load", [lambda folder: F.SoraTransformer3DModel.from_pretrained(folder / "transformer"), F.SoraPipeline.from_pretrained], ids=["alone", "all"])
def test_a_component_with_other_tensors(stored, change, part, load):
    file = stored / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load(stored)
    assert part in str(caught.value) and "SoraTransformer3DModel" in str(caught.value)


def test_pickles_are_refused(stored, tmp_path):
    file = stored / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match="got the pickle diffusion_pytorch_model.bin, allowed: .safetensors"):
        F.SoraPipeline.from_pretrained(stored)
    (tmp_path / "x.ckpt").write_bytes(b"")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "model.pt").write_bytes(b"")
    for load in (F.SoraPipeline.from_pretrained, G.load_models):
        with pytest.raises(ValueError, match="got the pickle x.ckpt, allowed: .safetensors"):
            load(tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match="got the pickle model.pt, allowed: .safetensors"):
            load(tmp_path / "only")
