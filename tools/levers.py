"""Screen eighteen levers of sample efficiency at equal seconds, repeat the best four, and write figures/levers.json (chapter 19ed).

    python tools/levers.py                         eight minutes for each run, in runs/levers; some five hours of one core in all
    python tools/levers.py --seconds 60 --out DIR  another screening, in a folder of its own, beside which its levers.json is put
    python tools/levers.py --processes 1           one run after the other, each on all threads

Ctrl-C stops it at any moment; the same command goes on.
"""
import argparse
import sys
from pathlib import Path

import torch

from sora_edu.evaluate.levers import publish, screen

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 480.0


def arguments(args=None):
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--seconds", type=float, default=SECONDS, help="of each run, on a quiet machine")
    parse.add_argument("--out", type=Path, default=ROOT / "runs" / "levers")
    parse.add_argument("--processes", type=int, default=2, help="runs at a time; they share the threads")
    told = parse.parse_args(args)
    if told.processes < 1:
        parse.error(f"--processes: got {told.processes}, allowed: 1 or more")
    return told


def lines(told) -> list:
    "What was found, for people: a line for each run, then what may go into the configs."
    rows = [f"{row['lever']}, seed {row['seed']}: {row['right']} of {row['n']} right, {100 * row['difference']['difference']:+.1f} points "
            f"({100 * row['difference']['low']:+.1f} to {100 * row['difference']['high']:+.1f})" for row in told["rows"]]
    return rows + [f"into the configs: {', '.join(told['adopt']) or 'none'}; {told['cpu_hours']} processor hours"]


def main(args=None) -> int:
    args = arguments(args)
    path = ROOT / "figures" / "levers.json" if args.seconds == SECONDS else args.out / "levers.json"
    torch.set_num_threads(max(1, torch.get_num_threads() // args.processes))
    try:
        screen(args.out, args.seconds, processes=args.processes)
        print("\n".join(lines(publish(args.out, path, seconds=args.seconds))))
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
