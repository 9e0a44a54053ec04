"Wan's codec against diffusers' `AutoencoderKLWan`: names, numbers, gradients; pieces against the whole; and what is refused."
import dataclasses
import pytest
import torch
from sora_edu.model.wan_vae import CausalConv3d, Down, Up, WAN_VAE, WanVAE, WanVAEConfig

MEAN, STD = tuple(0.1 * i for i in range(4)), tuple(0.5 + 0.1 * i for i in range(4))
CASES = {
    "wan's steps": WanVAEConfig(base_dim=3, z_dim=16, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
    "widths that change": WanVAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 2, 3, 4), num_res_blocks=2, temperal_downsample=(True, False, True)),
    "time first": WanVAEConfig(base_dim=8, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temperal_downsample=(True, True), latents_mean=MEAN, latents_std=STD),
    "half the frames": WanVAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,)),
    "no step in time": WanVAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(False,))}


def stock_of(cfg):
    "diffusers' class of the same sizes, every parameter shaken."
    from diffusers import AutoencoderKLWan
    told = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cfg).items() if v is not None}
    torch.manual_seed(0)
    net, g = AutoencoderKLWan(**told).eval().requires_grad_(False), torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=g))
    return net


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request):
    "Ours and theirs with the same parameters, and a clip of 17 frames."
    cfg = CASES[request.param]
    theirs, ours = stock_of(cfg), WanVAE(cfg).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    side = cfg.factors[1]
    batch = 2 if cfg.base_dim == 3 else 1
    return ours, theirs, torch.rand(batch, 3, 17, 2 * side, 3 * side, generator=torch.Generator().manual_seed(2)) * 2 - 1


def worst(a, b):
    return (a - b).abs().max().item()


def decoded(net, z):
    return torch.cat(list(net.frames(z)), dim=2)


def test_names_and_shapes_are_the_same(pair):
    ours, theirs, _ = pair
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_both_ways_equal(pair, frames):
    ours, theirs, clip = pair
    told, (mean, logvar) = theirs.encode(clip[:, :, :frames]).latent_dist, ours.posterior(clip[:, :, :frames])
    assert mean.shape[2] == 1 + (frames - 1) // ours.config.factors[0] and told.mean.abs().max() > 0.05
    assert worst(mean, told.mean) <= 1e-5 and worst(logvar, told.logvar) <= 1e-5
    expected = theirs.decode(told.mean).sample
    assert expected.shape[2] == frames and worst(decoded(ours, told.mean), expected) <= 1e-4
    assert (expected.abs() == 1).float().mean() < 0.5                    # values that were cut agree for nothing


def test_pieces_are_the_whole(pair):
    ours, _, clip = pair
    mean, _ = ours.posterior(clip)
    whole = ours.quant_conv(ours.encoder(clip, {})).chunk(2, dim=1)[0]
    picture = ours.decoder(ours.post_quant_conv(mean), {}).clamp(-1, 1)
    assert worst(whole, mean) <= 1e-5 and worst(picture, decoded(ours, mean)) <= 1e-4


def test_nothing_looks_ahead(pair):
    ours, _, clip = pair
    poked, step = clip.clone(), ours.config.factors[0]
    poked[:, :, 9:] += 0.1
    mean, later = ours.posterior(clip)[0], ours.posterior(poked)[0]
    first = 1 + (9 - 1) // step
    assert worst(mean[:, :, :first], later[:, :, :first]) == 0 and worst(mean[:, :, first:], later[:, :, first:]) > 1e-4
    z = mean.clone()
    z[:, :, -1] += 1
    change = (decoded(ours, z) - decoded(ours, mean)).abs().amax((0, 1, 3, 4))
    assert change[:-step].max() == 0 and change[-step:].min() > 0


def test_frames_are_handed_out_as_they_are_made():
    net = WanVAE(CASES["wan's steps"]).eval()
    stream = net.frames(torch.zeros(1, 16, 3, 2, 2))
    assert [next(stream).shape[2] for _ in range(3)] == [1, 4, 4]


def test_latents_are_normalised_by_the_config():
    cfg = CASES["time first"]
    net, video = WanVAE(cfg).eval().requires_grad_(False), torch.rand(1, 3, 5, 8, 8) * 2 - 1
    mean, latents = net.posterior(video)[0], net.encode(video)
    shift, scale = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in (MEAN, STD))
    assert worst(latents * scale + shift, mean) <= 1e-5 and worst(latents, mean) > 0.05
    assert worst(net.decode(latents), decoded(net, mean)) <= 1e-5
    plain = WanVAE(dataclasses.replace(cfg, latents_mean=None, latents_std=None)).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.encode(video), mean)


