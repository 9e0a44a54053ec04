"The full world's figures: each measurement finds the fault that it is there to find."
import importlib
from dataclasses import replace

import pytest
import torch

from sora_edu.evaluate import speed, worlds as W
from sora_edu.world import film, language, stage
from sora_edu.world.dataset import World

SMALL = dict(num_frames=3, height=32, width=32)
NAMES = {"parse_exact", "phrasings", "expand_contradicts", "parse_slowest", "pairs_differ", "heldout_leaks", "render_batch_diff",
         "render_full", "render_full_gpu", "render_memory", "oracle_worst_attribute", "oracle_all", "oracle_loss_h264", "oracle_loss_pca",
         "corruptions_worst", "false_unreadable", "oracles_agree"}


@pytest.fixture(scope="module")
def shots():
    return World("full").sample(5, 12, "all")


def test_every_figure_has_a_measure():
    for home in speed.HOMES["world"]:
        importlib.import_module(home)
    assert set(speed.MEASURES["world"]) == NAMES
    assert W.__name__ in speed.HOMES["world"]


def test_mishearing_is_found(shots, monkeypatch):
    assert W.misheard(shots) == []
    real = language.parse
    monkeypatch.setattr(language, "parse", lambda text: replace(real(text), style=None))
    assert len(W.misheard(shots)) >= 2 * len(shots)                   # every dense caption names the style


def test_wordings_are_counted_once(shots, monkeypatch):
    assert W.wordings(shots[0], 40) > 20
    monkeypatch.setattr(language, "caption", lambda *a: "always the same")
    assert W.wordings(shots[0], 40) == 1


def test_contradictions_are_found(monkeypatch):
    prompts = ["a small red ball", "a big star", "in the city at night"]
    assert W.contradictions(prompts) == []
    monkeypatch.setattr(language, "expand", lambda prompt, seed: "a big blue fish spins in the desert by day")
    assert W.contradictions(prompts) == prompts


def test_prompts_can_be_understood():
    prompts = list(W._prompts(40))
    assert len(prompts) > 30 and len(set(prompts)) > 25
    assert all(any(vars(language.parse(p)).values()) for p in prompts)


def test_strange_strings_are_strange_and_repeat():
    some = list(W.strange_strings(60))
    assert some == list(W.strange_strings(60)) and len(set(some)) > 50 and max(map(len, some)) > 300
    answers = []
    for text in some:
        try:
            language.parse(text)
            answers.append(True)
        except ValueError:
            answers.append(False)
    assert 0 < sum(answers) < len(some)                               # some can be understood, some cannot


def test_another_exception_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(language, "parse", lambda text: {}[text])
    with pytest.raises(KeyError):
        W.slowest(["a ball"])


@pytest.mark.parametrize("slot", list(W.SLOTS))
def test_a_context_allows_every_word_of_its_slot(slot):
    for index in range(6):
        shots = W._words(W._context(slot, index), slot)
        told = {"actor": "actor", "action": "action", "interaction": "action"}.get(slot, slot)
        assert [getattr(s.description, told) for s in shots] == list(W.SLOTS[slot])
        assert len({s.seed for s in shots}) == 1


def test_differences_know_where_to_look(shots):
    shot = W._context("colour", 0)
    same, colours = [shot, shot], W._words(shot, "colour")[:3]
    assert W.differences(same, True, **SMALL).item() == 0 == W.differences(same, False, **SMALL).item()
    assert W.differences(colours, True, **SMALL).min() > 12
    settings = W._words(W._context("setting", 0), "setting")[:2]
    assert W.differences(settings, False, **SMALL).item() > 12


def test_nearest_pairs_name_the_nearest():
    (apart, words, reach, n), = W.nearest_pairs("size", [0], **SMALL)
    assert set(words) < set(stage.SIZES) and n == 3 and 0 <= reach <= 3 and apart > 0


def test_leaks_are_found(monkeypatch):
    assert W.leaks(60) == 0 and W.leaks(40, "heldout") == 40
    real = World.scene
    monkeypatch.setattr(World, "scene", lambda self, seed, index, split: real(self, seed, index, "all"))
    assert W.leaks(60) > 0


def test_a_batch_that_changes_its_clips_is_found(monkeypatch):
    assert W.batch_difference(3, **SMALL) <= 1
    real = film.render
    monkeypatch.setattr(film, "render", lambda shots, *a, **k: real(shots, *a, **k) * (0.9 if isinstance(shots, list) else 1))
    assert W.batch_difference(3, **SMALL) > 1


def test_memory_is_a_process_s_own():
    held = torch.ones(2 ** 28)                                   # 1 GiB of this process, which is not the new one's
    assert 0.1 < W.peak_memory(1, 2, 32) < 0.8 < held.nbytes / 2 ** 30
