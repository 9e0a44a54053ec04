"The figures of training on clips from outside: each a function that returns a row."
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sora_edu.model.vae import VAE, VAEConfig
from sora_edu.training.clips import SPOILERS, Buckets, build_clip_cache, clip_batch_at, find_clips, loader, spoil, write_file
from sora_edu.training.configs import get_config
from sora_edu.video import to_uint8
from sora_edu.world.render import render
from sora_edu.world.scene import World


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(VAEConfig(width=16, deep_width=16, depth=1)).eval()


def write_clips(folder, n, frames=17, size=64):
    "`n` small videos with captions."
    folder.mkdir(parents=True, exist_ok=True)
    for i, clip in enumerate(to_uint8(render(World().sample(5, n), frames, size, size))):
        spoil(folder, f"{i:04d}", "whole", clip, f"a red ball number {i}")
    return folder


BAD_ROWS = ('{{"file": "{0}", "caption": null}}', '{{"file": "{0}", "caption": 5}}', '{{"file": "{0}", "caption": ["a ball"]}}', '{{"file": "{0}", oops', "")


def faults_fatal(n=1000):
    "File faults, of `n` files of every kind in SPOILERS and a table with a bad row for each, that stop a run, go unlisted, or cost a good file: should be 0."
    frames = to_uint8(render(World().sample(6, 1), 17, 64, 64))[0]
    kinds, made, usable, rows = list(SPOILERS), {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            kind, stem = kinds[i % len(kinds)], f"{i:05d}"
            usable[stem] = SPOILERS[kind][1]
            made[kind] = made.get(kind) or SPOILERS[kind][0](frames, "a red ball")
            rows.append(BAD_ROWS[i % len(BAD_ROWS)].format(f"{stem}.{next(iter(made[kind]))}"))
            for ending, data in made[kind].items():
                Path(folder, f"{stem}.{ending}").write_bytes(data)
        Path(folder, "metadata.jsonl").write_text("\n".join(rows))
        try:
            cache = build_clip_cache(folder, small_vae(), Path(folder, "cache"), progress=False)
            listed = {row["name"].split(".")[0] for row in map(json.loads, Path(folder, "cache/faults.jsonl").read_text().splitlines())}
        except Exception as error:
            return {"value": n, "n": n, "note": f"{type(error).__name__}: {error}"}
    wrong = [stem for stem, good in usable.items() if good == (stem in listed)]
    lost = max(0, sum(usable.values()) - len(cache))
    return {"value": len(wrong) + lost, "n": n}


BUILD = """import sys; sys.path.insert(0, {here!r})
from clip_figures import small_vae, build_clip_cache
build_clip_cache({data!r}, small_vae(), {cache!r}, shard_mb=0.05, workers=0, progress=False)"""


def resume_differs(clips=60, steps=200):
    "Batches, of `steps`, that differ between a cache built at once and one whose building was killed (SIGKILL) and resumed: should be 0."
    from types import SimpleNamespace
    leg = SimpleNamespace(image_share=0.3, batch_size=8, image_batch=16, mid_clip_share=0.2, cond_dropout=0.1, oversample=())
    with tempfile.TemporaryDirectory() as folder:
        data, broken = write_clips(Path(folder, "data"), clips), Path(folder, "broken")
        code = BUILD.format(here=str(Path(__file__).parent), data=str(data), cache=str(broken))
        child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        while child.poll() is None and len(list(broken.glob("shard-*.safetensors"))) < 3:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        stopped = len(list(broken.glob("shard-*.safetensors")))
        make = lambda where: build_clip_cache(data, small_vae(), where, shard_mb=0.05, workers=0, progress=False)
        whole, resumed = make(Path(folder, "whole")), make(broken)
        same = lambda a, b: all(torch.equal(a[k], b[k]) for k in ("x0", "ids", "coverage"))
        shards = len(whole.shards())
        differ = sum(not same(clip_batch_at(whole, leg, 0, s), clip_batch_at(resumed, leg, 0, s)) for s in range(steps))
    return {"value": differ, "n": steps, "note": f"killed after {stopped} of {shards} shards"}


def loader_margin(clips=128, steps=3, workers=2):
    "Clips a second that the loader gives from the cache, divided by those that the trainer of mini takes here: should be 3 or more."
    from sora_edu.training.loop import State, Trainee, train_step
    cfg, leg = get_config("mini"), get_config("mini").legs[1]
    with tempfile.TemporaryDirectory() as folder:
        data = write_clips(Path(folder, "data"), clips)
        begin = time.perf_counter()
        decoded = sum(len(made) for made, _ in loader(find_clips(data)[0], Buckets(), workers))
        decoded /= time.perf_counter() - begin
        cache = build_clip_cache(data, small_vae(), Path(folder, "cache"), workers=workers, progress=False)
    begin = time.perf_counter()
    given = sum(len(clip_batch_at(cache, leg, 0, step)["x0"]) for step in range(200)) / (time.perf_counter() - begin)
    state, taken = State(Trainee(cfg), leg.learning_rate), 0
    batches = [b for b in (clip_batch_at(cache, leg, 0, step) for step in range(50)) if not b["image"]][:steps + 1]
    for k, batch in enumerate(batches):
        begin = time.perf_counter() if k == 1 else begin                 # the first step warms up
        train_step(state, batch, leg)
        taken += len(batch["x0"]) * (k > 0)
    taken /= time.perf_counter() - begin
    return {"value": round(given / taken, 1), "n": 200,
            "note": f"from the cache {given:.0f}, decoded by {workers} workers {decoded:.1f}, needed {taken:.1f} clips a second"}


if __name__ == "__main__":
    for figure in sys.argv[1:] or ("faults_fatal", "resume_differs", "loader_margin"):
        print(figure, globals()[figure]())
