"The ledger: intervals that keep their word, costs that add up, and checkpoints from the history."
import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from sora_edu.evaluate import ledger, speed
from sora_edu.evaluate.ledger import coverage, differing, leaderboard, newcombe, samples_of, spread_chances, unpack
from sora_edu.pipeline.generate import load_models, resolve_weights


@pytest.mark.parametrize("right, n, right2, n2, low, high", [
    (48, 80, 56, 70, 0.0524, 0.3339), (3, 10, 9, 10, 0.1705, 0.8090), (2, 7, 6, 7, 0.0582, 0.8062), (0, 29, 5, 56, -0.0381, 0.1926),
    (0, 20, 0, 10, -0.1611, 0.2775), (0, 20, 10, 10, 0.6791, 1.0)])
def test_newcombe_s_own_examples(right, n, right2, n2, low, high):
    "Newcombe 1998, table II, method 10."
    got = newcombe(right, n, right2, n2)
    assert got == pytest.approx((low, high), abs=6e-5) and newcombe(right2, n2, right, n) == pytest.approx((-got[1], -got[0]))


def test_intervals_keep_their_word_and_too_narrow_ones_are_found_out(monkeypatch):
    chances = [0.8] * 120
    assert 0.92 < coverage(chances, 1500) < 0.98 and coverage(chances, 50) == coverage(chances, 50)
    def narrow(*counts):
        low, high = newcombe(*counts)
        return 0.85 * low + 0.15 * high, 0.15 * low + 0.85 * high
    monkeypatch.setattr(ledger, "newcombe", narrow)
    assert coverage(chances, 1500) < 0.9


def test_chances_have_their_mean_and_spread():
    far, near = (torch.tensor(spread_chances(0.84, 4000, alike)) for alike in (0.5, 100))
    assert abs(far.mean() - 0.84) < 0.02 and abs(near.mean() - 0.84) < 0.02 and far.std() > 5 * near.std()
    assert spread_chances(0.5, 3, 4) == spread_chances(0.5, 3, 4) != spread_chances(0.5, 3, 4, seed=1)


def test_counts_that_differ_are_counted():
    one = {"suite": "seen", "all": {"right": 3}, "actor": {"right": 4}, "reasons": {"no actor": 1}}
    assert differing(one, one) == 0
    assert differing(one, {"suite": "seen", "all": {"right": 2}, "actor": {"right": 4}, "reasons": {"torn": 1}}) == 3


def test_an_evaluation_serves_all_figures_that_ask_for_it(tmp_path, monkeypatch):
    "Four figures take three evaluations from one clean clone: of two suites, and one of them again."
    asked, share = [], {"right": 3, "n": 4, "share": 0.75, "low": 0.3, "high": 0.95}

    def judged(folder, suite):
        asked.append((folder, suite))
        return {"all": share | {"right": 3 + len(asked)}}, 7.0 * len(asked)
    (tmp_path / "figures").mkdir()
    (tmp_path / "settings.ini").touch()
    ledger._from_a_clone.cache_clear()
    monkeypatch.setattr(ledger, "judged_in", judged)
    monkeypatch.setattr(ledger, "_clone", lambda: SimpleNamespace(name="clone"))
    monkeypatch.setattr(speed, "_repository", lambda: tmp_path)
    names = ["evaluate_time", "mini_seen", "mini_heldout", "rerun_differs"]
    rows = {row["name"]: row for row in speed.bench("evaluation", only=names, progress=False)}
    ledger._from_a_clone.cache_clear()
    assert asked == [("clone", "seen"), ("clone", "heldout"), ("clone", "seen")]
    assert rows["evaluate_time"]["value"] == 7.0 and rows["mini_seen"]["value"] == 75.0 and rows["rerun_differs"]["value"] == 1


