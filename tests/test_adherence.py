"Suites, counting, controls: what stands between a model and its figure."
import builtins
import hashlib
import json
import math
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch

from sora_edu.evaluate import adherence as A
from sora_edu.evaluate import suites
from sora_edu.video import to_uint8
from sora_edu.world.captions import parse
from sora_edu.world.render import render
from sora_edu.world.scene import ACTIONS, ATTRIBUTES, Description, is_heldout, make_scene
from tiny_weights import tiny_models


def draw(prompts, seeds):
    "A perfect generator: it reads the prompt and draws."
    return to_uint8(render([make_scene(*vars(parse(p)).values(), seed=s) for p, s in zip(prompts, seeds)]))


# -- suites ------------------------------------------------------------------------------------------------------------
def test_the_stored_suites_are_what_the_seed_gives():
    stored = files("sora_edu").joinpath("data", "suites.json").read_text(encoding="utf-8")
    assert stored == A.suites_json(A.SUITE_SEED)
    assert A.make_suites(1) != A.make_suites(A.SUITE_SEED)
    for name, rows in A.make_suites().items():
        assert [(r["prompt"], r["seed"], Description(*(r[a] for a in ATTRIBUTES))) for r in rows] == [(c.prompt, c.seed, c.description) for c in A.suite(name)]


@pytest.mark.parametrize("name, digest", [("seen", "bbebbc146c96e7996d36eee5d5efa86a51e7c913212980e5e33d1ccc8bd865bb"),
                                          ("heldout", "f6aff2fc0283a6b14999a4673e2919d7d6592be01632d08242b17eb58179bb5d")])
def test_prompts_and_seeds_of_published_figures_never_change(name, digest):
    asked = [[c.prompt, c.seed] for c in A.suite(name)]
    assert hashlib.sha256(json.dumps(asked).encode()).hexdigest() == digest
    assert [c.id for c in A.suite(name)] == [f"{name}-{i:03d}" for i in range(len(asked))]


def test_a_suite_of_one_s_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"prompt": "a small red star bounces"}, {"id": "b", "prompt": "a big blue ball rises at night", "seed": 5, "asked": ["actor"]}]))
    first, second = A.suite(path)
    assert (first.id, first.seed, first.description) == ("prompt 1", 0, Description("small", "red", "star", "bounces"))
    assert (second.id, second.seed, second.description) == ("b", 5, Description(actor="ball"))
    assert second.scene == make_scene("big", "blue", "ball", "rises", "at night", seed=5) and first.scene == first.scene
    told = A.evaluate(lambda prompts, seeds: render([first.scene, make_scene("small", "red", "ball", "spins", "in the snow", seed=5)]), path, progress=False, rows=True)
    assert told["n"] == 2 and told["all"]["right"] == 2 and (told["actor"]["n"], told["colour"]["n"]) == (2, 1) and "setting" not in told
    assert [row["id"] for row in told["rows"]] == ["prompt 1", "b"] and A.suite(path, 1) == [first]


ROW = {"prompt": "a small red ball bounces"}


@pytest.mark.parametrize("read", [A.read_suite, suites.read_suite])
@pytest.mark.parametrize("text, message", [
    (json.dumps([ROW | {"asked": asked}]), "^prompt 1: asked: got .*, allowed: a list of what the prompt says: size, colour, actor, action")
    for asked in (None, 5, [], [5], [["actor"]], {"actor": 1}, "actor", ["camera"], ["mood"])] + [
    (json.dumps([ROW, ROW | {"topic": topic}]), "^prompt 2: topic: got .*, allowed: a string, but not suite, overall, reasons, against, rows")
    for topic in ("rows", "overall", "suite", "against", "reasons", None, 3)] + [
    (json.dumps([ROW | {"seed": seed}]), "^prompt 1: seed: got .*, allowed: a whole number from 0") for seed in (-1, True, 0.5, None, "1", 2 ** 63)] + [
    (json.dumps([ROW | {"seeds": 5, "ask": []}]), "^prompt 1: got ask, seeds, allowed: id, topic, prompt, seed, asked"),
    (json.dumps([ROW | {"id": []}]), r"^prompt 1: id: got \[\], allowed: a string"),
    (json.dumps([ROW | {"id": "a"}] * 2), "^prompt 2: got the id 'a' a second time"),
    (json.dumps([{"prompt": "a red bal bounces"}]), "^prompt 1: .*'bal'.*'ball'"),
    (json.dumps([{"prompt": 3}]), "^prompt 1: got {'prompt': 3}, allowed"), (json.dumps(["a red ball"]), "^prompt 1: got 'a red ball', allowed"),
    ("[]", "without prompts"), ('{"a": 1}', "without prompts"), ("no json", "^suite: got mine.json, which cannot be read")] + [
    (json.dumps([ROW])[:-2] + ', "asked": ' + "[" * depth + "]" * depth + "}]", "asked: got|cannot be read") for depth in (5, 500, 950, 5000, 10 ** 6)])
