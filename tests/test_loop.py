"Data, configurations and the loop: batches by number, legs, bit-equal resumption, swapped parts, clear refusals."
import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from functools import partial
import pytest
import torch
from sora_edu.diffusion.flow import SigmaMix
from sora_edu.model.vae import VAE, VAEConfig
from sora_edu.training.configs import CONFIGS, Leg, get_config
from sora_edu.training.autoencoder import save_checkpoint
from sora_edu.training.data import LatentCache, batch_at, token_coverage
from sora_edu.training.loop import Log, Parts, State, Trainee, named, preview, train, train_step, training_loss, update_ema
from sora_edu.world.render import render
from sora_edu.world.scene import World, make_scene

NANO = get_config("nano")
TINY = dataclasses.replace(NANO, clips=30, autoencoder=dataclasses.replace(NANO.autoencoder, steps=3, warmup=1),
                           legs=(dataclasses.replace(NANO.legs[0], steps=9, batch_size=4, image_batch=4, warmup=2, mid_clip_share=0.3),) * 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, *train(TINY, out=out, progress=False, save_every=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.manual_seed(0)
    vae = VAE(VAEConfig(width=16, deep_width=16, depth=1)).eval()
    return vae, LatentCache(tmp_path_factory.mktemp("cache"), 40).build(vae, World(), chunk=10, progress=False)


def test_rows_are_the_scenes_of_their_number(cache):
    vae, made = cache
    with torch.no_grad():
        z = vae.encode(render(World().scene(10, 33)))[0]
    assert (z - made.latents[33].float()).abs().max() < 0.02 * z.abs().max() + 0.02


def test_a_stopped_build_goes_on(cache, tmp_path):
    vae, made = cache

    class Stops(World):
        def sample(self, seed, n, split="train", start=0):
            if start >= 20:
                raise KeyboardInterrupt
            return super().sample(seed, n, split, start)
    half = LatentCache(tmp_path, 40)
    with pytest.raises(KeyboardInterrupt):
        half.build(vae, Stops(), chunk=10, progress=False)
    calls = []

    class Counts(World):
        def sample(self, seed, n, split="train", start=0):
            calls.append(start)
            return super().sample(seed, n, split, start)
    half.build(vae, Counts(), chunk=10, progress=False)
    assert min(calls) == 20 and torch.equal(half.latents, made.latents) and torch.equal(half.image_tokens, made.image_tokens)


def test_batches_are_functions_of_their_number(cache):
    leg = Leg(steps=10, batch_size=4, image_batch=8, image_share=0.4, mid_clip_share=0.3)
    shapes = set()
    for step in range(40):
        a, b = batch_at(cache[1], leg, 1, step), batch_at(cache[1], leg, 1, step)
        assert torch.equal(a["x0"], b["x0"]) and torch.equal(a["ids"], b["ids"])
        assert torch.equal(torch.randn(2, generator=a["generator"]), torch.randn(2, generator=b["generator"]))
        shapes.add((a["image"], tuple(a["x0"].shape)))
    assert shapes == {(True, (8, 16, 1, 8, 8)), (False, (4, 16, 5, 8, 8)), (False, (4, 16, 4, 8, 8))}
    assert not torch.equal(batch_at(cache[1], leg, 1, 0)["ids"], batch_at(cache[1], leg, 2, 0)["ids"])


def test_coverage_gathers_its_four_frames():
    masks = torch.zeros(1, 5, 16, 16)
    masks[0, 0, 0, 0], masks[0, 3, 9, 9] = 1, 0.5
    cover = token_coverage(masks, (2, 2))
    assert cover.shape == (1, 2, 2, 2) and cover[0, 0].flatten().tolist() == [255, 0, 0, 0] and cover[0, 1].flatten().tolist() == [0, 0, 0, 128]


def test_the_loss_weighs_the_actor(cache):
    leg, model = Leg(steps=1, batch_size=4, image_share=0.0, actor_weight=50.0), Trainee(dataclasses.replace(NANO))
    batch = lambda: batch_at(cache[1], leg, 0, 0)
    heavy = training_loss(model, batch(), leg)
    light = training_loss(model, batch(), dataclasses.replace(leg, actor_weight=1.0))
    assert heavy != light


def test_resumed_equals_uninterrupted(whole, tmp_path):
    class Killed(Exception):
        pass

    def kill(state, loss, vae):
        if state.step == 7:
            raise Killed
    with pytest.raises(Killed):
        train(TINY, out=tmp_path, progress=False, save_every=3, on_step=kill)
    resumed = train(TINY, out=tmp_path, resume=True, progress=False, save_every=3)[1]
    assert all(torch.equal(p, q) for p, q in zip(whole[2].parameters(), resumed.parameters()))


def test_the_second_leg_starts_from_the_first(whole):
    out, _, first = whole
    still = dataclasses.replace(TINY, legs=(TINY.legs[0], dataclasses.replace(TINY.legs[1], steps=1, learning_rate=1e-12)))
    for start in (out / "leg0.safetensors", out):
        again = train(still, leg=1, from_weights=start, out=out, progress=False)[1]
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(first.parameters(), again.parameters()))


def test_a_leg_goes_on_from_packaged_weights(whole, tmp_path):
    from sora_edu.pipeline.generate import load_models, package
    _, vae, net = whole
    package(tmp_path / "weights", vae, net.text_encoder, net.dit, dataclasses.replace(TINY, sampler="ancestral", guidance_interval=(0.7, 0.9)))
    again = train(dataclasses.replace(TINY, legs=(dataclasses.replace(TINY.legs[0], steps=1, learning_rate=1e-12),)),
                  from_weights=tmp_path / "weights", out=tmp_path / "run", progress=False)
    packed = load_models(tmp_path / "weights", dtype=torch.float32)
    told = packed.config
    assert (told.sampler, told.guidance_interval, told.num_frames, told.height) == ("ancestral", (0.7, 0.9), (1, 5), (32,))
    for theirs, ours in ((packed.dit, again[1].dit), (packed.text_encoder, again[1].text_encoder), (packed.vae, again[0])):
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(theirs.parameters(), ours.parameters()))
    assert not (tmp_path / "run" / "vae_log.jsonl").exists() and again[0].config == packed.vae.config      # the packaged VAE, not a new one


