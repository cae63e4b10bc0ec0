"The package's metadata, read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser()
config.read(Path(__file__).parent/"settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(Path(__file__).parent/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"].split(),
    classifiers=["Intended Audience :: " + settings["audience"], "Programming Language :: Python :: 3"],
    project_urls={"Documentation": settings["doc_host"] + settings["doc_baseurl"]},
    entry_points={"nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],
                  "papermill.engine": [f"{settings['lib_path']}={settings['lib_path']}.engine:Engine"]},
    scripts=[],
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
)
