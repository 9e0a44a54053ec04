"What is shipped, what it imports, and what it must never reach."
import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"video": 1, "world": 2, "model": 3, "diffusion": 4, "training": 5, "pipeline": 6, "direct": 7, "trust": 7, "evaluate": 8, "studio": 9}
HEAVY = ["diffusers", "transformers", "matplotlib", "mediapy", "av", "imageio_ffmpeg", "ipywidgets", "IPython", "PIL", "tensorboard"]
DRAWS = {"sora_edu.world.render", "sora_edu.world.scene", "sora_edu.world.captions"}


# -- the import graph --------------------------------------------------------------------------------------------------
def modules(root=ROOT):
    "Dotted name -> path, of every module of the package."
    paths = [path for path in (root / "sora_edu").rglob("*.py") if path.name not in ("_modidx.py",)]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(name, text, known):
    "The names that the source `text` of module `name` imports, anywhere in it; `from a import b` counts as a.b where that is a module."
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[:len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: imports(name, path.read_text(encoding="utf-8"), known) for name, path in known.items()}


def reachable(graph, start):
    "All that importing `start` may load, of the names in `graph` and beyond."
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    return seen - {start}


def floor(name):
    return FLOORS[name.split(".")[1]]


def climbs(graph):
    "Imports of a floor by a floor beneath it."
    ours = [name for name in graph if name.count(".") and name.split(".")[1] in FLOORS]
    return [(name, other) for name in ours for other in graph[name] if other.startswith("sora_edu.") and floor(other) > floor(name)]


def test_every_module_is_on_a_floor(graph):
    assert [name for name in graph if name != "sora_edu" and name.split(".")[1] not in FLOORS] == []


def test_floors_import_only_what_lies_beneath(graph):
    assert climbs(graph) == []


def test_floors_and_reach_are_seen_to_break():
    known = {"sora_edu.world.render": 0, "sora_edu.model.vae": 0, "sora_edu.pipeline.generate": 0}
    bad = {"sora_edu.world.render": imports("sora_edu.world.render", "def f():\n    from ..model import vae", known)}
    assert climbs(bad) == [("sora_edu.world.render", "sora_edu.model.vae")]
    text = "from importlib import import_module\nimport_module('sora_edu.world.render')"
    bad = {"sora_edu.pipeline.generate": {"sora_edu.model.vae"}, "sora_edu.model.vae": imports("sora_edu.model.vae", text, known)}
    assert "sora_edu.world.render" in reachable(bad, "sora_edu.pipeline.generate")


def test_nothing_between_prompt_and_frames_may_draw(graph):
    "Neither the renderer, nor scenes, nor the caption parser can be reached from the pipeline."
    pipeline = [name for name in graph if name.startswith("sora_edu.pipeline.")]
    assert pipeline
    for name in pipeline:
        assert reachable(graph, name) & DRAWS == set(), name


def test_the_running_pipeline_loads_nothing_that_draws():
    code = "import sys, sora_edu; sora_edu.generate; print(*[m for m in sys.modules if m.startswith('sora_edu.world')])"
    assert python(code).split() in ([], ["sora_edu.world"])


def test_library_needs_no_notebook_tools(graph):
    banned = ("nbdev", "fastcore", "execnb", "ghapi", "torchvision")
    assert [(name, other) for name, found in graph.items() for other in found if other.split(".")[0] in banned] == []


def test_networks_import_only_torch_and_einops(graph):
    allowed = {"torch", "einops", "sora_edu", *sys.stdlib_module_names}
    nets = {name: graph[name] for name in ("sora_edu.model.dit", "sora_edu.model.vae", "sora_edu.model.wan_vae", "sora_edu.model.patches")}
    assert [(name, other) for name, found in nets.items() for other in found if other.split(".")[0] not in allowed] == []


# -- importing ---------------------------------------------------------------------------------------------------------
def python(code, **options):
    "What `code` prints in a fresh interpreter."
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_lazy():
    assert python("import sys, sora_edu; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))") == "[]"


def test_public_names():
    from sora_edu import SoraPipeline, World, __version__, generate
    assert callable(generate) and isinstance(World, type) and isinstance(SoraPipeline, type) and __version__
    import sora_edu
    assert {"World", "generate", "SoraPipeline"} <= set(dir(sora_edu))
    with pytest.raises(AttributeError, match="nonsense"):
        sora_edu.nonsense


def test_public_names_survive_importing_the_modules_first():
    code = "import sora_edu.pipeline.generate, sora_edu.world.scene; from sora_edu import generate, World; print(callable(generate), World.__name__)"
    assert python(code) == "True World"


def test_learning_and_judging_need_no_player():
    "Training, pipeline and adherence import where diffusers, av and their like are absent."
    names = [name for name in modules() if name.split(".")[1:2] in (["world"], ["model"], ["diffusion"], ["training"], ["evaluate"])]
    names += ["sora_edu.video", "sora_edu.pipeline.generate"]
    code = f"import sys, importlib\nfor name in {HEAVY!r}: sys.modules[name] = None\nfor name in {names!r}: importlib.import_module(name)"
    python(code)


