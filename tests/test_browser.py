"""The four widgets in a real browser: JupyterLab, Chromium, mouse and keyboard. Fails, not skips, where Chromium is missing.

SORA_EDU_CHROMIUM names another executable; SORA_EDU_SCREENSHOTS a folder for pictures of each widget."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOKEN = "0123456789abcdef"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
CELLS = ["from sora_edu.studio import widgets as w\nw.world_composer()", "w.spacetime_patches()", "w.latents_widget()",
         "play = w.Playground()\nplay.steps.value = 8\nplay.widget"]


def notebook(cells):
    code = [dict(cell_type="code", id=f"c{i}", metadata={}, outputs=[], execution_count=None, source=s) for i, s in enumerate(cells)]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    return json.dumps(dict(cells=code, metadata=spec, nbformat=4, nbformat_minor=5))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(ready, seconds, what):
    "Poll until `ready()` is true; a name for what did not come."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come within {seconds} s")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab with one notebook."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder / "widgets.ipynb").write_text(notebook(CELLS))
    env = {**os.environ, **{f"JUPYTER_{k}_DIR": str(folder / k) for k in ("CONFIG", "RUNTIME", "DATA")}, "PYTHONPATH": str(Path(__file__).parents[1]),
           "SORA_EDU_CACHE": str(folder / "kept")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}",
               f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    server = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def up():
        assert server.poll() is None, "JupyterLab ended"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", timeout=2).status == 200
        except OSError:
            return False
    try:
        wait_for(up, 60, "JupyterLab")
        yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?reset&token={TOKEN}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab):
    "The notebook, opened and run."
    from playwright.sync_api import sync_playwright
    chromium = os.environ.get("SORA_EDU_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium is missing: install it, or name it in SORA_EDU_CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(60_000)
        page.goto(lab)
        page.add_style_tag(content=".jp-toastContainer { display: none }")          # no invitations to the news
        run_all(page)
        yield page
        browser.close()


def run_all(page):
    "Run all cells; JupyterLab swallows the wish until its kernel is idle."
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            page.locator(".playground").wait_for(timeout=30_000)
            return
        except Exception:
            assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0, page.locator(".jp-OutputArea").all_inner_texts()
    raise AssertionError("the cells did not run")


def image(box, nth=0):
    return box.locator("img").nth(nth).get_attribute("src")


def changes(page, look, act, what):
    "Do something, and wait until what is seen is another."
    before = look()
    act()
    wait_for(lambda: look() != before, 20, what)


def opened(page, name):
    "A widget, brought into view, and what its text says."
    box = page.locator(f".{name}").first
    box.scroll_into_view_if_needed()
    return box, lambda: box.locator("pre").inner_text()


def press_track(page, box, nth, where):
    "Press the mouse on a slider's track, at a share `where` of its length."
    track = box.locator(".noUi-base").nth(nth)
    track.scroll_into_view_if_needed()
    at = track.bounding_box()
    page.mouse.click(at["x"] + where * at["width"], at["y"] + at["height"] / 2)


def photograph(box, name):
    if folder := os.environ.get("SORA_EDU_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        box.scroll_into_view_if_needed()
        box.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_world_composer(page):
    box = page.locator(".world-composer").first
    colour, action = box.locator("select").nth(1), box.locator("select").nth(3)
    changes(page, lambda: image(box), lambda: colour.select_option("green"), "a green clip")
    wait_for(lambda: "green" in box.locator("pre").inner_text(), 10, "the caption")
    action.focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("s"), "another action by its first letter")
    changes(page, lambda: image(box), lambda: [page.keyboard.press(key) for key in ("Enter", "ArrowDown", "Enter")], "the next action")
    box.locator(".noUi-handle").first.focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("ArrowRight"), "another seed by keyboard")
    changes(page, lambda: image(box), lambda: press_track(page, box, 0, 0.6), "another seed by mouse")
    caption, read = [line.split(":")[1].split() for line in box.locator("pre").inner_text().splitlines()]
    assert [word for word in caption if word != "a"] == read
    photograph(box, "world-composer")


def test_spacetime_patches(page):
    box = page.locator(".spacetime-patches").first
    grid, told = box.locator("img").first, lambda: box.locator("pre").inner_text()
    grid.scroll_into_view_if_needed()
    size = grid.bounding_box()
    changes(page, told, lambda: page.mouse.move(size["x"] + 0.9 * size["width"], size["y"] + 0.9 * size["height"]), "the token under the pointer")
    assert "token 15 of 64" in told()
    grid.focus()
    changes(page, told, lambda: page.keyboard.press("ArrowUp"), "the token above, by keyboard")
    assert "token 11 of 64" in told()
    changes(page, told, lambda: box.locator("select").first.select_option("8"), "smaller patches")
    assert "of 256" in told()
    photograph(box, "spacetime-patches")


def test_latents(page):
    box = page.locator(".latents").first
    box.scroll_into_view_if_needed()
    box.locator(".noUi-handle").first.focus()
    changes(page, lambda: image(box), lambda: [page.keyboard.press("ArrowLeft") for _ in range(10)], "fewer channels by keyboard")
    box.locator(".noUi-handle").nth(1).focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("ArrowRight"), "another frame by keyboard")
    changes(page, lambda: image(box), lambda: press_track(page, box, 0, 0.9), "more channels by mouse")
    changes(page, lambda: image(box), lambda: press_track(page, box, 1, 0.1), "an early frame by mouse")
    photograph(box, "latents")


def test_prompt_playground(page):
    box = page.locator(".playground").first
    box.scroll_into_view_if_needed()
    status, prompt = lambda: box.locator("pre").inner_text(), box.locator("input[type=text]").first
    start, stop = box.get_by_role("button", name="Start"), box.get_by_role("button", name="Stop")
    start.focus()
    page.keyboard.press("Enter")
    wait_for(lambda: "step" in status(), 60, "the first preview")
    wait_for(lambda: "done after 8 steps" in status(), 60, "the last step")
    photograph(box, "playground")
    box.locator(".noUi-handle").nth(2).focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("Home"), "the first step, scrubbed back to by keyboard")
    changes(page, lambda: image(box), lambda: press_track(page, box, 2, 0.55), "a middle step by mouse")
    box.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("End")                                     # 50 steps: time enough to stop
    start.click()
    wait_for(lambda: "step 2 of 50" in status() or "step 3 of 50" in status(), 30, "some steps")
    stop.click()
    wait_for(lambda: "stopped after" in status(), 20, "the stop")
    kept = image(box)
    prompt.fill("a small <b>red</b> starr")
    prompt.press("Tab")
    start.click()
    wait_for(lambda: "prompt: got" in status(), 20, "the refusal")
    assert "<b>" in status() and box.locator("pre b").count() == 0 and image(box) == kept
    photograph(box, "playground-refusal")


# -- the studio of the full world --------------------------------------------------------------------------------------
CELLS += ["from sora_edu.studio import atlas\natlas.storyboard_composer()", "atlas.oracle_xray(37)", "atlas.world_atlas()"]


def choose(box, name):
    "The list or slider with that label: a select, or a slider's handle."
    row = box.locator(".widget-inline-hbox").filter(has=box.page.get_by_text(name, exact=True))
    return row.locator("select, .noUi-handle").first


def test_storyboard_composer(page):
    box, told = opened(page, "storyboard-composer")
    typed, slots = box.locator("input[type=text]").first, lambda: box.locator(".marks").inner_text()
    assert "other actor" in slots() and box.locator(".mark-other_colour").inner_text().startswith("blue")
    typed.fill("three small robots spin, then rise in space")
    changes(page, lambda: image(box), lambda: typed.press("Enter"), "a clip of what was typed")
    wait_for(lambda: choose(box, "actor").locator("option:checked").inner_text() == "robot", 10, "the actor in its list")
    assert choose(box, "count").locator("option:checked").inner_text() == "3" and choose(box, "other actor").locator("option:checked").inner_text() == "-" and choose(box, "weather").is_disabled()
    assert typed.input_value() == "three small robots spin, then rise in space"
    choose(box, "colour").focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("t"), "turquoise by its first letter")
    wait_for(lambda: "turquoise" in typed.input_value() and "turquoise" in slots() and "turquoise" in told(), 10, "the sentence")
    choose(box, "seed").focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("ArrowRight"), "another seed by keyboard")
    photograph(box, "storyboard-composer")
    kept = image(box)
    choose(box, "size").select_option("big")
    wait_for(lambda: "at most 1 big" in told(), 20, "the stage's reason")
    assert image(box) == kept
    typed.fill("a <b>purple</b> fisch rises")
    typed.press("Enter")
    wait_for(lambda: "unknown: fish?" in slots() and "nearest known word" in told(), 20, "the unknown word")
    assert image(box) == kept and box.locator(".marks b").count() == 0 and "<b>purple</b>" in slots()
    photograph(box, "storyboard-refusal")


def test_oracle_xray(page):
    box, told = opened(page, "oracle-xray")
    assert "verdict: readable" in told()
    choose(box, "frame").focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("End"), "the last frame by keyboard")
    changes(page, lambda: image(box), lambda: choose(box, "corruption").select_option("teleport"), "a spoiled clip")
    wait_for(lambda: "over:" in told() and "verdict: readable" not in told(), 20, "the reason")
    photograph(box, "oracle-xray")
    choose(box, "clip").focus()
    changes(page, told, lambda: page.keyboard.press("Home"), "a clip without room")
    assert "no room" in told()
    changes(page, lambda: image(box), lambda: choose(box, "corruption").select_option("none"), "another clip")


def test_world_atlas(page):
    box, told = opened(page, "world-atlas")
    assert "15 actions, 0.00 s" in told()
    choose(box, "frame").focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("ArrowRight"), "the next frame by keyboard")
    changes(page, lambda: image(box), lambda: choose(box, "words").select_option("weathers"), "the weathers")
    assert "5 weathers, 0.25 s" in told()
    play = box.locator(".jupyter-button, button").first
    play.focus()
    changes(page, told, lambda: page.keyboard.press("Enter"), "frames that play")
    first = told()
    wait_for(lambda: told() not in (first, "5 weathers, 0.25 s"), 20, "one frame after the other")
    photograph(box, "world-atlas")


# -- samplers and guidance ---------------------------------------------------------------------------------------------
CELLS += ["from sora_edu.studio import race\nshow = race.SamplersRace(num_frames=5)\nshow.controls['steps'].value = 50\nshow.widget",
          "race.GuidanceExplorer(curve=False, seeds=(1, 2, 3), num_frames=5, num_inference_steps=4).widget"]


def fits(page, box, name, width=1280, height=800):
    "Does the widget fit on a small laptop's screen, with no picture empty? What it takes is told if it does not."
    page.set_viewport_size({"width": width, "height": height})
    try:
        box.scroll_into_view_if_needed()
        wait_for(lambda: box.bounding_box()["width"] < width, 10, "the smaller screen")
        photograph(box, name)
        size, wide = box.bounding_box(), box.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert size["height"] < height - 100 and size["x"] + size["width"] <= width and min(wide) > 200, (size, wide)
    finally:
        page.set_viewport_size({"width": 1300, "height": 1500})


def test_samplers_race(page):
    box, told = opened(page, "samplers-race")
    start, stop, prompt = box.get_by_role("button", name="Start"), box.get_by_role("button", name="Stop"), box.locator("textarea").first
    box.locator("input[type=checkbox]").nth(4).focus()
    page.keyboard.press("Space")                                   # without the ancestral one
    choose(box, "evaluations").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    start.focus()
    page.keyboard.press("Enter")
    wait_for(lambda: "asked" in told(), 90, "the first laps")
    wait_for(lambda: told().startswith("done"), 60, "the last")
    assert [line.split()[:3] for line in told().splitlines()[1:]] == [[name, "7", "asked"] for name in ("euler", "heun", "dpmpp_2m", "unipc")]
    fits(page, box, "samplers-race")
    choose(box, "evaluations").focus()
    page.keyboard.press("End")                                     # 60: time enough to stop
    changes(page, lambda: image(box, 1), start.click, "another race's clips")
    stop.click()
    wait_for(lambda: told().startswith("stopped") and "reference was kept" in told(), 30, "the stop, after a reference that was there at once")
    kept = image(box), image(box, 1)
    prompt.fill("a small <b>red</b> starr")
    prompt.press("Tab")
    start.click()
    wait_for(lambda: "prompt: got" in told(), 20, "the refusal")
    assert "<b>" in told() and box.locator("pre b").count() == 0 and (image(box), image(box, 1)) == kept


def test_guidance_explorer(page):
    box, told = opened(page, "guidance-explorer")
    wait_for(lambda: "shown: plain 3," in told(), 90, "the first clips")
    choose(box, "scale").focus()
    changes(page, lambda: image(box), lambda: page.keyboard.press("End"), "clips of scale 10")
    wait_for(lambda: "shown: plain 10," in told(), 20, "its figures")
    changes(page, lambda: image(box), lambda: choose(box, "guide").select_option("rescaled"), "clips of another guide")
    choose(box, "levels").focus()
    changes(page, told, lambda: page.keyboard.press("ArrowRight"), "other levels by keyboard")
    wait_for(lambda: "shown: rescaled 10, levels 0.05 to 1" in told(), 20, "clips of those levels")
    page.keyboard.press("ArrowLeft")
    wait_for(lambda: "shown: rescaled 10, levels 0 to 1" in told(), 20, "the way back")
    choose(box, "guide").select_option("plain")
    changes(page, lambda: image(box, 1), lambda: box.get_by_role("button", name="draw the whole curve").click(), "a curve")
    full = lambda: box.locator(".progress-bar").first.evaluate("bar => parseFloat(bar.style.width) > 99")
    wait_for(full, 90, "the whole curve")
    fits(page, box, "guidance-explorer")
