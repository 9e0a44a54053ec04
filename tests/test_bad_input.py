"What a caller can get wrong: each time one line that names the argument, what it got, and what is allowed."
import json
import math

import numpy as np
import pytest
import torch

from sora_edu.pipeline import generate as G
from tiny_weights import PROMPT, tiny_folder, tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def models(folder):
    return G.load_models(folder)


def refused(call, *parts):
    "The message of the ValueError that `call` raises: one line with all `parts`."
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text
    for part in parts:
        assert part in text, text
    return text


# Arguments of a request

NOT_WHOLE = [True, False, 1.0, "1", math.nan, math.inf, None, [], 1j, np.bool_(True), np.float64(3)]


@pytest.mark.parametrize("value", [*NOT_WHOLE[:6], *NOT_WHOLE[8:], -1, 2**63, 10**400])
def test_seed(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, seed=value), "seed: got ", "allowed: a whole number from 0 to 9223372036854775807")


@pytest.mark.parametrize("value", [[], [1, True], [1, "2"], [1, -2]])
def test_seeds(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, seed=value), "seed: got ", "allowed: ")


def test_seeds_fit_the_prompts(models):
    refused(lambda: G.generate([PROMPT] * 3, weights=models, seed=[1, 2]), "seed: got [1, 2]", "3 prompts")


@pytest.mark.parametrize("value", [v for v in NOT_WHOLE if v is not None] + [0, -1, 1001])
def test_steps(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, num_inference_steps=value), "num_inference_steps: got ", "1 to 1000")


@pytest.mark.parametrize("value", [True, "3", math.nan, math.inf, -math.inf, [], 1j, -0.1, 30.1, 10**400])
def test_guidance(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, guidance_scale=value), "guidance_scale: got ", "a number from 0 to 30")


@pytest.mark.parametrize("value, nearest", [(16, 17), (2, 1), (3, 5), (0, 1), (-5, 1), (18, 17), (10**400, 17), (12.0, 13), (17.0, 17)])
def test_num_frames_names_the_nearest(models, value, nearest):
    refused(lambda: G.generate(PROMPT, weights=models, num_frames=value), "num_frames: got ", "1, 5, 9, 13, 17", f"the nearest is {nearest}")


@pytest.mark.parametrize("name", ["num_frames", "height", "width"])
@pytest.mark.parametrize("value", [True, "64", math.nan, math.inf, [], 64.0])
def test_sizes(models, name, value):
    refused(lambda: G.generate(PROMPT, weights=models, **{name: value}), f"{name}: got ", "allowed: ", "nearest is")


@pytest.mark.parametrize("value", [63, 65, 128, 0])
def test_height_names_the_nearest(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, height=value), f"height: got {value}", "the nearest is 64")


@pytest.mark.parametrize("value", ["yes", 1, 0, None])
def test_allow_unknown(models, value):
    refused(lambda: G.generate(PROMPT, weights=models, allow_unknown=value), "allow_unknown: got ", "True or False")


def test_numpy_numbers_are_numbers(models):
    made = G.generate(PROMPT, weights=models, seed=np.int64(3), guidance_scale=np.float32(2), num_frames=np.int32(5))
    json.dumps(made.record)
    assert made.record["seed"] == "3" and made.frames.shape[1] == 5


# Prompts

@pytest.mark.parametrize("value", ["", "   ", "\n\t", None, 3, b"a ball", math.nan, [], [""], [3], [PROMPT, None], "...", "\ud800", "a\x00ball"])
def test_prompt(models, value):
    refused(lambda: G.generate(value, weights=models), "prompt: got ", "allowed: ")


def test_a_long_prompt(models):
    refused(lambda: G.generate("red " * 30, weights=models), "prompt: got ", "tokens", "at most 15")
    refused(lambda: G.generate("red " * 1000, weights=models), "prompt: got 'red red", "up to 2000 characters; it has 4000")