def test_only_what_can_be_read_again_is_packaged(whole, tmp_path):
    from sora_edu.pipeline.generate import known_words, load_models, package
    vae, net = whole[1:]
    hook = net.dit.register_forward_hook(lambda *_: None)           # harmless: not kept
    package(tmp_path / "a", vae, net.text_encoder, net.dit, TINY, words=("xylophone", "red"))
    hook.remove()
    assert load_models(tmp_path / "a").words == (*known_words("mini"), "xylophone")
    own = copy.deepcopy(net)
    own.dit.blocks[0].ffn.net[0] = torch.nn.Linear(net.dit.config.dim, net.dit.config.ffn_dim)
    with pytest.raises(ValueError, match="^DiT: got .*ffn.net.0.*, allowed: a DiT of its config"):
        package(tmp_path / "b", vae, own.text_encoder, own.dit, TINY)
    own = copy.deepcopy(net)
    own.dit.blocks[0].ffn.net[1] = torch.nn.Sigmoid()               # without weights: only its type tells
    with pytest.raises(ValueError, match="^DiT: got a part of another type, allowed: a DiT of its config"):
        package(tmp_path / "b", vae, own.text_encoder, own.dit, TINY)
    assert not (tmp_path / "b").exists()


def test_packaged_weights_bring_their_vae(whole, tmp_path):
    "Latents of another VAE would mean something else: a folder that has one takes no weights with another."
    from sora_edu.pipeline.generate import package
    from sora_edu.training.loop import save_vae
    _, vae, net = whole
    package(tmp_path / "weights", vae, net.text_encoder, net.dit, TINY)
    other, out = copy.deepcopy(vae), tmp_path / "run"
    next(other.decoder.parameters()).data += 0.1
    out.mkdir()
    save_vae(other, out / "vae.safetensors")
    with pytest.raises(ValueError, match="^from_weights: got .*weights, but .*vae.safetensors is another VAE than theirs, allowed: "):
        train(TINY, from_weights=tmp_path / "weights", out=out, progress=False)
    save_vae(vae, out / "vae.safetensors")                         # the same, not yet rounded
    train(dataclasses.replace(TINY, legs=(dataclasses.replace(TINY.legs[0], steps=1),)), from_weights=tmp_path / "weights", out=out, progress=False)


def test_a_leg_may_use_a_part_of_the_cache(cache, tmp_path):
    vae, made = cache
    part = LatentCache(tmp_path, 40).build(vae, World(), clips=15, chunk=10, progress=False)
    assert torch.equal(part.latents, made.latents[:15]) and len(part.tokens) == 15
    assert torch.equal(LatentCache(tmp_path, 40).build(vae, World(), chunk=10, progress=False).latents, made.latents)
    assert len(LatentCache(tmp_path, 40).build(vae, World(), clips=7, progress=False).latents) == 7


