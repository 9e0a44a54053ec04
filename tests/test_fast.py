"The fast transformer against the plain one and diffusers' class, what it leaves to the plain one, and what it refuses."
import copy
import dataclasses
import pytest
import torch
from sora_edu.evaluate.parity import TINY, shaken, stock_dit
from sora_edu.model import fast as module
from sora_edu.model.dit import DiT, DiTConfig, Proj
from sora_edu.model.fast import FastDiT
from sora_edu.model.wan import cast_matrices
from sora_edu.pipeline.generate import network
from tiny_weights import tiny_models


def make(cfg=TINY, shape=(3, 4, 6), length=5, clips=2):
    "A shaken network, latents and a text."
    torch.manual_seed(0)
    return shaken(DiT(cfg)), torch.randn(clips, cfg.in_channels, *shape), torch.randn(clips, length, cfg.text_dim)


def worst(a, b):
    return (a - b).abs().max().item()


@pytest.fixture
def runs(monkeypatch):
    "How often the fast path itself ran."
    seen, right = [], FastDiT._run
    monkeypatch.setattr(FastDiT, "_run", lambda self, *args: seen.append(1) or right(self, *args))
    return seen


WIDE = DiTConfig(num_layers=2)
CASES = {"tiny": (TINY, (3, 4, 6), 5, 2), "image": (TINY, (1, 8, 2), 5, 2), "one clip": (TINY, (3, 4, 6), 1, 1), "other patches": (
    dataclasses.replace(TINY, patch_size=(2, 2, 1), out_channels=6), (4, 4, 3), 5, 2), "mini's width, in pieces": (WIDE, (5, 8, 8), 24, 20)}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_one_level_agrees_with_both(case, runs):
    net, x, text = make(*case)
    fast, stock = FastDiT(net), stock_dit(net)
    with torch.inference_mode():
        for level in (0.0, 137.5, 1000.0):
            t = torch.full((len(x),), level)
            got = fast(x, t, text)
            largest = got.abs().max().item()
            assert largest > 0.1 and max(worst(got, net(x, t, text)), worst(got, stock(x, t, text, return_dict=False)[0])) <= 1e-5 * max(1, largest)
            assert torch.equal(fast(x, t[:, None].expand(-1, x.shape[2] // net.config.patch_size[0]), text), got)        # the sampler's [B, frames]
    assert len(runs) == 6 * (2 if len(x) == 20 else 1)


@pytest.mark.parametrize("mode", ["frames", "tokens", "clips", "gradients", "long text"])
def test_the_rest_is_left_to_the_plain_network(mode, runs):
    net, x, text = make()
    t = {"frames": 1000 * torch.rand(2, 3), "tokens": 1000 * torch.rand(2, 18), "clips": torch.tensor([3.0, 900.0])}.get(mode, torch.full((2,), 500.0))
    if mode == "long text":
        text = torch.randn(2, 40, 16)
    with torch.set_grad_enabled(mode == "gradients"):
        x.requires_grad_(mode == "gradients")
        got = FastDiT(net)(x, t, text)
        assert torch.equal(got, net(x, t, text)) and not runs
    assert got.requires_grad == (mode == "gradients")


class Squared(Proj):
    def forward(self, x):
        return self.proj(x).relu().square()


def test_a_part_of_one_s_own_is_left_to_the_plain_network(runs):
    net, x, text = make()
    fast, t, ffn = FastDiT(net), torch.full((2,), 500.0), net.blocks[0].ffn.net
    own, before = Squared(net.config.dim, net.config.ffn_dim), ffn[0]
    own.proj = before.proj                                           # the same weights: only its type tells
    with torch.inference_mode():
        plain = fast(x, t, text)
        assert runs
        runs.clear()
        ffn[0] = own
        changed = fast(x, t, text)
        assert torch.equal(changed, net(x, t, text)) and not runs and worst(changed, plain) > 1e-3
        ffn[0] = before
        hook = net.blocks[0].register_forward_hook(lambda module, args, out: 2 * out)
        assert torch.equal(fast(x, t, text), net(x, t, text)) and not runs
        hook.remove()
        assert torch.equal(fast(x, t, text), plain) and runs


def test_a_network_cast_whole_is_left_to_the_plain_one(runs):
    net, x, text = (v.bfloat16() for v in make())
    t = torch.full((2,), 500.0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FastDiT(net)(x, t, text), net(x, t, text)) and not runs


def test_pieces_change_nothing(monkeypatch):
    net, x, text = make(clips=5)
    t, fast = torch.full((5,), 500.0), FastDiT(net)
    with torch.inference_mode():
        whole = fast(x, t, text)
        monkeypatch.setattr(module, "TOKENS", 36)                        # two clips, two clips, one
        assert worst(fast(x, t, text), whole) <= 1e-5
        monkeypatch.setattr(module, "TOKENS", 1)
        assert worst(fast(x, t, text), whole) <= 1e-5


def test_bfloat16_stays_near_float32(runs):
    net, x, text = make(WIDE, (5, 8, 8), 24)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(5 if name.endswith("bias") else 1)                        # each bias that is moved must arrive
    half, t = copy.deepcopy(net), torch.full((2,), 500.0)
    cast_matrices(half, torch.bfloat16)
    with torch.inference_mode():
        exact, rough = net(x, t, text), FastDiT(half)(x, t, text)
        with torch.autocast("cpu", torch.bfloat16):
            plain = half(x, t, text).float()
    assert rough.dtype == torch.float32 and len(runs) == 1
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 1.2 * (plain - exact).norm() / exact.norm()


def test_another_default_dtype_does_not_matter():
    net, x, text = make()
    t, fast = torch.full((2,), 500.0), FastDiT(net)
    with torch.inference_mode():
        told = fast(x, t, text)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(fast(x, t, text), told)
        finally:
            torch.set_default_dtype(torch.float32)


def test_changed_weights_are_read_with_the_next_text():
    net, x, text = make()
    fast, t = FastDiT(net), torch.full((2,), 500.0)
    with torch.no_grad():
        before = fast(x, t, text)
        parts = fast.parts
        assert torch.equal(fast(x, t, text), before) and fast.parts is parts      # nothing changed, nothing is read
        for change in (lambda: net.blocks[1].ffn.net[2].weight.mul_(2), lambda: net.load_state_dict(make(TINY)[0].state_dict()),
                       lambda: setattr(net.proj_out.bias, "data", net.proj_out.bias.data + 1)):
            change()
            after = fast(x, t, text)
            assert worst(after, net(x, t, text)) <= 1e-5 < worst(after, before)
            before = after


def test_a_kept_text_serves_many_levels_and_levels_are_remembered(monkeypatch):
    net, x, text = make()
    fast = FastDiT(net)
    with torch.inference_mode():
        cache, asked = fast.text_cache(text), []
        right = net.condition_embedder.time
        monkeypatch.setattr(net.condition_embedder, "time", lambda t: asked.append(1) or right(t))
        for level in (100.0, 900.0, 100.0):
            t = torch.full((2,), level)
            answer = fast(x, t, cache=cache)
        assert len(asked) == 2 and worst(answer, net(x, t, text)) <= 1e-5
        for level in range(module.LEVELS + 5):
            fast(x, torch.full((2,), float(level)), cache=cache)
        assert len(fast.levels) <= module.LEVELS


@pytest.mark.parametrize("name, change", [
    ("hidden_states", dict(x=torch.zeros(2, 3, 3, 4, 6))), ("shape", dict(x=torch.zeros(2, 4, 3, 5, 6))), ("timestep", dict(t=torch.zeros(2, 4))),
    ("timestep", dict(t=torch.zeros(3))), ("encoder_hidden_states", dict(text=torch.zeros(3, 5, 16))), ("encoder_hidden_states", dict(text=None)),
    ("dtype", dict(x=torch.zeros(2, 4, 3, 4, 6).double())), ("device", dict(t=torch.zeros(2, device="meta")))])
def test_bad_input_is_named(name, change):
    given = dict(x=torch.zeros(2, 4, 3, 4, 6), t=torch.zeros(2), text=torch.zeros(2, 5, 16)) | change
    with torch.inference_mode(), pytest.raises(ValueError, match=f"{name}: got"):
        FastDiT(DiT(TINY))(given["x"], given["t"], given["text"])


def test_a_text_of_others_is_refused():
    net, x, text = make()
    fast, t = FastDiT(net), torch.zeros(2)
    with torch.inference_mode():
        for cache in (net.text_cache(text), fast.text_cache(text[:1]), FastDiT(make()[0]).text_cache(text)):
            with pytest.raises(ValueError, match="cache: got .*allowed: what text_cache makes of a text for 2 clips"):
                fast(x, t, cache=cache)


def test_the_sampler_uses_it_and_the_state_dict_stays(runs):
    models = tiny_models()
    before = {k: v.clone() for k, v in models.dit.state_dict().items()}
    x, text = torch.randn(2, models.config.dit.in_channels, 5, 8, 8), torch.randn(2, 8, models.config.dit.text_dim)
    ask = network(models)
    got = ask(x, torch.full((2, 5), 0.5), text)
    assert len(runs) == 1 and not got.is_inference()
    per_frame = ask(x, torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.5]] * 2), text)
    assert len(runs) == 1 and worst(per_frame, got) > 1e-4
    with torch.no_grad():
        assert worst(got, models.dit(x, torch.full((2,), 500.0), text)) <= 1e-5
    assert before.keys() == models.dit.state_dict().keys() and all(torch.equal(v, before[k]) for k, v in models.dit.state_dict().items())
    assert models.fast is models.fast
