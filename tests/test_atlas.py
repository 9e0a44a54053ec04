"The full world's widgets without a browser: words and shots are inverse, marks lose nothing, errors keep what is there."
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_widgets import find, picture

from sora_edu.studio import atlas as a
from sora_edu.world import eye
from sora_edu.world.language import caption, parse
from sora_edu.world.stage import ATTRIBUTES, INTERACTIONS, draw_shot, fantasy


def shots(n, seed="atlas"):
    rng = random.Random(seed)
    return [draw_shot(rng, "all") for _ in range(n)]


# -- words and shots ---------------------------------------------------------------------------------------------------
def test_words_and_shots_are_inverse():
    drawn = shots(300)
    assert all(a.shot_from(a.words_of(shot), shot.seed) == shot for shot in drawn)
    assert any(len(s.groups) == 2 and s.relation for s in drawn) and any(len(s.groups[0].actions) == 3 for s in drawn)


def test_idle_words_do_not_count():
    for words, off in (({"setting": "in space"}, {"other_size", "other_colour", "together", "third", "time", "weather"}), ({"other_actor": "box", "together": "orbits"}, {"action", "second", "third"}),
                       ({"other_actor": "box", "together": "above", "action": "spins"}, {"second", "third"}), ({}, {"other_size", "other_colour", "together", "third"})):
        words = a.PLAIN | words
        assert a.idle(words) == off
        changed = words | {name: a.CHOICES[name][-1] for name in off}
        assert a.shot_from(words) == a.shot_from(changed) and a.idle(changed) == off


@pytest.mark.parametrize("words, reason", [
    ({"count": 3}, "at most 2 medium"), ({"second": "bounces"}, "beats that differ"), ({"weather": "stars"}, "stars at night"),
    ({"other_actor": "box", "together": "above"}, "allowed in a relation"), ({"other_actor": "box", "camera": "pans left"}, "allowed with two actors"),
    ({"size": "tiny"}, "size: got 'tiny'")])
def test_what_makes_no_shot_says_why(words, reason):
    with pytest.raises(ValueError, match=reason):
        a.shot_from(a.PLAIN | words)


def test_clips_are_kept_and_cannot_be_painted_on():
    shot = a.shot_from(a.PLAIN, 4)
    clip = a.filmed(shot)
    assert clip.shape == (17, 96, 96, 3) and clip is a.filmed(a.shot_from(a.PLAIN, 4)) and (clip[0] != clip[3]).any()
    with pytest.raises(ValueError):
        clip[0] = 0


@pytest.mark.parametrize("sentence", ["a boat", "two small robots spin in space", "a red fish chases a blue ball", "a house in neon, the camera shakes"])
def test_a_sentence_is_filled_in_and_never_contradicted(sentence):
    said = parse(sentence)
    for seed in range(5):
        shot = a.shot_heard(sentence, seed)
        made, added = shot.description, a.filled_in(sentence, shot)
        assert shot.seed == seed and all(getattr(made, x) == getattr(said, x) for x in ATTRIBUTES if getattr(said, x) is not None)
        assert set(added) == {x for x in ATTRIBUTES if getattr(said, x) is None and getattr(made, x) is not None} != set()
        assert a.shot_from(a.words_of(shot), seed) == shot


# -- marks -------------------------------------------------------------------------------------------------------------
def letters(text):
    return "".join(text.split())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_attribute_of_a_caption_is_marked_by_somebody(seed):
    for shot in shots(150, "marks"):
        for style in ("dense", "terse"):
            told = caption(shot, style, seed)
            found, said = a.marks(told), parse(told)
            want = {x for x in ATTRIBUTES if getattr(said, x) is not None}
            fills = {mark.slot for mark in found} - {None, "then"}
            assert fills <= want and want - fills <= {"count"}, (told, fills ^ want)
            assert letters("".join(mark.typed for mark in found)) == letters(told)


