"Scenes: frozen, checked, addressed, and split so that held-out combinations stay out of training."
import pytest
from sora_edu.world.scene import ACTIONS, ACTORS, COLOURS, SETTINGS, SIZES, Actor, Description, Scene, World, is_heldout, make_scene


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
