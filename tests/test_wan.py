"Folders that travel to diffusers and back, strict loading, refused pickles, half precision, and the real sizes."
import dataclasses
import json
import pickle

import pytest
import safetensors.torch
import torch
from sora_edu.model import wan as W
from sora_edu.model.dit import DiT, DiTConfig
from sora_edu.model.wan_vae import WanVAE, WanVAEConfig
from test_dit_parity import TINY, make, per_token, stock_of, worst

CODEC = WanVAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temperal_downsample=(True, True))
SLIM = DiTConfig(num_attention_heads=3, attention_head_dim=128, num_layers=2, ffn_dim=512, text_dim=64)      # Wan's heads, fewer of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny transformer and codec, as folders of ours."
    home, net = tmp_path_factory.mktemp("models"), make(TINY)[0]
    W.save_pretrained(net, home / "dit")
    W.save_pretrained(WanVAE(CODEC), home / "vae")
    return home


def stock_from(path, **how):
    from diffusers import WanTransformer3DModel
    return WanTransformer3DModel.from_pretrained(path, local_files_only=True, **how).eval().requires_grad_(False)


def names(path):
    return sorted(p.name for p in path.iterdir())


# -- the journey -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cfg, shape, length", [(TINY, (3, 4, 6), 5), (SLIM, (2, 4, 6), 7), (DiTConfig(), (5, 8, 8), 24)], ids=["tiny", "wan's heads", "mini"])
def test_ours_goes_to_theirs_and_comes_back(tmp_path, cfg, shape, length):
    ours, x, text = make(cfg, shape, length)
    W.save_pretrained(ours, tmp_path / "a")
    theirs = stock_from(tmp_path / "a")
    for t in (torch.tensor([137.5, 900.0]), per_token(x, cfg)):
        expected = theirs(x, t, text, return_dict=False)[0]
        assert expected.abs().max() > 0.1 and worst(ours(x, t, text), expected) <= 1e-5
    theirs.save_pretrained(tmp_path / "b")
    back = W.from_pretrained(tmp_path / "b")
    assert back.config == cfg and not any(p.requires_grad for p in back.parameters())
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in back.state_dict().items())


def test_shipped_weights_travel(tmp_path):
    from sora_edu.pipeline.generate import load_models
    mini = load_models("mini", device="cpu", dtype=torch.float32).dit
    W.save_pretrained(mini, tmp_path)
    g = torch.Generator().manual_seed(0)
    x, text, t = torch.randn(1, 16, 2, 8, 8, generator=g), torch.randn(1, 24, 192, generator=g), torch.tensor([700.0])
    assert worst(mini(x, t, text), stock_from(tmp_path)(x, t, text, return_dict=False)[0]) <= 5e-5        # trained weights reach far