@pytest.mark.parametrize("sentence, slots", [
    ("a big ball is chased by a small fish", {"big": "other_size", "ball": "other_actor", "chased by": "action", "small": "size", "fish": "actor"}),
    ("behind a big house, a big robot spins", {"house": "other_actor", "robot": "actor", "spins": "action"}),
    ("a ball spins, then rises, then swings", {"spins": "action", "rises": "second", "swings": "third"}),
    ("a fish moves left, then right", {"moves left": "action", "right": "second"}),
    ("A fish circles around a ball", {"circles around": "action", "ball": "other_actor"}),
    ("a ball under the stars", {"under the stars": "weather"}), ("It doesn't move, in falling snow", {"doesn't move": "action", "in falling snow": "weather"}),
    ("a red ball and a blue one", {"red": "colour", "blue": "other_colour", "one": "other_actor"}), ("3 zig-zagging stars", {"3": "count", "zig-zagging": "action"}),
    ("above the city a bird flies", {"above": None, "city": "setting", "a": None})])
def test_words_are_marked_with_the_slot_that_they_fill(sentence, slots):
    found = {mark.typed: mark.slot for mark in a.marks(sentence)}
    assert {word: found.get(word, "absent") for word in slots} == slots


def test_the_same_word_twice_is_told_apart():
    assert [m.slot for m in a.marks("a big ball is chased by a big fish") if m.typed == "big"] == ["other_size", "size"]
    assert [m.slot for m in a.marks("tiny star and huge star") if m.typed == "star"] == ["actor", "other_actor"]
    assert [m.slot for m in a.marks("to the left of a red fish, a blue fish rests") if m.typed == "fish"] == ["other_actor", "actor"]
    assert [m.slot for m in a.marks("a ball spins, then rises, then spins") if m.typed == "spins"] == ["action", "third"]


def test_unknown_words_get_the_nearest_known_one():
    found = a.marks("a purpel fisch goes; 日本")
    assert [tuple(m) for m in found if m.slot == "unknown"] == [("purpel", "unknown", "purple"), ("fisch", "unknown", "fish"), ("日本", "unknown", "")]
    assert [m.slot for m in found if m.typed == "goes"] == ["action"]
    assert a.marks("a ball does spin")[2] == ("does", "unknown", a._hint("does")) and " " in a._hint("does")


@pytest.mark.parametrize("typed", ["", "   ", "-", "--- , . !", "a " * 900, "'" * 50, "<img src=x onerror=alert(1)>", "not blue", "\x00\n\t", "ball " * 120])
def test_no_text_breaks_the_marks(typed):
    assert a.marked(typed).startswith("<div class='marks'>") and "<img" not in a.marked(typed)


def test_marks_as_html_carry_class_label_and_escaped_text():
    shown = a.marked("a <b>red</b> big fisch & two balls")
    assert "<b>" not in shown and "&lt;b&gt;red" in shown and "mark-unknown" in shown and "unknown: fish?" in shown
    assert "mark-size" in shown and "<small>size</small>" in shown and a.TINTS["size"] in shown


# -- the composer ------------------------------------------------------------------------------------------------------
@pytest.fixture
def board():
    return a.Composer("a small red fish chases a big blue ball over the ocean at sunset")


def in_step(board):
    "Lists, sentence, shot and caption say the same."
    words = a.words_of(board.shot)
    assert all(board.words[name] == word and board.lists[name].label == a._shown(word) for name, word in words.items() if word in a.CHOICES[name])
    off = {name for name, control in board.lists.items() if control.disabled}
    assert off == a.idle(board.words)
    return caption(board.shot, "dense") in board.told.value and np.array_equal(picture(board.picture.value), a.strip(a.filmed(board.shot), 7))


def test_a_sentence_sets_the_lists(board):
    assert in_step(board) and board.lists["together"].value == "chases" and board.lists["action"].disabled
    board.typed.value = "three small robots spin, then rise, in space"
    assert in_step(board) and board.words["count"] == 3 and board.lists["second"].value == "rises" and board.lists["weather"].disabled
    assert board.typed.value == "three small robots spin, then rise, in space" and "filled in: colour" in board.told.value


def test_a_list_sets_the_sentence(board):
    board.lists["other_actor"].value = "balloon"
    assert in_step(board) and "balloon" in board.typed.value and parse(board.typed.value) == board.shot.description
    assert "mark-other_actor" in board.marks.value and "balloon" in board.marks.value and "filled in" not in board.told.value
    before = board.picture.value
    board.lists["other_actor"].value = "-"
    assert in_step(board) and not board.lists["action"].disabled and len(board.shot.groups) == 1 and board.picture.value != before