@pytest.mark.slow
def test_a_clean_clone_judges_itself():
    "Two prompts, twice: the same counts, from the commit alone."
    folder = ledger._clone().name
    (one, seconds), (two, _) = (ledger.judged_in(folder, "heldout", limit=2) for _ in range(2))
    assert one["suite"] == "heldout" and one["n"] == 2 and seconds > 0 and differing(one, two) == 0
    with pytest.raises(ValueError, match="failed in a clean clone: .*suite: got 'unseen'"):
        ledger.judged_in(folder, "unseen")


def test_samples_add_up():
    assert samples_of({"steps": 1000, "image_share": 0.3, "batch_size": 64, "image_batch": 128}) == (44_800, 38_400)


def test_operations_are_those_of_the_networks(tmp_path):
    "Whole clips cost about five times as much as images, and an image about two operations a weight and token, three times over."
    models, folder = load_models("mini", device="cpu", dtype=torch.float32), tmp_path / "mini"
    shutil.copytree(resolve_weights("mini"), folder)
    weights, tokens = sum(p.numel() for p in models.dit.blocks.parameters() if p.ndim == 2), 16             # of one latent frame
    told = json.loads((folder / "model.json").read_text())

    def of(share):
        "The operations of one sample, where all are images or none is."
        leg = {"leg": 0, "steps": 1, "image_share": share, "batch_size": 1, "image_batch": 1}
        (folder / "model.json").write_text(json.dumps(told | {"info": {"legs": [leg]}}))
        return ledger.cost(folder)["flops"] / 3
    one, five = of(1), of(0)
    assert 0.5 * 2 * weights * tokens < one < 2 * 2 * weights * tokens and 3 * one < five < 8 * one


def test_hours_are_those_of_all_sittings(tmp_path):
    "A log whose clock began anew twice: 40, then 30, then 5 seconds."
    log = tmp_path / "leg0.jsonl"
    log.write_text("".join(json.dumps({"step": 100 * k, "seconds": s}) + "\n" for k, s in enumerate((20, 40, 10, 30, 5))))
    assert ledger._seconds(log) == 75
    assert 8 < ledger.cost(resolve_weights("mini"))["hours"] < 9                        # two of mini's legs were resumed


def test_a_figure_of_gpu_weights_is_of_weights_that_say_so(tmp_path, monkeypatch):
    "On any machine: null for weights of a CPU, measured for weights whose `model.json` tells of a GPU."
    folder, asked = tmp_path / "weights", []
    folder.mkdir()
    monkeypatch.setattr("sora_edu.pipeline.generate.resolve_weights", lambda weights: folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ledger, "evaluate", lambda weights, suite, **how: asked.append(suite) or {"all": {"share": 0.5, "low": 0.4, "high": 0.6, "n": 10}})
    monkeypatch.setattr(speed, "_repository", lambda: tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "settings.ini").touch()
    for info, value in (({}, None), ({"device": "cpu"}, None), ({"device": "cuda"}, 50.0)):
        (folder / "model.json").write_text(json.dumps({"info": info}))
        (row,) = speed.bench("evaluation", only=["mini_heldout_gpu"], progress=False)
        assert row["value"] == value
    assert asked == ["heldout"] and ledger.trained_on(folder) == "cuda"


def test_base_is_measured_against_the_renders_once_it_ships(tmp_path, monkeypatch):
    from sora_edu.evaluate import suites
    overall = lambda share: {"overall": {"all": {"share": share, "low": share - 0.1, "high": share + 0.1, "n": 480}}}
    monkeypatch.setattr(suites, "evaluate", lambda generate, cases: overall(0.6))
    monkeypatch.setattr(suites, "ceilings", lambda cases: {"renders": overall(0.8)})
    measured = speed.MEASURES["evaluation"]["base_share_gpu"][1]
    def absent(weights):
        raise ValueError("weights: none")
    monkeypatch.setattr("sora_edu.pipeline.generate.resolve_weights", absent)
    assert measured() == {"value": None}                            # not shipped
    monkeypatch.setattr("sora_edu.pipeline.generate.resolve_weights", lambda weights: tmp_path)
    for device, value in (("cpu", None), ("cuda", 75.0)):
        (tmp_path / "model.json").write_text(json.dumps({"info": {"device": device}}))
        assert measured()["value"] == value
    assert measured()["interval"] == [62.5, 87.5] and measured()["n"] == 480


