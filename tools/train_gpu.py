"""Train `base` on a GPU in slices of some minutes, and keep what it has learnt ready to ship.

    python tools/train_gpu.py --minutes 9 --out runs/base                   a slice; called again, it goes on where that one ended
    python tools/train_gpu.py --minutes 2 --out runs/try --miniature        every step of it in miniature, on a CPU

OUT/ship holds the packaged weights of the last leg that has ended, in shards of at most 15 MiB. The last line on stdout says whether all
legs are done, and how fast the steps of this slice were: utilisation is counted operations over --peak-tflops. The exit code is 0 either way.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Slice:
    "Trains legs, counts what they do, and has other processes draw clips for the next leg meanwhile."
    def __init__(self, cfg, args):
        self.cfg, self.args, self.drawing = cfg, args, None
        self.leg = self.step = self.steps = self.seconds = 0
        self.rang = None                                            # how many steps were done when the minutes were over
        self.seen = Counter()                                       # shape of latents [t, h, w] -> how many

    def ring(self, *_):
        "The minutes are over: as Ctrl-C, so that the loop ends its step and saves."
        self.rang = self.steps
        signal.raise_signal(signal.SIGINT)

    def loss(self, model, batch, leg, device):
        "The loss of chapter 15, with a count."
        from sora_edu.training.loop import training_loss
        self.since = self.since or time.perf_counter()
        self.seen[tuple(batch["x0"].shape[2:])] += len(batch["x0"])
        return training_loss(model, batch, leg, device)

    def on_step(self, state, loss, vae):
        "After each step: its time; after the first of a leg, its clips are all there, and the cores are free to draw the next leg's."
        now = time.perf_counter()
        self.steps, self.step, self.seconds, self.since = self.steps + 1, state.step, self.seconds + now - self.since, now
        if self.rang is not None and self.steps > self.rang + 1:    # a library that was being loaded has swallowed it
            self.ring()
        if self.args.ahead and self.drawing is None and self.leg + 1 < len(self.cfg.legs):
            told = [f"--{name}={getattr(self.args, name)}" for name in ("out", "device", "ahead")] + ["--miniature"] * self.args.miniature
            self.drawing = subprocess.Popen([sys.executable, __file__, *told, "--draw-for", str(self.leg + 1), str(os.getpid())], start_new_session=True)

    def train(self, leg):
        "A leg, or what is left of it."
        from sora_edu.training.loop import Parts, train
        self.leg, self.step, self.since = leg, 0, None
        before = self.args.out / f"leg{leg - 1}.safetensors" if leg else None
        try:
            train(self.cfg, leg=leg, from_weights=before, resume=True, out=self.args.out, device=self.args.device, parts=Parts(loss=self.loss),
                  on_step=self.on_step, save_every=self.args.save_every, progress=not self.args.miniature)
        finally:
            if self.drawing is not None:
                os.killpg(self.drawing.pid, signal.SIGTERM)         # shards are whole or not there
                self.drawing.wait()
                self.drawing = None

    def line(self, done) -> str:
        "What has been reached, and how fast."
        from sora_edu.training.configs import flops
        at = "all legs" if done else f"leg {self.leg}, step {self.step} of {self.cfg.legs[self.leg].steps}"
        per_second = 1 / self.seconds if self.seconds else 0.0
        share = sum(n * flops(self.cfg, *shape) for shape, n in self.seen.items()) * per_second / (self.args.peak_tflops * 1e12)
        return (f"{'finished' if done else 'goes on'}: {at}; this slice: {self.steps} steps in {self.seconds:.0f} s, {self.seen.total() * per_second:.0f} samples/s, "
                f"utilisation {100 * share:.3g} % of {self.args.peak_tflops:g} TFLOP/s")


def shipped(out) -> int:
    "The leg whose weights are packaged in OUT/ship, or -1."
    try:
        return json.loads((out / "ship" / "model.json").read_text())["info"]["leg"]
    except FileNotFoundError:
        return -1


def ship(cfg, leg, out, device):
    "Package the weights that a leg ended with, and the logs that tell how long it took."
    from safetensors.torch import load_file
    from sora_edu.pipeline.generate import package
    from sora_edu.training.loop import Trainee, load_vae
    net = Trainee(cfg)
    net.load_state_dict(load_file(out / f"leg{leg}.safetensors"))
    legs = [asdict(one) for one in cfg.legs[:leg + 1]]
    package(out / "ship", load_vae(out / "vae.safetensors"), net.text_encoder, net.dit, cfg, leg=leg, legs=legs, seed=cfg.seed, clips=cfg.clips, device=str(device))
    for k in range(leg + 1):
        shutil.copy(out / f"leg{k}.jsonl", out / "ship")


def _leave_with(parent):
    "End this process when its parent has ended: two that write one cache would spoil it."
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def draw_for(cfg, leg, parent, args) -> int:
    "Draw and encode the clips of a leg before it begins, for as long as the process that trains is there."
    from sora_edu.training.loop import drawn, load_vae
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    drawn(cfg, load_vae(args.out / "vae.safetensors").to(args.device), args.out, cfg.legs[leg].clips, device=args.device, workers=args.ahead, progress=False)
    return 0


def work(slice, cfg, out) -> bool:
    "All legs, one after the other -> whether they are done."
    try:
        for leg in range(len(cfg.legs)):
            if not (out / f"leg{leg}.safetensors").exists():
                slice.train(leg)
            if shipped(out) < leg:
                ship(cfg, leg, out, slice.args.device)
        return True
    except KeyboardInterrupt:
        return False


def arguments(args=None):
    import torch
    cuda = torch.cuda.is_available()
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--minutes", type=float, default=9.0, help="of this slice, more than 0")
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--miniature", action="store_true")
    parse.add_argument("--device", default="cuda" if cuda else "cpu")
    parse.add_argument("--peak-tflops", type=float, default=790.0, help="what large bf16 matrix products reach on this machine")
    parse.add_argument("--save-every", type=int, default=500, help="steps between two checkpoints")
    parse.add_argument("--ahead", type=int, default=max(1, (os.cpu_count() or 2) - 2) if cuda else 0, help="processes that draw for the next leg; 0 for none")
    parse.add_argument("--draw-for", type=int, nargs=2, metavar=("LEG", "PARENT"), help=argparse.SUPPRESS)
    told = parse.parse_args(args)
    for name in ("minutes", "peak_tflops", "save_every"):
        if not getattr(told, name) > 0:
            parse.error(f"--{name.replace('_', '-')}: got {getattr(told, name)}, allowed: more than 0")
    if told.ahead < 0:
        parse.error(f"--ahead: got {told.ahead}, allowed: 0 or more")
    return told


def main(args=None) -> int:
    args = arguments(args)
    from sora_edu.training.configs import BASE, BASE_NANO
    cfg = BASE_NANO if args.miniature else BASE
    if args.draw_for is not None:
        return draw_for(cfg, *args.draw_for, args)
    slice = Slice(cfg, args)
    before = signal.signal(signal.SIGALRM, slice.ring)
    signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes)
    try:
        done = work(slice, cfg, args.out)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(slice.line(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
