"""Turn a finished training run into a weights folder: safetensors in bf16, tokenizer, words, logs, curve and card.

    python tools/pack_weights.py runs/mini --leg 0 --commits VAE POLISH LEG0 --out sora_edu/weights/mini
    python tools/pack_weights.py runs/mini --leg 4 --onto sora_edu/weights/mini --commits LEG4 --out sora_edu/weights/mini

With `--onto`, the leg went on from packaged weights (`sora-edu train mini --leg 4 --from mini`): their history comes first.
"""
import argparse
import hashlib
import json
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


def whole_history(args, cfg):
    "What `model.json` tells of weights whose legs all lie in one run."
    legs = range(args.leg + 1)
    first = "vae_unpolished.safetensors" if (args.run / "vae_unpolished.safetensors").exists() else "vae.safetensors"   # what made the cache
    parents = [first, *(f"leg{k}.safetensors" for k in legs)]
    told = [leg_info(cfg, k, args.commits[k + 2], parents[k], digest(args.run / parents[k])) for k in legs]
    return {"seed": cfg.seed, "clips": cfg.clips, "device": args.device, "vae_commit": args.commits[0], "polish_commit": args.commits[1], "autoencoder": asdict(cfg.autoencoder), "legs": told}


def longer_history(args, cfg):
    "The same for a leg that went on from packaged weights."
    before = json.loads((args.onto / "model.json").read_text())
    parent = leg_info(cfg, args.leg, args.commits[0], "packaged weights", before["weights_hash"])
    return {**before["info"], "device": args.device, "legs": [*before["info"]["legs"][:args.leg], parent]}


def leg_info(cfg, leg, commit, parent, parent_digest):
    return {"leg": leg, "commit": commit, "parent": parent, "parent_sha256": parent_digest, **asdict(cfg.legs[leg])}


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("run", type=Path)
    parse.add_argument("--config", default="mini")
    parse.add_argument("--leg", type=int, required=True)
    parse.add_argument("--commits", nargs="+", required=True, help="the commit of the VAE, of its polish, then of each leg; with --onto, of the leg alone")
    parse.add_argument("--onto", type=Path, help="the packaged weights that the leg went on from")
    parse.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the leg was trained on")
    parse.add_argument("--out", type=Path, required=True)
    args = parse.parse_args()
    from sora_edu.pipeline.generate import package
    from sora_edu.training.configs import get_config
    cfg = get_config(args.config)
    info = longer_history(args, cfg) if args.onto else whole_history(args, cfg)
    logs = {"vae_log.jsonl": args.onto or args.run} | {f"leg{k}.jsonl": args.onto if args.onto and k < args.leg else args.run for k in range(args.leg + 1)}
    texts = {name: (folder / name).read_text() for name, folder in logs.items()}
    hashed = package(args.out, *networks(args.run, cfg, args.leg), cfg, **info)
    for name, text in texts.items():
        (args.out / name).write_text(text)
    curve(args.out, range(args.leg + 1), args.out / "curve.png")
    print(hashed)


if __name__ == "__main__":
    main()
