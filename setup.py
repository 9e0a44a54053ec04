"Packaging: all facts come from settings.ini, so that they are written once."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithChapters(build_py):
    "The usual build; a wheel also carries the chapters, as sora_edu/chapters/*.ipynb."

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):  # the chapters are then read where they are
            return
        for notebook in sorted((HERE / "nbs").rglob("*.ipynb")):
            if not any(part.startswith((".", "_")) for part in notebook.relative_to(HERE).parts):
                target = Path(self.build_lib, "sora_edu", "chapters", notebook.relative_to(HERE / "nbs"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(notebook, target)


parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    packages=find_packages(include=["sora_edu", "sora_edu.*"]),
    package_data={"sora_edu": ["data/*", "data/**/*", "weights/*", "weights/**/*"]},
    cmdclass={"build_py": BuildWithChapters},
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
