"The VAE: groups, locality in time, alignment on still clips, constants, and the closed-form rival."
import copy
import dataclasses
import json
import pytest
import torch
from sora_edu.model.vae import PCA, VAE, VAEConfig, from_groups, measure_constants, psnr, to_groups, vae_loss
from sora_edu.training import autoencoder
from sora_edu.training.autoencoder import AutoencoderConfig, MuonAdamW, polish, polish_scenes, train_autoencoder
from sora_edu.world.render import render
from sora_edu.world.scene import World

SMALL = VAEConfig(width=16, deep_width=16, depth=1)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    net = VAE(SMALL).eval().requires_grad_(False)
    for p in net.parameters():                       # a network at its initial zeros would hide leaks
        p.add_(0.05 * torch.randn_like(p))
    return net


@pytest.fixture(scope="module")
def clips():
    return render(World().sample(0, 3))


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
def test_groups_round_trip(clips, frames):
    video = clips[:, :, :frames]
    assert torch.equal(from_groups(to_groups(video)), video)


@pytest.mark.parametrize("boundary", [4, 8, 12])
def test_latents_of_a_cut_are_those_of_the_whole(vae, clips, boundary):
    whole, cut = vae.encode(clips), vae.encode(clips[:, :, boundary:])
    assert (whole[:, :, boundary // 4 + 1:] - cut[:, :, 1:]).abs().max() <= 1e-5


def test_a_prefix_has_the_prefix_of_the_latents(vae, clips):
    assert (vae.encode(clips[:, :, :9]) - vae.encode(clips)[:, :, :3]).abs().max() <= 1e-5


def test_the_decoder_looks_back_only(vae, clips):
    z = vae.encode(clips)
    poked = z.clone()
    poked[:, :, 3] += 1
    change = (vae.decode(poked) - vae.decode(z)).abs().amax((0, 1, 3, 4))
    assert change[:9].max() == 0 and change[9:13].min() > 0 and change[13:17].min() > 0


def test_a_still_clip_has_equal_latents(vae, clips):
    z = vae.encode(clips[:, :, :1].expand(-1, -1, 9, -1, -1))
    assert (z[:, :, 1:] - z[:, :, :1]).abs().max() <= 1e-5


def test_any_size_of_multiples_of_16(vae):
    assert vae.encode(torch.zeros(1, 3, 5, 48, 80)).shape == (1, 16, 2, 6, 10)
    assert vae.decode(torch.zeros(1, 16, 2, 6, 10)).shape == (1, 3, 5, 48, 80)


def test_constants_normalise(vae, clips):
    tuned = VAE(measure_constants(vae, clips))
    tuned.load_state_dict(vae.state_dict())
    with torch.no_grad():
        z = tuned.encode(clips)
        assert z.mean((0, 2, 3, 4)).abs().max() < 1e-3 and abs(z.square().mean().sqrt() - 1) < 1e-3
        assert (tuned.decode(z) - vae.decode(vae.encode(clips))).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (1, 1, 5, 64, 64), (3, 5, 64, 64)])
def test_bad_videos_are_named(vae, shape):
    with pytest.raises(ValueError, match="^video: got shape"):
        vae.encode(torch.zeros(shape))


def test_bad_pixels_are_named(vae):
    with pytest.raises(ValueError, match="^video: got 24x64 pixels"):
        vae.encode(torch.zeros(1, 3, 1, 24, 64))


@pytest.mark.parametrize("kwargs, name", [(dict(width=0), "width"), (dict(shift=(0.0,)), "shift")])
def test_bad_configs_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        VAEConfig(**kwargs)


def test_pca_is_the_best_linear_code_and_orthonormal(clips):
    pca = PCA(16).fit(clips)
    for _, basis in pca.bases:
        assert (basis.T @ basis - torch.eye(16)).abs().max() < 1e-4
    assert psnr(pca.decode(pca.encode(clips)), clips) > 24
    scores = [psnr(PCA(c).fit(clips).decode(PCA(c).fit(clips).encode(clips)), clips) for c in (4, 16)]
    assert scores[1] > scores[0] + 1


def test_psnr_of_a_known_error():
    a = torch.zeros(1, 3, 1, 4, 4)
    assert abs(psnr(a + 0.2, a) - 20) < 1e-4           # peak to peak 2, error 0.2: a tenth, 20 dB


def test_the_loss_charges_for_information(clips):
    torch.manual_seed(0)
    net = VAE(SMALL)
    cheap, dear = (vae_loss(net, clips, w)[0] for w in (0.0, 1.0))
    assert dear > cheap


