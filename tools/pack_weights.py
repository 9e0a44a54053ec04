"""Turn a finished training run into a weights folder: safetensors in bf16, tokenizer, words, logs, curve and card.

    python tools/pack_weights.py runs/mini --leg 0 --commits VAE POLISH LEG0 --out sora_edu/weights/mini
"""
import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def networks(run, cfg, leg):
    "The VAE, text encoder and DiT of a finished leg."
    from sora_edu.training.loop import Trainee, load_vae
    net = Trainee(cfg)
    net.load_state_dict(load_file(run / f"leg{leg}.safetensors"))
    return load_vae(run / "vae.safetensors"), net.text_encoder, net.dit


def digest(path):
    "SHA-256 of a file."
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    parse.add_argument("--commits", nargs="+", required=True, help="the commit of the VAE, of its polish, then of each leg")
    parse.add_argument("--out", type=Path, required=True)
    args = parse.parse_args()
    from sora_edu.pipeline.generate import package
    from sora_edu.training.configs import get_config
    cfg, legs = get_config(args.config), range(args.leg + 1)
    first = "vae_unpolished.safetensors" if (args.run / "vae_unpolished.safetensors").exists() else "vae.safetensors"   # what made the cache
    parents = [first, *(f"leg{k}.safetensors" for k in legs)]
    info = {"seed": cfg.seed, "clips": cfg.clips, "vae_commit": args.commits[0], "polish_commit": args.commits[1], "autoencoder": asdict(cfg.autoencoder),
            "legs": [{"leg": k, "commit": args.commits[k + 2], "parent": parents[k], "parent_sha256": digest(args.run / parents[k]),
                      **asdict(cfg.legs[k])} for k in legs]}
    hashed = package(args.out, *networks(args.run, cfg, args.leg), name=args.config, world=cfg.world,
                     most_frames=cfg.num_frames, size=cfg.size, **info)
    for name in ("vae_log.jsonl", *(f"leg{k}.jsonl" for k in legs)):
        shutil.copy(args.run / name, args.out / name)
    curve(args.run, legs, args.out / "curve.png")
    print(hashed)


if __name__ == "__main__":
    main()
