"What all tests share: no network, fixed threads, and the marks `slow` and `browser`."
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long kills, browsers and figures; run by `make test-all`")
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def root():
    "The top folder of the project."
    return ROOT


@pytest.fixture(scope="session")
def chromium():
    "Path of a Chromium browser; the test fails, not skips, where there is none."
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("no Chromium found: install it (Debian: apt-get install chromium) to run the browser tests")