def test_a_cache_of_something_else_is_refused(cache, tmp_path):
    vae, _ = cache
    LatentCache(tmp_path, 20).build(vae, World(), progress=False)
    torch.manual_seed(5)
    other = VAE(VAEConfig(width=16, deep_width=16, depth=1)).eval()
    with pytest.raises(ValueError, match="^cache: .* another autoencoder or seed, allowed: "):
        LatentCache(tmp_path, 20).build(other, World(), progress=False)
    near = copy.deepcopy(vae)
    for p in near.encoder.parameters():
        p.data *= 1.05                                             # a VAE that learned on is another VAE
    with pytest.raises(ValueError, match="^cache: .* another autoencoder or seed, .* delete the folder"):
        LatentCache(tmp_path, 20).build(near, World(), progress=False)
    with pytest.raises(ValueError, match="^cache: .* another autoencoder or seed, allowed: "):
        LatentCache(tmp_path, 20, seed=11).build(vae, World(), progress=False)
    with pytest.raises(ValueError, match="^cache: .* has shape .*, allowed: "):
        LatentCache(tmp_path, 30).build(vae, World(), progress=False)

    class Twin(World):                                             # the first scene is the same
        def scene(self, seed, index, split="train"):
            return super().scene(seed, 0 if index == 9 else index, split)
    with pytest.raises(ValueError, match="^cache: .* holds clips of another world, allowed: those of .*Twin"):
        LatentCache(tmp_path, 20).build(vae, Twin(), progress=False)


