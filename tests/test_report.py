"The report: pairs compared exactly, intervals that are honest, a page that holds every clip and nothing from elsewhere."
import json
import math
import random
import re

import numpy as np
import pytest
from scipy.stats import binomtest

from sora_edu.evaluate.adherence import evaluate, suite
from sora_edu.evaluate.report import compare, gather, mcnemar, page, report, worst
from sora_edu.video import to_uint8
from sora_edu.world.render import render

SCENES = {case.prompt: case.scene for case in suite("seen")}


def draw(prompts, seeds):
    return render([SCENES[p] for p in prompts])


def wrong_half(prompts, seeds):
    "Every other clip is another prompt's."
    clips = draw(prompts, seeds)
    clips[1::2] = clips[1::2].flip(0)
    return clips


@pytest.fixture(scope="module")
def rows():
    return gather(wrong_half, limit=8, progress=False)


@pytest.mark.parametrize("mended, broken", [(0, 0), (1, 0), (5, 5), (20, 5), (100, 85), (9, 1)])
def test_p_is_the_exact_binomial_one(mended, broken):
    one, two = [False] * mended + [True] * broken + [True] * 20, [True] * mended + [False] * broken + [True] * 20
    told = mcnemar(one, two)
    assert (told["only_two"], told["only_one"], told["n"]) == (mended, broken, mended + broken + 20)
    exact = binomtest(mended, mended + broken).pvalue if mended + broken else 1.0
    assert math.isclose(told["p"], exact, rel_tol=1e-9)
    back = mcnemar(two, one)
    assert math.isclose(back["difference"], -told["difference"]) and math.isclose(back["low"], -told["high"], abs_tol=1e-12)


def test_newcombe_s_own_example():
    "Newcombe 1998 (paired), table II: 36, 12, 2, 0 of 50: 0.2 with 0.0569 to 0.3404 by his method 10 without continuity correction."
    told = mcnemar([True] * 36 + [False] * 12 + [True] * 2, [True] * 36 + [True] * 12 + [False] * 2)
    assert math.isclose(told["difference"], 0.2) and abs(told["low"] - 0.0569) < 0.02 and abs(told["high"] - 0.3404) < 0.02


@pytest.mark.parametrize("shares, n", [((0.84, 0.87), 480), ((0.5, 0.5), 240), ((0.97, 0.99), 240)])
def test_nineteen_of_twenty_intervals_hold_the_truth(shares, n):
    dice, inside = random.Random(n), 0
    for _ in range(400):
        luck = [dice.random() for _ in range(n)]
        one, two = ([(x if dice.random() < 0.6 else dice.random()) < s for x in luck] for s in shares)
        told = mcnemar(one, two)
        inside += told["low"] <= shares[1] - shares[0] <= told["high"]
    assert 0.92 * 400 <= inside < 400


def test_pairs_of_other_prompts_are_refused(rows):
    with pytest.raises(ValueError, match="two: got other prompts, seeds or attributes than one, from row 0"):
        compare(rows, rows[::-1])
    with pytest.raises(ValueError, match="from row 7"):
        compare(rows, rows[:7])
    with pytest.raises(ValueError, match="at least one"):
        mcnemar([], [])


@pytest.mark.parametrize("change", [dict(seed=-1), dict(prompt="another")])
def test_a_pair_shares_its_prompt_and_its_noise(rows, change):
    assert compare(rows, [dict(row) for row in rows])["all"]["difference"] == 0
    with pytest.raises(ValueError, match="two: got other prompts, seeds or attributes than one, from row 3 on"):
        compare(rows, rows[:3] + [rows[3] | change] + rows[4:])


def test_a_pair_is_asked_for_the_same(rows):
    with pytest.raises(ValueError, match="attributes than one, from row 2 on"):
        compare(rows, rows[:2] + [{k: v for k, v in rows[2].items() if k != "colour"}] + rows[3:])


def test_rows_are_those_of_an_evaluation_with_pictures(rows):
    plain = evaluate(wrong_half, limit=8, progress=False, rows=True)["rows"]
    assert [{k: v for k, v in row.items() if k != "picture"} for row in rows] == plain
    assert sum(row["all"] for row in rows) == 4 and len({row["picture"] for row in rows}) == 8


def test_pictures_are_marked_and_the_judge_saw_them_unmarked(monkeypatch):
    import base64, io
    from PIL import Image
    seen = []
    monkeypatch.setattr("sora_edu.pipeline.generate.mark", lambda clip: seen.append(clip.copy()) or np.zeros_like(clip))
    rows = gather(draw, limit=2, progress=False)
    assert len(seen) == 2 and (seen[0] == to_uint8(draw([rows[0]["prompt"]], [0]))[0]).all() and all(row["all"] for row in rows)
    picture = Image.open(io.BytesIO(base64.b64decode(rows[0]["picture"].split(",")[1])))
    assert picture.n_frames in (1, 17) and np.asarray(picture.convert("RGB")).max() < 8


def test_the_page_holds_every_clip_and_nothing_from_elsewhere(rows):
    text = page(rows, "a title & more", against=gather(draw, limit=8, progress=False))
    assert text.count("<figure>") == 8 and "a title &amp; more" in text and not re.search(r"https?:|<script|@import|url\(", text)
    assert f"Wrong, the worst first: {len(worst(rows))}" in text and "Right: 4" in text
    first, last = (text.index(row["picture"]) for row in (worst(rows)[0], next(r for r in rows if r["all"])))
    assert first < last
    hostile = dict(rows[0], prompt='"><script>alert(1)</script>')
    assert "<script" not in page([hostile], "t")


def test_a_topic_does_not_hide_the_attribute_of_its_name(rows):
    "Two clips of the topic `size`, and two of another that ask for a size as well."
    some = [dict(rows[i], topic=topic, size=size, all=False) for i, (topic, size) in enumerate((("size", True), ("size", False), ("b", True), ("b", True)))]
    text = page(some, "t")
    assert "<td>size</td><td>3 of 4" in text and "<td>size</td><td>0 of 2" in text and "<td>b</td><td>0 of 2" in text and "<th>topic</th>" not in page(rows, "t")


def test_a_report_is_one_file_and_its_counts(tmp_path, rows):
    told = report(tmp_path / "page.html", wrong_half, limit=8, against=draw, progress=False)
    assert [f.name for f in tmp_path.iterdir()] == ["page.html"]
    assert "<h1>wrong_half on the suite &#x27;seen&#x27;, against draw</h1>" in (tmp_path / "page.html").read_text()
    report(tmp_path / "page.html", draw, limit=2, title="My <rule>", progress=False)
    assert "<h1>My &lt;rule&gt;</h1>" in (tmp_path / "page.html").read_text()
    assert told["all"]["right"] == 4 and told["against"]["all"]["only_one"] == 4 and json.dumps(told)
    with pytest.raises(ValueError, match="path: got .*nowhere"):
        report(tmp_path / "nowhere" / "page.html", lambda *a: pytest.fail("clips were made"), limit=2)
    with pytest.raises(ValueError, match="suite: got 'unseen'"):
        report(tmp_path / "other.html", draw, "unseen")