@pytest.mark.parametrize("word, near", [("rad", "red"), ("bal", "ball"), ("oceans", "ocean"), ("<b>star</b>", "star"), ("Starr", "star")])
def test_an_unknown_word_names_the_nearest(models, word, near):
    refused(lambda: G.generate(f"a small {word}", weights=models), "prompt: got unknown word", repr(word.lower()), f"nearest known is '{near}'")


def test_unknown_words_run_when_allowed(models):
    made = G.generate("a smol röd stær ☃", weights=models, allow_unknown=True)
    assert made.record["allow_unknown"] is True


def test_capitals_and_commas_are_known(models):
    G.generate("A small, RED star!", weights=models)


def test_an_unknown_option(models):
    with pytest.raises(TypeError, match="numframes"):
        G.generate(PROMPT, weights=models, numframes=5)


# Weights

@pytest.mark.parametrize("value", ["", " ", "nobody", "/no/such/folder", 3, True, None, math.nan, "a\0b", "x" * 5000])
def test_weights_name(value):
    refused(lambda: G.load_models(value), "weights: got ", "allowed: a name", "folder")


FILES = ["model.json", "vae.safetensors", "text_encoder.safetensors", "dit.safetensors", "tokenizer.json", "words.json"]


@pytest.fixture
def copy(folder, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    refused(lambda: G.load_models(copy), "weights: ", name, "is missing")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_truncated_file(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-7])
    refused(lambda: G.load_models(copy), name, "is truncated", str(len(data)), str(len(data) - 7))


@pytest.mark.parametrize("name", FILES[1:])
def test_an_altered_file(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    refused(lambda: G.load_models(copy), name, "was altered", "SHA-256")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"format": 99}', b"\xff\xfe"])
def test_a_damaged_manifest(copy, data):
    (copy / "model.json").write_bytes(data)
    refused(lambda: G.load_models(copy), "weights: ", "model.json")


@pytest.mark.parametrize("key, value", [("shift", 9.0), ("num_frames", [1]), ("guidance_scale", 1.0)])
def test_an_altered_manifest(copy, key, value):
    manifest = json.loads((copy / "model.json").read_text())
    manifest["config"][key] = value
    (copy / "model.json").write_text(json.dumps(manifest))
    refused(lambda: G.load_models(copy), "model.json", "was altered")


