"README.md is made from nbs/index.ipynb, every link in it leads somewhere, and it says what it must."
import json
import re
from configparser import ConfigParser

import pytest

import chapters
import readme


@pytest.fixture(scope="module")
def text():
    return (readme.ROOT / "README.md").read_text(encoding="utf-8")


def test_is_made_from_the_index_and_the_figures(text):
    "If this fails: `make readme`."
    assert text == readme.render(readme.index())
    assert readme.index() == chapters.load(readme.INDEX)


def test_the_model_card_tells_the_same_figures():
    "If this fails: `make readme`."
    import model_card
    assert (model_card.FOLDER / "README.md").read_text(encoding="utf-8") == model_card.card()


def test_figures_table():
    rows = [dict(name="vae_psnr", value=31.26, unit="dB", interval=None), dict(name="adherence_actor", value=90.0, unit="%", interval=[87.1, 92.4]),
            dict(name="adherence_all_gpu", value=None, unit="%", interval=None), dict(name="render_rate", value=300, unit="clips/s", interval=None)]
    lines = readme.figures_table(rows).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["90 % (87.1 to 92.4)", "31.3 dB"]
    text = "a\n<!-- figures -->\nold\n<!-- /figures -->\nb"
    full, empty = ({"figures": readme.figures_table(some)} for some in (rows, []))
    assert "old" not in readme.with_tables(text, full) and readme.with_tables(readme.with_tables(text, full), empty).count("Not measured") == 1


def test_leaderboard_the_latest_first():
    row = dict(name="mini", shipped="aaaaaaa", legs=3, clips=12_000, images=3_000, flops=4.2e16, hours=1.5, seen=dict(value=70.0, interval=[66.0, 74.0], n=480),
               heldout=dict(value=69.0, interval=[65.0, 73.0], n=480))
    lines = readme.board_table([row, row | {"shipped": "bbbbbbb"}]).splitlines()
    assert "bbbbbbb" in lines[2] and lines[3] == "| mini, 3 legs (`aaaaaaa`) | 70 % (66 to 74) | 69 % (65 to 73) | 12k | 3k | 42.0 | 1.5 |"
    assert "Not measured" in readme.board_table([])


def test_the_leaderboard_has_a_place_and_is_tidy_while_it_is_empty(tmp_path):
    "From the index as it stands: one line where nothing is measured, a row for each checkpoint where something is."
    between = lambda: re.search(r"<!-- leaderboard -->\n(.*?)<!-- /leaderboard -->", readme.render(readme.index(figures=tmp_path)), re.S)[1].strip()
    assert between() == "*Not measured yet.*"
    share = dict(value=70.0, interval=[66.0, 74.0], n=480)
    row = dict(name="mini", legs=3, clips=12_000, images=3_000, flops=4.2e16, hours=1.5, seen=share, heldout=share)
    (tmp_path / "leaderboard.json").write_text(json.dumps([row | {"shipped": f"{k}" * 7} for k in range(3)]))
    lines = between().splitlines()
    assert len(lines) == 5 and lines[0].startswith("| checkpoint |") and ["0000000" in line for line in lines[2:]] == [False, False, True]


@pytest.mark.parametrize("before, after", [
    ("[a](00_tour.ipynb)", "[a](nbs/00_tour.ipynb)"), ("![a](images/a.webp)", "![a](nbs/images/a.webp)"), ("[a](../LICENSE)", "[a](LICENSE)"),
    ("[a](https://example.org)", "[a](https://example.org)"), ("[a](#b)", "[a](#b)"), ('<img src="images/a.png">', '<img src="nbs/images/a.png">')])
def test_relink(before, after):
    assert readme.relink(before) == after


def test_local_links_lead_somewhere(text):
    local = [target for _, target in readme.LINK.findall(text)]
    assert len(local) > 20 and [target for target in local if not (readme.ROOT / target.split("#")[0]).exists()] == []


def test_first_lines(text):
    "What it is, a moving clip, and the two commands, before a reader has to scroll."
    head = text[:2000]
    assert head.startswith("# sora_edu") and "make demo" in head and "make test" in head
    clip = re.search(r"!\[[^\]]+\]\((\S+\.webp)\)", head)[1]
    assert b"ANIM" in (readme.ROOT / clip).read_bytes()[:64]


def test_says_what_it_must(text):
    for word in ("independent of OpenAI", "pip install", "Windows", "macOS", "cannot", "Apache"):
        assert word in text, word


def test_lists_every_chapter_and_lab(text):
    assert [path.stem for path in chapters.chapters() if path != readme.INDEX and f"(nbs/{path.relative_to(chapters.NBS).as_posix()})" not in text] == []


def test_names_the_python_of_the_settings(text):
    parser = ConfigParser(delimiters=["="])
    parser.read(readme.ROOT / "settings.ini", encoding="utf-8")
    assert f"Python {parser['DEFAULT']['min_python']}" in text