def test_polish_moves_reconstructions_more_than_anchored_latents(clips):
    torch.manual_seed(0)
    net = VAE(SMALL)
    latents = net.encode(clips).detach()
    moved = {}
    for anchor in (0.0, 100.0):
        cfg = dataclasses.replace(CFG, polish_steps=8, anchor=anchor)
        after = polish(copy.deepcopy(net), cfg, World(), progress=False)
        assert not torch.equal(after.decode(latents), net.decode(latents))
        moved[anchor] = (after.encode(clips) - latents).square().mean().item()
    assert 0 < moved[100.0] < 0.5 * moved[0.0]


def test_polish_goes_on_after_a_kill(clips, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = VAE(SMALL)
    net.config = measure_constants(net, clips)
    cfg = dataclasses.replace(CFG, polish_steps=5)
    whole = polish(copy.deepcopy(net), cfg, World(), progress=False)
    polish(copy.deepcopy(net), cfg, World(), out=tmp_path, progress=False, save_every=3)
    resumed = copy.deepcopy(net)
    assert torch.load(tmp_path / "polish_checkpoint.pt", weights_only=True)["step"] == 3
    steps = []
    monkeypatch.setattr(autoencoder, "polish_scenes", lambda cfg, world, step: steps.append(step) or polish_scenes(cfg, world, step))
    polish(resumed, cfg, World(), out=tmp_path, resume=True, progress=False)
    assert steps == [3, 4]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))


def test_half_of_a_polish_batch_is_hard():
    cfg = dataclasses.replace(CFG, batch_size=6)
    scenes = polish_scenes(cfg, World(), 3)
    assert len(scenes) == 6 and all(s.description.size == "small" and s.description.actor != "ball" for s in scenes[:3])
    assert [s.description for s in scenes] == [s.description for s in polish_scenes(cfg, World(), 3)]


def test_muon_updates_the_kernels_in_place():
    net = VAE(SMALL)
    before = [m.clone() for m in net.parameters()]
    net.encoder(torch.randn(1, 12, 16, 16))[0].sum().backward()
    for p in net.parameters():
        p.grad = p.grad if p.grad is not None else torch.zeros_like(p)
    MuonAdamW(net, 1e-3).step(1e-3)
    assert not torch.equal(before[0], next(net.parameters()))


CFG = AutoencoderConfig(steps=12, batch_size=2, size=32, num_frames=5, warmup=2, polish_steps=0, network=SMALL)


class Killed(Exception):
    pass


class Mortal(World):
    "A world that ends in the middle of training."
    def sample(self, seed, n, split="train", start=0):
        if split == "train" and n == CFG.batch_size and start >= 9 * n:
            raise Killed
        return super().sample(seed, n, split, start)


def test_training_learns_and_resumes_bit_equal(tmp_path):
    whole = train_autoencoder(CFG, tmp_path / "a", progress=False, save_every=4)
    with pytest.raises(Killed):
        train_autoencoder(CFG, tmp_path / "b", world=Mortal(), progress=False, save_every=4)
    resumed = train_autoencoder(CFG, tmp_path / "b", resume=True, progress=False, save_every=4)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))
    rows = [json.loads(line) for line in (tmp_path / "a/vae_log.jsonl").read_text().splitlines()]
    assert rows[-1]["heldout_psnr"] > rows[0]["heldout_psnr"]


@pytest.mark.parametrize("kwargs, name", [(dict(steps=0), "steps"), (dict(num_frames=8), "num_frames"), (dict(learning_rate=-1), "learning_rate")])
def test_bad_training_configs_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        dataclasses.replace(CFG, **kwargs)


def test_muon_is_torch_s_muon_many_at_once():
    from sora_edu.training.autoencoder import Muon, orthogonalize
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 16), (24, 16), (16, 40), (24, 24))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    starts = [p.detach().clone() for p in ours]
    pair = Muon(ours, 0.02), torch.optim.Muon(theirs, 0.02, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    moved = max((p - s).abs().max() for p, s in zip(theirs, starts))
    assert max((p - q).abs().max() for p, q in zip(ours, theirs)) < 0.05 * moved      # bfloat16 rounds differently in a stack
    values = torch.linalg.svdvals(orthogonalize(torch.randn(5, 12, 30)).float())
    assert values.min() > 0.4 and values.max() < 1.3


def test_muon_s_state_can_be_saved():
    from sora_edu.training.autoencoder import Muon
    make = lambda: Muon([torch.nn.Parameter(torch.ones(4, 4))], 0.1)
    one, two = make(), make()
    for optimizer in (one, two):
        optimizer.param_groups[0]["params"][0].grad = torch.eye(4) + 0.1
    one.step()
    two.step()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for optimizer in (one, two):
        optimizer.step()
    a, b = (o.param_groups[0]["params"][0] for o in (one, two))
    assert torch.equal(a, b)
