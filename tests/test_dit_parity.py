"The DiT against diffusers' `WanTransformer3DModel`: names, numbers and gradients; and the laws that are ours alone."
import dataclasses
import pytest
import torch
from sora_edu.evaluate.parity import shaken
from sora_edu.model.dit import DiT, DiTConfig, apply_rope, attend, rope_table
from sora_edu.model.patches import grid_size, patchify, positions, unpatchify

TINY = DiTConfig(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=32, text_dim=16)
TALL = dataclasses.replace(TINY, patch_size=(2, 2, 1), out_channels=6)
MINI = DiTConfig()
CASES = {"tiny": (TINY, (3, 4, 6), 5), "other patches": (TALL, (4, 4, 3), 5), "mini": (MINI, (5, 8, 8), 24), "mini image": (MINI, (1, 8, 8), 24)}


def stock_of(cfg):
    from diffusers import WanTransformer3DModel
    return WanTransformer3DModel(**dataclasses.asdict(cfg), cross_attn_norm=True, qk_norm="rms_norm_across_heads",
                                 rope_max_seq_len=1024).eval().requires_grad_(False)


def make(cfg, shape=(5, 8, 8), length=24):
    "A shaken network and an input of its sizes."
    torch.manual_seed(0)
    return shaken(DiT(cfg)), torch.randn(2, cfg.in_channels, *shape), torch.randn(2, length, cfg.text_dim)


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request):
    "Ours and theirs with the same parameters, latents, text, and the number of tokens."
    cfg, shape, length = CASES[request.param]
    ours, x, text = make(cfg, shape, length)
    theirs = stock_of(cfg)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs, x, text


def worst(a, b):
    return (a - b).abs().max().item()


def per_token(x, cfg, seed=1):
    n = torch.tensor(grid_size(x.shape, cfg.patch_size)).prod().item()
    return 1000 * torch.rand(len(x), n, generator=torch.Generator().manual_seed(seed))


def test_state_dicts_load_strictly_both_ways(pair):
    ours, theirs, *_ = pair
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    back = DiT(ours.config)
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), ours.state_dict().values()))


@pytest.mark.parametrize("levels", [(0.0, 1000.0), (137.5, 900.0), (500.0, 500.0)])
def test_one_level_a_clip(pair, levels):
    ours, theirs, x, text = pair
    t = torch.tensor(levels)
    expected = theirs(x, t, text, return_dict=False)[0]
    assert expected.abs().max() > 0.1 and worst(ours(x, t, text), expected) <= 1e-5


def test_a_level_for_each_token(pair):
    ours, theirs, x, text = pair
    t = per_token(x, ours.config)
    expected = theirs(x, t, text, return_dict=False)[0]
    assert worst(ours(x, t, text), expected) <= 1e-5
    assert worst(ours(x, t.flip(1), text), expected) > 1e-3            # and the levels are used


def test_a_level_for_each_frame_is_spread_over_its_tokens(pair):
    ours, theirs, x, text = pair
    frames, h, w = grid_size(x.shape, ours.config.patch_size)
    t = 1000 * torch.rand(2, frames, generator=torch.Generator().manual_seed(2))
    spread = t.repeat_interleave(h * w, dim=1)
    expected = theirs(x, spread, text, return_dict=False)[0]
    assert worst(ours(x, t, text), expected) <= 1e-5 and worst(ours(x, spread, text), expected) <= 1e-5


def test_gradients_agree():
    ours, x, text = make(TINY, (3, 4, 6), 5)
    theirs = stock_of(TINY)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    t = torch.tensor([250.0, 750.0])
    for net in (ours.requires_grad_(), theirs.requires_grad_()):
        out = net(x, t, text)
        (out if net is ours else out.sample).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert worst(p.grad, expected[name].grad) <= 1e-5 * max(1, expected[name].grad.abs().max().item()), name


def test_text_computed_once_gives_the_same():
    ours, x, text = make(MINI)
    t = torch.tensor([250.0, 750.0])
    assert worst(ours(x, t, cache=ours.text_cache(text)), ours(x, t, text)) <= 1e-5


def test_an_untrained_network_answers_zero_and_learns():
    torch.manual_seed(0)
    net = DiT(TINY)
    out = net(torch.randn(2, 4, 3, 4, 6), torch.tensor([10.0, 990.0]), torch.randn(2, 5, 16))
    assert out.abs().max() == 0
    (out - 1).square().mean().backward()
    assert net.proj_out.weight.grad.abs().max() > 0


def test_core_takes_tokens_in_any_order():
    "Positions travel with the tokens: shuffle both, and the answer is shuffled alike."
    ours, x, text = make(TINY, (3, 4, 6), 5)
    t, where = per_token(x, TINY), positions((3, 2, 3))[None]
    tokens = patchify(x)
    expected = ours(x, t, text)
    assert worst(unpatchify(ours.core(tokens, where, t, text), (3, 2, 3)), expected) <= 1e-5
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    shuffled = ours.core(tokens[:, order], where[:, order], t[:, order], text)
    assert worst(unpatchify(shuffled[:, order.argsort()], (3, 2, 3)), expected) <= 1e-5


