"Widgets without a browser: pure functions, pictures that follow their controls, a playground that loses nothing."
import io
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image
from tiny_weights import PROMPT, tiny_models

from sora_edu.studio import widgets as w

FRAMES = np.arange(17 * 64 * 64 * 3, dtype=np.uint32).reshape(17, 64, 64, 3).astype(np.uint8)


def picture(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def find(box, kind, description=None):
    "The first widget of a kind (and description) inside a box."
    for child in getattr(box, "children", ()):
        if type(child).__name__ == kind and description in (None, getattr(child, "description", None)):
            return child
        if (found := find(child, kind, description)) is not None:
            return found


# -- what all share ----------------------------------------------------------------------------------------------------
def test_png_enlarges_and_keeps_pixels():
    assert np.array_equal(picture(w.png(FRAMES[3], 2))[::2, ::2], FRAMES[3])


def test_a_strip_begins_and_ends_with_its_clip():
    made = w.strip(FRAMES, 5)
    assert made.shape == (64, 5 * 65, 3)
    assert np.array_equal(made[:, :64], FRAMES[0]) and np.array_equal(made[:, -65:-1], FRAMES[-1])


@pytest.mark.parametrize("typed", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a & b"])
def test_what_is_typed_is_text(typed):
    shown = w.text(typed)
    assert typed not in shown and shown.count("<") == 2


# -- world composer ----------------------------------------------------------------------------------------------------
def test_compose_tells_what_it_drew():
    made = w.compose("small", "blue", "ring", "falls", "at night", 3)
    assert made["caption"] == "a small blue ring falls at night" and made["reading"] == "small blue ring falls at night"
    assert made["frames"].shape == (17, 64, 64, 3)


def test_the_composer_follows_its_words():
    box = w.world_composer()
    before, told = find(box, "Image").value, find(box, "HTML")
    find(box, "Dropdown", "colour").value = "green"
    assert find(box, "Image").value != before and "green" in told.value
    before = find(box, "Image").value
    find(box, "IntSlider", "seed").value = 7
    assert find(box, "Image").value != before


def test_the_composer_shows_words_as_text(monkeypatch):
    monkeypatch.setattr(w, "compose", lambda **_: {"frames": FRAMES, "caption": "a <b>red</b> star", "reading": "<i>none</i>"})
    told = find(w.world_composer(), "HTML").value
    assert "&lt;b&gt;red" in told and "&lt;i&gt;none" in told and told.count("<") == 2


# -- spacetime patches -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("patch, grid", [((4, 16, 16), (4, 4, 4)), ((1, 8, 8), (17, 8, 8)), ((8, 32, 32), (2, 2, 2))])
def test_tokens_tile_the_clip(patch, grid):
    view = w.patch_view(FRAMES, patch, 0)
    assert view["grid"] == grid and view["tokens"] == np.prod(grid) and view["pairs"] == view["tokens"] ** 2


def test_a_token_shows_its_own_pixels():
    view = w.patch_view(FRAMES, (4, 16, 16), 16 + 4 * 2 + 3)          # second group, third row, fourth column
    assert np.array_equal(view["own"][:, :16], FRAMES[4, 32:48, 48:64]) and view["own"].shape == (16, 64, 3)
    assert (view["sheet"][32, 48:64] == (255, 255, 0)).all()


@pytest.mark.parametrize("token, shown", [(-5, 0), (10**6, 63)])
def test_tokens_outside_are_the_nearest(token, shown):
    assert w.patch_view(FRAMES, (4, 16, 16), token)["token"] == shown


def test_the_patches_follow_pointer_and_sizes():
    box = w.spacetime_patches(FRAMES)
    hover, own, told = box.children[0], find(box, "Image"), find(box, "HTML")
    before = own.value
    hover.cell = 5
    assert own.value != before and "token 5 of 64" in told.value
    find(box, "Dropdown", "pixels").value = 8
    assert hover.grid == [8, 8] and "of 256" in told.value
    find(box, "IntSlider", "group").value = 2
    assert "token 133" in told.value


def test_a_coarser_grid_stays_in_its_group():
    box = w.spacetime_patches(FRAMES)
    find(box, "Dropdown", "pixels").value = 4
    box.children[0].cell = 200
    find(box, "Dropdown", "pixels").value = 32
    assert box.children[0].cell == 3 and "token 3 of 16" in find(box, "HTML").value


# -- latents -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def latents():
    return w.latents_widget()


def test_fewer_channels_are_worse():
    from sora_edu.world.render import render
    from sora_edu.world.scene import make_scene
    clip = render(make_scene("big", "pink", "heart", "rises", "in the desert", 4))
    error = lambda view, name: np.square(view[name].astype(float) - view["original"]).mean()
    few, all_ = w.latent_view(clip, 2), w.latent_view(clip, 16)
    assert all(error(few, name) > 2 * error(all_, name) for name in ("PCA", "VAE")) and error(all_, "VAE") < error(all_, "PCA")


def test_the_latents_follow_their_sliders(latents):
    before = find(latents, "Image").value
    find(latents, "IntSlider", "channels").value = 3
    middle = find(latents, "Image").value
    find(latents, "IntSlider", "frame").value = 0
    assert before != middle != find(latents, "Image").value


# -- playground --------------------------------------------------------------------------------------------------------
def run(play):
    play.start.click()
    play.thread.join(300)
    assert not play.thread.is_alive()


def steps_of(prompt, seed, guidance_scale, num_inference_steps):
    for i in range(num_inference_steps):
        yield np.full_like(FRAMES, 10 * i + seed)


def shown(play):
    return picture(play.picture.value)[0, 0, 0]


def test_every_step_is_kept_and_can_be_looked_at():
    play = w.Playground(steps_of)
    play.steps.value = 6
    run(play)
    assert len(play.history) == 6 and "done after 6 steps" in play.status.value and shown(play) == 50
    play.scrub.value = 3
    assert shown(play) == 20 and play.scrub.max == 6
    assert not play.start.disabled and play.stop.disabled


def test_stopping_keeps_what_is_there():
    three, go = threading.Event(), threading.Event()

    def stepper(*_):
        for i in range(50):
            if i == 3:
                three.set()
                go.wait(120)
            yield np.full_like(FRAMES, i)
    play = w.Playground(stepper)
    play.start.click()
    assert three.wait(120) and play.start.disabled and not play.stop.disabled
    play.stop.click()
    go.set()
    play.thread.join(120)
    assert 3 <= len(play.history) <= 4 and "stopped after" in play.status.value and shown(play) == len(play.history) - 1


def test_a_refused_prompt_says_why_and_loses_nothing():
    play = w.Playground(partial(w.pipeline_stepper, weights=tiny_models()))
    play.prompt.value, play.steps.value = PROMPT, 2
    run(play)
    kept = play.picture.value
    play.prompt.value = "a small <b>red</b> starr"
    run(play)
    assert "prompt: got" in play.status.value and "<b>" not in play.status.value and "Traceback" not in play.status.value
    assert len(play.history) == 2 and play.picture.value == kept
    play.scrub.value = 1
    assert play.picture.value != kept


def test_a_new_run_takes_the_old_one_s_place():
    play = w.Playground(steps_of)
    play.steps.value = 5
    run(play)
    play.steps.value, play.seed.value = 2, 3
    run(play)
    assert len(play.history) == 2 and play.scrub.max == 2 and shown(play) == 13


def test_a_fault_of_ours_is_shown_whole():
    def broken(*_):
        yield FRAMES
        raise RuntimeError("a <b>fault</b>")
    play = w.Playground(broken)
    run(play)
    assert "Traceback" in play.status.value and "a &lt;b&gt;fault" in play.status.value and not play.start.disabled


def test_the_pipeline_s_steps_are_marked():
    from sora_edu.pipeline.generate import mark
    frames = list(w.pipeline_stepper(PROMPT, 1, 2.0, 3, weights=tiny_models()))
    assert len(frames) == 3 and all(np.array_equal(mark(f), f) for f in frames)
    assert not np.array_equal(frames[0], frames[2])