# -- what settings say -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_one_version(settings):
    import sora_edu
    assert sora_edu.__version__ == settings["version"]
    assert re.search(rf"^version: {re.escape(settings['version'])}$", (ROOT / "CITATION.cff").read_text(), flags=re.M)


def test_requirements(settings):
    wanted, tools = settings["requirements"], settings["dev_requirements"]
    assert not re.search(r"\b(nbdev|fastcore|execnb|ghapi|torchvision|torchaudio)\b", wanted)
    for pin in ("nbdev==2.4.14", "fastcore>=1.12.3,<2", "execnb>=0.1.12,<0.2", "ghapi<2"):  # one without the others fails to import
        assert pin in tools.split()
    assert "<" not in next(word for word in wanted.split() if word.startswith("torch>"))  # the cap is constraints.txt's alone
    assert "torch<2.14" in (ROOT / "constraints.txt").read_text().split()


def test_every_import_is_required(settings, graph):
    "Whatever the package imports is in requirements, under the name that pip knows it by."
    pip_names = {"imageio_ffmpeg": "imageio-ffmpeg", "PIL": "pillow", "IPython": "jupyterlab", "nbformat": "jupyterlab"}
    listed = {re.split(r"[<>=~]", word)[0] for word in settings["requirements"].split()}
    used = {other.split(".")[0] for found in graph.values() for other in found} - {"sora_edu", "__future__", *(path.stem for path in (ROOT / "tools").glob("*.py"))} - set(sys.stdlib_module_names)
    spared = {"datasets", "nbclient"}                               # only to read what it saved, its absence is told by name; to time the chapters in a checkout
    assert {name for name in used if pip_names.get(name, name) not in listed} == spared
    assert spared <= {re.split(r"[<>=~]", word)[0] for word in settings["dev_requirements"].split()}


# -- the wheel ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Names in the wheel, built from a copy so that nothing is left in the tree."
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", "out", "runs", ".cache", "*.egg-info", "build", "dist", "_proc", "_docs")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def visible(path, base):
    return path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(base).parts)


def test_wheel_carries_all_that_a_student_needs(wheel):
    names = set(wheel.namelist())
    nbs = ROOT / "nbs"
    wanted = {"sora_edu/chapters/" + path.relative_to(nbs).as_posix() for path in nbs.rglob("*.ipynb") if visible(path, nbs)}
    for folder in ("data", "weights"):
        base = ROOT / "sora_edu" / folder
        wanted |= {path.relative_to(ROOT).as_posix() for path in base.rglob("*") if visible(path, base)}
    wanted |= {path.relative_to(ROOT).as_posix() for path in modules().values()}
    assert wanted - names == set()
    assert any(name.startswith("sora_edu/data/") for name in names)


def test_wheel_carries_the_command_and_nothing_else(wheel):
    names = wheel.namelist()
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "sora-edu = sora_edu.studio.cli:main" in wheel.read(entry).decode()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sora_edu"}
    assert any(name.endswith("/LICENSE") for name in names)
    assert max(info.file_size for info in wheel.infolist()) <= 16 * 2**20


# -- the tree ----------------------------------------------------------------------------------------------------------
def text_files():
    "Every text file that is meant to be published."
    hidden = {".git", ".venv", "__pycache__", "out", "runs", ".cache", "_proc", "_docs", ".pytest_cache", ".hypothesis", "build", "dist", ".ipynb_checkpoints"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not hidden & set(parts) and not any(part.endswith(".egg-info") for part in parts):
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                pass


def machine_paths(text):
    "Absolute paths of somebody's machine in `text`, embedded pictures left out."
    text = re.sub(r"base64,[\w+/=]+|\"image/\w+\": \"[\w+/=\\]+\"", "", text)
    return re.findall(r"(?<![\w.~/-])/(?:work|root|home|Users|tmp/bash)[\w.]*/[\w.-]+", text)


def test_machine_paths_are_seen():
    home = "/" + "home"
    assert machine_paths(f"see {home}/ann/x.py") and not machine_paths("https://example.org" + home + "/ann")
    assert not machine_paths("data:image/png;base64,AA" + home + "/ann")


def test_no_paths_of_a_machine():
    assert {str(path.relative_to(ROOT)): found for path, text in text_files() if (found := machine_paths(text))} == {}


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "setup.py", "constraints.txt", ".ci/run"])
def test_top_level(name):
    assert (ROOT / name).stat().st_size > 0


def test_ci_runs_what_the_readme_names():
    assert "make test" in (ROOT / ".ci/run").read_text() and "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


# -- make --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["a `echo no` $5 \"big\" 'ball'", "$(id); rm -rf x", "--help", "ein großer Ball ☃", "a\\nb \\ c", "# % & * < >"])
def test_make_hands_any_prompt_over_as_typed(prompt, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("settings.ini", "setup.py", "constraints.txt"):
        (tmp_path / name).touch()
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "sora-edu").write_text(f"#!{sys.executable}\nimport sys\nprint(ascii(sys.argv[1:]))\n")
    (tools / "sora-edu").chmod(0o755)
    (tools / "python").touch()
    (tmp_path / ".venv/.installed").touch()
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}      # the tests may run in a make
    done = subprocess.run(["make", "demo", f"PROMPT={prompt}"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == ascii(["generate", "--", prompt]), done.stderr