def rewritten(folder, change):
    "A folder whose manifest was changed and signed anew."
    manifest = json.loads((folder / "model.json").read_text())
    change(manifest)
    manifest["weights_hash"] = G._hash_of(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("change, part", [
    (lambda m: m["config"]["dit"].update(num_layers=3), "blocks.2"),
    (lambda m: m["config"]["dit"].update(num_layers=1), "extra 27: blocks.1"),
    (lambda m: m["config"]["dit"].update(ffn_dim=128), "shape"),
    (lambda m: m["config"]["vae"].update(width=32), "shape"),
    (lambda m: m["config"]["dit"].update(colour="red"), "colour"),
    (lambda m: m["config"]["dit"].update(num_layers=0), "num_layers"),
    (lambda m: m["config"].update(num_frames=[2]), "num_frames"),
    (lambda m: m["config"].update(num_frames=3), "model.json"),
    (lambda m: m["config"].pop("vae"), "vae"),
    (lambda m: m["files"].pop("words.json"), "words.json"),
    (lambda m: m["files"].pop("dit.safetensors"), "dit.safetensors"),
])
def test_weights_of_another_config(copy, change, part):
    refused(lambda: G.load_models(rewritten(copy, change)), "weights: ", part)


@pytest.mark.parametrize("name, data", [("dit.safetensors", b"no tensors at all"), ("tokenizer.json", b"{}"), ("words.json", b'{"a"'),
                                        ("words.json", b"[]"), ("words.json", b'{"a": 1}'), ("words.json", b"\xff")])
def test_files_of_another_kind(copy, name, data):
    (copy / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": G.hashlib.sha256(data).hexdigest()}
    rewritten(copy, lambda m: m["files"].update({name: entry}))
    refused(lambda: G.load_models(copy), "weights: ", name)


# Where the files go

@pytest.mark.parametrize("value", [3, True, "", "  ", "a\0b"])
def test_out_is_a_folder(models, value):
    refused(lambda: G.generate_to_folder(PROMPT, out=value, weights=models), "out: got ", "a folder")


def test_out_is_a_file_or_too_long(models, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / ("x" * 300)):
        refused(lambda: G.generate_to_folder(PROMPT, out=out, weights=models), "out: got ", "a folder that can be written")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_bad_out_is_found_before_the_work(models, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(lambda: G.generate_to_folder(PROMPT, out=tmp_path / "file", weights=models,
                                         progress=lambda *a: pytest.fail("sampled in vain")), "out")


@pytest.mark.parametrize("writer", ["write_video", "write_png"])
def test_a_full_disk(models, tmp_path, monkeypatch, writer):
    def full(*args, **options):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(G, writer, full)
    refused(lambda: G.generate_to_folder(PROMPT, out=tmp_path / "new" / "deep", weights=models), "out: got ", "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_renaming(models, tmp_path, monkeypatch):
    real = G._place

    def full(source, path):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        real(source, path)
    monkeypatch.setattr(G, "_place", full)
    refused(lambda: G.generate_to_folder(PROMPT, out=tmp_path, weights=models), "No space left on device")
    assert not list(tmp_path.iterdir())


def test_prompt_or_record(models):
    refused(lambda: G.generate_to_folder(weights=models), "prompt, record: got neither")
    refused(lambda: G.generate_to_folder(PROMPT, record={}, weights=models), "prompt, record: got both")
    refused(lambda: G.generate_to_folder([PROMPT], weights=models), "prompt: got ", "one text")
    refused(lambda: G.generate_to_folder(PROMPT, seed=[1, 2], weights=models), "one seed")


# Records

@pytest.fixture(scope="module")
def record(models):
    return G.generate(PROMPT, weights=models, seed=2**60 + 1).record


def test_a_record_of_other_weights(record):
    other = tiny_models(seed=1)
    refused(lambda: G.replay(record, weights=other), "record: ", "'tiny'", record["weights"]["hash"][:12], "allowed: the same")


def test_a_record_of_weights_that_are_not_here(record):
    refused(lambda: G.replay(record), "weights: got 'tiny'")


@pytest.mark.parametrize("value", [3, True, [], "", "/no/such/file.json", "a\0b"])
def test_record_is_a_record(models, value):
    refused(lambda: G.replay(value, weights=models), "record", "allowed: ")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff", b"{}"])
def test_a_record_file_of_another_kind(models, tmp_path, data):
    (tmp_path / "r.json").write_bytes(data)
    refused(lambda: G.replay(tmp_path / "r.json", weights=models), "record", "allowed: ")


@pytest.mark.parametrize("key, value", [
    ("format", 2), ("prompt", 3), ("prompt", ""), ("seed", 3), ("seed", "-1"), ("seed", "x"), ("seed", "9" * 19), ("num_inference_steps", "30"),
    ("num_inference_steps", 0), ("num_inference_steps", True), ("guidance_scale", math.nan), ("guidance_scale", 3), ("num_frames", 4),
    ("height", 32), ("threads", 0), ("threads", 10**6), ("dtype", "int8"), ("weights", "tiny"), ("weights", {}), ("sha256", None)])
def test_a_damaged_record(models, record, key, value):
    refused(lambda: G.replay({**record, key: value}, weights=models), key if key != "weights" else "record", "allowed: ")


@pytest.mark.parametrize("key", ["prompt", "seed", "threads", "sha256", "weights"])
def test_an_incomplete_record(models, record, key):
    refused(lambda: G.replay({k: v for k, v in record.items() if k != key}, weights=models), "record: its " + key, "nothing")


def test_options_beside_a_record(models, record):
    refused(lambda: G.generate_to_folder(record=record, weights=models, seed=3), "seed: got 3", "record")


def test_threads_are_put_back_after_an_error(models, record):
    before = torch.get_num_threads()
    with pytest.raises(ValueError):
        G.replay({**record, "threads": before + 1, "num_frames": 4}, weights=models)
    assert torch.get_num_threads() == before
