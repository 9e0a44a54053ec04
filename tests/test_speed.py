"The bench: every figure has a measure, rows are complete, a failure loses nothing."
import dataclasses
import json
import subprocess

import pytest

from sora_edu.evaluate import speed

NAMES = """adherence_all_cpu adherence_all_gpu adherence_actor heldout_gap oracle_renders oracle_vae control_worst vae_psnr vae_gain
latent_cut dit_parity playback_single playback_batch16 first_preview train_matmul_share train_end_to_end render_rate resume_equal
replay_equal demo_first demo_again test_all chapter_slowest chapters_all chapters_style swap_lab import_cost""".split()
FIELDS = {"name", "value", "unit", "interval", "n", "command", "commit", "machine"}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    "A bench of three figures, in a repository of its own."
    monkeypatch.setattr(speed, "MEASURES", {})
    monkeypatch.setattr(speed, "_repository", lambda: tmp_path)
    speed.measure("one", "s")(lambda: {"value": 1.5, "interval": [1, 2], "n": 3})
    speed.measure("broken", "s")(lambda: 1 / 0)
    speed.measure("two", "%")(lambda: {"value": 2})
    return lambda **options: speed.bench("first-light", progress=False, **options), tmp_path / "figures" / "first-light.json"


def test_every_figure_has_a_measure():
    assert list(speed.MEASURES["first-light"]) == NAMES


def test_rows_are_complete(bench):
    run, path = bench
    rows = run(only=["one"])
    assert set(rows[0]) == FIELDS and rows == json.loads(path.read_text())
    assert (rows[0]["value"], rows[0]["n"], rows[0]["command"]) == (1.5, 3, "sora-edu bench first-light --only one")


def test_a_failure_is_named_and_the_rest_go_on(bench):
    run, path = bench
    with pytest.raises(ValueError, match="^bench: not measured: broken .ZeroDivisionError"):
        run()
    assert [row["name"] for row in json.loads(path.read_text())] == ["one", "two"]


def test_measuring_one_keeps_the_others(bench):
    run, path = bench
    run(only=["two"])
    assert [row["name"] for row in run(only=["one"])] == ["one", "two"]


@pytest.mark.parametrize("options, name", [(dict(name="second-light"), "name"), (dict(only=["speed"]), "only")])
def test_bad_names_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, allowed: "):
        speed.bench(**options)


def test_a_dirty_tree_shows_in_the_commit(monkeypatch, tmp_path):
    git = lambda *words: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(speed, "__file__", str(tmp_path / "speed.py"))
    (tmp_path / "a").write_text("a")
    git("init"), git("add", "a"), git("commit", "-m", "a")
    clean = speed.commit()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "first-light.json").write_text("[]")
    assert speed.commit() == clean      # a new folder of figures
    git("add", "figures")
    assert speed.commit() == clean and not clean.endswith("+")      # what the bench itself writes does not count
    (tmp_path / "a").write_text("b")
    assert speed.commit() == clean + "+"


def test_the_commit_is_the_project_s_wherever_it_is_asked_for(monkeypatch, tmp_path):
    here = speed.commit()
    monkeypatch.chdir(tmp_path)
    assert speed.commit() == here


def test_what_new_combinations_cost_has_an_interval(monkeypatch):
    monkeypatch.setattr(speed, "_adhered", {"seen": {"all": {"share": 0.8, "right": 384, "n": 480}}, "heldout": {"all": {"share": 0.75, "right": 180, "n": 240}}}.get)
    row = speed.MEASURES["first-light"]["heldout_gap"][1]()
    assert row["value"] == 5.0 and -2 < row["interval"][0] < 0 < 11 < row["interval"][1] < 13


def test_the_machine_has_no_name(monkeypatch):
    import socket
    told = speed.machine().replace(speed.cpu_model(), "")
    assert socket.gethostname() not in told.replace(",", "").split() and "/" not in told and "threads" in told


def test_a_whole_training_step_can_be_timed():
    import torch
    from sora_edu.training.configs import get_config
    from sora_edu.training.loop import Trainee
    torch.manual_seed(0)
    nano = get_config("nano")
    nano = dataclasses.replace(nano, legs=(dataclasses.replace(nano.legs[0], oversample=("spins",)),))      # as mini's last leg has it
    model = Trainee(nano)
    before = [p.clone() for p in model.parameters()]
    speed._whole_step(nano, model)()
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters()))


def test_replays_are_counted(monkeypatch):
    assert speed._replayed(1) == 1
    from sora_edu.pipeline import generate as G
    other = G.replay
    monkeypatch.setattr(G, "replay", lambda record: other(record | {"seed": "5"}))
    assert speed._replayed(1) == 0


def test_took_is_a_median_after_a_warm_up(monkeypatch):
    clock = iter([0, 1, 10, 15, 20, 22])
    calls = []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.took(lambda: calls.append(0), 3) == 2 and len(calls) == 4