def test_every_list_works(board):
    board.typed.value = "a small red ball bounces, then spins over a meadow, by day, in clear weather, the camera stays still"
    for name in a.CHOICES:
        if not board.lists[name].disabled:
            old, words = board.shot, [w for w in a.CHOICES[name] if w not in (None, board.words[name])]
            board.lists[name].value = str(next(w for w in words if w != "bounces" and w != "spins"))
            assert board.shot != old and in_step(board), name
            board.lists[name].value = a._shown(a.words_of(old)[name])


def test_a_refused_choice_says_why_and_loses_nothing(board):
    board.typed.value = "a medium ball bounces over a meadow"
    shot, kept, typed = board.shot, board.picture.value, board.typed.value
    board.lists["count"].value = "4"
    assert "at most 2 medium" in board.told.value and (board.shot, board.picture.value, board.typed.value) == (shot, kept, typed)
    board.seed.value = 9                                          # the seed goes on with what was touched last
    assert "at most 2 medium" in board.told.value and board.words["count"] == 4 and board.picture.value == kept
    board.lists["size"].value = "small"
    assert in_step(board) and board.shot.groups[0].count == 4


def test_a_refused_sentence_says_why_and_loses_nothing(board):
    shot, kept, lists = board.shot, board.picture.value, board.words
    for typed, reason in (("a <i>fisch</i> swims", "nearest known word"), ("a red blue ball", "allowed: one colour"), ("", "1 to 600 characters"),
                          ("three big balls", "at most 1 big"), ("stars by day in space, rain", "")):
        board.typed.value = typed
        assert reason in board.told.value and "<i>" not in board.told.value + board.marks.value
        assert (board.shot, board.picture.value, board.words) == (shot, kept, lists) and board.typed.value == typed
    board.typed.value = "a fish swims"
    assert in_step(board)


def test_idle_words_are_kept_on_the_way_to_space_and_back(board):
    board.typed.value = "a ball rises over a meadow at sunset in fog"
    board.lists["setting"].value = "in space"
    assert board.shot.time is None and board.lists["time"].disabled and "sunset" not in board.typed.value
    board.lists["setting"].value = "on the beach"
    assert board.shot.time == "at sunset" and board.shot.weather == "fog" and in_step(board)


def test_fantasies_are_named(board):
    board.typed.value = "a house rises over a meadow"
    assert f"fantasy:   {fantasy(board.shot)}" in board.told.value
    board.typed.value = "a bird rises over a meadow"
    assert "fantasy" not in board.told.value


def test_the_seed_draws_what_is_open_and_only_that(board):
    board.typed.value = "a boat"
    seen = set()
    for seed in range(5):
        board.seed.value = seed
        assert board.shot == a.shot_heard("a boat", seed) and in_step(board)
        seen.add(board.shot.groups[0].colour)
    assert len(seen) > 1
    board.lists["colour"].value = "pink"
    words, before = a.words_of(board.shot), board.picture.value
    board.seed.value = 77
    assert a.words_of(board.shot) == words and board.shot.seed == 77 and board.picture.value != before


def test_the_composer_can_be_found():
    box = a.storyboard_composer()
    assert "storyboard-composer" in box._dom_classes and find(box, "Text", "caption") and find(box, "Dropdown", "other actor")


# -- the X-ray ---------------------------------------------------------------------------------------------------------
def spot(x=0.5, y=0.5, radius=0.25, angle=0.0):
    return SimpleNamespace(x=x, y=y, radius=radius, angle=angle)


def blank(tracks, stray=(), side=(128, 128)):
    return SimpleNamespace(frames=np.zeros((3, *side, 3), np.uint8), view=SimpleNamespace(tracks=list(tracks), stray=list(stray)))


def inked(image, x, y, ink):
    rgb = tuple(int(ink[i:i + 2], 16) for i in (1, 3, 5))
    return (image[int(y) - 2:int(y) + 3, int(x) - 2:int(x) + 3] == rgb).all(-1).any()


@pytest.mark.parametrize("angle, top", [(0.0, (0.5, 0.3)), (math.pi / 2, (0.7, 0.5)), (math.pi, (0.5, 0.7)), (-math.pi / 2, (0.3, 0.5))])
def test_a_track_is_a_circle_with_a_line_to_its_top(angle, top):
    image, ink = a.tracks_drawn(blank([{0: spot(angle=angle)}]), 0, 2), a.INKS[0]
    assert image.shape == (256, 256, 3)
    assert all(inked(image, 256 * x, 256 * y, ink) for x, y in ((0.25, 0.5), (0.75, 0.5), (0.5, 0.25), (0.5, 0.75), top))
    assert inked(image, 256 * (1 - top[0]), 256 * (1 - top[1]), ink) is np.False_
    assert not a.tracks_drawn(blank([{1: spot()}]), 0, 2).any()


