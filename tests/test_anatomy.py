"The anatomy of a model: sums are exact, memory is what torch keeps alive, the widget follows its controls."
import dataclasses
import math

import pytest
import torch
from sora_edu.model.dit import DiT, DiTConfig
from sora_edu.model.vae import VAEConfig
from sora_edu.model.wan import WAN_14B, WAN_1_3B, forward_flops, parameters
from sora_edu.model.wan_vae import WanVAE, WanVAEConfig
from sora_edu.studio import anatomy as A
from test_widgets import find, picture

ODD = DiTConfig(in_channels=3, out_channels=5, patch_size=(2, 1, 2), num_attention_heads=2, attention_head_dim=12, num_layers=3, ffn_dim=40, text_dim=7, freq_dim=10)
CODEC = WanVAEConfig(base_dim=4, z_dim=4, num_res_blocks=1)


@pytest.mark.parametrize("cfg, shape, length", [(ODD, (4, 3, 6), 9), (DiTConfig(), (5, 8, 8), 24), (WAN_1_3B, (5, 30, 52), 512)], ids=["odd", "mini", "1.3B"])
def test_parts_add_up(cfg, shape, length):
    parts = A.transformer_parts(cfg, math.prod(shape) // math.prod(cfg.patch_size), length)
    assert sum(p.parameters for p in parts) == parameters(cfg)
    assert sum(p.flops for p in parts) == forward_flops(cfg, shape, length)


def test_each_part_has_its_own_parameters():
    net = DiT(ODD)
    own = lambda *words: sum(p.numel() for name, p in net.named_parameters() if any(w in name for w in words))
    expected = {"patch embedding": own("patch_embedding", "proj_out"), "self-attention": own("attn1"), "cross-attention": own("attn2", "norm2", "text_embedder"),
                "feed-forward": own("ffn"), "modulation": own("time_", "scale_shift_table")}
    assert {p.name: p.parameters for p in A.transformer_parts(ODD, 36, 9)} == expected


def test_only_pairs_grow_with_the_square():
    one, two = (dict((p.name, p.flops) for p in A.transformer_parts(WAN_1_3B, n)) for n in (10_000, 20_000))
    assert two["feed-forward"] == 2 * one["feed-forward"] and two["modulation"] == one["modulation"]
    pairs = 4 * 10_000**2 * 1536 * 30
    assert two["self-attention"] - 2 * one["self-attention"] == 2 * pairs


def test_bytes_follow_the_number_format():
    half, full = (A.anatomy(DiTConfig(), 5, 64, 64, codec=CODEC, dtype=d) for d in ("bfloat16", "float32"))
    assert [p.weights * 2 for p in half] == [p.weights for p in full] and half[0].weights == 2 * half[0].parameters
    assert [p.working * 2 for p in half[:5]] == [p.working for p in full[:5]]


# -- what is alive -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_alive_adds_and_takes_off(device):
    outside = torch.zeros(1000, device=device)
    with A.Alive() as alive:
        a = outside + 1                                      # 4000
        b = a * 2                                            # 8000
        c = b.view(10, 100).t()                              # no more: a view
        assert (alive.now, alive.peak) == (8000, 8000)
        del a
        b.add_(1), outside.mul_(2)                           # in place: nothing new
        assert (alive.now, alive.peak) == (4000, 8000)
        d = torch.zeros(500, dtype=torch.bfloat16, device=device)
        del b
        assert (alive.now, alive.peak) == (5000, 8000)       # the view keeps b's numbers
        del c, d
        assert alive.now == 0


def test_memory_of_a_matrix_product():
    with torch.device("meta"), A.Alive() as alive, torch.no_grad():
        net = torch.nn.Sequential(torch.nn.Linear(100, 300, bias=False), torch.nn.Linear(300, 10, bias=False))
        weights = alive.now
        net(torch.zeros(50, 100))
    assert weights == 4 * (30_000 + 3_000) and alive.peak == weights + 4 * 50 * (100 + 300 + 10)


# -- the codec ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_decoding_is_counted_from_three_frames(frames):
    from torch.utils.flop_counter import FlopCounterMode
    net = WanVAE(CODEC).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as count:
        net.decode(torch.zeros(1, 4, frames, 2, 3))
    part = A.codec_part(CODEC, (frames, 2, 3), 4)
    assert part.flops == count.get_total_flops() and part.parameters == sum(p.numel() for p in net.parameters())


def test_decoding_needs_what_it_keeps_alive():
    "The estimate on meta against the same decoding on numbers: operators allocate the same tensors."
    net, z = WanVAE(CODEC).eval().requires_grad_(False), torch.zeros(1, 4, 4, 2, 3)
    with A.Alive() as alive:
        for _ in net.frames(z):
            pass
    done = 3 * 13 * 16 * 24 * 4
    assert abs(A.codec_part(CODEC, (4, 2, 3), 4).working - done - alive.peak) < 0.1 * alive.peak


def test_length_costs_the_decoder_little_and_size_much():
    short, long, large = (A.codec_part(A.WAN_VAE, s).working for s in ((3, 8, 8), (12, 8, 8), (3, 16, 16)))
    assert short < long < 2 * short and large > 3.5 * short


def test_our_codec_decodes_at_once():
    small = VAEConfig(width=16, deep_width=16, depth=1)
    one, four = (A.codec_part(small, s, 4) for s in ((2, 4, 4), (8, 4, 4)))
    assert four.flops == 4 * one.flops and four.working > 3 * one.working


# -- asking for what cannot be -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, said", [((80, 480, 832), "num_frames: got 80"), ((81, 483, 832), "height: got 483"), ((81, 480, 4), "width: got 4"), ((81, 480, 840), "shape: got W = 105")])
def test_bad_sizes(size, said):
    with pytest.raises(ValueError, match=said):
        A.anatomy(WAN_1_3B, *size)


def test_bad_format():
    with pytest.raises(ValueError, match="^dtype: got 'int4', allowed: bfloat16, float32"):
        A.anatomy(WAN_1_3B, 81, 480, 832, dtype="int4")


# -- pictures and the widget -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rows():
    return A.anatomy(DiTConfig(), 17, 64, 64, codec=CODEC, text_length=24)


@pytest.mark.parametrize("value, shown", [(0, "0"), (999, "999"), (1000, "1 k"), (1.42e9, "1.42 G"), (283e12, "283 T"), (999.6e3, "1 M"), (2.5e18, "2.5e+03 P")])
def test_amounts(value, shown):
    assert A.amount(value) == shown


def test_the_table_adds_up(rows):
    lines = A.table(rows).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [p.name for p in rows] + ["together"]
    assert A.amount(sum(p.parameters for p in rows)) in lines[-1] and A.amount(max(p.working for p in rows), "B") in lines[-1]


def test_the_picture_s_bars_are_the_shares(rows):
    fig = A.drawn(rows)
    above, below = fig.axes
    widths = [bar.get_width() for bar in above.patches]
    total = sum(p.parameters for p in rows)
    assert len(widths) == 12 and widths[:6] == pytest.approx([p.parameters / total for p in rows]) and sum(widths[6:]) == pytest.approx(1)
    assert [bar.get_width() for bar in below.patches] == pytest.approx([p.working / 1e9 for p in rows])
    assert picture(A.png_of(fig)).shape[:2] == (320, 700)


@pytest.fixture
def box(monkeypatch):
    "The widget over small models, so that a change costs nothing."
    monkeypatch.setattr(A, "FAMILY", {"mini": (DiTConfig(), CODEC, 24), "wide": (dataclasses.replace(DiTConfig(), num_layers=12), CODEC, 512)})
    return A.model_anatomy("mini")


@pytest.mark.parametrize("kind, name, value", [("Dropdown", "model", "wide"), ("Dropdown", "numbers", "float32"), ("BoundedIntText", "frames", 9),
                                               ("BoundedIntText", "height", 48), ("BoundedIntText", "width", 96)])
def test_the_widget_follows_each_control(box, kind, name, value):
    before, told = find(box, "Image").value, find(box, "HTML").value
    find(box, kind, name).value = value
    assert find(box, "Image").value != before and find(box, "HTML").value != told and "self-attention" in find(box, "HTML").value


def test_the_widget_answers_the_impossible_in_words(box):
    before = find(box, "Image").value
    find(box, "BoundedIntText", "frames").value = 16
    assert "num_frames: got 16, allowed: 1, 5, 9, ... (the nearest is 17)" in find(box, "HTML").value and find(box, "Image").value == before
    find(box, "BoundedIntText", "frames").value = 17
    assert "self-attention" in find(box, "HTML").value


def test_every_model_of_the_family_opens():
    assert list(A.FAMILY) == ["mini", "Wan 2.1 1.3B", "Wan 2.1 14B"] and A.FAMILY["Wan 2.1 14B"][0] == WAN_14B
    assert find(A.model_anatomy("mini"), "Image").value
