"What no single notebook can test: that notebooks, package, README and environment fit together."
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from imgtx_nb.results import table1
from imgtx_nb.runs import RunConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
TABLES = sorted(p for p in (ROOT/"results").rglob("*.csv") if "run" in pd.read_csv(p, nrows=0))
EXPERIMENTS = {"train", "study", "budget", "ablations", "benchmark"}
sys.path.insert(0, str(ROOT/"tools"))


def run(*command, cwd=ROOT):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def papermill(name, out, *parameters):
    return run("papermill", str(ROOT/"nbs"/f"{name}.ipynb"), str(out), *parameters, "--no-progress-bar")


def last_line(text):
    return [line for line in text.splitlines() if line.strip()][-1]


# The notebooks and what is made of them

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project's source in another folder, exported and cleaned there."
    there = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "imgtx_nb", "settings.ini", "setup.py", "pyproject.toml", "README.md"):
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, there/name)
    for command in ("nbdev_export", "nbdev_clean"): assert run(command, cwd=there).returncode == 0
    return there


def test_export_changes_nothing(copy):
    modules = lambda root: {p.name: p.read_text() for p in (root/"imgtx_nb").glob("*.py")}
    before, after = modules(ROOT), modules(copy)
    assert before.keys() == after.keys()
    for name in before: assert before[name] == after[name], f"{name} differs from its notebook: run nbdev_export"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(copy, path):
    assert path.read_text() == (copy/"nbs"/path.name).read_text(), f"{path.name} is not clean: run nbdev_clean"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kernel_tags_and_outputs(path):
    notebook = json.loads(path.read_text())
    kernel = notebook["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python"), f"{path.name}: the kernel must be python3, its language python"
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == (path.stem in EXPERIMENTS), f"{path.name}: an experiment has one cell tagged parameters, other notebooks none"
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not any(o["output_type"] == "error" for o in outputs)
    if path.stem in EXPERIMENTS: assert not outputs, f"{path.name}: executed experiment notebooks belong in results/"
    else: assert outputs, f"{path.name}: commit component notebooks executed"


