"The website's configuration against a small closed schema of our own, and its links against the files."
import copy
from configparser import ConfigParser

import jsonschema
import pytest
import yaml

TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}


def closed(required=(), **properties):
    "A schema of an object with these properties and no others."
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(item):
    return {"type": "array", "items": item, "minItems": 1}


NOTEBOOK = {"type": "string", "pattern": r"^[\w./-]+\.ipynb$"}
LINK = closed(["text", "href"], text=TEXT, href=NOTEBOOK)
SECTION = closed(["section", "contents"], section=TEXT, contents=listed(NOTEBOOK))
URL = {"type": "string", "pattern": r"^https://[\w./-]+$"}
SCHEMA = closed(
    ["project", "format", "website", "execute", "metadata-files"],
    project=closed(["type"], type={"const": "website"}, resources=listed(TEXT), **{"output-dir": TEXT}),
    execute=closed(["enabled"], enabled={"const": False}),  # outputs are those that the chapters store
    format=closed(["html"], commonmark={"const": "default"}, html=closed(
        ["theme", "css", "toc"], theme=closed(["light"], light=TEXT, dark=TEXT), css={"type": "string", "pattern": r"\.css$"},
        toc=FLAG, **{"toc-depth": {"type": "integer", "minimum": 1, "maximum": 6}, "code-overflow": {"enum": ["wrap", "scroll"]}})),
    website=closed(
        ["navbar", "sidebar"], title=TEXT, description=TEXT, favicon=TEXT, search=FLAG,
        navbar=closed(["left"], background=TEXT, left=listed(LINK)),
        sidebar=closed(["style"], style={"enum": ["floating", "docked"]}, contents=listed({"anyOf": [NOTEBOOK, SECTION]}),
                       **{"collapse-level": {"type": "integer", "minimum": 1}}),
        **{"page-navigation": FLAG, "open-graph": FLAG, "twitter-card": FLAG, "repo-branch": TEXT, "repo-url": URL, "site-url": URL,
           "repo-actions": listed({"enum": ["issue", "edit", "source"]})}),
    **{"metadata-files": {"const": ["nbdev.yml", "sidebar.yml"]}})


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merged(base, extra):
    "What Quarto makes of a file and its metadata files: objects joined key by key."
    if not (isinstance(base, dict) and isinstance(extra, dict)):
        return extra
    return {key: merged(base[key], extra[key]) if key in base and key in extra else base.get(key, extra.get(key)) for key in {**base, **extra}}


@pytest.fixture()
def config(root):
    "The whole configuration, as Quarto sees it."
    whole = read(root / "_quarto.yml")
    for name in whole["metadata-files"]:
        whole = merged(whole, read(root / "nbs" / name))
    return whole


def sidebar(config):
    "The sidebar's notebooks, in order."
    entries = config["website"]["sidebar"]["contents"]
    return [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry["contents"])]


def test_good(root, config):
    jsonschema.validate(read(root / "_quarto.yml"), SCHEMA)
    jsonschema.validate(config, SCHEMA)


@pytest.mark.parametrize("path, value", [
    ("project.type", "book"), ("project.typo", 1), ("project.type", None), ("format.html.toc", "yes"), ("format.html.toc-depth", 9),
    ("format.pdf", {}), ("website.sidebar.style", "drawer"), ("website.sidebar.contents", []), ("website.sidebar.contents", ["00_tour.md"]),
    ("website.sidebar.contents", [{"section": "World"}]), ("website.navbar.left", [{"text": "Start"}]), ("website.repo-actions", ["fork"]),
    ("website.site-url", "http://example.org"), ("website.titel", "x"), ("execute.enabled", True), ("metadata-files", ["sidebar.yml"]),
    ("format", "html"), ("websites", {})])
def test_bad_is_refused(config, path, value):
    bad = copy.deepcopy(config)
    *parents, last = path.split(".")
    where = bad
    for name in parents:
        where = where[name]
    where[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, SCHEMA)


@pytest.mark.parametrize("missing", ["project", "format", "website", "execute", "metadata-files"])
def test_missing_is_refused(config, missing):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: value for key, value in config.items() if key != missing}, SCHEMA)


def test_link(root):
    "nbdev reads nbs/_quarto.yml: a link, or (where links are not to be had) a copy."
    assert (root / "nbs/_quarto.yml").read_bytes() == (root / "_quarto.yml").read_bytes()


def test_sidebar_names_every_notebook_once_in_reading_order(root, config):
    names = sidebar(config)
    there = sorted(path.relative_to(root / "nbs").as_posix() for path in (root / "nbs").rglob("*.ipynb")
                   if not any(part.startswith((".", "_")) for part in path.relative_to(root / "nbs").parts))
    assert sorted(names) == there
    numbered = [name for name in names if name[0].isdigit()]
    assert numbered == sorted(numbered) and names[0] == "index.ipynb"


def test_targets_exist(root, config):
    site, html = config["website"], config["format"]["html"]
    targets = [html["css"], site["favicon"], *config["project"]["resources"], *(link["href"] for link in site["navbar"]["left"])]
    assert [name for name in targets if not (root / "nbs" / name).exists()] == []


def test_says_what_settings_say(root, config):
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    said, site = settings["DEFAULT"], config["website"]
    assert (site["title"], site["description"]) == (said["title"], said["description"])
    assert (site["repo-url"], site["repo-branch"]) == (said["git_url"], said["branch"])
    assert site["site-url"] == said["doc_host"] + said["doc_baseurl"] and config["project"]["output-dir"] == said["doc_path"]
