"The ten suites: committed, balanced, on the right side of the split, and no case that its own shot would fail."
import json

import pytest
import torch

from sora_edu.evaluate import suites as S
from sora_edu.video import to_uint8
from sora_edu.world import eye
from sora_edu.world.oracle import Reading
from sora_edu.world.stage import CAMERAS, INTERACTIONS, RELATIONS, STYLES, is_heldout


def test_the_packaged_file_is_what_the_function_makes(root):
    assert (root / "sora_edu" / "data" / "suites_full.json").read_text() == S.suites_json()


@pytest.mark.parametrize("topic", S.TOPICS)
def test_every_case_fits_its_topic_and_its_own_shot_passes(topic):
    cases = S.suite(topic)
    assert len(cases) == S.EACH and len({c.id for c in cases}) == S.EACH
    for i, case in enumerate(cases):
        assert S.TOPICS[topic].fits(case.shot, i) and is_heldout(case.shot) == (topic == "heldout")
        said = case.description
        assert set(case.asked) <= set(S.TOPICS[topic].asked) and all(getattr(said, a) is not None for a in case.asked)
        assert all(eye.agrees(Reading(case.shot.description, {}), said).values())


@pytest.mark.parametrize("topic, attribute, words", [("camera", "camera", CAMERAS), ("style", "style", STYLES), ("relations", "relation", RELATIONS),
                                                     ("interaction", "action", INTERACTIONS), ("counting", "count", (2, 3, 4)), ("physics", "action", ("bounces", "falls"))])
def test_words_come_equally_often(topic, attribute, words):
    said = [getattr(case.description, attribute) for case in S.suite(topic)]
    counts = [said.count(word) for word in words]
    assert sum(counts) == S.EACH and max(counts) - min(counts) <= 1


def test_a_case_asks_only_for_its_topic():
    case = S.Case("x", "camera", "a small red ball bounces in the snow, the camera pans left", 0, ("actor", "camera"))
    right = case.shot.description
    other = Reading(right.__class__(**{**vars(right), "setting": "underwater", "action": "falls"}), {})
    assert all(eye.agrees(other, case.description).values())
    wrong = Reading(right.__class__(**{**vars(right), "camera": "still"}), {})
    assert eye.agrees(wrong, case.description) == {"actor": True, "camera": False}


@pytest.mark.parametrize("rows, message", [
    ([{"prompt": "a red bal bounces"}], "prompt 1: .*bal.*ball"),
    ([{"id": "a", "prompt": "a red ball bounces"}] * 2, "the id 'a' a second time"),
    ([{"prompt": "a red ball bounces", "asked": ["camera"]}], "prompt 1: asks for camera"),
    ([{"prompt": "a red ball bounces", "asked": ["mood"]}], "asks for mood"),
    ([{"prompt": "a red ball bounces", "asked": []}], "asks for nothing"),
    ([{"prompt": "a red ball bounces", "seed": -1}], "seed -1"),
    ([{"prompt": 3}], "prompt 1: got"), (["a red ball"], "prompt 1: got"), ([], "without prompts"), ({"a": 1}, "without prompts")])
def test_a_suite_with_a_mistake_is_refused_by_name(tmp_path, rows, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        S.read_suite(path)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe no json")
    for name in ("bad.json", "nowhere.json"):
        with pytest.raises(ValueError, match=f"suite: got {name}, which cannot be read"):
            S.read_suite(tmp_path / name)
    with pytest.raises(ValueError, match="topic: got 'colours', allowed: attributes"):
        S.suite("colours")


def test_a_suite_of_one_s_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"prompt": "two small red balls bounce at night"}, {"id": "b", "prompt": "a boat at sunset", "seed": 5, "asked": ["actor"]}]))
    a, b = S.read_suite(path)
    assert (a.id, a.seed, set(a.asked)) == ("prompt 1", 0, {"size", "colour", "actor", "action", "count", "time"}) and (b.id, b.seed, b.asked) == ("b", 5, ("actor",))


def test_renders_pass_and_another_prompt_s_clips_do_not():
    cases = [S.suite(topic)[i] for topic in ("counting", "style", "beats") for i in (0, 1)]
    told = S.evaluate(S.perfect, cases, progress=False)
    assert sum(told[t]["right"] for t in ("counting", "style", "beats")) >= 5 and len(told["rows"]) == 6
    swapped = S.evaluate(lambda p, s: S.perfect(p, s).roll(1, 0), cases, progress=False)
    assert sum(swapped[t]["right"] for t in ("counting", "style", "beats")) <= 1
    clips = S.perfect([c.prompt for c in cases[:2]], [c.seed for c in cases[:2]])
    assert S.judge(to_uint8(clips), cases[:2]) == S.judge(clips, cases[:2])
    with pytest.raises(ValueError, match="cases: got 1"):
        S.judge(torch.zeros(2, 3, 5, 64, 64), cases[:1])


def test_a_page_tells_right_from_wrong_and_what_was_seen(tmp_path):
    "Of two cases one is answered with the other's clip: it comes first, with what was seen instead; topics and attributes have their shares."
    cases = [S.suite("style")[0], S.suite("counting")[0]]
    twice = lambda prompts, seeds: S.perfect(prompts[:1] * 2, seeds[:1] * 2)
    told = S.report(tmp_path / "page.html", twice, cases, "one clip twice", against=S.perfect, progress=False)
    text = (tmp_path / "page.html").read_text()
    assert told["style"]["right"] == 1 and told["counting"]["right"] == 0 and told["against"]["all"]["only_one"] == 1
    wrong, right = (text.index(f'alt="{case.prompt}"') for case in cases[::-1])
    assert text.index("Wrong, the worst first: 1") < wrong < text.index("Right: 1") < right
    assert all(f"<td>{name}</td><td>{share}" in text for name, share in (("style", "1 of 1"), ("counting", "0 of 1"), ("all", "1 of 2")))
    seen = told["rows"][1]["read"]
    assert f"actor <b>{seen['actor']}</b>" in text and seen["actor"] != cases[1].description.actor
    with pytest.raises(ValueError, match="path: got .*nowhere"):
        S.report(tmp_path / "nowhere" / "page.html", lambda *a: pytest.fail("clips were made"), cases, "")