def test_only_differences_of_positions_count():
    ours, x, text = make(TINY, (3, 4, 6), 5)
    tokens, where, t = patchify(x), positions((3, 2, 3))[None], torch.tensor([400.0, 600.0])
    here = ours.core(tokens, where, t, text)
    assert worst(ours.core(tokens, where + torch.tensor([7, 11, 5]), t, text), here) <= 1e-5
    assert worst(ours.core(tokens, where * 2, t, text), here) > 1e-4


def test_masks_pack_two_clips_into_one_row():
    ours, x, text = make(TINY, (3, 4, 6), 5)
    tokens, where, t = patchify(x), positions((3, 2, 3))[None], per_token(x, TINY)
    apart = ours.core(tokens, where, t, text)
    clip, word = torch.arange(36) // 18, torch.arange(10) // 5         # who belongs to which clip
    wall = lambda a, b: torch.zeros(len(a), len(b)).masked_fill(a[:, None] != b[None], -torch.inf)[None, None]
    row = ours.core(tokens.reshape(1, 36, -1), where.repeat(1, 2, 1), t.reshape(1, 36), text.reshape(1, 10, -1),
                    mask=wall(clip, clip), cross_mask=wall(clip, word))
    assert worst(row.view(2, 18, -1), apart) <= 1e-5


def test_both_paths_of_attention_agree():
    "Long sequences take the fused kernel, short ones three products."
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 600, 2, 8, generator=g) for _ in range(3))
    mask = torch.randn(1, 1, 600, 600, generator=g)
    for m in (None, mask):
        long = attend(q, k, v, m)
        short = torch.cat([attend(part, k, v, None if m is None else rows) for part, rows in zip(q.split(200, 1), mask.split(200, 2))], 1)
        assert worst(long, short) <= 1e-5


def test_rotation_keeps_lengths():
    x = torch.randn(1, 12, 2, 16, generator=torch.Generator().manual_seed(0))
    turned = apply_rope(x, rope_table(positions((3, 2, 2))[None], 16))
    assert worst(turned.norm(dim=-1), x.norm(dim=-1)) <= 1e-5 and worst(turned[:, 1:], x[:, 1:]) > 0.1


def test_bfloat16_stays_near_float32():
    ours, x, text = make(MINI)
    t = torch.tensor([250.0, 750.0])
    exact = ours(x, t, text)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ours(x, t, text).float()
    assert (rough - exact).norm() / exact.norm() < 0.03


def test_a_network_cast_whole_runs():
    ours, x, text = make(TINY, (3, 4, 6), 5)
    t = torch.tensor([250.0, 750.0])
    exact, rough = ours(x, t, text), ours.bfloat16()(x.bfloat16(), t, text.bfloat16())
    assert rough.dtype == torch.bfloat16 and 0 < (rough.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("length", [1, 9])
def test_texts_of_any_length(length):
    ours, x, _ = make(TINY, (3, 4, 6), 5)
    theirs, text, t = stock_of(TINY), torch.randn(2, length, 16), torch.tensor([250.0, 750.0])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert worst(ours(x, t, text), theirs(x, t, text, return_dict=False)[0]) <= 1e-5


@pytest.mark.parametrize("field, value", [("num_layers", 0), ("num_attention_heads", -1), ("attention_head_dim", 7), ("attention_head_dim", 4),
                                          ("freq_dim", 255), ("text_dim", 0), ("patch_size", (1, 2)), ("patch_size", (1, 0, 2))])
def test_a_bad_config_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize("name, change", [
    ("hidden_states", dict(x=torch.zeros(2, 3, 3, 4, 6))), ("hidden_states", dict(x=torch.zeros(4, 3, 4, 6))),
    ("shape", dict(x=torch.zeros(2, 4, 3, 5, 6))), ("timestep", dict(t=torch.zeros(2, 4))), ("timestep", dict(t=torch.zeros(3))),
    ("timestep", dict(t=torch.tensor(5.0))), ("encoder_hidden_states", dict(text=torch.zeros(2, 5, 15))),
    ("encoder_hidden_states", dict(text=torch.zeros(3, 5, 16))), ("encoder_hidden_states", dict(text=None)),
    ("dtype", dict(text=torch.zeros(2, 5, 16).bfloat16())), ("dtype", dict(x=torch.zeros(2, 4, 3, 4, 6).double())),
    ("device", dict(text=torch.zeros(2, 5, 16, device="meta"))), ("device", dict(t=torch.zeros(2, device="meta")))])
def test_bad_input_is_named(name, change):
    net = DiT(TINY)
    given = dict(x=torch.zeros(2, 4, 3, 4, 6), t=torch.zeros(2), text=torch.zeros(2, 5, 16)) | change
    with pytest.raises(ValueError, match=f"{name}: got"):
        net(given["x"], given["t"], given["text"])
