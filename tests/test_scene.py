"Scenes: frozen, checked, addressed, and split so that held-out combinations stay out of training."
import pytest
from sora_edu.world.scene import ACTIONS, ACTORS, COLOURS, SETTINGS, SIZES, Actor, Corner, Description, Scene, World, is_heldout, make_scene


def test_streams_have_random_access():
    world = World("mini")
    assert world.sample(3, 20)[12:15] == world.sample(3, 3, start=12)
    assert world.sample(3, 5) != world.sample(4, 5) != world.sample(3, 5, "all")


def test_no_heldout_scene_in_training_draws():
    assert not any(is_heldout(s) for s in World().sample(0, 5000))
    assert all(is_heldout(s) for s in World().sample(0, 500, "heldout"))


def test_the_split_is_frozen():
    "Shipped weights depend on it: these answers may never change."
    assert is_heldout(make_scene("big", "purple", "ball", "rises", "at night"))
    assert is_heldout(make_scene("small", "red", "box", "shrinks", "at sunset"))
    assert not is_heldout(World().scene(0, 0))
    first = World().scene(0, 0).description
    assert first == Description(*EXPECTED_FIRST)


EXPECTED_FIRST = ("big", "orange", "ball", "rises", "in the desert")


def test_every_word_is_drawn():
    scenes = World().sample(1, 2000)
    for words, get in ((SIZES, "size"), (COLOURS, "colour"), (ACTORS, "actor"), (ACTIONS, "action"), (SETTINGS, "setting")):
        assert {getattr(s.description, get) for s in scenes} == set(words)


@pytest.mark.parametrize("words, name", [(("huge", "red", "ball", "rises"), "size"), (("big", "rot", "ball", "rises"), "colour"),
                                         (("big", "red", "cow", "rises"), "kind"), (("big", "red", "ball", "flies"), "action")])
def test_a_wrong_word_is_named(words, name):
    with pytest.raises(ValueError, match=f"^{name}: got .* allowed: "):
        Actor(*words)


@pytest.mark.parametrize("kwargs, name", [(dict(actors=()), "actors"), (dict(actors=[]), "actors"), (dict(setting="on the moon"), "setting"),
                                          (dict(seed=-1), "seed"), (dict(seed=1.5), "seed"), (dict(seed=True), "seed")])
def test_a_wrong_scene_is_refused(kwargs, name):
    good = dict(actors=(Actor("big", "red", "ball", "rises"),), setting="at night", seed=0)
    with pytest.raises(ValueError, match=f"^{name}: got "):
        Scene(**{**good, **kwargs})


def test_an_unknown_world_or_split_is_refused():
    with pytest.raises(ValueError, match="^name: got 'maxi'"):
        World("maxi")
    with pytest.raises(ValueError, match="^split: got 'test'"):
        World().sample(0, 1, "test")


def test_a_tenth_of_the_combinations_is_held_out_beside_whole_pairs():
    "Counted over all of them: pairs are held out in every combination, of the rest a tenth."
    every = [(c, k, a, s) for c in COLOURS for k in ACTORS for a in ACTIONS for s in SETTINGS]
    held = {w for w in every if is_heldout(make_scene("small", *w))}
    look, act = {(c, k) for c in COLOURS for k in ACTORS}, {(k, a) for k in ACTORS for a in ACTIONS}
    looks = {p for p in look if all((*p, a, s) in held for a in ACTIONS for s in SETTINGS)}
    acts = {p for p in act if all((c, *p, s) in held for c in COLOURS for s in SETTINGS)}
    rest = [w for w in every if w[:2] not in looks and w[1:3] not in acts]
    assert looks and acts and 0.08 < sum(w in held for w in rest) / len(rest) < 0.12


def test_a_corner_is_a_part_of_the_world():
    corner = Corner(actor=("star",), action=("rises", "spins"))
    scenes = corner.sample(4, 30) + corner.sample(4, 30, "heldout")
    assert {(s.description.actor, s.description.action) for s in scenes} == {("star", "rises"), ("star", "spins")} and len({s.description for s in scenes}) > 20
    assert [is_heldout(s) for s in scenes] == [False] * 30 + [True] * 30 and corner.sample(4, 3, start=5) == scenes[5:8]


@pytest.mark.parametrize("words, told", [(dict(colr=("red",)), "words: got 'colr', allowed: size, colour"), (dict(actor="ball"), "actor: got 'ball', allowed: some of ball, box"),
                                         (dict(actor=("bal",)), "actor: got .'bal',., allowed"), (dict(action=()), "action: got .., allowed")])
def test_a_corner_of_other_words_is_refused(words, told):
    with pytest.raises(ValueError, match=told):
        Corner(**words)