def test_tracks_have_colours_of_their_own_a_trail_and_grey_strays():
    taken = blank([{0: spot(0.2, 0.2, 0.1), 1: spot(0.8, 0.2, 0.1)}, {1: spot(0.2, 0.8, 0.1)}], [{1: spot(0.8, 0.8, 0.1)}])
    image = a.tracks_drawn(taken, 1, 2)
    assert inked(image, 0.9 * 256, 0.2 * 256, a.INKS[0]) and inked(image, 0.3 * 256, 0.8 * 256, a.INKS[1]) and inked(image, 0.9 * 256, 0.8 * 256, "#b0b0b0")
    assert inked(image, 0.5 * 256, 0.2 * 256, a.INKS[0]) and not inked(a.tracks_drawn(taken, 0, 2), 0.5 * 256, 0.2 * 256, a.INKS[0])


def test_tracks_lie_in_the_middle_of_a_wide_frame():
    image = a.tracks_drawn(blank([{0: spot()}], side=(128, 192)), 0, 2)
    assert inked(image, 192 + 64, 128, a.INKS[0]) and inked(image, 192 - 64, 128, a.INKS[0])


def test_the_tracks_lie_on_the_actors():
    from sora_edu.world.film import truth
    for seed in (0, 2):
        taken = a.xray(seed)
        true = truth(taken.shot, a.FRAMES, fps=a.RATE).tracks
        assert len(taken.view.tracks) == len(true)
        for track in taken.view.tracks:
            far = [np.median([math.hypot(s.x - one[0, f], s.y - one[1, f]) for f, s in track.items()]) for one in true]
            assert min(far) < 0.03