def test_a_suite_with_a_mistake_is_refused_by_name(tmp_path, read, text, message):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "mine.json")


@pytest.mark.parametrize("name, n", [("seen", 480), ("heldout", 240)])
def test_a_suite_is_balanced_distinct_and_on_its_side_of_the_split(name, n):
    cases = A.suite(name)
    assert len(cases) == n == len({c.description for c in cases}) == len({c.seed for c in cases})
    assert all(is_heldout(c.scene) == (name == "heldout") for c in cases)
    assert all(parse(c.prompt) == c.description == c.scene.description for c in cases)
    for attribute in ATTRIBUTES:
        assert len(set(Counter(getattr(c.description, attribute) for c in cases).values())) == 1


def test_a_prefix_of_a_suite_is_stable():
    assert A.suite("seen", 7) == A.suite("seen")[:7]


@pytest.mark.parametrize("call", [lambda: A.suite("trained"), lambda: A.suite("seen", 0), lambda: A.suite("heldout", 241),
                                  lambda: A.suite("seen", True), lambda: A.suite("seen", 3.0)])
def test_bad_suites_are_named(call):
    with pytest.raises(ValueError, match="got .* allowed"):
        call()


# -- counting ----------------------------------------------------------------------------------------------------------
def test_wilson_solves_its_own_equation():
    "Wilson's bounds are the shares p with |share - p| = z * sqrt(p (1 - p) / n): checked by putting them back in."
    for right, n in ((1, 9), (7, 10), (335, 480), (239, 240)):
        for p in A.wilson(right, n):
            assert abs(right / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-9)


def test_wilson_at_the_ends():
    assert A.wilson(0, 20)[0] == 0 and 0.1 < A.wilson(0, 20)[1] < 0.2
    assert A.wilson(20, 20)[1] == 1 and 0.8 < A.wilson(20, 20)[0] < 0.9
    assert A.wilson(1, 2)[0] == pytest.approx(1 - A.wilson(1, 2)[1])
    for bad in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="right, n"):
            A.wilson(*bad)


def test_tally_counts_the_unreadable_as_wrong():
    good = dict.fromkeys((*ATTRIBUTES, "all"), True) | dict(unreadable=None)
    bad = dict.fromkeys((*ATTRIBUTES, "all"), False) | dict(unreadable="noise")
    told = A.tally([good, good, bad])
    assert told["all"]["right"] == 2 and told["all"]["n"] == 3 and told["unreadable"]["right"] == 1 and told["reasons"] == {"noise": 1}
    with pytest.raises(ValueError, match="judgements"):
        A.tally([])


# -- judging -----------------------------------------------------------------------------------------------------------
def test_judge_takes_frames_or_floats_and_knows_wrong_words():
    cases = A.suite("seen", 4)
    frames = draw([c.prompt for c in cases], [c.seed for c in cases])
    told = A.judge(frames, [c.description for c in cases])
    floats = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert told == A.judge(floats, [c.description for c in cases])
    assert all(t["all"] for t in told)
    other = [Description(*(getattr(c.description, a) if a != "action" else ACTIONS[(ACTIONS.index(c.description.action) + 1) % 10]
                           for a in ATTRIBUTES)) for c in cases]
    told = A.judge(frames, other)
    assert not any(t["all"] or t["action"] for t in told) and all(t["colour"] for t in told)


def test_judge_wants_one_description_a_clip():
    with pytest.raises(ValueError, match="descriptions"):
        A.judge(draw(["a big red ball spins at night"], [1]), [])


def test_a_perfect_generator_scores_and_its_batches_do_not_matter():
    a = A.evaluate(draw, "heldout", limit=10, batch_size=4, progress=False, rows=True)
    b = A.evaluate(draw, "heldout", limit=10, batch_size=10, progress=False, rows=True)
    assert a == b and a["all"]["share"] >= 0.9 and len(a["rows"]) == 10
    assert {"prompt", "seed", "all", "unreadable", "read"} <= set(a["rows"][0])


@pytest.mark.parametrize("change", [dict(batch_size=0), dict(limit=0), dict(suite="nothing")])
def test_bad_arguments_are_named(change):
    with pytest.raises(ValueError, match="got .* allowed"):
        A.evaluate(draw, **dict(dict(suite="seen", limit=2, progress=False) | change))


@pytest.mark.parametrize("scale, shift", [(127.5, 127.5), (3.0, 0.0), (float("nan"), 0.0)])
def test_floats_of_another_range_are_refused(scale, shift):
    clips = torch.linspace(-1, 1, 2 * 3 * 5 * 8 * 8).reshape(2, 3, 5, 8, 8) * scale + shift
    with pytest.raises(ValueError, match=r"^videos: got values from .*, allowed: floats in \[-1, 1\] .*, or uint8"):
        A.judge(clips, [Description()] * 2)


def test_options_are_for_weights():
    with pytest.raises(TypeError, match="^sampler: got options for weights and a function"):
        A.evaluate(draw, limit=2, progress=False, sampler="nonsense")