def test_bad_weights_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="^from_weights: got "):
        train(TINY, from_weights=tmp_path / "nowhere", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_refused_before_any_work(whole, tmp_path):
    wide = dataclasses.replace(TINY, dit=dataclasses.replace(TINY.dit, ffn_dim=128))
    with pytest.raises(ValueError, match="^from_weights: got dit.blocks.0.ffn.*allowed: "):
        train(wide, from_weights=whole[0] / "leg0.safetensors", out=tmp_path / "run", progress=False)
    (tmp_path / "leg0.safetensors").write_bytes((whole[0] / "leg0.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="^from_weights: got .* damaged"):
        train(TINY, from_weights=tmp_path, out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="^device: got 'gpu', allowed: cpu"):
        train(TINY, device="gpu", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(whole, tmp_path):
    for name in ("vae.safetensors", "leg0.pt"):
        (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
    (tmp_path / "leg0.pt").write_bytes((whole[0] / "leg0.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="^resume: .*leg0.pt is damaged"):
        train(TINY, out=tmp_path, resume=True, progress=False)


def test_a_full_disk_is_said_and_loses_nothing(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        LatentCache(tmp_path / "new", 20).build(cache[0], World(), progress=False)
    assert list((tmp_path / "new").glob("*.npy")) == []
    (tmp_path / "old.pt").write_text("old")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("[enforce fail] write failed")))
    with pytest.raises(OSError, match="old.pt can't be written, is the disk full"):
        save_checkpoint(tmp_path / "old.pt", {})
    assert (tmp_path / "old.pt").read_text() == "old"


def test_levels_may_differ_from_token_to_token(whole):
    model, g = whole[2], torch.Generator().manual_seed(0)
    x, ids = torch.randn(2, 16, 2, 4, 4, generator=g), torch.ones(2, 24, dtype=torch.long)
    frames = torch.rand(2, 2, generator=g)
    regions = frames[:, None, :, None, None].expand(2, 1, 2, 4, 4)
    with torch.no_grad():
        assert torch.allclose(model(x, frames, ids), model(x, regions, ids), atol=1e-5)
        other = regions.clone()
        other[..., :2] = 0
        assert not torch.allclose(model(x, other, ids), model(x, regions, ids), atol=1e-5)


def test_parts_can_be_swapped(whole):
    out, calls = whole[0], []

    def loss(model, batch, leg, device):
        calls.append(len(batch["x0"]))
        return training_loss(model, batch, leg, device)
    train(TINY, out=out, progress=False, parts=Parts(loss=loss))
    assert len(calls) == 9


def test_another_world_is_learned_from(whole, tmp_path):
    class Moons(World):
        def scene(self, seed, index, split="train"):
            return make_scene("small", "white", "ball", "stays still", "at night", seed=index)
    vae, _ = train(TINY, out=tmp_path, progress=False, parts=Parts(vae=whole[1], world=Moons()))
    made = LatentCache(tmp_path / "cache", TINY.clips, size=32, num_frames=5).build(vae, Moons(), progress=False)
    assert len(made.tokens[:, 0].unique(dim=0)) == 1 and len(made.latents.flatten(1).unique(dim=0)) > 1
    with pytest.raises(ValueError, match="world: got .* for clips of many shapes, allowed: None"):
        train("base-nano", out=tmp_path, parts=Parts(world=Moons()))
    with pytest.raises(ValueError, match="world: got .* for videos of your own, allowed: None"):
        train(TINY, out=tmp_path, data=tmp_path, parts=Parts(world=Moons()))


def test_previews_show_the_prompts(whole):
    clips = preview(whole[1], whole[2], TINY, ["a big red ball rises at night", "a small blue box falls at night"], steps=2)
    assert clips.shape == (2, 3, 5, 32, 32) and clips.abs().max() <= 1


def test_the_average_lags(whole):
    state = State(Trainee(TINY), 1e-3)
    before = next(state.ema.parameters()).clone()
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    update_ema(state.ema, state.model, 10, 1000)
    moved = (next(state.ema.parameters()) - before).mean()
    assert 0 < moved < 0.2


def test_a_log_is_json(tmp_path):
    log = Log(tmp_path / "log.jsonl", every=2)
    assert log.add(1, "video", 1.0, 4) is None and log.add(2, "video", 3.0, 4)["video"] == 2.0
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 2


def test_a_log_ends_with_the_last_step(whole):
    assert [json.loads(line)["step"] for line in (whole[0] / "leg0.jsonl").read_text().splitlines()] == [9]


def other_loss(model, batch, leg, device):
    return 2 * training_loss(model, batch, leg, device)


@pytest.mark.parametrize("name, change", [
    ("leg.learning_rate", dict(config=dataclasses.replace(TINY, legs=(dataclasses.replace(TINY.legs[0], learning_rate=1e-5),)))),
    ("dit.num_layers", dict(config=dataclasses.replace(TINY, dit=dataclasses.replace(TINY.dit, num_layers=1)))),
    ("loss", dict(parts=Parts(loss=other_loss)))])
def test_a_leg_goes_on_as_it_began(whole, tmp_path, name, change):
    for file in ("leg0.pt", "vae.safetensors"):
        (tmp_path / file).write_bytes((whole[0] / file).read_bytes())
    with pytest.raises(ValueError, match=f"^resume: .*leg0.pt was made with {name} .*, allowed: the same, or another out"):
        train(**dict(config=TINY, out=tmp_path, resume=True, progress=False) | change)
    assert not (tmp_path / "cache").exists()                        # refused before any work


def test_parts_have_names():
    assert named(partial(other_loss, 3, error=len, delta=0.5)) == "other_loss(3, error=len, delta=0.5)"
    assert named(Trainee) == "Trainee" and named(World()) == "World"


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception):
        save_checkpoint(path, {"step": lambda: None})
    assert torch.load(path, weights_only=True) == {"step": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kwargs, name", [(dict(leg=9), "leg"), (dict(leg=True), "leg"), (dict(leg=-1), "leg"), (dict(from_weights="nowhere"), "from_weights")])
def test_bad_arguments_are_named(whole, kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        train(TINY, out=whole[0], progress=False, **kwargs)


@pytest.mark.parametrize("kwargs, name", [(dict(steps=0), "steps"), (dict(image_share=2), "image_share"), (dict(decay=-0.1), "decay"),
                                          (dict(learning_rate=float("nan")), "learning_rate")])
def test_bad_legs_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        Leg(**{"steps": 5, **kwargs})


@pytest.mark.parametrize("change", [dict(sampler="eulr"), dict(sampler=None), dict(guidance_interval=(0.9, 0.2))])
def test_a_run_refuses_how_it_cannot_be_sampled(change):
    with pytest.raises(ValueError, match=f"^{min(change)}: got .*, allowed: "):
        dataclasses.replace(NANO, **change)


def test_configs_by_name():
    assert set(CONFIGS) == {"nano", "mini", "base", "base-nano"} and get_config("mini").clips >= 50_000
    with pytest.raises(ValueError, match="^config: got 'huge', allowed: nano, mini"):
        get_config("huge")


def test_rates_warm_up_hold_and_decay():
    leg = Leg(steps=1000)
    assert leg.rate(0) < leg.rate(100) < leg.rate(400) == leg.rate(700) > leg.rate(990) > 0


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_loop import TINY
from sora_edu.training.loop import train
import dataclasses
long = dataclasses.replace(TINY, legs=(dataclasses.replace(TINY.legs[0], steps=100000),))
train(long, out={out!r}, progress=False, save_every=10**9, on_step=lambda s, l, v: s.step == 3 and print("go", flush=True))
"""


def test_ctrl_c_leaves_a_checkpoint(tmp_path):
    code = SCRIPT.format(tests=os.path.dirname(__file__), out=str(tmp_path))
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "go\n"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=300)
    assert "KeyboardInterrupt: stopped after step" in errors
    assert torch.load(tmp_path / "leg0.pt", weights_only=True)["step"] >= 3