def test_the_x_ray_agrees_with_the_oracle():
    taken = a.xray(37, "teleport")
    assert taken.reading.unreadable and taken.reading.unreadable == eye.verdict(taken.faults)
    assert taken.reading.unreadable in a.xray_text(taken) and f"camera:  {taken.view.camera.word}" in a.xray_text(taken)
    red = [name for name, _, _, wrong, _ in a.fault_rows(taken) if wrong]
    assert red and all(name in a.xray_text(taken).split("over:")[1] for name in red) and eye.LIMITS[red[0]][1] == taken.reading.unreadable
    clean = a.xray(37)
    assert (clean.frames[:a.FRAMES // 2] == taken.frames[:a.FRAMES // 2]).all() and (clean.frames[-1] != taken.frames[-1]).any()
    assert clean.said.second is None and clean.shot.description.second, "what comes after the last frame is not true of the clip"


def test_rows_are_red_beyond_the_limit_and_half_full_at_it():
    taken = a.xray(37)
    at = replace(taken, faults={name: most for name, (most, _) in eye.LIMITS.items()})
    assert all((full, wrong) == (0.5 if eye.LIMITS[name][0] else 0.0, False) for name, _, full, wrong, _ in a.fault_rows(at))
    over = replace(taken, faults={name: 3 * most + 1 for name, (most, _) in eye.LIMITS.items()})
    assert all((full, wrong) == (1.0, True) for _, _, full, wrong, _ in a.fault_rows(over))
    nan = replace(taken, faults=taken.faults | {"lawless": math.nan})
    assert dict((row[0], row[3]) for row in a.fault_rows(nan))["lawless"]
    wrong = replace(taken, said=replace(taken.said, colour="pink"))
    assert [row[:2] for row in a.word_rows(wrong) if row[3]] == [row[:2] for row in a.word_rows(taken) if row[3] or row[0] == "colour"]
    assert (a.xray_picture(wrong, 0) != a.xray_picture(taken, 0)).any() and (a.xray_picture(over, 0) != a.xray_picture(at, 0)).any()


@pytest.mark.parametrize("seed, corruption, reason", [(0, "melted", "allowed: none, melting"), (0, "teleport", "no room")])
def test_no_x_ray_says_why(seed, corruption, reason):
    with pytest.raises(ValueError, match=reason):
        a.xray(seed, corruption)


def test_the_x_ray_follows_its_controls_and_keeps_its_picture():
    box = a.oracle_xray(37)
    shown, told, clip = find(box, "Image"), find(box, "HTML"), find(box, "IntSlider", "clip")
    before = shown.value
    find(box, "IntSlider", "frame").value = 12
    middle = shown.value
    assert middle != before and "verdict: readable" in told.value
    find(box, "Dropdown", "corruption").value = "teleport"
    assert shown.value != middle and a.xray(37, "teleport").reading.unreadable in told.value
    kept = shown.value
    clip.value = 0                                                # there is no room for a teleport
    assert "no room" in told.value and shown.value == kept
    find(box, "Dropdown", "corruption").value = "none"
    assert shown.value != kept and np.array_equal(picture(shown.value), a.xray_picture(a.xray(0), 12)) and "oracle-xray" in box._dom_classes


# -- the atlas ---------------------------------------------------------------------------------------------------------
def test_the_atlas_holds_every_word():
    from sora_edu.world import stage
    told = {word for _, words, _ in a.ATLAS.values() for word in words}
    for words in (stage.SIZES, stage.COLOURS, stage.ACTORS, stage.ACTIONS, stage.INTERACTIONS, stage.RELATIONS, stage.SETTINGS, stage.TIMES,
                  stage.WEATHERS, stage.CAMERAS, stage.STYLES, (1, 2, 3, 4)):
        assert set(words) <= told


@pytest.mark.parametrize("slot", a.ATLAS)
def test_examples_show_their_word_and_differ_in_nothing_else(slot):
    name, words, _ = a.ATLAS[slot]
    told = [a.words_of(a.example(slot, word)) for word in words]
    assert [one[name] for one in told] == list(words)
    free = {name, *({"time"} if slot == "weathers" else ()), *(("time", "weather") if slot == "settings" else ())}
    assert all(one[k] == told[0][k] for one in told for k in one if k not in free)


@pytest.mark.parametrize("slot, word", [("colours", "mauve"), ("moods", "glad"), ("counts", 5)])
def test_no_example_of_what_there_is_not(slot, word):
    with pytest.raises(ValueError, match="allowed: "):
        a.example(slot, word)


@pytest.mark.parametrize("slot", a.ATLAS)
def test_a_sheet_shows_each_clip_with_its_word(slot):
    clips, words = a.clips_of(slot), a.ATLAS[slot][1]
    sheet, later = a.contact_sheet(slot, 1), a.contact_sheet(slot, 7)
    rows = -(-len(words) // 5)
    assert clips.shape == (len(words), a.TURNS, 96, 96, 3) and sheet.shape == (rows * 118, 500, 3)
    for n in range(len(words)):
        y, x = n // 5 * 118, n % 5 * 100
        assert (sheet[y + 4:y + 100, x + 2:x + 98] == clips[n, 1]).all() and (later[y + 4:y + 100, x + 2:x + 98] == clips[n, 7]).all()
        assert (sheet[y + 101:y + 118, x:x + 100] < 100).any(), "its word"
        assert all(np.abs(clips[n].astype(int) - clips[m]).max() > 40 for m in range(n))
    if len(words) % 5:
        assert (sheet[-118:, -100:] == 255).all()


def test_words_beneath_differ():
    labels = [a._tile(np.zeros((96, 96, 3), np.uint8), word)[100:] for word in ("rises", "falls")]
    assert (labels[0] != labels[1]).any()


def test_the_atlas_follows_slot_and_frame():
    box = a.world_atlas("sizes")
    shown, slot, frame, play = find(box, "Image"), find(box, "Dropdown", "words"), find(box, "IntSlider", "frame"), find(box, "Play")
    for control, value in ((frame, 5), (slot, "counts"), (frame, 2)):
        control.value = value
        assert np.array_equal(picture(shown.value), a.contact_sheet(slot.value, frame.value))
    assert a.sheet_bytes("counts", 2) is a.sheet_bytes("counts", 2) and "4 counts, 0.50 s" in find(box, "HTML").value
    assert (play.max, play.repeat) == (frame.max, True) and box.link.source[0] is play and box.link.target[0] is frame and "world-atlas" in box._dom_classes


def test_interactions_are_all_there():
    assert set(a.ATLAS["interactions"][1]) == set(INTERACTIONS)
