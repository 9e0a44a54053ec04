"The recipe for the full world, end to end in miniature: what it draws, trains, ships, makes and is judged by."
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import train_gpu
import words
from sora_edu.evaluate import adherence, ledger, report, suites
from sora_edu.model.dit import DiT
from sora_edu.model.text import TextEncoder, load_tokenizer, tokenize
from sora_edu.model.vae import VAE
from sora_edu.pipeline.generate import generate, known_words, load_models
from sora_edu.studio.cli import run
from sora_edu.training.clips import WORDINGS, Buckets, Drawn, build_world_cache, clip_batch_at
from sora_edu.training.configs import BASE, BASE_NANO, Leg, flops, get_config
from sora_edu.training.autoencoder import AutoencoderConfig, clips_at, windows_from
from sora_edu.training.loop import drawn, load_vae, prepare
from sora_edu.world import language
from sora_edu.world.dataset import World
from sora_edu.world.stage import is_heldout

PROMPT = "a small red ball bounces at night"
TOOL = Path(train_gpu.__file__)


def slice_of(out, minutes=120.0, **more):
    "Run the tool in this process -> its last line."
    options = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
    assert train_gpu.main(["--miniature", f"--minutes={minutes}", f"--out={out}", "--device=cpu", "--ahead=0", *options]) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The miniature, trained without a stop."
    out = tmp_path_factory.mktemp("whole")
    slice_of(out)
    return out


@pytest.fixture(scope="module")
def models(whole):
    return load_models(whole / "ship", dtype=torch.float32)


@pytest.fixture
def begun(whole, tmp_path):
    "A folder in which stage one, the autoencoder and the clips, is done."
    out = tmp_path / "begun"
    shutil.copytree(whole / "world", out / "world")
    shutil.copy(whole / "vae.safetensors", out)
    return out


def digest(out):
    return json.loads((out / "ship" / "model.json").read_text())["weights_hash"]


# -- the recipe --------------------------------------------------------------------------------------------------------
def test_at_most_twelve_million_parameters():
    with torch.device("meta"):
        nets = VAE(BASE.autoencoder.network), TextEncoder(BASE.text), DiT(BASE.dit)
    assert sum(p.numel() for net in nets for p in net.parameters()) <= 12e6


def test_shapes_and_legs():
    assert (33, 128, 128) in BASE.buckets.shapes and len(BASE.buckets.shapes) == len(set(BASE.buckets.shapes)) == 12
    assert {h / w for h, w in BASE.buckets.sizes} >= {1, 3 / 4, 4 / 3} and all(h * w <= 128 * 128 for h, w in BASE.buckets.sizes)
    assert all(leg.image_share > 0 and leg.rate(leg.steps - 1) < 0.01 * leg.learning_rate for leg in BASE.legs)
    assert get_config("base") is BASE and [leg.clips for leg in BASE.legs] == sorted(leg.clips for leg in BASE.legs)


