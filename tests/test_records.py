"A clip's three files, and the record that makes it again."
import json
import os
import signal
import threading

import av
import numpy as np
import pytest
import torch

from sora_edu.pipeline import generate as G
from sora_edu.video import read_video
from tiny_weights import OTHER, PROMPT, tiny_folder

STEM = "a-small-red-star-moves-right-over-the-ocean-s0"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return G.load_models(tiny_folder(tmp_path_factory.mktemp("weights") / "tiny"))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# The record

def test_a_record_says_all_there_is_to_say(models):
    record = G.generate(PROMPT, weights=models, seed=2**60 + 1, num_inference_steps=3, guidance_scale=2).record
    assert json.loads(json.dumps(record)) == record
    expected = {"prompt": PROMPT, "seed": str(2**60 + 1), "num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "euler",
                "num_frames": 17, "height": 64, "width": 64, "fps": 8, "ai_generated": True, "device": "cpu",
                "threads": torch.get_num_threads(), "weights": {"name": "tiny", "hash": models.weights_hash}}
    assert {k: record[k] for k in expected} == expected
    assert record["versions"].keys() == {"sora_edu", "torch", "python"} and record["versions"]["torch"] == torch.__version__
    assert "/" not in json.dumps({k: v for k, v in record.items() if k != "prompt"})      # no paths of the maker's machine


@pytest.mark.parametrize("seed", range(20))
def test_replay_is_bit_equal(models, seed):
    prompt, frames = (PROMPT, OTHER)[seed % 2], (17, 5, 1)[seed % 3]
    made = G.generate(prompt, weights=models, seed=seed, num_frames=frames, guidance_scale=1.0 + seed % 4)
    again = G.replay(json.loads(json.dumps(made.record)), weights=models)
    assert again.equal and again.differences == () and np.array_equal(again.generation.frames, made.frames)


def test_replay_uses_the_records_threads_and_dtype(models, tmp_path):
    folder, threads = tiny_folder(tmp_path / "w"), torch.get_num_threads()
    record = G.generate(PROMPT, weights=G.load_models(folder, dtype=torch.float32), num_frames=1).record
    other, seen = 1 if threads > 1 else 2, []
    again = G.replay({**record, "threads": other}, weights=folder, progress=lambda *a: seen.append(torch.get_num_threads()))
    assert set(seen) == {other} and torch.get_num_threads() == threads
    assert again.generation.record["dtype"] == "float32" and again.generation.record["threads"] == other


@pytest.mark.parametrize("change, line", [
    ({"cpu_capability": "vax"}, "cpu_capability: vax in the record"),
    ({"batch": 16}, "batch: 16 in the record, 1 here"),
    ({"versions": {"torch": "0.1", "sora_edu": "0.1.0", "python": "3"}}, "torch: 0.1 in the record")])
def test_replay_says_what_differs(models, change, line):
    record = {**G.generate(PROMPT, weights=models).record, **change}
    assert any(d.startswith(line) for d in G.replay(record, weights=models).differences)


def test_replay_says_when_frames_differ(models):
    record = {**G.generate(PROMPT, weights=models).record, "sha256": "0" * 64}
    assert not G.replay(record, weights=models).equal


def test_a_clip_of_a_batch_comes_back_within_one_grey_level(models):
    made = G.generate([OTHER, PROMPT, OTHER], weights=models, seed=[4, 5, 6])
    again = G.replay(made.records[1], weights=models)
    assert np.abs(again.generation.frames[0].astype(int) - made.frames[1]).max() <= 1
    assert again.differences == ("batch: 3 in the record, 1 here",)


# The files

def test_exactly_three_files_then_numbered_ones(models, tmp_path):
    for k, suffix in enumerate(("", "-2", "-3"), 1):
        made = G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
        assert made.record.name == f"{STEM}{suffix}.json" and len(names(tmp_path)) == 3 * k


def test_any_of_the_three_takes_the_stem(models, tmp_path):
    (tmp_path / f"{STEM}.png").write_text("mine")
    made = G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
    assert made.video.name == f"{STEM}-2.mp4" and (tmp_path / f"{STEM}.png").read_text() == "mine"


def test_the_default_folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    G.generate_to_folder(PROMPT, weights=models)
    assert names(tmp_path / "out" / STEM) == [f"{STEM}{kind}" for kind in (".json", ".mp4", ".png")]


