"""Turn a finished training run into a weights folder: safetensors in bf16, tokenizer, words, logs, curve and card.

    python tools/pack_weights.py runs/mini --leg 1 --commit 1234567 --out sora_edu/weights/mini
"""
import argparse
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def known_words():
    "Every single word of mini's captions, from the vocabulary file."
    table = json.loads((ROOT / "sora_edu/data/vocabulary.json").read_text())["mini"]
    phrases = [p for group in table.values() for p in group]
    phrases += [p for others in table["size"].values() for p in others]
    return sorted({w for p in phrases for w in re.findall(r"\S+", p)})


def models_of(run, config, leg):
    "The three networks of a run, with the config that the pipeline reads."
    from sora_edu.model.text import load_tokenizer
    from sora_edu.pipeline.generate import Models, WeightsConfig
    from sora_edu.training.configs import get_config
    from sora_edu.training.loop import Trainee, load_vae
    cfg = get_config(config)
    net = Trainee(cfg)
    net.load_state_dict(load_file(run / f"leg{leg}.safetensors"))
    vae = load_vae(run / "vae.safetensors")
    info = WeightsConfig(vae=vae.config, text_encoder=cfg.text, dit=cfg.dit, name=config, world=cfg.world)
    return Models(vae=vae, text_encoder=net.text_encoder, dit=net.dit, tokenizer=load_tokenizer(), config=info, words=tuple(known_words()))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(run, legs, path):
    "The losses of all legs, and the VAE's PSNR, as a picture."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(8, 2.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    log = rows(run / "vae_log.jsonl")
    left.plot([r["step"] for r in log], [r["heldout_psnr"] for r in log])
    left.set(title="VAE, held-out PSNR (dB)", xlabel="step")
    start = 0
    for leg in legs:
        log = rows(run / f"leg{leg}.jsonl")
        for kind, colour in (("image", "C1"), ("video", "C2")):
            points = [(start + r["step"], r[kind]) for r in log if kind in r]
            right.plot(*zip(*points), colour, label=kind if leg == 0 else None)
        start += log[-1]["step"]
        right.axvline(start, color="k", lw=0.5)
    right.set(title="DiT, weighted loss; lines end legs", xlabel="step", yscale="log")
    right.legend()
    fig.savefig(path, dpi=90)


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("run", type=Path)
    parse.add_argument("--config", default="mini")
    parse.add_argument("--leg", type=int, required=True)
    parse.add_argument("--commits", nargs="+", required=True, help="the commit of the VAE, then of each leg")
    parse.add_argument("--out", type=Path, required=True)
    args = parse.parse_args()
    from sora_edu.pipeline.generate import save_models
    from sora_edu.training.configs import get_config
    cfg, legs = get_config(args.config), range(args.leg + 1)
    info = {"seed": cfg.seed, "vae_commit": args.commits[0], "vae": asdict(cfg.autoencoder),
            "legs": [{"leg": k, "commit": args.commits[k + 1], **asdict(cfg.legs[k])} for k in legs]}
    args.out.mkdir(parents=True, exist_ok=True)
    digest = save_models(args.out, models_of(args.run, args.config, args.leg), **info)
    for name in ("vae_log.jsonl", *(f"leg{k}.jsonl" for k in legs)):
        shutil.copy(args.run / name, args.out / name)
    curve(args.run, legs, args.out / "curve.png")
    print(digest)


if __name__ == "__main__":
    main()
