"The ten suites: committed, balanced, on the right side of the split, and no case that its own shot would fail."
import json
from dataclasses import astuple

import pytest
import torch

from sora_edu.evaluate import suites as S
from sora_edu.video import to_uint8
from sora_edu.world import eye
from sora_edu.world.dataset import World
from sora_edu.world.language import caption, parse
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
    style = [case for case in cases if "style" in case.asked]
    overall = told["overall"]
    assert overall["n"] == 6 and overall["actor"]["n"] == 6 and overall["style"]["n"] == len(style) == 2 and "setting" not in overall
    assert overall["all"]["right"] == sum(row["all"] for row in told["rows"]) and 0 < overall["style"]["low"] < overall["style"]["share"]
    assert sum(overall["reasons"].values()) == sum(row["unreadable"] is not None for row in told["rows"]) == overall["unreadable"]["right"]
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


# -- ceilings and floors -----------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch):
    "Clips that say whose they are, and a judge that knows them: frames are the number of their prompt and seed."
    number = lambda prompt, seed: float(hash((prompt, seed)) % 2 ** 20)
    monkeypatch.setattr(S, "perfect", lambda prompts, seeds: torch.stack([torch.arange(5.).view(1, 5, 1, 1) + number(p, s) for p, s in zip(prompts, seeds)]))

    def judge(clips, cases):
        whole = [torch.equal(torch.as_tensor(clip), torch.arange(5.).view(1, 5, 1, 1) + number(c.prompt, c.seed)) for clip, c in zip(clips, cases)]
        return [dict.fromkeys((*c.asked, "all"), right) | {"unreadable": None if right else "other"} for c, right in zip(cases, whole)]
    monkeypatch.setattr(S, "judge", judge)
    monkeypatch.setattr(S.film, "render", lambda shots: torch.zeros(len(shots), 1, 5, 1, 1))


def test_ceilings_are_of_the_renders_and_of_what_a_codec_leaves(quick):
    class Halves:
        encode, decode = staticmethod(lambda clips: clips), staticmethod(lambda clips: torch.cat([clips[:1], clips[1:] + 1]))
    cases = S.suite("style", 4) + S.suite("counting", 4)
    told = S.ceilings(cases, Halves, progress=False)
    assert told["renders"]["style"]["right"] == told["renders"]["counting"]["right"] == 4 and list(told) == ["renders", "vae"]
    assert told["vae"]["overall"]["all"]["right"] == 2 and told["vae"]["overall"]["count"]["right"] == 1 and told["vae"]["overall"]["reasons"] == {"other": 6}
    assert list(S.ceilings(cases[:2], progress=False)) == ["renders"]


def test_floors_have_no_clip_of_their_own_prompt(quick, monkeypatch):
    "Five cases make one group of five: a fifth alone would be its own neighbour."
    monkeypatch.setattr(S, "_random_generator", lambda weights, options: lambda prompts, seeds: torch.zeros(len(prompts), 1, 5, 1, 1))
    told = S.floors(S.suite("beats", 5), "weights", n=20, progress=False)
    assert set(told) == {"noise", "frozen clip", "shuffled frames", "another prompt's clip", "nearest training clip", "random weights"}
    assert all(how["beats"]["n"] == 5 and how["beats"]["right"] == 0 for how in told.values())
    assert "random weights" not in S.floors(S.suite("beats", 2), n=1, progress=False)
    with pytest.raises(ValueError, match="cases: got 1, allowed: at least 2"):
        S.floors(S.suite("beats", 1))


def test_the_nearest_training_clip_agrees_most_and_is_never_a_held_out_one():
    world, cases = World("full", seed=10), S.suite("heldout", 3)
    stream = world.sample(10, 60)
    def alike(shot, case):
        same = [a == b for a, b in zip(astuple(shot.description), astuple(parse(case.prompt)))]
        return sum(s for s, name in zip(same, S.ATTRIBUTES) if name in case.asked), sum(same)
    near = S.nearest_training(cases, 60, progress=False)
    for case, shot in zip(cases, near, strict=True):
        counts = [alike(other, case) for other in stream]
        assert shot == stream[counts.index(max(counts))] and not is_heldout(shot)
    own = S.Case("own", "own", caption(stream[33], "dense"), 0, ("actor",))
    assert S.nearest_training([own], 60, progress=False) == [stream[33]]
    bound = S.Case("own", "own", cases[0].prompt, 0, ("action",))         # what is asked goes first, however much else agrees
    assert S.nearest_training([bound], 60, progress=False)[0].description.action == parse(bound.prompt).action
    with pytest.raises(ValueError, match="n: got 0, allowed: a whole number from 1"):
        S.nearest_training(cases, 0)