def test_counted_operations_are_those_of_a_step():
    from torch.utils.flop_counter import FlopCounterMode
    text, dit = TextEncoder(BASE_NANO.text), DiT(BASE_NANO.dit)
    with FlopCounterMode(display=False) as count:
        dit(torch.randn(2, 16, 3, 6, 8, requires_grad=True), torch.zeros(2, 3), text(torch.ones(2, 96, dtype=torch.long))).sum().backward()
    assert count.get_total_flops() / (2 * flops(BASE_NANO, 3, 6, 8)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("make, message", [
    (lambda: dataclasses.replace(BASE, buckets=None), "^buckets: got None for the world 'full', allowed: "),
    (lambda: dataclasses.replace(get_config("mini"), buckets=Buckets()), "^buckets: got .* for the world 'mini'"),
    (lambda: dataclasses.replace(BASE, num_frames=5), "^num_frames, size: got 5, 128, allowed: "),
    (lambda: Leg(steps=1, tokens=0), "^tokens: got 0, allowed: more than 0"),
    (lambda: AutoencoderConfig(held_out=0), "^held_out: got 0, allowed: more than 0")])
def test_bad_recipes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- words -------------------------------------------------------------------------------------------------------------
def test_the_list_of_words_is_the_language_s():
    assert json.loads(words.FILE.read_text()) == words.words() and words.FILE.read_text() == json.dumps(words.words(), indent=0) + "\n"


def test_every_caption_is_known_and_fits():
    known, tokenizer = set(known_words("full")), load_tokenizer()
    texts = [language.caption(shot, style, seed, image, seconds) for shot in World("full").sample(5, 60)
             for style, seed in WORDINGS for image, seconds in ((False, 4.0), (False, 1.0), (True, 0))]
    texts += [case.prompt for case in suites.read_suite()] + list(BASE.prompts)
    assert {word for text in texts for word in re.findall(r"[^\s,.;!?]+", text.lower())} <= known
    assert (tokenize(texts, tokenizer, BASE.text.max_length)[:, -12:] == 0).all()


# -- what is drawn -----------------------------------------------------------------------------------------------------
def test_held_out_combinations_are_never_drawn(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("sora_edu.training.clips.film.render", lambda shots, *a, **k: asked.extend(shots) or torch.zeros(len(shots), 3, *a))
    torch.manual_seed(0)
    drawn(dataclasses.replace(BASE_NANO, clips=60), VAE(BASE_NANO.autoencoder.network), tmp_path, progress=False)
    assert len(asked) == 60 and not any(is_heldout(shot) for shot in asked)
    assert any(is_heldout(shot) for shot in World("full").sample(10, 60, "all"))


def test_clips_have_their_shapes_words_and_actors():
    source = Drawn(World("full", seed=10), BASE_NANO.buckets, 96, list(range(12)))
    shapes, tokenizer = set(), load_tokenizer()
    for number, frames, coverage, tokens, image_tokens in (source[i] for i in range(12)):
        t, h, w = frames.shape[1:4]
        tokens, image_tokens = (torch.from_numpy(array).long() for array in (tokens, image_tokens))
        shapes.add((t, h, w))
        assert coverage.shape == (1, 1 + (t - 1) // 4, h // 8, w // 8) and coverage.max() > 128 and tokens.shape == image_tokens.shape == (1, 4, 96)
        shot = source.world.scene(10, number)
        said = [language.caption(shot, style, seed, False, (t - 1) / 8) for style, seed in WORDINGS]
        assert WORDINGS[0][0] == "plain"                             # which `oversample` reads
        assert torch.equal(tokens[0], tokenize(said, tokenizer, 96)) and {style for style, _ in WORDINGS} == {"terse", "plain", "dense"}
        assert torch.equal(image_tokens[0], tokenize([language.caption(shot, style, seed, True) for style, seed in WORDINGS], tokenizer, 96))
    assert shapes == set(BASE_NANO.buckets.shapes)


def test_workers_draw_what_this_process_draws():
    cfg, world = dataclasses.replace(BASE_NANO.autoencoder, steps=4), World("full")
    made = list(windows_from(cfg, world, 2, workers=1))
    assert len(made) == 2 and all(torch.allclose(video, clips_at(cfg, world, step), atol=0.005) for step, video in enumerate(made, 2))


def test_a_cache_goes_on_after_a_kill_and_knows_its_autoencoder(whole, tmp_path, monkeypatch):
    vae, how = load_vae(whole / "vae.safetensors"), dict(max_length=96, shard=3, progress=False)
    make = lambda folder, vae=vae: build_world_cache(World("full", seed=10), vae, folder, BASE_NANO.buckets, 8, **how)
    one, draw = make(tmp_path / "one"), Drawn.__getitem__

    def dies(self, i):
        if self.numbers[i] == 5:
            raise KeyboardInterrupt
        return draw(self, i)
    with monkeypatch.context() as patch:
        patch.setattr(Drawn, "__getitem__", dies)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "two")
    assert [p.name for p in (tmp_path / "two").glob("shard*")] == ["shard-000000.safetensors"]
    two = make(tmp_path / "two")
    assert {p.name: p.read_bytes() for p in one.shards()} == {p.name: p.read_bytes() for p in two.shards()}
    few = two.load(4)
    assert len(few) == 4
    with pytest.raises(ValueError, match="^cache: .* was made with vae .* delete the folder"):
        make(tmp_path / "two", VAE(BASE_NANO.autoencoder.network))


def test_steps_have_as_many_tokens_in_every_shape(whole):
    cache = prepare(BASE_NANO, whole, progress=False)[1]
    leg, seen = dataclasses.replace(BASE_NANO.legs[0], tokens=480, mid_clip_share=0.0), set()
    for step in range(60):
        batch = clip_batch_at(cache, leg, 0, step)
        n, _, t, h, w = batch["x0"].shape
        seen.add((batch["image"], t, h, w))
        assert n == 480 * 4 // (t * h * w) and batch["coverage"].shape == (n, t, h, w)
    assert {image for image, *_ in seen} == {True, False} and len({shape for _, *shape in seen for shape in [tuple(shape)]}) > 3


# -- train, package, load, make, judge ---------------------------------------------------------------------------------
def test_what_is_shipped_says_what_it_can_do(whole, models):
    told = json.loads((whole / "ship" / "model.json").read_text())
    assert (told["config"]["world"], told["config"]["num_frames"], told["config"]["sizes"]) == ("full", [1, 5, 9], [[64, 64], [48, 64]])
    assert told["info"]["leg"] == 1 and len(told["info"]["legs"]) == 2
    assert all(path.stat().st_size <= 15 * 2**20 for path in (whole / "ship").iterdir())
    assert models.words == known_words("full")


@pytest.mark.parametrize("asked, shape", [({}, (9, 64, 64)), (dict(height=48, num_frames=5), (5, 48, 64)), (dict(num_frames=1), (1, 64, 64)),
                                          (dict(width=64, height=64, num_frames=5), (5, 64, 64))])
def test_clips_of_every_trained_shape(models, asked, shape):
    made = generate([PROMPT, "three small blue fish swim right underwater"], weights=models, num_inference_steps=2, **asked)
    assert made.frames.shape == (2, *shape, 3) and made.record["height"] == shape[1]


@pytest.mark.parametrize("asked, message", [
    (dict(num_frames=33), "num_frames: got 33, allowed: 1, 5, 9"), (dict(height=128), r"height: got 128, allowed: 48, 64"),
    (dict(prompt="a small red baloon bounces"), "unknown word 'baloon' .the nearest known is 'balloon'"), (dict(width=48), "width: got 48, allowed: 64")])
def test_shapes_and_words_of_another_model_are_refused(models, asked, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"prompt": PROMPT, "weights": models, "num_inference_steps": 1, **asked})


def test_two_sides_that_do_not_go_together_are_refused(models):
    config = dataclasses.replace(models.config, height=(48, 64), width=(64, 80), sizes=((64, 64), (48, 80)))
    other = dataclasses.replace(models, config=config)
    with pytest.raises(ValueError, match=r"^height, width: got \(48, 64\), allowed: 64 x 64, 48 x 80"):
        generate(PROMPT, weights=other, height=48, width=64)
    assert generate(PROMPT, weights=other, width=80, num_frames=1, num_inference_steps=1).frames.shape == (1, 1, 48, 80, 3)
    with pytest.raises(ValueError, match="^sizes: got "):
        dataclasses.replace(config, sizes=((64, 48),))


def test_the_full_world_s_judge_reads_them(models):
    cases = suites.suite("counting", 2)
    told = suites.evaluate(adherence.generator(models, num_inference_steps=1), cases, progress=False)
    assert told["counting"]["n"] == 2 and told["counting"]["right"] == 0 and all(row["unreadable"] for row in told["rows"])


def test_random_weights_are_a_floor(models):
    "An untrained network of the same shape answers the cases, and nothing that it makes is readable."
    cases = suites.suite("style", 2)
    told = suites.floors(cases, models, n=3, progress=False, num_inference_steps=1)
    assert told["random weights"]["style"]["n"] == 2 and told["random weights"]["overall"]["unreadable"]["right"] == 2
    top = suites.ceilings(cases, models.vae, progress=False)
    assert top["renders"]["style"]["right"] >= top["vae"]["style"]["right"] == 0 and top["vae"]["overall"]["unreadable"]["n"] == 2


def test_what_is_shipped_has_a_cost(whole, tmp_path):
    "Steps of 96 tokens of four latents each, in four shapes: two or three latent frames of 8 x 8 or 6 x 8."
    told, legs = ledger.cost(whole / "ship"), json.loads((whole / "ship" / "model.json").read_text())["info"]["legs"]
    sizes, steps = [(t, h, w) for t in (2, 3) for h, w in ((8, 8), (6, 8))], [(0.6 * 6, 0.4 * 6), (0.7 * 6, 0.3 * 6)]
    clips = [sum(round(video * (384 // (t * h * w))) for video, _ in steps) for t, h, w in sizes]
    images = [sum(round(image * (384 // (h * w))) for _, image in steps) for t, h, w in sizes]
    spent = sum(n * flops(BASE_NANO, *s) + m * flops(BASE_NANO, 1, *s[1:]) for n, m, s in zip(clips, images, sizes)) / 4
    assert [leg["tokens"] for leg in legs] == [96, 96]
    assert (told["legs"], told["clips"], told["images"], told["flops"]) == (2, round(sum(clips) / 4), round(sum(images) / 4), round(spent))
    assert told["hours"] == 0 and {p.name for p in (whole / "ship").glob("leg*.jsonl")} == {"leg0.jsonl", "leg1.jsonl"}
    shutil.copytree(whole / "ship", tmp_path / "ship")
    (tmp_path / "ship" / "leg1.jsonl").unlink()
    assert ledger.cost(tmp_path / "ship") == told | {"hours": None} and ledger.trained_on(whole / "ship") == "cpu"


def test_the_ledger_counts_the_samples_of_each_shape_s_steps(whole):
    "Batches of many steps, in every shape, have as many clips or images as the ledger tells of that shape."
    cache, leg = prepare(BASE_NANO, whole, progress=False)[1], dataclasses.replace(BASE_NANO.legs[0], tokens=480, steps=400, mid_clip_share=0.0)
    seen = {}
    for batch in (clip_batch_at(cache, leg, 0, step) for step in range(400)):
        n, _, t, h, w = batch["x0"].shape
        seen.setdefault((batch["image"], h, w) if batch["image"] else (False, t, h, w), set()).add(n)
    assert len(seen) == 6 and all(len(counts) == 1 for counts in seen.values())
    for (image, *shape), (n,) in seen.items():
        clips, images = ledger.samples_of(dataclasses.asdict(leg), (1, *shape) if image else tuple(shape))
        assert n == (images / 160 if image else clips / 240)


# -- the command line --------------------------------------------------------------------------------------------------
def test_sora_edu_train_is_the_same_recipe(whole, tmp_path, capsys):
    assert run(["train", "base-nano", "--all-legs", "--out", str(tmp_path), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == digest(whole)


def test_sora_edu_evaluates_topics_and_files(whole, tmp_path, capsys, monkeypatch):
    ask = lambda *words: (run(["evaluate", "--weights", str(whole / "ship"), *words]), *capsys.readouterr())
    monkeypatch.setattr("sora_edu.evaluate.adherence.generator", lambda weights: suites.perfect)
    code, out, _ = ask("--suite", "style", "--limit", "1", "--json")
    told = json.loads(out)
    assert told["overall"]["style"]["n"] == told["overall"]["n"] == 1 and sum(told["overall"]["reasons"].values()) == told["overall"]["unreadable"]["right"]
    (tmp_path / "mine.json").write_text(json.dumps([{"prompt": PROMPT, "asked": ["colour"]}]))
    code, out, _ = ask("--suite", str(tmp_path / "mine.json"))
    assert code == 0 and "own: 100.0 %" in out and "overall: 100.0 %" in out
    told, real = {}, suites.floors
    monkeypatch.setattr(suites, "floors", lambda cases, weights, **how: told.update(n=len(cases)) or real(cases, n=2, **how))
    code, out, _ = ask("--suite", "controls", "--limit", "2")
    assert code == 0 and told["n"] == 2 and "noise:   0.0 %" in out and "nearest training clip:   0.0 %" in out
    code, _, err = ask("--suite", "controls", "--limit", "1")
    assert code == 2 and "cases: got 1, allowed: at least 2" in err
    assert len(suites.read_suite()) == 480 and ask("--limit", "481")[0] == 2


def test_the_judge_of_mini_refuses_weights_of_the_full_world(whole, tmp_path):
    for source in (str(whole / "ship"), load_models(whole / "ship")):
        for judge in (adherence.evaluate, adherence.controls, partial(report.report, tmp_path / "page.html")):
            with pytest.raises(ValueError, match="source: got weights of the world 'full', allowed: of mini; evaluate.suites"):
                judge(source, limit=2, progress=False)


@pytest.mark.parametrize("suite, message", [("colours", "suite: got 'colours', allowed for weights of the full world: full, attributes"),
                                            ("seen", "suite: got 'seen', allowed for weights of the full world"),
                                            ("nowhere.json", "nowhere.json, which cannot be read"), ("twice", "the id 'a' a second time"),
                                            ("word", "prompt 1: .*sta.*star")])
def test_bad_suites_are_refused_in_one_line(whole, tmp_path, capsys, suite, message):
    files = {"twice": [{"id": "a", "prompt": PROMPT}] * 2, "word": [{"prompt": "a red sta"}]}
    if suite in files:
        (tmp_path / f"{suite}.json").write_text(json.dumps(files[suite]))
        suite = tmp_path / f"{suite}.json"
    assert run(["evaluate", "--weights", str(whole / "ship"), "--suite", str(suite)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1


@pytest.mark.parametrize("words, message", [(["--suite", "counting"], "suite: got 'counting' for weights of mini, allowed: seen, heldout, controls, or a .json of prompts"),
                                            (["--suite", "mine.json"], "suite: got mine.json, which cannot be read")])
def test_suites_of_the_full_world_are_not_for_mini(capsys, words, message):
    assert run(["evaluate", *words]) == 2 and message in capsys.readouterr().err


def test_a_page_for_the_full_world(whole, tmp_path, capsys, monkeypatch):
    "Shares of topics and attributes, one figure a clip, the comparison, and nothing that is loaded from elsewhere."
    shipped, made = str(whole / "ship"), adherence.generator
    monkeypatch.setattr("sora_edu.evaluate.adherence.generator", lambda weights: made(weights, num_inference_steps=1))
    (tmp_path / "two.json").write_text(json.dumps([{"prompt": PROMPT, "asked": ["colour"]}, {"prompt": PROMPT, "seed": 1, "topic": "size", "asked": ["size"]}]))
    ask = lambda *words: (run(["evaluate", "--weights", shipped, "--suite", str(tmp_path / "two.json"), "--report", str(tmp_path / "page.html"), *words]), *capsys.readouterr())
    code, out, _ = ask("--against", shipped)
    text = (tmp_path / "page.html").read_text()
    assert code == 0 and "against:  +0.0 points" in out and text.count("<figure>") == text.count('src="data:image/webp') == 2
    assert not re.search(r"https?:|<script|@import|url\(", text) and all(f"<td>{name}</td><td>0 of" in text for name in ("colour", "size", "own"))
    told = suites.evaluate(adherence.generator(shipped), suites.read_suite(tmp_path / "two.json"), progress=False)
    assert run(["evaluate", shipped, "--against", shipped, "--suite", str(tmp_path / "two.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"]["all"] == report.compare(told["rows"], told["rows"])["all"]
    code, _, err = ask("--against", "mini")
    assert code == 2 and "--against: got weights of another world than full, allowed: of the same" in err


# -- slices ------------------------------------------------------------------------------------------------------------
def test_slices_make_the_same_weights(whole, begun, capsys, monkeypatch):
    step, stopped = train_gpu.Slice.on_step, []

    def stops(self, state, loss, vae):
        step(self, state, loss, vae)
        if (self.leg, state.step) in ((0, 4), (1, 3)) and (self.leg, state.step) not in stopped:
            stopped.append((self.leg, state.step))
            signal.raise_signal(signal.SIGALRM)                    # the minutes are over
    monkeypatch.setattr(train_gpu.Slice, "on_step", stops)
    for _ in range(3):
        slice_of(begun)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"goes on: leg 0, step 4 of 6; this slice: 4 steps in \d+ s, \d+ samples/s, utilisation \S+ % of 790 TFLOP/s", lines[0])
    assert lines[1].startswith("goes on: leg 1, step 3 of 6; this slice: 5 steps") and lines[2].startswith("finished: all legs; this slice: 3 steps")
    assert digest(begun) == digest(whole)


def test_minutes_that_are_over_end_a_slice_at_any_stage(tmp_path, capsys):
    slice_of(tmp_path, minutes=0.005)
    assert re.match(r"goes on: leg 0, step ([0-2]) of 6; this slice: \1 steps", capsys.readouterr().out) and train_gpu.shipped(tmp_path) == -1


def test_minutes_that_are_over_are_not_forgotten(begun, capsys, monkeypatch):
    "A library that was being loaded swallows the signal; two steps later it comes again."
    ring = train_gpu.Slice.ring
    monkeypatch.setattr(train_gpu.Slice, "ring", lambda self, *at: ring(self) if self.steps else setattr(self, "rang", 0))
    slice_of(begun, minutes=0.0001)
    assert capsys.readouterr().out.startswith("goes on: leg 0, step 2 of 6; this slice: 2 steps")


def test_a_kill_costs_nothing(whole, tmp_path, capsys):
    tool = subprocess.Popen([sys.executable, str(TOOL), "--miniature", f"--out={tmp_path}", "--device=cpu", "--save-every=2", "--ahead=1"], stderr=subprocess.DEVNULL)
    while not (tmp_path / "leg0.pt").exists() and tool.poll() is None:
        time.sleep(0.01)
    tool.kill()
    assert tool.wait() == -signal.SIGKILL and not (tmp_path / "leg1.safetensors").exists()
    slice_of(tmp_path)
    assert digest(tmp_path) == digest(whole) and capsys.readouterr().out.startswith("finished")


def test_bad_options_are_refused(tmp_path, capsys):
    for option in ("--minutes=0", "--peak-tflops=-1", "--save-every=0"):
        with pytest.raises(SystemExit):
            train_gpu.main([option, f"--out={tmp_path}"])
        assert "allowed: more than 0" in capsys.readouterr().err
