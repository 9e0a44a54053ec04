"""Look after the chapters: count their words, run them, time them. Needs no nbdev.

    python tools/chapters.py check [NAME ...]      the style rules, as JSON; exit code 1 if one is broken
    python tools/chapters.py run   [NAME ...]      execute, two at a time; exit code 1 if a cell fails
    python tools/chapters.py time  [NAME ...]      execute one after the other, alone, for honest seconds

NAME is a notebook's name or a part of it ("01_video", "world"); none means all. `run` and `time` print their
progress on stderr and, on stdout, the seconds of each as JSON, {name: seconds}. They take
  --slow      run the cells marked `#| slow`, and the labs, too (a lab also runs if it is named)
  --inplace   store the outputs, cleaned, in the notebooks
  --quiet     one line for people instead of JSON
"""
import argparse
import json
import os
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PAGES = ("index",)  # not lessons; neither are the labs, in folders of their own
KEEP_METADATA = ("slideshow", "tags", "nbgrader")  # as settings.ini's allowed_cell_metadata_keys
LIMITS = dict(objectives=(3, 5), words=(1000, 2000), median_lines=(1, 7.5), kilobytes=(0, 1000))
SKIPPED = {"slow", "cuda", "net"}  # as settings.ini's tst_flags


# -- counting: pure functions of a notebook as a dict ------------------------------------------------------------------
def source(cell):
    "The text of `cell`."
    return "".join(cell["source"])


def cells_of(notebook, kind):
    "The sources of the cells of `kind` (\"markdown\" or \"code\") that hold anything."
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == kind and source(cell).strip()]


def directives(code):
    "The nbdev directives that open a code cell: `#| slow` -> {\"slow\"}; `#| eval: false` -> {\"eval: false\"}."
    lines = (line.strip() for line in code.splitlines())
    return {line[2:].strip() for line in lines if line.startswith("#|")}


def code_lines(code):
    "Lines of a code cell that a reader reads: neither blank nor a directive."
    return sum(bool(line.strip()) and not line.strip().startswith("#|") for line in code.splitlines())


def words(text):
    "Words of prose in markdown: fenced code, formulas set apart, comments, embedded images and link targets do not count."
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"<!--.*?-->", r"<[^>]+>"):
        text = re.sub(pattern, " ", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return len(re.findall(r"[^\W_][\w'’.-]*", text))


def objectives(markdown):
    "Bullets of the list that follows the word Objectives, over the markdown cells' sources."
    lines = "\n".join(markdown).splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"[#*\s]*objectives\b", line, flags=re.I)]
    count = 0
    for line in lines[starts[0] + 1:] if starts else []:
        if re.match(r"\s*([-*+]|\d+\.)\s", line):
            count += 1
        elif line.startswith(("#", "**")) or (count and line.strip() and not line.startswith(" ")):
            break
    return count


def measure(notebook, size=0):
    "All that the style rules look at, of one notebook as a dict and its `size` in bytes."
    code, prose = cells_of(notebook, "code"), cells_of(notebook, "markdown")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return dict(objectives=objectives(prose), words=sum(map(words, prose)),
                median_lines=statistics.median([code_lines(c) for c in code] or [0]), kilobytes=round(size / 1000, 1),
                code_cells=len(code), pictures=sum(is_picture(output) for output in outputs),
                errors=sum(output["output_type"] == "error" for output in outputs),
                outputs=len(outputs))


def is_picture(output):
    "Does `output` hold an image, a video, or drawn HTML?"
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    return any(kind.startswith(("image/", "video/")) for kind in data) or any(tag in html for tag in ("<video", "<img", "<svg"))


def complaints(measured):
    "What is wrong with a chapter, one line each; an empty list for a good one."
    said = [f"{name}: got {measured[name]}, allowed: {low} to {high}"
            for name, (low, high) in LIMITS.items() if not low <= measured[name] <= high]
    if measured["errors"]:
        said.append(f"errors: got {measured['errors']} error outputs, allowed: none")
    missing = [name for name in ("outputs", "pictures") if not measured[name]]
    return said + [f"{name}: got none, allowed: at least one" for name in missing[:1]]