def test_bfloat16_files_keep_every_bit(tmp_path):
    theirs = stock_of(TINY).bfloat16()
    theirs.save_pretrained(tmp_path / "a")
    W.save_pretrained(W.from_pretrained(tmp_path / "a"), tmp_path / "b", dtype=torch.bfloat16)
    again = W.read_tensors(tmp_path / "b")
    assert {v.dtype for v in again.values()} == {torch.bfloat16}
    assert all(torch.equal(v, again[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize("way", ["autocast", "cast"])
def test_half_precision_is_no_worse_than_theirs(tmp_path, way):
    net, x, text = make(SLIM, (2, 4, 6), 7)
    W.save_pretrained(net, tmp_path, dtype=torch.bfloat16)
    exact, theirs, t = W.from_pretrained(tmp_path), stock_from(tmp_path, torch_dtype=torch.bfloat16), torch.tensor([250.0, 750.0])
    if way == "cast":
        mine = W.from_pretrained(tmp_path).bfloat16()(x.bfloat16(), t, text.bfloat16())
    else:
        half = W.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16 and half.condition_embedder.time_proj.weight.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            mine = half(x, t, text)
    other, right = theirs(x.bfloat16(), t, text.bfloat16(), return_dict=False)[0], exact(x, t, text)
    off = [((v.float() - right).norm() / right.norm()).item() for v in (mine, other)]
    assert 0 < off[0] < 0.03 and off[0] < 2 * off[1]


def test_the_codec_travels(folder):
    from diffusers import AutoencoderKLWan
    theirs, ours = AutoencoderKLWan.from_pretrained(folder / "vae", local_files_only=True).eval(), W.from_pretrained(folder / "vae")
    assert isinstance(ours, WanVAE) and ours.config == dataclasses.replace(CODEC, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    video = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    with torch.no_grad():
        assert worst(theirs.encode(video).latent_dist.mean, ours.encode(video)) <= 1e-5
    assert theirs.config.scale_factor_spatial == 4 and list(theirs.config.latents_mean) == [0.0] * 4


def test_shards(tmp_path, folder):
    net = W.from_pretrained(folder / "dit")
    W.save_pretrained(net, tmp_path, shard_bytes=20_000)
    files = [n for n in names(tmp_path) if n.endswith(".safetensors")]
    assert len(files) > 2 and all(len((tmp_path / n).read_bytes()) < 40_000 for n in files)
    for again in (W.from_pretrained(tmp_path), stock_from(tmp_path)):
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    (tmp_path / files[0]).unlink()
    with pytest.raises(ValueError, match=f"^weights: .*{files[0]} is missing"):
        W.from_pretrained(tmp_path)


def test_a_smaller_model_leaves_nothing_of_a_larger(tmp_path, folder):
    net = W.from_pretrained(folder / "dit")
    W.save_pretrained(net, tmp_path, shard_bytes=20_000)
    W.save_pretrained(net, tmp_path)
    assert names(tmp_path) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_kill_leaves_no_mixture(tmp_path, folder, monkeypatch):
    net, replaced = W.from_pretrained(folder / "dit"), []
    W.save_pretrained(net, tmp_path)
    real = W.os.replace

    def killed(a, b):
        replaced.append(b)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        real(a, b)
    monkeypatch.setattr(W.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        W.save_pretrained(net, tmp_path, shard_bytes=20_000)
    with pytest.raises(ValueError, match="^config.json: cannot be read"):
        W.from_pretrained(tmp_path)


# -- strict ------------------------------------------------------------------------------------------------------------
def test_misfits_are_told_with_the_nearest_names():
    net = DiT(TINY)
    state = dict(net.state_dict())
    state["blocks.0.attn1.q_proj.weight"] = state.pop("blocks.0.attn1.to_q.weight")
    state["patch_embedding.bias"] = torch.zeros(3)
    state["proj_out.bias"] = state["proj_out.bias"].long()
    with pytest.raises(ValueError) as caught:
        W.load_strict(net, state)
    said = str(caught.value)
    assert said.startswith("state dict: ") and "\n" not in said
    assert "missing 1: blocks.0.attn1.to_q.weight (nearest: blocks.0.attn1.q_proj.weight)" in said
    assert "extra 1: blocks.0.attn1.q_proj.weight (nearest: blocks.0.attn1.to_q.weight)" in said
    assert "misshapen 1: patch_embedding.bias (3,) instead of (24,)" in said and "no floats 1: proj_out.bias of torch.int64" in said


def test_a_refused_state_changes_nothing():
    net = DiT(TINY)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="missing 1: proj_out.bias"):
        W.load_strict(net, {k: v + 1 for k, v in before.items() if k != "proj_out.bias"})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_many_misfits_are_counted_not_listed():
    said = W.misfits(DiT(TINY), {f"model.{k}": v for k, v in DiT(TINY).state_dict().items()})
    assert len(said) == 2 and all(len(line) < 500 and line.endswith(", ...") for line in said)
    assert said[0].startswith(f"missing {len(DiT(TINY).state_dict())}: scale_shift_table (nearest: model.scale_shift_table)")


def test_a_model_of_another_depth_is_refused(tmp_path, folder):
    W.save_pretrained(DiT(dataclasses.replace(TINY, num_layers=3)), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"num_layers": 2}))
    with pytest.raises(ValueError, match="^state dict: extra 27: blocks.2"):
        W.from_pretrained(tmp_path)


class Bomb:
    "A pickle that tells whether it was opened."
    opened = False

    def __reduce__(self):
        return setattr, (Bomb, "opened", True)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
@pytest.mark.parametrize("way", ["file", "folder"])
def test_pickles_stay_shut(tmp_path, folder, suffix, way):
    file = tmp_path / f"diffusion_pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "config.json").write_text((folder / "dit/config.json").read_text())
    with pytest.raises(ValueError, match=f"got the pickle diffusion_pytorch_model{suffix}, allowed: .safetensors"):
        W.read_tensors(file) if way == "file" else W.from_pretrained(tmp_path)
    assert not Bomb.opened


def test_a_pickle_by_another_name(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is no safetensors file"):
        W.read_tensors(tmp_path)
    assert not Bomb.opened


@pytest.mark.parametrize("where", ["../secret.safetensors", "/etc/secret.safetensors", 3])
def test_an_index_stays_in_its_folder(tmp_path, where):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": where}}))
    with pytest.raises(ValueError, match="allowed: names of files in the same folder"):
        W.read_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"weights": {}})])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="^diffusion_pytorch_model.safetensors.index.json: "):
        W.read_tensors(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="^weights: .* is missing, allowed: a .safetensors file"):
        W.read_tensors(tmp_path)
    with pytest.raises(ValueError, match="^config.json: cannot be read"):
        W.from_pretrained(tmp_path)


