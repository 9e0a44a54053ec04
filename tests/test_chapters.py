"Every chapter is a lesson: counted, with its outputs, and in step with the module that it exports."
import json
import re

import pytest

import chapters as tool

ALL = tool.chapters()
LESSONS = tool.chapters(lessons_only=True)


def cell(kind, text, outputs=()):
    return {"cell_type": kind, "source": text.splitlines(keepends=True), "metadata": {}, "outputs": list(outputs)}


def notebook(*cells):
    return {"cells": list(cells), "metadata": {}}


PICTURE = {"output_type": "display_data", "data": {"image/png": "AAAA"}, "metadata": {}}
GOOD = [cell("markdown", "**Objectives**\n- one\n- two\n- three\n"), cell("markdown", "word " * 1200), cell("code", "x = 1\nx\n", [PICTURE])]


# -- the counting itself -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, count", [
    ("two words", 2), ("", 0), ("a [link](https://example.org/a/b) here", 3), ("```text\nnot counted\n```\none", 1), ("$$x = y + z$$", 0),
    ("| a | b |\n| --- | --- |", 2), ("<!-- a note -->", 0), ("it's state-of-the-art", 2), ('<img alt="x y">', 0)])
def test_words(text, count):
    assert tool.words(text) == count


@pytest.mark.parametrize("text, count", [
    ("**Objectives**\n\n- a\n- b\n- c\n\nThen.\n- no", 3), ("## Objectives\n1. a\n2. b\n", 2), ("- a\n- b", 0),
    ("**Objectives:**\n* a\n  goes on\n* b", 2), ("**Objectives.** You can\n\n- a\n\nNo.\n- x", 1), ("**Objectives**\n# Next\n- x", 0)])
def test_objectives(text, count):
    assert tool.objectives([text]) == count


def test_directives_and_lines():
    code = "#| export\n#| slow\n\nx = 1  # one\n# a comment\ny = 2\n"
    assert tool.directives(code) == {"export", "slow"} and tool.code_lines(code) == 3
    assert tool.skips(code, slow=False) and not tool.skips(code, slow=True)
    assert tool.skips("#| eval: false\nx", slow=True) and not tool.skips("x  # slow", slow=False)


def test_a_good_chapter_has_no_complaints():
    assert tool.complaints(tool.measure(notebook(*GOOD), 100_000)) == []


@pytest.mark.parametrize("cells, size, word", [
    (GOOD[1:], 1, "objectives"), ([GOOD[0], GOOD[2]], 1, "words"), ([*GOOD, cell("markdown", "word " * 900)], 1, "words"),
    ([*GOOD, *[cell("code", "x\n" * 8)] * 2], 1, "median_lines"), (GOOD, 1_500_000, "kilobytes"), (GOOD[:2] + [cell("code", "x")], 1, "outputs"),
    ([*GOOD, cell("code", "x", [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}])], 1, "error"),
    (GOOD[:2] + [cell("code", "x", [{"output_type": "stream", "name": "stdout", "text": "1"}])], 1, "pictures")])
def test_a_bad_chapter_is_told_why(cells, size, word):
    said = tool.complaints(tool.measure(notebook(*cells), size))
    assert said and all(word in line for line in said)


def test_the_parts_of_the_swap_lab_take_fifteen_lines_or_fewer():
    cells = tool.cells_of(tool.load(tool.NBS / "labs" / "swap.ipynb"), "code")
    assert len(cells) > 10 and max(map(tool.code_lines, cells)) <= 15


# -- running -----------------------------------------------------------------------------------------------------------
def written(folder, *cells):
    nbformat = pytest.importorskip("nbformat")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbformat.write(made, folder / "one.ipynb")
    return folder / "one.ipynb"


def test_execute_skips_stores_and_leaves_alone(tmp_path):
    path = written(tmp_path, "1 + 1", "#| slow\n1 / 0")
    before = path.read_bytes()
    seconds, failed = tool.execute(path)
    assert failed is None and seconds > 0 and path.read_bytes() == before
    tool.execute(path, inplace=True)
    first, second = tool.load(path)["cells"]
    assert first["outputs"][0]["data"]["text/plain"] == ["2"] and first["execution_count"] is None
    assert second["outputs"] == [] and second["metadata"] == {}
    stored = path.read_bytes()
    seconds, failed = tool.run([path], slow=True, inplace=True)
    assert list(seconds) == list(failed) == ["one"] and "ZeroDivisionError" in failed["one"] and path.read_bytes() == stored


# -- the chapters ------------------------------------------------------------------------------------------------------
def test_there_are_chapters():
    assert LESSONS and "index" in [path.stem for path in ALL] and "index" not in [path.stem for path in LESSONS]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_style(path):
    assert tool.style(path)["complaints"] == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_opens_like_a_lesson(path):
    "A title and one sentence; prerequisites and the run time; a summary, references, and a place for exercises."
    cells = tool.cells_of(tool.load(path), "markdown")
    assert re.match(r"# \S.*\n+> \S", cells[0]), "the first cell is a title and a sentence behind >"
    text = "\n".join(cells).lower()
    for word in ("prerequisites", "run time", "summary", "references", "exercises"):
        assert word in text, f"no {word}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_is_clean(path):
    "No counts, no stray metadata, no widget state: running again changes nothing by itself."
    made = tool.load(path)
    assert set(made["metadata"]) == {"kernelspec"}
    for one in made["cells"]:
        assert one.get("execution_count") is None and set(one["metadata"]) <= set(tool.KEEP_METADATA)
        assert all(output.get("execution_count") is None for output in one.get("outputs", []))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_runs_without_nbdev(path):
    code = "\n".join(tool.cells_of(tool.load(path), "code"))
    assert not re.search(r"^\s*(from|import) +(nbdev|fastcore|execnb)", code, flags=re.M)


def exported(path):
    "The module's path under sora_edu that the notebook at `path` exports, or `None`."
    found = [re.search(r"^#\| *default_exp +(\S+)", code, flags=re.M) for code in tool.cells_of(tool.load(path), "code")]
    names = [match[1] for match in found if match]
    return names[0].replace(".", "/") + ".py" if names else None


def without_comments(text):
    "A module's text without the lines that say where cells came from."
    return [line for line in text.splitlines() if line.strip() and not line.startswith(("# %%", "# AUTOGENERATED"))]


@pytest.mark.parametrize("path", [path for path in ALL if exported(path)], ids=lambda path: path.stem)
def test_module_is_what_the_notebook_exports(path, root, tmp_path):
    export = pytest.importorskip("nbdev.export")
    export.nb_export(path, lib_path=tmp_path / "sora_edu")  # the name decides which imports become relative
    fresh, there = tmp_path / "sora_edu" / exported(path), root / "sora_edu" / exported(path)
    assert without_comments(fresh.read_text(encoding="utf-8")) == without_comments(there.read_text(encoding="utf-8"))


def test_every_module_has_its_chapter(root):
    made = {exported(path) for path in ALL}
    there = {path.relative_to(root / "sora_edu").as_posix() for path in (root / "sora_edu").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py")}
    assert there == made - {None}


def test_clips_are_not_gifs():
    assert [path.stem for path in ALL if "image/gif" in json.dumps(tool.load(path))] == []
