"""Write the model card of packaged weights: what they are, how each leg was trained, what they score, what they can't do.

    python tools/model_card.py            sora_edu/weights/mini/README.md, from its model.json, logs and figures/first-light.json
    python tools/model_card.py --check    exit code 1 if the card is not what would be written
"""
import json
import sys
from pathlib import Path

from readme import number

ROOT = Path(__file__).resolve().parent.parent
FOLDER, FIGURES = ROOT / "sora_edu" / "weights" / "mini", ROOT / "figures" / "first-light.json"
SCORES = {
    "adherence_all_cpu": "480 seen prompts, one fixed seed each: all five attributes right",
    "adherence_actor": "the same prompts: shape right",
    "heldout_gap": "held-out combinations (240 prompts): points below the seen ones",
    "oracle_vae": "the judge on reconstructions by the VAE, all right (the ceiling)",
    "control_worst": "the best of six controls that must fail",
    "vae_psnr": "VAE, held-out PSNR",
    "playback_single": "one clip alone on two cores: seconds it plays ÷ took",
}
CARD = """---
license: apache-2.0
library_name: sora_edu
pipeline_tag: text-to-video
---
# mini

A text-to-video model for learning: {millions:.1f} million parameters, trained on two CPU cores, {megabytes:.0f} MB. It makes clips of 17 frames (or 1, 5, 9, 13) at 64 × 64 pixels and 8 frames a second, of one thing doing one thing somewhere, from captions of about five words that matter.

```text
sora-edu generate "a small red star moves right over the ocean"
```

Files: `vae`, `text_encoder` and `dit` as safetensors (matrices in bfloat16), the tokenizer, the known words, and `model.json` with configs, hashes and the history below. Nothing here is a program: loading needs no network and no pickle. Hash of these weights: `{digest}`.

## Training

Data: {clips:,} clips drawn by the package's own renderer, `World("mini")`, seed {seed} (stream {stream} of its scenes); no video made by people or of people is in it. Combinations of the held-out split were never shown. The VAE comes from commit `{vae_commit}`, and was polished at `{polish_commit}` with its latents anchored; legs 0 to 3 learned from latents made before that polish, those after them from latents made after it. Text encoder and DiT learned together, leg by leg, each from the one before:

| leg | commit | steps | clips | images | batch | rate | shown more often | began with (SHA-256) | last loss, video |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{legs}

Repeat it: `sora-edu train mini --all-legs` trains all legs that the code at hand knows, one after the other; each leg of the table stands in the code of its commit. The logs lie beside this card (`vae_log.jsonl`, `leg*.jsonl`).

![losses of all legs, and the VAE's PSNR](curve.png)

## Scores

Judged by the oracle of chapter 5, which reads a clip from its pixels and was fixed before training; a clip that it cannot read counts as wrong. 95 % intervals. Made by `sora-edu bench first-light`, with the sampling that `model.json` asks for: {steps} {sampler} steps, shift {shift:g}, guidance {scale:g} at noise levels from {low:g} to {high:g}.

{scores}

## What it can't do

- Anything outside its words: no people, photographs, text, sound, cameras, and no two things at once. Unknown words are refused; with `--allow-unknown` it makes something, confidently, that has little to do with them.
- It still fails on a part of its own prompts, and on most of those where a small star or ring spins, bounces or circles: they blur or lose their shape.
- Other sizes, durations and frame rates than those above. It was trained on clips of 17 frames, on their last 16, and on single images; what it makes of 5, 9 or 13 frames is not scored.
- It knows no physics beyond ten motions, and nothing about the real world.

Every clip is marked as generated, in its corner and in its file. Licence: Apache 2.0, weights included.
"""


def leg_row(leg, folder, clips):
    "One line of the table of legs; `clips` where it has all of the cache."
    log = [json.loads(row) for row in (folder / f"leg{leg['leg']}.jsonl").read_text().splitlines()]
    cells = (leg["leg"], f"`{leg['commit']}`", leg["steps"], f"{leg.get('clips') or clips:,}", f"{leg['image_share']:.0%}", leg["batch_size"], leg["learning_rate"], ", ".join(leg["oversample"]),
             f"`{leg['parent']}` {leg['parent_sha256'][:12]}", log[-1].get("video", ""))
    return "| " + " | ".join(map(str, cells)) + " |"


def card(folder=FOLDER, figures=FIGURES):
    "The text of the card."
    from sora_edu.pipeline.generate import load_models
    manifest, models = json.loads((folder / "model.json").read_text()), load_models(folder)
    info = manifest["info"]
    rows = {row["name"]: row for row in json.loads(figures.read_text())} if figures.exists() else {}
    scores = [f"| {text} | {number(rows[name])} |" for name, text in SCORES.items() if rows.get(name, {}).get("value") is not None]
    sampling = models.config
    return CARD.format(
        steps=sampling.num_inference_steps, sampler=sampling.sampler, shift=sampling.shift, scale=sampling.guidance_scale,
        low=sampling.guidance_interval[0], high=sampling.guidance_interval[1],
        millions=sum(p.numel() for net in (models.vae, models.text_encoder, models.dit) for p in net.parameters()) / 1e6,
        megabytes=sum(f["bytes"] for f in manifest["files"].values()) / 1e6, digest=manifest["weights_hash"][:16],
        clips=info["clips"], seed=info["seed"], stream=info["seed"] + 10, vae_commit=info["vae_commit"], polish_commit=info["polish_commit"],
        legs="\n".join(leg_row(leg, folder, info["clips"]) for leg in info["legs"]),
        scores="\n".join(["| what | measured |", "| --- | --- |", *scores]) if scores else "Not measured yet.")


def main():
    path = FOLDER / "README.md"
    if "--check" in sys.argv[1:]:
        return int(not path.exists() or path.read_text(encoding="utf-8") != card())
    path.write_text(card(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
