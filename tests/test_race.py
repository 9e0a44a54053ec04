"The race is fair and its reference kept; the map of guidance measures what it says; both widgets follow their controls and lose nothing."
import io
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_weights import OTHER, PROMPT, tiny_folder, tiny_models

from sora_edu.pipeline.generate import generate_unmarked, load_models, steps
from sora_edu.studio import race as R
from sora_edu.video import to_uint8
from sora_edu.world.captions import caption
from sora_edu.world.render import render
from sora_edu.world.scene import make_scene

SIZE = dict(num_frames=5)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "A cache folder of its own for every test."
    monkeypatch.setenv("SORA_EDU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Small random weights with a hash, in float32."
    return load_models(tiny_folder(tmp_path_factory.mktemp("weights")), dtype=torch.float32)


@pytest.fixture(scope="module")
def track(models):
    return R.course(PROMPT, weights=models, seed=3, guidance_interval=(0.0, 1.0), **SIZE)


@pytest.fixture(scope="module")
def truth(track):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORA_EDU_CACHE", "/dev/null/none")           # a folder that cannot be made: nothing is kept, nothing breaks
        return R.reference(track, 400, progress=False)


def ends(laps):
    return {lap.sampler: lap for lap in laps if lap.sigma == 0}


# -- the race ----------------------------------------------------------------------------------------------------------
def test_all_spend_the_same_and_move_in_turn(track, truth):
    laps = list(R.race(track, nfe=9, truth=truth))
    counts = {name: [lap.evaluations for lap in some] for name, some in R.by_sampler(laps).items()}
    assert counts.pop("heun") == [2, 4, 6, 8, 9] and all(some == list(range(1, 10)) for some in counts.values()) and len(counts) == 5
    used = dict.fromkeys(R.RACERS, 0)
    for lap in laps:
        assert used[lap.sampler] == min(used.values())             # before its move, nobody had asked less
        used[lap.sampler] = lap.evaluations


@pytest.mark.parametrize("nfe, heun", [(1, 1), (2, 1), (3, 2), (10, 5), (11, 6)])
def test_nobody_asks_more_than_allowed(track, truth, nfe, heun):
    laps = list(R.race(track, ["heun", "euler"], nfe, truth=truth))
    assert R.steps_for("heun", nfe) == heun and max(lap.evaluations for lap in laps) <= nfe
    assert len(R.by_sampler(laps)["heun"]) == heun and len(R.by_sampler(laps)["euler"]) == nfe


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_errors_fall_with_evaluations(track, truth, sampler):
    pairs = R.precision(track, [sampler], (5, 15, 45), truth=truth)[sampler]
    assert [n for n, _ in pairs] == [5, 15, 45] and pairs[0][1] > 1.5 * pairs[1][1] > 2 * pairs[2][1] > 0


def test_the_reference_is_euler_s_own_path(track, truth):
    (*_, last) = R.race(track, ["euler"], 400, truth=truth)
    assert last.error < 1e-6 and torch.allclose(last.latents, truth.latents[-1])


@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m_sde"])
def test_fresh_noise_leads_elsewhere(track, truth, sampler):
    pairs = R.precision(track, ["euler", sampler], (15, 45), truth=truth)
    assert pairs[sampler][1][1] > 5 * pairs["euler"][1][1] and pairs[sampler][1][1] > 0.5 * pairs[sampler][0][1]


def test_company_changes_nobody(track, truth):
    "Same noise and same dice for all: alone or together, in any order, each lands on the same place, which is the pipeline's."
    together, turned = (ends(R.race(track, names, 6, truth=truth)) for names in (R.RACERS, R.RACERS[::-1]))
    for name in R.RACERS:
        assert torch.equal(together[name].latents, turned[name].latents)
        if name != "heun":
            options = dict(weights=replace(track.models, config=replace(track.models.config, guidance_interval=(0.0, 1.0))), seed=3, sampler=name, num_inference_steps=6)
            *_, own = steps(PROMPT, **options, **SIZE)
            assert torch.equal(together[name].latents, own.latents)


def test_errors_are_taken_at_the_same_level(track, truth):
    for lap in R.race(track, ["unipc"], 7, truth=truth):
        assert lap.error == pytest.approx(R.distance(lap.latents, truth.at(lap.sigma)))
    assert torch.equal(truth.at(0.0), truth.latents[-1]) and torch.equal(truth.at(1.0), track.noise)
    k = 100
    a, b = truth.sigmas[k : k + 2].tolist()
    assert torch.allclose(truth.at(0.25 * a + 0.75 * b), 0.25 * truth.latents[k] + 0.75 * truth.latents[k + 1], atol=1e-4)


def test_distance_is_relative_and_a_mean_over_clips():
    x = torch.randn(2, 3, 2, 2, 2)
    assert R.distance(1.1 * x, x) == pytest.approx(0.1, rel=1e-4)
    assert R.distance(torch.stack([x[0], 1.5 * x[1]]), x) == pytest.approx(0.25, rel=1e-4)


def test_a_race_that_is_left_has_what_it_had(track, truth):
    run = R.race(track, ["euler", "unipc"], 20, truth=truth)
    laps = [next(run) for _ in range(7)]
    run.close()
    assert {name: len(some) for name, some in R.by_sampler(laps).items()} == {"euler": 4, "unipc": 3}
    images = R.podium(R.by_sampler(laps), truth, track.models)
    assert len(images) == 5 and R.race_figure(R.by_sampler(laps), 20).axes[0].get_yscale() == "log"


# -- the reference on disk ---------------------------------------------------------------------------------------------
def test_the_reference_is_kept(models, folder):
    here = R.course(PROMPT, weights=models, seed=5, **SIZE)
    told = []
    first = R.reference(here, 8, progress=lambda done, total: told.append((done, total)))
    second = R.reference(R.course(PROMPT, weights=models, seed=5, **SIZE), 8, progress=lambda *_: pytest.fail("worked out again"))
    assert told == [(k, 8) for k in range(1, 9)] and not first.kept and second.kept
    assert torch.equal(first.latents, second.latents) and torch.equal(first.sigmas, second.sigmas) and len(first.sigmas) == 9
    assert len(list(folder.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("other", [dict(prompt=OTHER), dict(seed=6), dict(guidance_scale=2.0), dict(guidance_interval=(0.5, 1.0)), dict(num_frames=1), dict(steps=9)])
def test_another_course_has_another_reference(models, folder, other):
    for how in ({}, other):
        how = {"prompt": PROMPT, "seed": 5, "steps": 8, **SIZE, **how}
        n = how.pop("steps")
        assert not R.reference(R.course(how.pop("prompt"), weights=models, **how), n, progress=False).kept
    assert len(list(folder.rglob("*.safetensors"))) == 2


def test_weights_without_a_name_keep_nothing(folder):
    here = R.course(PROMPT, weights=tiny_models(), **SIZE)
    assert not R.reference(here, 2, progress=False).kept and not R.reference(here, 2, progress=False).kept and not folder.exists()


def test_a_damaged_file_counts_as_none(models, folder):
    here = R.course(PROMPT, weights=models, **SIZE)
    good = R.reference(here, 4, progress=False)
    (path,) = folder.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = R.reference(here, 4, progress=False)
    assert not again.kept and torch.equal(again.latents, good.latents) and R.reference(here, 4, progress=False).kept


def test_a_reference_that_is_stopped_is_not_kept(models, folder):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt
    here = R.course(PROMPT, weights=models, **SIZE)
    with pytest.raises(KeyboardInterrupt):
        R.reference(here, 8, progress=stop)
    assert not R.reference(here, 8, progress=False).kept


def test_the_oldest_go(tmp_path):
    for k in range(5):
        R._keep(tmp_path / "some" / f"{k}.safetensors", {"x": torch.tensor([k])}, 3)
        time.sleep(0.02)
    assert sorted(p.stem for p in (tmp_path / "some").iterdir()) == ["2", "3", "4"]


def test_the_cache_folder(monkeypatch, tmp_path, folder):
    assert R.cache_folder() == folder
    monkeypatch.delenv("SORA_EDU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert R.cache_folder() == tmp_path / "sora_edu"


# -- asked wrongly -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("samplers, nfe, said", [
    (["euler", "eulr"], 9, "samplers: got 'eulr', allowed: one or more of euler, heun"), ([], 9, "samplers: got 'none'"), (["heun", "heun"], 9, "samplers: got 'heun, heun'.*each once"),
    (["euler"], 0, "nfe: got 0, allowed: a whole number from 1 to 1000"), (["euler"], 2.5, "nfe: got 2.5"), (["euler"], 1001, "nfe: got 1001")])
def test_a_race_asked_wrongly_is_refused_at_once(track, truth, samplers, nfe, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        R.race(track, samplers, nfe, truth=truth)


@pytest.mark.parametrize("how, said", [
    (dict(prompt="a big red starr"), "prompt: got unknown word 'starr' .the nearest known is 'star'"), (dict(prompt=""), "prompt: got"),
    (dict(seed=-1), "seed: got -1"), (dict(guidance_interval=(0.9, 0.1)), "guidance_interval: got"), (dict(guidance_scale=99), "guidance_scale: got 99"), (dict(num_frames=6), "num_frames: got 6")])
def test_a_course_asked_wrongly(models, how, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        R.course(**{"prompt": PROMPT, "weights": models, **how})


@pytest.mark.parametrize("count", [0, -3, 1001, "500", 2.0])
def test_a_reference_of_no_steps(track, count):
    with pytest.raises(ValueError, match="^steps: got"):
        R.reference(track, count)


@pytest.mark.parametrize("other", [dict(seed=4), dict(guidance_scale=2.0), dict(guidance_interval=(0.5, 1.0)), dict(num_frames=1)])
def test_a_reference_of_another_course(models, truth, other):
    with pytest.raises(ValueError, match="^truth: got a reference of "):
        R.race(R.course(PROMPT, **{"weights": models, "seed": 3, "guidance_interval": (0.0, 1.0), **SIZE, **other}), truth=truth)


# -- pictures ----------------------------------------------------------------------------------------------------------
def opened(data):
    return Image.open(io.BytesIO(data))


def test_a_sheet_has_a_tile_for_each():
    frames = {name: np.full((8, 8, 3), 40 * k, np.uint8) for k, name in enumerate("abcde")}
    image = R.sheet(frames, columns=2, zoom=2)
    assert image.shape == (3 * (16 + 3 + 34), 2 * 22, 3)
    assert (image[5, 5] == 0).all() and (image[5, 27] == 40).all() and (image[110, 5] == 160).all() and (image[110, 27] == 255).all()


def test_stills_and_moving_pictures():
    images = [np.full((16, 16, 3), 60 * k, np.uint8) for k in range(4)]
    still, moving = opened(R.webp(images[:1])), opened(R.webp(images, fps=4))
    assert (still.format, getattr(still, "n_frames", 1)) == ("WEBP", 1) and moving.n_frames == 4
    moving.seek(3)
    moving.load()
    assert abs(int(np.asarray(moving.convert("RGB"))[8, 8, 0]) - 180) < 6 and moving.info["duration"] == 250


# -- the map of guidance -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def atlas(models):
    return R.course(PROMPT, weights=models, seed=[1, 2, 3], num_inference_steps=4, sampler="dpmpp_2m", **SIZE)


def films(*seeds, colour="red"):
    scenes = [make_scene("big", colour, "star", "moves right", "over the ocean", seed) for seed in seeds]
    return np.stack([to_uint8(render(s)[0]) for s in scenes]), caption(scenes[0])


def test_true_clips_obey_and_others_do_not():
    clips, prompt = films(1, 2)
    good, saturation, variety = R.measures(clips, prompt)
    wrong = R.measures(clips, prompt.replace("red", "blue"))[0]
    assert good > 0.8 and 0.6 < wrong / good < 0.95 and 0 < variety < saturation < 1
    assert R.measures(np.random.default_rng(0).integers(0, 255, clips.shape, np.uint8), prompt)[0] == 0


def test_saturation_and_variety_are_what_they_say():
    clips, prompt = films(1, 2)
    grey = clips.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    assert R.measures(grey, prompt)[1] == 0 and R.measures(clips[[0, 0]], prompt)[2] == 0
    black_and_white = np.stack([np.zeros_like(clips[0]), np.full_like(clips[0], 255)])
    assert R.measures(black_and_white, prompt)[2] == 1


def test_a_point_is_what_the_pipeline_makes(atlas):
    "The plain guide at all levels is chapter 12's; the measures are those of its clips."
    point = R.explore(atlas, R.Setting("plain", 2.0))
    weights = replace(atlas.models, config=replace(atlas.models.config, guidance_interval=(0.0, 1.0)))
    clips = generate_unmarked(PROMPT, weights=weights, seed=[1, 2, 3], guidance_scale=2.0, num_inference_steps=4, sampler="dpmpp_2m", **SIZE)
    assert np.abs(clips.astype(int) - R.decode(point.latents, weights=atlas.models)).max() <= 1
    assert point.measures == pytest.approx(R.measures(clips, PROMPT), abs=1e-3)


def test_guides_and_intervals_make_a_difference(atlas):
    made = [R.explore(atlas, R.Setting(*s)).latents for s in (("plain", 4.0), ("rescaled", 4.0), ("projected", 4.0), ("plain", 4.0, 0.6, 1.0), ("plain", 1.0))]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(made) for b in made[:i])
    assert torch.allclose(R.explore(atlas, R.Setting("projected", 1.0)).latents, made[-1], atol=1e-4)


def test_a_point_is_kept(atlas, monkeypatch):
    first = R.explore(atlas, R.Setting("rescaled", 3.0))
    monkeypatch.setattr(R, "measures", lambda *a, **k: pytest.fail("worked out again"))
    again = R.explore(atlas, R.Setting("rescaled", 3.0))
    assert torch.equal(first.latents, again.latents) and first.measures == again.measures


@pytest.mark.parametrize("setting, said", [(("cfg++", 3.0), "guide: got 'cfg..', allowed: plain; rescaled"), (("plain", -1.0), "guidance_scale: got -1"),
                                           (("plain", 3.0, 0.8, 0.2), "guidance_interval: got .0.8, 0.2")])
def test_settings_that_cannot_be(setting, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        R.Setting(*setting)


def test_a_map_needs_noises_of_one_prompt(models):
    for prompt, seed in ((PROMPT, 0), ([PROMPT, OTHER], [0, 1])):
        with pytest.raises(ValueError, match="^course: got .* allowed: one prompt, two or more seeds"):
            R.explore(R.course(prompt, weights=models, seed=seed, **SIZE), R.Setting())


def test_nearest_is_same_guide_then_interval_then_ratio():
    S = R.Setting
    have = [S("plain", 1.0), S("plain", 4.0), S("plain", 4.0, 0.6, 1.0), S("rescaled", 2.0)]
    assert R.nearest(have, S("plain", 1.9)) == have[0] and R.nearest(have, S("plain", 2.2)) == have[1]
    assert R.nearest(have, S("plain", 1.0, 0.55, 1.0)) == have[2] and R.nearest(have, S("rescaled", 9.0, 0.6, 1.0)) == have[3] and R.nearest([], S()) is None


def test_curves_are_of_this_interval():
    point = lambda s, y: R.Point(s, None, (y, 2 * y, 3 * y))
    some = {s: point(s, y) for s, y in ((R.Setting("plain", 4.0), 0.4), (R.Setting("plain", 1.0), 0.1), (R.Setting("plain", 2.0, 0.6, 1.0), 0.9))}
    axes = R.curve_figure(some, R.Setting("rescaled", 3.0)).axes
    assert [ax.get_title() for ax in axes] == ["obedience", "saturation", "variety"]
    for k, ax in enumerate(axes, 1):
        curve, here = ax.lines
        assert list(curve.get_xdata()) == [1.0, 4.0] and list(curve.get_ydata()) == pytest.approx([0.1 * k, 0.4 * k]) and here.get_xdata()[0] == 3.0


# -- the widget of the race --------------------------------------------------------------------------------------------
@pytest.fixture
def show(models):
    made = R.SamplersRace(models, **SIZE)
    for name, value in (("prompt", PROMPT), ("nfe", 5), ("steps", 50)):
        made.controls[name].value = value
    return made


def run(show):
    show.start.click()
    show.thread.join(300)
    assert not show.thread.is_alive()
    return show.controls["status"].value


def test_start_runs_a_race(show):
    told = run(show)
    assert "done" in told and "kept" not in told and {n: len(laps) for n, laps in show.laps.items()} == {"euler": 5, "heun": 3, "dpmpp_2m": 5, "unipc": 5, "ancestral": 5}
    assert opened(show.plot.value).format == "PNG" and opened(show.stage.value).n_frames == 5
    assert show.controls["bar"].value == show.controls["bar"].max == 23 and not show.start.disabled and show.stop.disabled
    assert "reference was kept" in run(show)


def test_only_the_ticked_run(show):
    for name, box in show.ticks.items():
        box.value = name in ("unipc", "dpmpp_2m_sde")
    run(show)
    assert list(show.laps) == ["unipc", "dpmpp_2m_sde"]
    before = show.stage.value
    for box in show.ticks.values():
        box.value = False
    assert "samplers: got" in run(show) and show.stage.value == before and len(show.laps) == 2


def test_a_refused_prompt_loses_nothing(show):
    run(show)
    kept, laps = show.plot.value, show.laps
    show.controls["prompt"].value = "a small <b>red</b> starr"
    told = run(show)
    assert "prompt: got" in told and "<b>" not in told and "Traceback" not in told and show.plot.value == kept and show.laps is laps


def test_stop_in_the_middle_keeps_what_is_there(show, monkeypatch):
    three, go, real = threading.Event(), threading.Event(), R.race

    def slow(*args, **how):
        for k, lap in enumerate(real(*args, **how)):
            if k == 7:
                three.set()
                go.wait(200)
            yield lap
    monkeypatch.setattr(R, "race", slow)
    show.start.click()
    assert three.wait(200) and show.start.disabled and not show.stop.disabled
    show.stop.click()
    go.set()
    show.thread.join(300)
    assert sum(map(len, show.laps.values())) == 8 and "stopped" in show.controls["status"].value and opened(show.stage.value).n_frames == 5 and not show.start.disabled


def test_stop_during_the_reference(show, monkeypatch):
    run(show)
    laps, real = show.laps, show._tick

    def tick(done, total):
        if done == 10:
            show.stop.click()
        real(done, total)
    monkeypatch.setattr(show, "_tick", tick)
    show.controls["seed"].value = 9
    assert "stopped before the race began" in run(show) and show.laps is laps and not show.start.disabled
    monkeypatch.undo()


def test_a_fault_of_ours_is_shown_whole(show, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a <b>fault</b>")
    monkeypatch.setattr(R, "course", broken)
    told = run(show)
    assert "Traceback" in told and "a &lt;b&gt;fault" in told and not show.start.disabled


# -- the explorer ------------------------------------------------------------------------------------------------------
def settled(look):
    end = time.monotonic() + 300
    while look.thread is not None:
        assert time.monotonic() < end, "still at work"
        time.sleep(0.02)
    return look.controls["status"].value


@pytest.fixture
def look(models, monkeypatch):
    monkeypatch.setattr(R, "PROMPT", PROMPT)
    monkeypatch.setattr(R, "SCALES", (1.0, 2.0, 4.0))
    monkeypatch.setattr(R, "measures", lambda clips, *_, **__: (0.5, float(clips.mean() / 255), 0.1))      # the oracle has its own tests above
    made = R.GuidanceExplorer(models, seeds=(1, 2), num_inference_steps=3, **SIZE)
    yield made
    settled(made)


def test_the_explorer_draws_its_curve(look):
    assert "shown: plain 3, levels 0 to 1" in settled(look) and look.shown == (PROMPT, R.Setting())
    assert set(look.points[PROMPT]) == {R.Setting("plain", scale) for scale in (1.0, 2.0, 3.0, 4.0)}
    assert look.controls["bar"].value == look.controls["bar"].max == 4 and opened(look.stage.value).n_frames == 5


def test_a_prompt_typed_while_another_is_refused_is_not_lost(look, monkeypatch):
    settled(look)
    began, go, real = threading.Event(), threading.Event(), R.course

    def refused_late(prompt, **options):
        if "blue" not in prompt:
            began.set()
            assert go.wait(200)
            raise ValueError("prompt: got nonsense")
        return real(prompt, **options)
    monkeypatch.setattr(R, "course", refused_late)
    look.controls["prompt"].value = "a green horse"
    assert began.wait(200)
    look.controls["prompt"].value = blue = PROMPT.replace("red", "blue")
    go.set()
    assert "shown: plain 3" in settled(look) and look.shown == (blue, R.Setting())


def test_another_judge_does_not_take_over_kept_measures(monkeypatch):
    assert R._judge_version("mini") == R._judge_version("mini") != R._judge_version("full")
    one = R._judge_version("full")
    monkeypatch.setattr("sora_edu.world.eye.LIMITS", {"broken": (0.1, "not whole")})
    assert R._judge_version("full") != one


def test_a_slider_shows_the_nearest_and_fetches_the_missing(look, monkeypatch):
    settled(look)
    go, real = threading.Event(), R.explore

    def slow(*args, **how):
        go.wait(200)
        return real(*args, **how)
    monkeypatch.setattr(R, "explore", slow)
    before = look.stage.value
    look.controls["scale"].value = 8.0
    assert look.shown[1] == R.Setting("plain", 4.0) and look.stage.value != before and "nearest so far: plain 4" in look.controls["status"].value
    near = look.stage.value
    go.set()
    assert "shown: plain 8" in settled(look) and look.shown[1] == R.Setting("plain", 8.0) and look.stage.value != near


@pytest.mark.parametrize("name, value, shown", [("guide", "rescaled", R.Setting("rescaled", 3.0)), ("interval", (0.7, 1.0), R.Setting("plain", 3.0, 0.7, 1.0)), ("scale", 5.25, R.Setting("plain", 5.25))])
def test_the_explorer_follows_each_control(look, name, value, shown):
    settled(look)
    clips, plot = look.stage.value, look.plot.value
    look.controls[name].value = value
    settled(look)
    assert look.shown == (PROMPT, shown) and look.stage.value != clips and look.plot.value != plot


def test_what_is_asked_for_comes_before_the_rest_of_the_curve(look, monkeypatch):
    settled(look)
    order, real = [], R.explore
    monkeypatch.setattr(R, "explore", lambda course, setting: order.append(setting) or real(course, setting))
    look.controls["interval"].value = (0.5, 1.0)
    settled(look)
    assert order == [R.Setting("plain", scale, 0.5, 1.0) for scale in (3.0, 1.0, 2.0, 4.0)]
    look.controls["curve"].value = False
    look.controls["guide"].value = "rescaled"
    settled(look)
    assert order[4:] == [R.Setting("rescaled", 3.0, 0.5, 1.0)]


def test_a_prompt_that_is_refused_keeps_the_picture(look):
    settled(look)
    clips = look.stage.value
    look.controls["prompt"].value = "a small <b>red</b> starr"
    told = settled(look)
    assert "prompt: got" in told and "<b>" not in told and look.stage.value == clips
    look.controls["prompt"].value = OTHER
    assert "shown: plain 3" in settled(look) and look.stage.value != clips and look.shown[0] == OTHER
    look.controls["prompt"].value = PROMPT
    assert look.shown == (PROMPT, R.Setting())                     # at once: it was kept


def test_a_fault_in_the_explorer_is_shown_and_can_be_got_over(look, monkeypatch):
    settled(look)
    with monkeypatch.context() as patch:
        patch.setattr(R, "explore", lambda *_: 1 / 0)
        look.controls["scale"].value = 7.0
        assert "ZeroDivisionError" in settled(look)
    look.controls["scale"].value = 7.5
    assert "shown: plain 7.5" in settled(look)
