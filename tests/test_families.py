"The figures that prove the adapter of open video models: registered, exact, and able to fail."
from dataclasses import replace

import pytest
import torch

from sora_edu.evaluate import families as F
from sora_edu.evaluate import speed
from sora_edu.pipeline import open_weights as O


@pytest.fixture
def row():
    "A function that breaks a family's row; all is put right afterwards."
    right = dict(O.FAMILIES)
    yield lambda key, **wrong: O.FAMILIES.update({key: replace(right[key], **wrong)})
    O.FAMILIES.update(right)


def test_the_figures_are_registered():
    assert {"families_equal", "families_steer", "memory_estimate"} <= set(speed.MEASURES["parity"]) and F.__name__ in speed.HOMES["parity"]


@pytest.mark.parametrize("name", O.TINY)
def test_every_family_is_equal_and_steers(name):
    assert F.equal(name) and F.steers(name)


def test_a_broken_row_is_not_equal(row):
    right = O.FAMILIES["HunyuanVideoTransformer3DModel"].inputs
    row("HunyuanVideoTransformer3DModel", inputs=lambda *a: (found := right(*a)) | {"guidance": found["guidance"] / 1000})
    assert not F.equal("HunyuanVideo")


def test_wrong_statistics_show_in_the_frames_only(row):
    row("WanTransformer3DModel", statistics="factor")
    assert F.apart("Wan") <= 1e-4 < F.frames_apart("Wan") and not F.equal("Wan")


def test_a_run_that_does_not_listen_does_not_steer(monkeypatch):
    whole = O._translated
    monkeypatch.setattr(O, "_translated", lambda run, how, sent, step: whole(run, how, {}, step))
    assert not F.steers("Wan")


def test_measuring_counts_what_was_alive_at_once():
    a = torch.zeros(1000)
    (found, sum_and_product), (_, in_place) = F.measured(lambda: (a + 1) * 2), F.measured(lambda: (a + 1).mul_(2))
    assert torch.equal(found, a + 2) and 8000 <= sum_and_product < 8100 and 4000 <= in_place < 4100


@pytest.mark.parametrize("name, clips", (("Wan", 2), ("LTX-Video", 1), ("CogVideoX", 2), ("HunyuanVideo", 1)))
def test_decoding_takes_what_was_told(name, clips):
    "One small clip is unfolded, two are reordered by oneDNN."
    pipe, size = O.tiny(name), dict(height=64, width=64, num_frames=9)
    latents = torch.randn(clips, *O.Run(pipe, **size).shape)
    _, peak = F.measured(lambda: O.decode(pipe, latents.clone()))
    told = O.memory_of(pipe, clips=clips, **size)["decode"]
    assert (0.98 if clips == 1 else 0.7) * told < peak < 1.02 * told           # oneDNN fills channels up to 16, or to 8 without AVX-512


def test_memory_is_told_within_fifteen_percent():
    assert max(error for _, _, error in F.memory_errors(F.MODELS[0]).values()) < 0.15