def test_a_kept_figure_is_not_overwritten_by_nothing(tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    row = {"name": "base_share_gpu", "value": 81.0, "commit": "abc"}
    (tmp_path / "figures" / "evaluation.json").write_text(json.dumps([row]))
    monkeypatch.setattr(speed, "_repository", lambda: tmp_path)
    assert speed.bench("evaluation", only=["base_share_gpu"], progress=False) == [row]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    "A small history: two checkpoints that were shipped, and a commit of something else in between."
    root = tmp_path / "root"
    folder = root / "sora_edu" / "weights" / "mini"
    folder.mkdir(parents=True)
    git = lambda *words: subprocess.run(["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)
    git("init", "-q")
    for k in range(3):
        name = "other.txt" if k == 1 else "model.json"
        (folder / name).write_text(json.dumps({"weights_hash": f"{k}" * 64}))
        git("add", "-A"), git("commit", "-qm", str(k))
    monkeypatch.setattr(ledger, "_repository", lambda: root)
    monkeypatch.chdir(root)
    return root


def test_checkpoints_come_out_of_the_history(repository, tmp_path):
    commits = ledger.shipped()
    assert len(commits) == 2
    for at, wanted in zip(commits, "02"):
        assert json.loads((unpack(at, tmp_path / at) / "model.json").read_text())["weights_hash"][0] == wanted
    with pytest.raises(ValueError, match="commit: got 'nothing', allowed"):
        unpack("nothing", tmp_path)


def test_a_checkpoint_is_judged_once(repository, tmp_path, monkeypatch):
    asked, path = [], tmp_path / "board.json"
    share = {"all": {"share": 0.5, "low": 0.4, "high": 0.6, "n": 10}}
    monkeypatch.setattr(ledger, "evaluate", lambda weights, suite, **how: asked.append(suite) or share)
    monkeypatch.setattr(ledger, "cost", lambda folder: {"legs": 1, "clips": 2, "images": 3, "flops": 4, "hours": 5})
    rows = leaderboard(path, progress=False)
    assert [row["shipped"] for row in rows] == ledger.shipped() and asked == ["seen", "heldout"] * 2
    assert leaderboard(path, progress=False) == rows == json.loads(path.read_text()) and len(asked) == 4
    assert leaderboard(path, anew=True, progress=False) == rows and len(asked) == 8
    with pytest.raises(ValueError, match="limit: got 10, allowed"):
        leaderboard(limit=10)
    assert rows[0]["seen"] == {"value": 50.0, "interval": [40.0, 60.0], "n": 10} and rows[0]["weights_hash"] == "0" * 12


def test_the_packaged_weights_have_a_cost():
    spent = ledger.cost(resolve_weights("mini"))
    legs = json.loads((resolve_weights("mini") / "model.json").read_text())["info"]["legs"]
    assert spent["legs"] == len(legs) and spent["clips"] == sum(samples_of(leg)[0] for leg in legs) and spent["flops"] > 1e15


@pytest.mark.parametrize("info, wrong", [({}, "does not tell all legs"), ({"legs": [0, 1]}, "does not tell all legs"), ({"legs": [{"leg": 3}]}, "does not tell all legs"),
                                         ({"legs": [{"leg": 0, "data": "videos"}]}, "videos of unknown shapes")])
def test_a_history_with_gaps_has_no_cost(tmp_path, info, wrong):
    folder = tmp_path / "mini"
    shutil.copytree(resolve_weights("mini"), folder)
    told = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(told | {"info": info}))
    with pytest.raises(ValueError, match=f"^weights: got .*{wrong}.*, allowed: weights"):
        ledger.cost(folder)