def test_gradients_agree():
    cfg = CASES["time first"]
    theirs, ours = stock_of(cfg).requires_grad_(), WanVAE(cfg)
    ours.load_state_dict(theirs.state_dict())
    video = torch.rand(1, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded(ours, ours.posterior(video)[0]).square().mean().backward()
    theirs.decode(theirs.encode(video).latent_dist.mean).sample.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert worst(p.grad, expected[name].grad) <= 1e-5 * max(1, expected[name].grad.abs().max().item()), name


def test_bfloat16_is_no_worse_than_theirs():
    cfg = CASES["wan's steps"]
    theirs = stock_of(cfg)
    exact, ours = WanVAE(cfg).eval().requires_grad_(False), WanVAE(cfg).eval().requires_grad_(False)
    half = {k: v.bfloat16() for k, v in theirs.state_dict().items()}
    exact.load_state_dict({k: v.float() for k, v in half.items()})
    ours.bfloat16().load_state_dict(half)
    theirs.bfloat16()
    video = (torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).bfloat16()
    right = exact.posterior(video.float())[0]
    off = [((z.float() - right).norm() / right.norm()).item() for z in (ours.posterior(video)[0], theirs.encode(video).latent_dist.mean)]
    assert 0 < off[0] < 0.05 and off[0] < 2 * off[1]


@pytest.mark.parametrize("layer", [CausalConv3d(2, 3, (3, 3, 3)), CausalConv3d(2, 3, (3, 1, 1)), Down(2, True), Up(2, True), Up(2, False)], ids=["conv", "time conv", "down", "up", "up in space"])
@pytest.mark.parametrize("sizes", [[1, 4, 4], [5, 4], [1, 2, 2, 2, 2], [1, 6, 2]])
def test_a_layer_in_pieces(layer, sizes):
    x, memory = torch.randn(1, 2, 9, 4, 4, generator=torch.Generator().manual_seed(0)), {}
    with torch.no_grad():
        pieces = torch.cat([layer(piece, memory) for piece in x.split(sizes, dim=2)], dim=2)
        assert worst(pieces, layer(x, {})) <= 1e-5


def test_memory_does_not_grow():
    net, memory, sizes = WanVAE(CASES["wan's steps"]).eval().requires_grad_(False), {}, []
    for _ in range(5):
        net.decoder(torch.zeros(1, 16, 1, 2, 2), memory)
        sizes.append(sum(t.untyped_storage().nbytes() for t in memory.values() if torch.is_tensor(t)))
    assert len(set(sizes[1:])) == 1 and sizes[0] <= sizes[1]


def test_two_clips_at_once_do_not_mix():
    "Memory is the call's, not the network's."
    net = WanVAE(CASES["wan's steps"]).eval().requires_grad_(False)
    a, b = torch.randn(2, 1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    streams = net.frames(a), net.frames(b)
    alternating = [[next(s) for s in streams] for _ in range(3)]
    for k, z in enumerate((a, b)):
        assert worst(torch.cat([step[k] for step in alternating], dim=2), decoded(net, z)) == 0


def test_the_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in WanVAE(WAN_VAE).parameters()) == 126_892_531


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 7, 16, 16), (1, 3, 0, 16, 16), (1, 1, 5, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20), (3, 5, 16, 16)])
def test_bad_videos_are_named(shape):
    with pytest.raises(ValueError, match="^video: got "):
        WanVAE(CASES["wan's steps"]).encode(torch.zeros(shape))


@pytest.mark.parametrize("z", [torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 16, 0, 2, 2), torch.zeros(16, 2, 2, 2), torch.zeros(1, 16, 2, 2, 2).double(), torch.zeros(1, 16, 2, 2, 2, device="meta")],
                         ids=["channels", "no frame", "no batch", "double", "device"])
def test_bad_latents_are_named(z):
    with pytest.raises(ValueError, match="^latents: got "):
        WanVAE(CASES["wan's steps"]).decode(z)


@pytest.mark.parametrize("kwargs, name", [
    (dict(base_dim=0), "base_dim"), (dict(z_dim=0), "z_dim"), (dict(num_res_blocks=0), "num_res_blocks"), (dict(latents_mean=(0.0,)), "latents_mean"), (dict(latents_std=(1.0,) * 3), "latents_std"),
    (dict(temperal_downsample=(True, True)), "temperal_downsample"), (dict(temperal_downsample=(True, True, True)), "temperal_downsample")])
def test_bad_configs_are_named(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        WanVAEConfig(**kwargs)
