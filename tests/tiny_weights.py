"A small model with random weights, for tests of what is around the networks."
import torch

from sora_edu.model.dit import DiT, DiTConfig
from sora_edu.model.text import TextConfig, TextEncoder, load_tokenizer
from sora_edu.model.vae import VAE, VAEConfig
from sora_edu.pipeline.generate import Models, WeightsConfig, save_models

WORDS = ("a", "small", "big", "red", "blue", "star", "ball", "moves", "right", "left", "over", "the", "ocean", "at", "night")
PROMPT = "a small red star moves right over the ocean"
OTHER = "a big blue ball moves left at night"


def tiny_models(seed=0, words=WORDS, max_length=16, **config):
    "Three networks of a few thousand parameters each, all of them random (no gate at zero)."
    tokenizer = load_tokenizer()
    vae = VAEConfig(width=16, deep_width=32, depth=1, shift=(0.1,) * 16, scale=1.5)
    text = TextConfig(vocab_size=tokenizer.get_vocab_size(), dim=32, num_layers=1, num_heads=2, max_length=max_length)
    dit = DiTConfig(num_attention_heads=2, attention_head_dim=32, num_layers=2, ffn_dim=64, text_dim=32, freq_dim=32)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        nets = VAE(vae), TextEncoder(text), DiT(dit)
        for p in (p for net in nets for p in net.parameters()):
            p.add_(0.05 * torch.randn_like(p))
    config = WeightsConfig(vae, text, dit, **{"name": "tiny", "num_inference_steps": 4, **config})
    return Models(*(n.eval().requires_grad_(False) for n in nets), tokenizer, config, words)


def tiny_folder(path, seed=0, **config):
    "The same, saved as a weights folder; returns its path."
    save_models(path, tiny_models(seed, **config), note="random")
    return path