def test_one_file_alone(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(W.read_tensors(tmp_path / "x.safetensors")["a"], torch.ones(2))


# -- the configuration -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part, change, said", [
    ("dit", {"_class_name": "LTXVideoTransformer3DModel"}, "got class 'LTXVideoTransformer3DModel', allowed: WanTransformer3DModel, AutoencoderKLWan"),
    ("dit", {"image_dim": 1280}, "got image_dim = 1280, allowed: None"), ("dit", {"cross_attn_norm": False}, "got cross_attn_norm = False, allowed: True"),
    ("dit", {"qk_norm": None}, "got qk_norm = None"), ("dit", {"colour": 1}, "got colour = 1, allowed: one of added_kv_proj_dim"),
    ("dit", {"num_layers": "two"}, "got a value of a wrong kind"), ("vae", {"is_residual": True}, "got is_residual = True, allowed: False"), ("vae", {"patch_size": 2}, "got patch_size = 2")])
def test_unknown_choices_are_refused(tmp_path, folder, part, change, said):
    told = json.loads((folder / part / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | change))
    with pytest.raises(ValueError) as caught:
        W.read_config(tmp_path)
    assert str(caught.value).startswith("config.json: ") and said in str(caught.value)


def test_what_a_config_leaves_out_is_the_library_s(tmp_path):
    from diffusers import WanTransformer3DModel
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "num_layers": 1}))
    with torch.device("meta"):
        theirs = WanTransformer3DModel.from_config(json.loads((tmp_path / "config.json").read_text()))
    kind, config = W.read_config(tmp_path)
    assert kind == "WanTransformer3DModel" and config == dataclasses.replace(W.WAN_14B, num_layers=1)
    assert W.parameters(config) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bf16"])
def test_odd_types_are_refused(folder, dtype):
    with pytest.raises(ValueError, match="^dtype: got "):
        W.from_pretrained(folder / "dit", dtype=dtype)


def test_only_networks_of_ours_are_saved(tmp_path):
    with pytest.raises(ValueError, match="^net: got Linear, allowed: DiT, WanVAE"):
        W.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -- the real sizes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, count", [("Wan 2.1 1.3B", 1_418_996_800), ("Wan 2.1 14B", 14_288_491_584)])
def test_the_published_sizes(name, count):
    from diffusers import WanTransformer3DModel
    cfg = W.WAN[name]
    with torch.device("meta"):
        theirs = WanTransformer3DModel(**dataclasses.asdict(cfg))
    assert W.parameters(cfg) == count == sum(p.numel() for p in theirs.parameters())


def test_tokens_of_the_published_sizes():
    assert W.tokens(W.WAN_1_3B, 81, 480, 832) == 32_760 and W.tokens(W.WAN_14B, 81, 720, 1280) == 75_600


def test_flops_are_those_of_chapter_14():
    from sora_edu.training.configs import _on_meta, flops, get_config
    from torch.utils.flop_counter import FlopCounterMode
    cfg = get_config("mini")
    with torch.device("meta"), FlopCounterMode(display=False) as count:
        _on_meta(cfg.text, cfg.dit)[0](torch.zeros(1, 24, dtype=torch.long))
    text = count.get_total_flops()
    assert flops(cfg, 1, 8, 8) == 3 * (text + W.forward_flops(cfg.dit, (1, 8, 8), 24))       # one level a clip is one a frame, for one frame


def test_flops_count_every_block():
    from torch.utils.flop_counter import FlopCounterMode
    cfg = dataclasses.replace(TINY, num_layers=5)
    with FlopCounterMode(display=False) as count, torch.no_grad():
        DiT(cfg)(torch.zeros(1, 4, 3, 4, 6), torch.zeros(1), torch.zeros(1, 5, 16))
    assert W.forward_flops(cfg, (3, 4, 6), 5) == count.get_total_flops()


@pytest.mark.parametrize("size, said", [((80, 480, 832), "num_frames: got 80, allowed: 1, 5, 9, ... (the nearest is 81)"), ((81, 481, 832), "height: got 481, allowed: multiples of 8 (the nearest is 480)"),
                                        ((81, 480, 0), "width: got 0, allowed: multiples of 8 (the nearest is 8)"), ((81, 488, 832), "shape: got H = 61")])
def test_bad_sizes_are_named(size, said):
    with pytest.raises(ValueError) as caught:
        W.tokens(W.WAN_1_3B, *size)
    assert str(caught.value).startswith(said)