# -- controls ----------------------------------------------------------------------------------------------------------
def test_controls_score_nothing():
    told = A.controls(draw, limit=12, batch_size=5, progress=False)
    assert told["n"] == 12 and told["worst"] == 0
    assert {"noise", "frozen clip", "shuffled frames", "another prompt's clip", "permuted prompts", "nearest training clip"} <= set(told)
    assert all(told[k]["n"] == 12 for k in ("noise", "permuted prompts", "nearest training clip")) and told["nearest training clip"]["size"]["share"] > 0.5


def test_weights_answer_for_an_untrained_network(monkeypatch):
    "The clips of this floor are those of the same text encoder and VAE around another DiT; a stub of the judge is right for these alone."
    trained, options = tiny_models(words=[w for words in A.WORDS.values() for phrase in words for w in phrase.split()], max_length=32), dict(num_inference_steps=1)
    blind = A.random_models(trained)
    assert blind.vae is trained.vae and blind.text_encoder is trained.text_encoder
    learned, fresh = trained.dit.state_dict(), blind.dit.state_dict()
    assert learned.keys() == fresh.keys() and not any(torch.equal(learned[k], fresh[k]) for k in fresh) and all(fresh[k].std() > 0 for k in fresh if fresh[k].numel() > 1)
    cases = [c for c in A.suite("seen") if c.description.action != "stays still"][:2]
    made = A.generator(blind, **options)([c.prompt for c in cases], [c.seed for c in cases])
    same = lambda clips: isinstance(clips, np.ndarray) and np.array_equal(clips, made)
    right = dict.fromkeys((*ATTRIBUTES, "all"), True) | dict(unreadable=None)
    wrong = dict.fromkeys((*ATTRIBUTES, "all"), False) | dict(unreadable=None)
    monkeypatch.setattr(A, "judge", lambda clips, said: [right if same(clips) else wrong] * len(said))
    told = A.controls(trained, limit=2, progress=False, **options)
    assert {name for name in told if isinstance(told[name], dict) and told[name]["all"]["right"]} == {"random weights"} and told["random weights"]["n"] == 2
    assert "random weights" not in A.controls(draw, limit=2, progress=False)


def test_the_nearest_training_clip_shares_most_words_and_is_never_a_held_out_one():
    cases, stream = A.suite("heldout", 6), A.World().sample(10, 300)
    shared = lambda a, b: sum(getattr(a, slot) == getattr(b, slot) for slot in A.ATTRIBUTES)
    for case, scene in zip(cases, A.nearest_training(cases, 300), strict=True):
        counts = [shared(other.description, case.description) for other in stream]
        assert scene in stream and shared(scene.description, case.description) == max(counts) < 5
        assert stream.index(scene) == min(i for i, other in enumerate(stream) if other.description == scene.description)
    known = stream[7]
    assert A.nearest_training([A.Case("", 0, known.description)], 300)[0].description == known.description
    with pytest.raises(ValueError, match="n: got 0, allowed: a whole number from 1"):
        A.nearest_training(cases, 0)


def test_controls_leave_still_prompts_out_and_never_judge_a_clip_against_itself():
    asked = []

    def generate(prompts, seeds):
        asked.extend(prompts)
        return np.zeros((len(prompts), 17, 64, 64, 3), np.uint8)
    A.controls(generate, limit=9, batch_size=4, progress=False)
    assert not any("stays still" in p for p in asked)
    assert all(len(g) > 1 for g in A._pairs(list(range(9)), 4))
    clips = torch.rand(3, 3, 17, 8, 8)
    spoiled = A.spoiled(clips)
    assert all((spoiled["shuffled frames"][i] != clips[i]).any() for i in range(3))
    assert all((spoiled["another prompt's clip"][i] != clips[i]).any() for i in range(3))


def test_evaluation_never_writes_frames(monkeypatch, tmp_path):
    "No file is opened for writing while a generator is judged, and the working folder stays empty."
    monkeypatch.chdir(tmp_path)
    real, written = builtins.open, []

    def guard(file, mode="r", *args, **kw):
        if set(mode) & set("wax+"):
            written.append(file)
        return real(file, mode, *args, **kw)
    monkeypatch.setattr(builtins, "open", guard)
    for name in ("write_video", "write_png", "write_bytes"):
        monkeypatch.setattr(f"sora_edu.video.{name}", lambda *a, **k: written.append(a))
    monkeypatch.setattr(torch, "save", lambda *a, **k: written.append(a))
    monkeypatch.setattr(np, "save", lambda *a, **k: written.append(a))
    A.evaluate(draw, "seen", limit=2, progress=False)
    A.controls(draw, limit=2, progress=False)
    assert written == [] and list(tmp_path.iterdir()) == []


def test_ceilings_take_any_vae():
    class Same:
        encode = decode = staticmethod(lambda v: v)
    told = A.ceilings(Same(), limit=4)
    assert told["renders"]["all"] == told["vae"]["all"] and told["renders"]["all"]["right"] >= 3