# -- files -------------------------------------------------------------------------------------------------------------
def chapters(names=(), *, lessons_only=False, labs=True):
    "Paths of the notebooks whose name holds one of `names` (all if there is none), in reading order; the labs come last."
    found = sorted((path for path in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts)),
                   key=lambda path: (path.parent != NBS, path))
    if names:
        chosen = [path for path in found if any(name.removesuffix(".ipynb") in path.stem for name in names)]
    else:
        chosen = [path for path in found if labs or path.parent == NBS]
    if not chosen:
        raise SystemExit(f"chapters: got {', '.join(names)}, allowed: {', '.join(path.stem for path in found)}")
    return [path for path in chosen if path.parent == NBS and path.stem not in PAGES] if lessons_only else chosen


def load(path):
    "The notebook at `path` as a dict."
    return json.loads(Path(path).read_text(encoding="utf-8"))


def style(path):
    "`measure` of the notebook at `path`, with its `complaints`."
    measured = measure(load(path), Path(path).stat().st_size)
    return {**measured, "complaints": complaints(measured)}


# -- running -----------------------------------------------------------------------------------------------------------
def skips(code, slow):
    "Is this code cell left out of a run?"
    found = directives(code)
    return "eval: false" in found or bool(found & (SKIPPED - ({"slow"} if slow else set())))


def clean(notebook):
    "Drop what changes from run to run: counts, tags of ours, metadata, widget state."
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.pop("tags", []) if tag != "skip-execution"]
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in KEEP_METADATA} | ({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.execution_count = None
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
            if "execution_count" in output:
                output["execution_count"] = None
    notebook.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return notebook


def execute(path, *, slow=False, inplace=False, timeout=900):
    "Run the notebook at `path` in its own folder -> (seconds, the first line of what failed or `None`)."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and skips(cell.source, slow):
            cell.metadata["tags"] = cell.metadata.get("tags", []) + ["skip-execution"]
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", store_widget_state=False,
                            resources={"metadata": {"path": str(path.parent)}})
    start, failed = time.perf_counter(), None
    try:
        client.execute(env=environment())
    except CellExecutionError as error:
        failed = f"{error.ename}: {error.evalue}".splitlines()[0] + "\n" + re.sub(r"\x1b\[[\d;]*m", "", error.traceback)
    except (CellTimeoutError, DeadKernelError) as error:
        failed = f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - start, 2)
    if inplace and not failed:
        nbformat.write(clean(notebook), path)
    return seconds, failed


def environment():
    "The kernels' environment: one thread each, no network, the package of this checkout."
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def run(paths, *, processes=2, slow=False, inplace=False, tell=lambda line: None):
    "Execute the notebooks at `paths`, `processes` at a time -> ({name: seconds}, {name: why it failed})."
    def one(path):
        seconds, failed = execute(path, slow=slow, inplace=inplace)
        tell(f"{'FAILED' if failed else 'ok':6} {seconds:6.1f} s  {path.stem}" + (f"\n{failed}" if failed else ""))
        return path.stem, seconds, failed
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(one, paths))
    return {name: s for name, s, _ in done}, {name: why.splitlines()[0] for name, _, why in done if why}


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "run", "time"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    for flag in ("--slow", "--inplace", "--quiet"):
        parser.add_argument(flag, action="store_true")
    said = parser.parse_intermixed_args(args)
    if said.command == "check":
        told = {path.stem: style(path) for path in chapters(said.names, lessons_only=True)}
        print(json.dumps(told, indent=1))
        return int(any(chapter["complaints"] for chapter in told.values()))
    start = time.perf_counter()
    seconds, failed = run(chapters(said.names, labs=said.slow), processes=2 if said.command == "run" else 1, slow=said.slow, inplace=said.inplace,
                          tell=lambda line: print(line, file=sys.stderr, flush=True))
    summary = f"{len(seconds)} notebooks, {len(failed)} failed, {time.perf_counter() - start:.0f} s"
    print(summary if said.quiet else json.dumps(seconds, indent=1), flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
