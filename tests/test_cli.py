"The command line: what it writes, what it says, and one line with exit code 2 for whatever goes wrong."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from tiny_weights import PROMPT, tiny_folder

from sora_edu.evaluate import ledger
from sora_edu.pipeline.generate import known_words, resolve_weights
from sora_edu.studio import cli


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    "A folder of small random weights."
    return str(tiny_folder(tmp_path_factory.mktemp("weights") / "tiny"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test in a folder of its own."
    monkeypatch.chdir(tmp_path)


def call(capsys, *args):
    "-> exit code, stdout, stderr of `sora-edu args`."
    code = cli.run([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *args):
    "The one line that `sora-edu args` is refused with."
    code, out, err = call(capsys, *args)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, out) == (2, "") and len(lines) == 1 and lines[0].startswith("sora-edu: ") and "Traceback" not in err
    return lines[0]


COMMANDS = ["generate", "train", "evaluate", "bench", "world", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command):
    code, out, err = call(capsys, command, "--help")
    assert code == 0 and "Usage: sora-edu " + command in out and "--json" in out and err == ""


def test_no_command_is_help(capsys):
    code, out, _ = call(capsys)
    assert code == 0 and all(command in out for command in COMMANDS)


def test_generate_writes_three_files_and_counts_on(capsys, weights):
    for k, stem in enumerate(("s7", "s7-2", "s7-3")):
        code, out, _ = call(capsys, "generate", PROMPT, "--seed", 7, "--weights", weights, "--out", "made/here", "--json")
        told = json.loads(out)
        assert code == 0 and len(os.listdir("made/here")) == 3 * (k + 1)
        assert {os.path.basename(told[kind]) for kind in ("video", "filmstrip", "record")} == {f"a-small-red-star-moves-right-over-the-ocean-{stem}{end}" for end in (".mp4", ".png", ".json")}


def test_generate_tells_paths_and_seconds(capsys, weights):
    code, out, err = call(capsys, "generate", PROMPT, "--weights", weights, "--num-frames", 5, "--num-inference-steps", 2)
    lines = out.splitlines()
    assert code == 0 and [os.path.splitext(line)[1] for line in lines[:3]] == [".mp4", ".png", ".json"] and all(map(os.path.exists, lines[:3]))
    assert lines[0].startswith("out/a-small-red-star") and "0.6 s of video" in lines[3] and "generating" in err


def test_options_reach_the_record(capsys, weights):
    _, out, _ = call(capsys, "generate", PROMPT, "--weights", weights, "--seed", 3, "--num-frames", 9, "--num-inference-steps", 3, "--guidance-scale", 2.5, "--sampler", "dpmpp_2m", "--height", 64, "--width", 64, "--json")
    record = json.loads(open(json.loads(out)["record"], encoding="utf-8").read())
    assert [record[k] for k in ("seed", "num_frames", "num_inference_steps", "guidance_scale", "sampler")] == ["3", 9, 3, 2.5, "dpmpp_2m"]


def test_record_replays(capsys, weights):
    _, out, _ = call(capsys, "generate", PROMPT, "--weights", weights, "--num-frames", 5, "--json")
    first = json.loads(out)
    code, out, _ = call(capsys, "generate", "--record", first["record"], "--weights", weights, "--out", "again", "--json")
    again = json.loads(out)
    assert code == 0 and again["equal"] is True and again["differences"] == [] and again["sha256"] == first["sha256"]
    record = json.loads(open(first["record"], encoding="utf-8").read())
    with open("altered.json", "w") as file:
        json.dump({**record, "sha256": "0" * 64, "cpu_capability": "another"}, file)
    code, out, _ = call(capsys, "generate", "--record", "altered.json", "--weights", weights, "--out", "again")
    assert code == 0 and "not the record's frames: cpu_capability: another in the record" in out


@pytest.mark.parametrize("args, words", [
    ([], ["PROMPT, --record", "neither", "exactly one"]),
    ([PROMPT, "--record", "x.json"], ["PROMPT, --record", "both"]),
    (["--record", "missing.json"], ["record", "missing.json"]),
    ([""], ["prompt", "''"]), (["a " * 5000], ["prompt", "characters"]), (["\udcff"], ["prompt", "Unicode"]),
    (["a small red sta moves right"], ["sta", "star"]),
    ([PROMPT, "--seed", "many"], ["--seed", "'many'", "whole number"]), ([PROMPT, "--seed", -1], ["seed", "-1", "0"]),
    ([PROMPT, "--seed", 2**70], ["seed", str(2**70)]), ([PROMPT, "--seed", "1.5"], ["--seed", "'1.5'"]),
    ([PROMPT, "--num-inference-steps", 0], ["num_inference_steps", "0", "1"]), ([PROMPT, "--num-inference-steps", 10**9], ["num_inference_steps"]),
    ([PROMPT, "--guidance-scale", "nan"], ["guidance_scale", "nan", "0"]), ([PROMPT, "--guidance-scale", "inf"], ["guidance_scale", "inf"]),
    ([PROMPT, "--guidance-scale", "strong"], ["--guidance-scale", "'strong'", "number"]),
    ([PROMPT, "--sampler", "magic"], ["sampler", "magic", "unipc"]),
    ([PROMPT, "--num-frames", 16], ["num_frames", "16", "nearest is 17"]), ([PROMPT, "--num-frames", 0], ["num_frames", "nearest is 1"]),
    ([PROMPT, "--height", 65], ["height", "65", "64"]), ([PROMPT, "--width", "wide"], ["--width", "'wide'"]),
    ([PROMPT, "--weights", "nowhere"], ["weights", "nowhere"]), ([PROMPT, "--bogus"], ["--bogus"]), ([PROMPT, "more"], ["more"])])
def test_generate_refuses(capsys, weights, args, words):
    options = [] if "--weights" in args else ["--weights", weights]
    line = refused(capsys, "generate", *args, *options)
    assert all(word in line for word in words), line
    assert not os.path.exists("out")


def test_unknown_word_runs_if_allowed(capsys, weights):
    assert call(capsys, "generate", "a small red sta", "--allow-unknown", "--weights", weights, "--num-frames", 1)[0] == 0


def test_a_prompt_may_begin_with_a_hyphen(capsys, weights):
    assert call(capsys, "generate", "--weights", weights, "--allow-unknown", "--num-frames", 1, "--", "--seed")[0] == 0


def test_altered_and_truncated_weights(capsys, tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    path = next(folder.glob("dit*.safetensors"))
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    assert "truncated" in refused(capsys, "generate", PROMPT, "--weights", folder)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "altered" in refused(capsys, "generate", PROMPT, "--weights", folder)
    path.unlink()
    assert "missing" in refused(capsys, "generate", PROMPT, "--weights", folder)


def test_a_folder_that_cannot_be_written(capsys, weights, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    line = refused(capsys, "generate", PROMPT, "--weights", weights, "--out", tmp_path / "file" / "sub")
    assert "out" in line and (tmp_path / "file").read_text() == "not a folder"


def test_full_disk(capsys, weights, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused_after_bar(capsys, "generate", PROMPT, "--weights", weights, "--num-frames", 1, "--out", "made")
    assert not os.path.exists("made") or os.listdir("made") == []


def refused_after_bar(capsys, *args):
    "The last line of a refusal that came after the work had begun."
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "") and "Traceback" not in err
    return err.splitlines()[-1]


def test_our_own_faults_stay_loud(monkeypatch):
    def broken():
        raise KeyError("ours")
    monkeypatch.setattr(cli, "facts", broken)
    with pytest.raises(KeyError):
        cli.run(["info"])


def test_interrupt_is_one_line(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt("stopped after step 3; go on with --resume")
    monkeypatch.setattr(cli, "facts", stop)
    assert refused(capsys, "info") == "sora-edu: interrupted: stopped after step 3; go on with --resume"


SLOWLY = """
import sys, time
import sora_edu.pipeline.generate as g
from sora_edu.studio import cli
real = g.generate
def slow(*args, progress=None, **options):
    def wait(done, total):
        print("started", flush=True)
        time.sleep(30)
    return real(*args, progress=wait, **options)
g.generate = slow
cli.main()
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_nothing_behind(weights, root, tmp_path, presses):
    command = [sys.executable, "-c", SLOWLY, "generate", PROMPT, "--weights", weights, "--out", str(tmp_path / "made")]
    env = {**os.environ, "PYTHONPATH": str(root)}
    work = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert work.stdout.readline().strip() == "started"
    for _ in range(presses):
        work.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = work.communicate(timeout=120)
    assert work.returncode == 2 and "Traceback" not in err and err.splitlines()[-1] == "sora-edu: interrupted"
    assert not (tmp_path / "made").exists()


def test_world(capsys):
    code, out, _ = call(capsys, "world", "--seed", 3, "--json")
    told = json.loads(out)
    assert code == 0 and told["unreadable"] is None and all(told["matches"].values())
    assert told["caption"].split()[1] == told["description"]["size"] and all(map(os.path.exists, told["files"]))
    assert call(capsys, "world", "--seed", 3, "--index", 1, "--style", "terse")[0] == 0
    assert sorted(os.listdir("out/world")) == ["world-s3-i0.mp4", "world-s3-i0.png", "world-s3-i1.mp4", "world-s3-i1.png"]


@pytest.mark.parametrize("args, word", [(["--index", -1], "index"), (["--seed", -2], "seed"), (["--style", "rude"], "style"), (["--seed", "x"], "--seed")])
def test_world_refuses(capsys, args, word):
    assert word in refused(capsys, "world", *args)


def test_world_export(capsys):
    code, out, err = call(capsys, "world", "export", "set", "--n", 3, "--seed", 4, "--num-frames", 2, "--height", 32, "--width", 48, "--style", "dense", "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and (told["n"], told["world"], told["format"]) == (3, "mini", "folder") and told["bytes"] > 1000
    truth = json.loads(open("set/000002.json", encoding="utf-8").read())
    assert (truth["seed"], truth["split"], truth["num_frames"], truth["height"], truth["width"]) == (4, "train", 2, 32, 48)
    code, out, err = call(capsys, "world", "export", "shards", "--n", 3, "--num-frames", 1, "--start", 5, "--split", "heldout", "--format", "webdataset", "--shard-size", 2)
    assert code == 0 and out.splitlines()[1] == "shards/README.md" and "export" in err and "5 to 7" in open("shards/README.md", encoding="utf-8").read()
    assert sorted(os.listdir("shards")) == [".export.json", "README.md", "shard-000000.tar", "shard-000001.tar"]


def test_world_export_of_the_full_world(capsys):
    code, out, _ = call(capsys, "world", "export", "set", "--world", "full", "--n", 2, "--num-frames", 5, "--height", 64, "--width", 64, "--json")
    assert code == 0 and {"camera", "tracks", "scene"} <= set(json.loads(open("set/000001.json", encoding="utf-8").read()))


@pytest.mark.parametrize("args, words", [
    ([], ["out"]), (["file"], ["out", "is a file"]), (["other"], ["out", "mine.txt"]), (["set", "--n", 0], ["n", "0"]), (["set", "--n", "x"], ["--n", "'x'"]),
    (["set", "--world", "maxi"], ["maxi", "mini, full"]), (["set", "--format", "zip"], ["format", "zip"]), (["set", "--split", "test"], ["split", "test"]),
    (["set", "--height", 33], ["height", "33"]), (["set", "--seed", -1], ["seed", "-1"]), (["set", "--style", "rude"], ["style", "rude"]),
    (["set", "--shard-size", 3], ["shard_size", "webdataset"])])
def test_world_export_refuses(capsys, tmp_path, args, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    line = refused(capsys, "world", "export", *args)
    assert all(word in line for word in words), line
    assert sorted(os.listdir()) == ["file", "other"] and os.listdir("other") == ["mine.txt"]


def test_world_export_refuses_options_in_the_wrong_place(capsys):
    assert "--seed" in refused(capsys, "world", "--seed", 3, "export", "set") and "--json" in refused(capsys, "world", "--json", "export", "set")
    assert "nonsense" in refused(capsys, "world", "nonsense") and not os.listdir()


def test_world_export_goes_on(capsys, monkeypatch):
    from sora_edu.world import dataset
    real = dataset._record
    args = ("world", "export", "set", "--n", 4, "--num-frames", 1)
    with monkeypatch.context() as patched:
        patched.setattr(dataset, "_record", lambda world, item: signal.raise_signal(signal.SIGINT) if item["index"] == 2 else real(world, item))
        said = refused_after_bar(capsys, *args)
    assert "interrupted" in said and "the same call goes on" in said and len(os.listdir("set")) == 7
    assert call(capsys, *args)[0] == 0 and len(os.listdir("set")) == 15
    assert "n: got 5" in refused(capsys, "world", "export", "set", "--n", 5, "--num-frames", 1)


def test_info(capsys):
    code, out, _ = call(capsys, "info", "--json")
    told = json.loads(out)
    assert code == 0 and told["sora_edu"] and isinstance(told["weights"], dict) and os.path.isdir(told["chapters"])
    assert "torch: " in call(capsys, "info")[1]


def test_evaluate(capsys, weights, tmp_path):
    known = tiny_folder(tmp_path / "known", words=known_words("mini"), max_length=24, num_inference_steps=1)
    code, out, _ = call(capsys, "evaluate", "--weights", known, "--limit", 2, "--json")
    told = json.loads(out)
    assert code == 0 and told["n"] == 2 and 0 <= told["all"]["share"] <= 1
    assert json.loads(call(capsys, "evaluate", known, "--limit", 2, "--json")[1]) == told
    assert "allowed: one of the two" in refused(capsys, "evaluate", known, "--weights", known)
    page = tmp_path / "page.html"
    code, out, _ = call(capsys, "evaluate", "--weights", known, "--against", known, "--limit", 2, "--report", page)
    assert code == 0 and page.read_text().count("<figure>") == 2 and "against:  +0.0 points" in out
    other = tiny_folder(tmp_path / "other", seed=1, words=known_words("mini"), max_length=24, num_inference_steps=1)
    told = json.loads(call(capsys, "evaluate", known, "--against", other, "--limit", 4, "--json")[1])
    assert told["against"]["all"]["n"] == told["n"] == len(told["rows"]) == 4
    assert "'controls' with --report or --against" in refused(capsys, "evaluate", known, "--against", other, "--suite", "controls")
    assert "suite" in refused(capsys, "evaluate", "--weights", weights, "--suite", "nonsense")
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps([{"id": "a", "prompt": "a small red star bounces at night", "seed": 3, "asked": ["actor", "colour"]}]))
    told = json.loads(call(capsys, "evaluate", "--weights", known, "--suite", mine, "--json")[1])
    assert told["n"] == told["actor"]["n"] == told["colour"]["n"] == 1 and "size" not in told and told["suite"] == str(mine)
    mine.write_text(json.dumps([{"prompt": "a small red star bounces, the camera pans left"}]))
    assert "prompt 1: text: got unknown word 'camera'" in refused(capsys, "evaluate", "--weights", known, "--suite", mine)
    assert "nowhere.json, which cannot be read" in refused(capsys, "evaluate", "--weights", known, "--suite", "nowhere.json")
    for limit in (-5, 0, 99999):
        assert "limit" in refused(capsys, "evaluate", "--weights", known, "--suite", "controls", "--limit", limit)


@pytest.mark.parametrize("args, word", [(["giant"], "giant"), (["nano", "--leg", 99], "leg"), (["nano", "--leg", "x"], "--leg"), ([], "config"),
                                        (["nano", "--device", "gpu"], "device"), (["mini", "--leg", 2], "--from"), (["mini", "--leg", 2, "--from", "nowhere"], "nowhere"),
                                        (["mini", "--leg", 2, "--all-legs"], "--all-legs"), (["nano", "--from", "mini"], "from_weights"),
                                        (["nano", "--data", "nowhere"], "data: got nowhere"), (["oracle", "--data", "x"], "--data"),
                                        (["oracle", "--leg", 4], "--leg: got 4, allowed: 0 to 3"), (["oracle", "--leg", 1], "--from: got None"),
                                        (["oracle", "--from", "x"], "leg 0 begins anew"), (["oracle", "--leg", 1, "--from", "nowhere"], "--from: got nowhere")])
def test_train_refuses(capsys, args, word):
    assert word in refused(capsys, "train", *args)
    assert not os.path.exists("runs")


def test_what_is_empty_or_of_another_kind_is_refused_before_any_work(capsys, weights, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for args, word in ((["evaluate", "--weights", ""], "weights: got ''"), (["evaluate", "--suite", ""], "suite: got ''"), (["evaluate", "--weights", weights, "--limit", 0], "limit: got 0"),
                       (["evaluate", "--report", "folder"], "path: got 'folder'"), (["evaluate", "--report", ""], "path: got ''"), (["evaluate", "--against", ""], "weights: got ''"),
                       (["train", "nano", "--data", "file"], "nothing can be used (file: shard: damaged"), (["train", "nano", "--out", "file"], "--out")):
        assert word in refused(capsys, *args)
    assert sorted(os.listdir()) == ["file", "folder"]


def test_weights_tell_all_legs_that_made_them(weights, tmp_path):
    "Those before in the same folder, or those of the packaged weights that they go on from; clips from outside are told of."
    from sora_edu.training.configs import get_config
    mini, legs = get_config("mini"), lambda told: [(leg["leg"], leg["steps"], leg.get("data")) for leg in told]
    assert legs(cli._told(mini, [0, 1], tmp_path, None, {})) == [(0, 1100, None), (1, 1100, None)]
    assert legs(cli._told(mini, [2], tmp_path, "leg1.safetensors", {})) == [(2, 3600, None)]
    (tmp_path / "leg0.safetensors").touch(), (tmp_path / "leg1.safetensors").touch()
    assert legs(cli._told(mini, [2], tmp_path, None, {})) == [(0, 1100, None), (1, 1100, None), (2, 3600, None)]
    assert legs(cli._told(mini, [0], tmp_path, resolve_weights("mini"), {"data": "x"}))[-2:] == [(7, 3200, None), (0, 1100, "videos")]


def test_a_leg_begins_where_the_one_before_ended(capsys, tmp_path):
    from sora_edu.training.configs import get_config
    (tmp_path / "leg1.safetensors").touch()
    assert cli._leg_before(get_config("mini"), 2, tmp_path) == str(tmp_path / "leg1.safetensors") and cli._leg_before(get_config("mini"), 0, tmp_path) is None


def test_a_leg_that_was_begun_needs_no_beginning(capsys, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(cli, "_train_legs", lambda config, legs, out, start, resume, device: told.append(start) or {})
    assert "--from" in refused(capsys, "train", "mini", "--leg", 2, "--resume", "--out", str(tmp_path), "--device", "cpu")
    (tmp_path / "leg2.pt").touch()
    assert call(capsys, "train", "mini", "--leg", 2, "--resume", "--out", str(tmp_path), "--device", "cpu", "--json")[0] == 0 and told == [None]


def test_a_half_trained_autoencoder_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "vae_checkpoint.pt").write_text("hours of work")
    assert "vae_checkpoint.pt" in refused(capsys, "train", "nano", "--out", str(tmp_path), "--device", "cpu")
    assert (tmp_path / "vae_checkpoint.pt").read_text() == "hours of work"


def test_all_legs_chain(capsys, monkeypatch):
    from sora_edu.training import loop
    calls = []
    from sora_edu.pipeline import generate
    net = torch.nn.Module()
    net.text_encoder = net.dit = torch.nn.Linear(1, 1)
    monkeypatch.setattr(loop, "train", lambda config, **options: calls.append((config, options["leg"], options["from_weights"])) or (net, net))
    monkeypatch.setattr(generate, "package", lambda folder, *nets, **info: str(folder))
    code, out, _ = call(capsys, "train", "mini", "--all-legs", "--out", "runs/x", "--device", "cpu", "--json")
    told = json.loads(out)
    assert code == 0 and [leg for _, leg, _ in calls] == told["legs"] == list(range(len(calls))) and len(calls) > 1
    assert [start and str(start) for _, _, start in calls] == [None] + [f"runs/x/leg{k}.safetensors" for k in range(len(calls) - 1)]
    assert told["weights"] == told["hash"] == "runs/x/weights"


def test_training_ends_in_weights_that_generate(capsys, monkeypatch, tmp_path):
    from sora_edu.pipeline.generate import generate_unmarked
    from sora_edu.training import loop
    from test_loop import TINY
    monkeypatch.setattr(loop, "get_config", lambda name: TINY)
    monkeypatch.setattr(loop, "train", lambda config, train=loop.train, **options: train(TINY, progress=False, **options))
    code, out, _ = call(capsys, "train", "nano", "--out", str(tmp_path), "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["weights"] == str(tmp_path / "weights")
    spent = ledger.cost(tmp_path / "weights")
    assert (spent["legs"], spent["clips"] + spent["images"]) == (1, sum(ledger.samples_of(asdict(TINY.legs[0])))) and spent["hours"] is not None
    clip = generate_unmarked("a big red ball rises at night", weights=tmp_path / "weights", num_inference_steps=2)
    assert clip.shape == (1, 5, 32, 32, 3)
    assert "leg0.safetensors" in refused(capsys, "train", "nano", "--out", str(tmp_path), "--device", "cpu")


def test_bench_refuses(capsys):
    assert "nonsense" in refused(capsys, "bench", "nonsense")


def test_a_terminal_without_snowmen(root, weights):
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", "from sora_edu.studio.cli import main; main()", "generate", "a small \u2603", "--weights", weights]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "\\u2603" in done.stderr
