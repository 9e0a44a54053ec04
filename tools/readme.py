"""Make README.md from nbs/index.ipynb: its markdown, with links that hold at the top of the repository.

    python tools/readme.py            put the figures into nbs/index.ipynb, and write README.md
    python tools/readme.py --check    exit code 1 if either is not what would be written
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, FIGURES = ROOT / "nbs" / "index.ipynb", ROOT / "figures"
TOLD = {  # the figures that a newcomer cares for, in words
    "adherence_all_gpu": "480 prompts: all five attributes right, trained on a GPU",
    "adherence_all_cpu": "480 prompts: all five attributes right, trained on two CPU cores",
    "adherence_actor": "shape right, shipped weights",
    "heldout_gap": "points lost on combinations never seen in training (negative: more were right)",
    "control_worst": "all right by chance: the best of all controls",
    "oracle_renders": "the judge on true renders, all right",
    "vae_psnr": "autoencoder, held-out PSNR",
    "playback_single": "one clip on two cores, seconds it plays ÷ seconds it took",
    "demo_first": "`make demo` in a fresh clone",
}
PARITY = {  # the same, beside the library that everyone uses
    "dit_parity": "the transformer, largest difference on equal weights",
    "vae_parity": "Wan's video autoencoder, built in chapter 7b: the same",
    "sampler_parity": "seven samplers in eight settings, worst difference over 50 steps",
    "stock_frames": "our weights in its network and scheduler: frames differ by at most, grey levels",
    "speed_dit_1": "sampling one clip, its time ÷ ours, bfloat16",
    "speed_dit_16": "sampling sixteen clips, its time ÷ ours, bfloat16",
    "speed_train": "a training step, its time ÷ ours",
    "dit_floor_share": "bare matrix products and attention of a pass ÷ our whole pass, float32",
    "families_equal": "families of open models driven by our loop, equal to their own pipelines",
    "ten_steps": "ten steps of the best sampler against Euler's thirty (not our default): more clips all right, at least",
}
SCALING = {"scaling_error": "a law fitted on the five smaller trainings, its error at the largest, in per cent of the last drop in loss",
           "sample_efficiency": "on a corner of the world: samples that a plain twin takes to our goal ÷ ours, given up at 5"}
LINK = re.compile(r"""(\]\(|\bsrc="|\bhref=")(?!https?:|mailto:|\#|/)([^)"\s]+)""")


def relink(text):
    "Relative links of a page in nbs/, as a page above nbs/ writes them: `x.ipynb` -> `nbs/x.ipynb`, `../LICENSE` -> `LICENSE`."
    def moved(match):
        target = match[2]
        return match[1] + (target[3:] if target.startswith("../") else f"nbs/{target}")
    return LINK.sub(moved, text)


def number(row):
    "A figure as a reader likes it: three digits, its unit, its interval if there is one."
    def short(value):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    unit = {"": "", "%": " %"}.get(row["unit"], f" {row['unit']}")
    interval = f" ({short(row['interval'][0])} to {short(row['interval'][1])})" if row.get("interval") else ""
    return short(row["value"]) + unit + interval


def figures_table(rows, words=TOLD):
    "Of the rows of a file in figures/ those that `words` tells, as a markdown table."
    told = {row["name"]: row for row in rows if row["name"] in words and row["value"] is not None}
    lines = [f"| {words[name]} | {number(told[name])} |" for name in words if name in told]
    return "\n".join(["| what | measured |", "| --- | --- |", *lines]) + "\n" if lines else "*Not measured yet.*\n"


def board_table(rows):
    "The rows of `figures/leaderboard.json` as a markdown table, the latest first."
    lines = [f"| {row['name']}, {row['legs']} legs (`{row['shipped']}`) | {number(row['seen'] | {'unit': '%'})} | {number(row['heldout'] | {'unit': '%'})} "
             f"| {row['clips'] / 1000:.0f}k | {row['images'] / 1000:.0f}k | {row['flops'] / 1e15:.1f} | {row['hours']} |" for row in reversed(rows)]
    head = ["| checkpoint | all right | held-out combinations | clips | images | PFLOP | hours |", "| --- " * 7 + "|"]
    return "\n".join([*head, *lines]) + "\n" if lines else "*Not measured yet.*\n"


def with_tables(text, tables):
    "`text` with each table (name -> markdown) between the marks of its name."
    for name, table in tables.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda match: match[1] + "\n" + table + "\n" + match[2], text, flags=re.S)
    return text


def index(path=INDEX, figures=FIGURES):
    "The index notebook as a dict, with the tables as they are now."
    rows = {name: json.loads((figures / f"{name}.json").read_text(encoding="utf-8")) if (figures / f"{name}.json").exists() else []
            for name in ("first-light", "parity", "leaderboard", "evaluation")}
    tables = {"figures": figures_table(rows["first-light"]), "parity": figures_table(rows["parity"], PARITY), "leaderboard": board_table(rows["leaderboard"]),
              "scaling": figures_table(rows["evaluation"], SCALING)}
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = with_tables("".join(cell["source"]), tables).splitlines(keepends=True)
    return notebook


def render(notebook):
    "The text of README.md from the index notebook, a dict."
    import nbformat
    from nbconvert import MarkdownExporter
    notebook = nbformat.reads(json.dumps(notebook), 4)
    notebook.metadata["language_info"] = {"name": "python"}
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r"^#\| .*\n", "", body, flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in body.splitlines())).strip()
    return relink(text) + "\n\n<!-- Made from nbs/index.ipynb by `make readme`; edit that one. -->\n"


def main(args):
    notebook, target = index(), ROOT / "README.md"
    wanted = {INDEX: json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", target: render(notebook)}
    if "--check" in args:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    print("README.md written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
