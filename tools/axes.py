"""Train the scaling lab's variants at 4x, all at the same compute, and write figures/axes.json (chapter 19e).

    python tools/axes.py                    seven runs of six minutes of two cores, in runs/scaling; then each is judged

Ctrl-C stops it at any moment; the same command goes on.
"""
import sys
from pathlib import Path

from sora_edu.evaluate.scaling import LABS, publish_axes

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    try:
        for row in publish_axes(LABS["cpu"], ROOT / "runs" / "scaling", ROOT / "figures" / "axes.json")["rows"]:
            print(f"{row['name']}: loss {row['loss']:.4f}, colours {100 * row['adherence']['colour']['share']:.0f} % of {row['adherence']['colour']['n']}")
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