def test_what_the_files_hold(models, tmp_path):
    class Ramp(G.Hooks):                                     # noise would not survive the video's coarser colours
        def after(self, video, record):
            return np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], video.shape).copy()
    made = G.generate_to_folder(PROMPT, out=tmp_path / "a" / "b", weights=models, hooks=Ramp())
    frames, fps = read_video(made.video)
    assert frames.shape == (17, 64, 64, 3) and fps == 8
    assert np.abs(frames.astype(int) - made.generation.frames[0]).mean() < 3
    assert made.filmstrip.read_bytes().startswith(b"\x89PNG")
    record = json.loads(made.record.read_text(encoding="utf-8"))
    assert record == made.generation.record and record["sha256"] == G.video_hash(made.generation.frames[0])


def test_the_video_says_that_a_machine_made_it(models, tmp_path):
    with av.open(str(G.generate_to_folder(PROMPT, out=tmp_path, weights=models).video)) as file:
        assert "AI-generated" in file.metadata["comment"] and "trainedAlgorithmicMedia" in file.metadata["description"]


def test_the_written_frames_carry_the_mark(models, tmp_path):
    frames, _ = read_video(G.generate_to_folder(PROMPT, out=tmp_path, weights=models).video)
    corner, white = frames[:, -4:, -8:].mean(axis=(0, 3)), G.mark(np.zeros((64, 64, 3), np.uint8))[-4:, -8:, 0] > 0
    assert corner[white].mean() - corner[~white].mean() > 60


def test_a_record_written_again(models, tmp_path):
    first = G.generate_to_folder(PROMPT, out=tmp_path, weights=models, num_frames=5)
    again = G.generate_to_folder(record=first.record, out=tmp_path, weights=models)
    assert again.record.name == f"{STEM}-2.json" and again.differences == ()
    assert again.generation.record["sha256"] == first.generation.record["sha256"]


def test_hooks_reach_the_files(models, tmp_path):
    class Grey(G.Hooks):
        def after(self, video, record):
            return video * 0 + 128
    made = G.generate_to_folder(PROMPT, out=tmp_path, weights=models, hooks=Grey())
    assert abs(read_video(made.video)[0].astype(int) - 128).max() < 8


@pytest.mark.parametrize("prompt, stem", [("A small, RED star!", "a-small-red-star"), ("☃", "clip"), ("../../etc/passwd", "etc-passwd"),
                                          ("<b>hi</b>", "b-hi-b"), ("x" * 100, "x" * 60), ("a" * 59 + " b", "a" * 59)])
def test_slugs(prompt, stem):
    assert G.slug(prompt) == stem


# Nothing half-written

def test_ctrl_c_while_sampling(models, tmp_path):
    def interrupt(done, total):
        if done == 2:
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        G.generate_to_folder(PROMPT, out=tmp_path / "new" / "deep", weights=models, progress=interrupt)
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", ["write_video", "write_png"])
def test_ctrl_c_while_writing(models, tmp_path, monkeypatch, writer):
    real = getattr(G, writer)

    def interrupt(*args, **options):
        real(*args, **options)
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(G, writer, interrupt)
    with pytest.raises(KeyboardInterrupt):
        G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
    assert names(tmp_path) == []


def test_ctrl_c_while_renaming_and_tidying_waits(models, tmp_path, monkeypatch):
    real, handler = G._place, signal.getsignal(signal.SIGINT)

    def interrupt(source, path):
        real(source, path)
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(G, "_place", interrupt)
    G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
    assert len(names(tmp_path)) == 3 and signal.getsignal(signal.SIGINT) == handler


def test_many_at_once_never_mix(models, tmp_path):
    def staged(i):
        folder = tmp_path / f"staged{i}"
        folder.mkdir()
        for kind in G._KINDS:
            (folder / f"clip{kind}").write_text(str(i))
        return folder
    out = tmp_path / "out"
    out.mkdir()
    folders = [staged(i) for i in range(12)]
    threads = [threading.Thread(target=G._publish, args=(f, out, "x")) for f in folders]
    [t.start() for t in threads]
    [t.join() for t in threads]
    stems = {p.stem for p in out.iterdir()}
    assert len(names(out)) == 36 and len(stems) == 12
    assert all(len({(out / f"{s}{kind}").read_text() for kind in G._KINDS}) == 1 for s in stems)


def test_without_hard_links(models, tmp_path, monkeypatch):
    def none(*args):
        raise OSError(95, "Operation not supported")
    monkeypatch.setattr(os, "link", none)
    G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
    G.generate_to_folder(PROMPT, out=tmp_path, weights=models)
    assert len(names(tmp_path)) == 6
