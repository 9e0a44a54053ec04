"Captions: what is said can be read back, word for word; what is unknown is named."
import random

import pytest

from sora_edu.world.captions import FILLERS, STYLES, SYNONYMS, caption, describe, nearest_word, parse
from sora_edu.world.scene import ATTRIBUTES, Description, World, is_heldout, make_scene

SCENES = World().sample(5, 300, "all")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("image", [False, True])
def test_parsing_undoes_captioning(style, image):
    for seed in range(3):
        for scene in SCENES:
            text = caption(scene, style, seed, image)
            assert parse(text) == describe(scene, style, seed, image), text


def test_captions_leave_the_split_alone():
    "Words read back from a caption are on the same side of it, and captioning draws nothing from the streams of scenes."
    state, split = random.getstate(), [is_heldout(s) for s in SCENES]
    assert [is_heldout(make_scene(*vars(parse(caption(s, seed=1))).values())) for s in SCENES] == split and 0 < sum(split) < 300
    assert random.getstate() == state and World().sample(5, 300, "all") == SCENES


def test_the_canonical_caption():
    scene = make_scene("small", "red", "star", "moves right", "over the ocean")
    assert caption(scene) == "a small red star moves right over the ocean"
    assert parse(caption(scene)) == scene.description


def test_wordings_vary_and_repeat():
    scene = SCENES[0]
    wordings = {caption(scene, style, seed) for style in STYLES for seed in range(30)}
    assert len(wordings) > 20
    assert caption(scene, "dense", 3) == caption(scene, "dense", 3)


def test_terse_leaves_things_open_and_images_have_no_action():
    told = [describe(s, "terse", seed) for s in SCENES for seed in range(1, 4)]
    silent = sum(None in vars(d).values() for d in told) / len(told)
    assert 0.2 < silent < 0.4
    assert all(describe(s, image=True).action is None for s in SCENES)


def test_every_phrase_means_one_thing():
    for slot, words in SYNONYMS.items():
        for word, others in words.items():
            for phrase in (word, *others):
                assert parse(phrase) == Description(**{slot: word})
    assert not FILLERS & {p for words in SYNONYMS.values() for p in words}


def test_what_is_unsaid_is_none():
    assert parse("red") == Description(colour="red")
    assert [getattr(parse("there is a"), a) for a in ATTRIBUTES] == [None] * 5


@pytest.mark.parametrize("text, near", [("a small red sta", "star"), ("a blu ball", "blue"), ("it bounzes", "bounces")])
def test_unknown_words_get_their_neighbour(text, near):
    with pytest.raises(ValueError, match=f"unknown word .* nearest known word is '{near}'"):
        parse(text)
    assert nearest_word(text.split()[-1] if near != "blue" else "blu") == near


@pytest.mark.parametrize("text", ["", "   ", None, 7, "red " * 100])
def test_no_caption_is_named(text):
    with pytest.raises(ValueError, match="^text: got .*, allowed: a caption"):
        parse(text)


def test_contradictions_are_named():
    with pytest.raises(ValueError, match="^text: got both 'red' and 'blue', allowed: one colour"):
        parse("a red blue ball")


def test_bad_styles_are_named():
    with pytest.raises(ValueError, match="^style: got 'loud', allowed: terse, plain, dense"):
        caption(SCENES[0], "loud")