def test_parameters_of_train_are_the_fields_of_runconfig():
    cells = json.loads((ROOT/"nbs"/"train.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    lines = re.findall(r"^(\w+): (\w+) = (.+?)\s+# (.+)$", source, re.M)
    assert [(name, kind, eval(value)) for name, kind, value, _ in lines] == [(f.name, f.type.__name__, f.default) for f in fields(RunConfig)]


def test_modules_import_only_modules_above():
    order = [re.search(r"default_exp (\w+)", p.read_text())[1] for p in NOTEBOOKS if p.stem[0].isdigit()]
    used = {name: {*re.findall(r"^from \.(\w+) import", (ROOT/"imgtx_nb"/f"{name}.py").read_text(), re.M)} for name in order}
    assert "training" in used["results"]
    for n, name in enumerate(order): assert used[name] <= {*order[:n]}, f"{name} imports a module that stands below it"


def test_exported_names_say_what_they_are():
    for path in sorted((ROOT/"imgtx_nb").glob("[a-z]*.py")):
        module = importlib.import_module(f"imgtx_nb.{path.stem}")
        exported = [getattr(module, name) for name in module.__all__]
        silent = [x.__name__ for x in exported if callable(x) and not inspect.getdoc(x)]
        assert not silent, f"{path.name}: {', '.join(silent)} have no docstring"


def test_package_imports_without_the_tools():
    block = "import sys; sys.modules.update(dict.fromkeys(('nbdev', 'papermill', 'fastcore', 'execnb')));"
    modules = ", ".join(f"imgtx_nb.{p.stem}" for p in (ROOT/"imgtx_nb").glob("[a-z]*.py"))
    done = run(sys.executable, "-c", f"{block} import {modules}")
    assert done.returncode == 0, done.stderr


# The face

def test_environment_yml_and_constraints_agree():
    pins = dict(line.split("==") for line in (ROOT/"constraints.txt").read_text().split("\n") if "==" in line)
    lists = [d["pip"] for d in yaml.safe_load((ROOT/"environment.yml").read_text())["dependencies"] if isinstance(d, dict)]
    conda = dict(d.split("==") for d in lists[0] if "==" in d)
    settings = ConfigParser()
    settings.read(ROOT/"settings.ini")
    wanted = {re.split("[<>=]", r)[0] for key in ("requirements", "dev_requirements") for r in settings["DEFAULT"][key].split()}
    assert conda.keys() == wanted and conda == {name: pins[name] for name in wanted}


def test_readme_is_the_index():
    from readme import readme
    text, pictures = readme(ROOT/"nbs"/"index.ipynb")
    assert text == (ROOT/"README.md").read_text(), "README.md differs from nbs/index.ipynb: run tools/readme.py"
    for name, data in pictures.items(): assert (ROOT/name).read_bytes() == data


def test_readme_names_real_targets_and_files():
    text, makefile = (ROOT/"README.md").read_text(), (ROOT/"Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)`?", " ".join(re.findall(r"`[^`]*`", text)))): assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(((?!http)[^)#]+)", text): assert (ROOT/link).exists(), link


@pytest.mark.parametrize("path", TABLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_say_what_the_run_folders_say(path, tmp_path):
    table = pd.read_csv(path)
    folders = [next((f for f in (path.parent/run, path.parent.parent/run) if f.is_dir()), run) for run in table.run]
    table1(folders).to_csv(tmp_path/"again.csv", index=False)
    again = pd.read_csv(tmp_path/"again.csv")
    pd.testing.assert_frame_equal(table[[c for c in table if c in again]], again[[c for c in table if c in again]])


FOURTH_SCHEME = """
@dataclass(frozen=True)
class column(Scheme):
    "At most `kernel_size` pixels up."
    kernel_size: int

    def allows(self, query, key, width):
        return (key <= query) & (query % width == key % width) & (query // width - key // width <= self.kernel_size)

SCHEMES = {"column": column, """

USE_FOURTH_SCHEME = """
from imgtx_nb.runs import RunConfig, build_model
from imgtx_nb.sampling import sample
config = RunConfig(attention="column", scale="tiny")
images = sample(build_model(config, (3, 9, 7)), 2, seed=0)
print(config.run_name, config.kernel_size, *images.shape)
"""


def test_a_fourth_scheme_is_one_class(tmp_path):
    shutil.copytree(ROOT/"imgtx_nb", tmp_path/"imgtx_nb")
    masks = tmp_path/"imgtx_nb"/"masks.py"
    masks.write_text(masks.read_text().replace("SCHEMES = {", FOURTH_SCHEME))
    done = run(sys.executable, "-c", USE_FOURTH_SCHEME, cwd=tmp_path)
    assert done.stdout.split() == ["column_6-cifar10-tiny", "6", "2", "3", "9", "7"], done.stderr


# The experiments

@pytest.mark.parametrize("notebook, parameter, value, sentence", [
    ("train", "kernal_size", "6", "kernal_size is not a parameter: did you mean kernel_size?"),
    ("train", "kernel_size", "0", "kernel_size is 0: it must be a whole number, at least 1."),
    ("train", "attention", "local_3d", "attention is 'local_3d': it must be one of local_2d, local_1d, non_local."),
    ("train", "dataset", "nowhere.npz", "there is nothing at that path."),
    ("ablations", "dataset", "nowhere.npz", "there is nothing at that path."),
    ("budget", "lengths", "2", "lengths is 2: give a list of numbers above 0"),
    ("budget", "models", "2", "models is 2: give a list of dictionaries"),
    ("study", "scael", "tiny", "scael is not a parameter: did you mean scale?"),
    ("study", "scale", "huge", "scale is 'huge': it must be one of paper, laptop, tiny."),
    ("study", "transformer", "muon", "transformer is 'muon': give the further parameters of its rows as a dictionary"),
])
def test_refusals_leave_nothing_behind(tmp_path, notebook, parameter, value, sentence):
    done = papermill(notebook, tmp_path/"out.ipynb", "-p", parameter, value, "-p", "results_dir", str(tmp_path/"results"))
    assert done.returncode != 0 and sentence in last_line(done.stderr) and not (tmp_path/"results").exists()


def readme_commands():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT/"README.md").read_text(), re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith("papermill ")]


@pytest.fixture(scope="module")
def little_images(tmp_path_factory):
    "An .npz of a few very small pictures."
    path, draw = tmp_path_factory.mktemp("data")/"little.npz", np.random.default_rng(0).integers
    images = {f"{split}_images": draw(0, 256, (n, 16, 20, 3), dtype=np.uint8) for split, n in (("train", 40), ("test", 7))}
    np.savez(path, **images, **{key.replace("images", "labels"): np.zeros(len(x), int) for key, x in images.items()})
    return path


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_run(tmp_path, little_images, command):
    "Every papermill command of the README, with a few steps of small models on small pictures."
    _, notebook, out, *parameters = shlex.split(command)
    small = dict(scale="tiny", dataset=little_images, max_steps=3, results_dir=tmp_path/"results")
    done = papermill(Path(notebook).stem, tmp_path/Path(out).name, *parameters, *(str(word) for item in small.items() for word in ("-p", *item)))
    assert done.returncode == 0, done.stderr[-3000:]
    is_study, runs = "study" in notebook, [p.parent for p in (tmp_path/"results").glob("*/summary.json")]
    files = {"config.json", "metrics.csv", "summary.json", "model.safetensors", "samples.png", "completions.png"} | ({"train.ipynb", "context_use.json"} if is_study else set())
    assert len(runs) == (5 if is_study else 1)
    for folder in runs: assert files <= {p.name for p in folder.iterdir()}
    if is_study:
        for name in ("table1.csv", "context_use.csv"): assert len((tmp_path/"results"/name).read_text().splitlines()) == 6
        assert len([*(tmp_path/"results").glob("*.png")]) == 6


def configs_of(name, **parameters):
    "The runs that an experiment notebook plans, with some of its parameters given."
    cells = ["".join(c["source"]) for c in json.loads((ROOT/"nbs"/f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    scope = {}
    exec(cells[0], scope)
    scope |= parameters
    exec("\n".join(cells[1:cells.index(next(c for c in cells if "configs = " in c)) + 1]), scope)
    return scope["configs"]


def test_rows_of_the_study_take_further_parameters():
    configs = configs_of("study", transformer={"optimizer": "muon", "n_layers": 3}, pixelcnnpp={"n_filters": 8})
    assert [(c.model, c.optimizer, c.n_layers, c.n_filters) for c in configs] == [("pixelcnnpp", None, None, 8)] + 4 * [("transformer", "muon", 3, None)]
    with pytest.raises(ValueError, match="optimiser is not a parameter: did you mean optimizer"): configs_of("study", transformer={"optimiser": "muon"})


def test_the_budget_at_length_1_is_the_study():
    study, configs = configs_of("study", scale="laptop"), configs_of("budget", scale="laptop", lengths=[1, .25])
    assert [c.max_steps for c in configs] == [1000, 4000, 2000, 8000] and len({(c.results_dir, c.run_name) for c in configs}) == 4
    assert configs[1] in study and configs[3] in study and {c.results_dir for c in configs[::2]} == {"results/budget"}


def test_a_line_of_the_budget_may_have_another_size_and_lengths_of_its_own():
    study, wide = configs_of("study", scale="laptop"), {"kernel_size": 6, "d_model": 208, "lengths": [2, 1]}
    first, second, third = configs_of("budget", scale="laptop", lengths=[1], models=[{"kernel_size": 6}, wide])
    assert first in study and (second.max_steps, third.max_steps) == (first.max_steps, 2 * first.max_steps)
    assert {c.d_model for c in (second, third)} == {208} and (second.results_dir, second.run_name) == ("results/budget", "local_2d_6-photo_patches-laptop-d_model_208-x1")


def test_ablations_change_one_thing_at_a_time():
    rows = configs_of("ablations")
    configs = {config.run_name: config for config in rows}
    first, best, several = configs["published"], configs["all_five"], ("published", "all_four", "all_five")
    changed = lambda config, start: [f.name for f in fields(config) if f.name != "run_name" and getattr(config, f.name) != getattr(start, f.name)]
    for name, config in configs.items():
        if name not in several: assert len(changed(config, best if name.startswith("best_") else first)) == 1, name
    assert len(changed(best, first)) == 5 and len(configs) == len(rows)
    paper = RunConfig()
    for name in ("attention", "kernel_size", "embedding", "positions", "norm", "activation", "dropout", "ema_decay", "optimizer", "schedule", "weight_decay", "learning_rate"):
        assert getattr(first, name) == getattr(paper, name)
