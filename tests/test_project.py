"What no single notebook can test: that notebooks, package, README, results and environment fit together."
import builtins
import dis
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from nbclient import NotebookClient
from small_runs import planned, pretend_done

from imgtx_nb.config import RunConfig, default_name, differing, parameter_lines
from imgtx_nb.results import table1
from imgtx_nb.runs import load_run, read_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
TABLES = sorted(p for p in (ROOT/"results").glob("[!.]*/*.csv") if "run" in pd.read_csv(p, nrows=0) and p.stem != "retired")
RUNS = sorted(p.parent for p in (ROOT/"results").glob("[a-z]*/*/config.json") if "-" not in p.parent.parent.name)
EXPERIMENTS = {"train", "study", "budget", "ablations", "conditional", "benchmark", "codec", "complete", "play", "verification"}
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_line_of_code_is_cut_off_in_jupyterlab(path):
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [line for source in sources for line in source.splitlines() if len(line) > 110] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_notebook_shows_a_pink_box(path):
    outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr" or o["output_type"] == "stream" and not "".join(o["text"]).strip()]


def parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    return next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))


def test_parameters_of_train_are_those_of_runconfig():
    assert parameters_cell(ROOT/"nbs"/"train.ipynb").splitlines() == parameter_lines(), "put imgtx_nb.config.parameter_lines() into the parameters cell of train.ipynb"


def test_modules_import_only_modules_above():
    order = [room[1] for p in NOTEBOOKS if (room := re.search(r"default_exp (\w+)", p.read_text()))]
    used = {name: {*re.findall(r"^from \.(\w+) import", (ROOT/"imgtx_nb"/f"{name}.py").read_text(), re.M)} for name in order}
    assert "training" in used["results"]
    for n, name in enumerate(order): assert used[name] <= {*order[:n]}, f"{name} imports a module that stands below it"


def test_importing_a_model_imports_no_plotting_library():
    done = run(sys.executable, "-c", "import sys, imgtx_nb.config, imgtx_nb.cached; print(*{'matplotlib', 'seaborn', 'pandas', 'papermill'} & {*sys.modules})")
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_exported_names_say_what_they_are():
    for path in sorted((ROOT/"imgtx_nb").glob("[a-z]*.py")):
        module = importlib.import_module(f"imgtx_nb.{path.stem}")
        exported = [getattr(module, name) for name in module.__all__]
        silent = [x.__name__ for x in exported if callable(x) and not inspect.getdoc(x)]
        assert not silent, f"{path.name}: {', '.join(silent)} have no docstring"


def global_names(code):
    "What functions look up among the names of their module."
    yield from (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if inspect.iscode(inner): yield from global_names(inner)


def test_modules_need_nothing_that_only_their_notebook_imports():
    for path in sorted((ROOT/"imgtx_nb").glob("[a-z]*.py")):
        known = {*vars(importlib.import_module(f"imgtx_nb.{path.stem}")), *dir(builtins)}
        missing = {*global_names(compile(path.read_text(), path.name, "exec"))} - known
        assert not missing, f"{path.name}: {missing}"


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


def test_readme_is_the_index_and_short():
    from readme import readme
    text = readme(ROOT/"nbs"/"index.ipynb")
    assert text == (ROOT/"README.md").read_text(), "README.md differs from nbs/index.ipynb: run tools/readme.py"
    assert len(text.split()) <= 700


@pytest.mark.parametrize("page", ["README.md", "results/README.md", "nbs/index.ipynb", "nbs/findings.ipynb"])
def test_pages_name_real_targets_and_files(page):
    text, makefile = (ROOT/page).read_text(), (ROOT/"Makefile").read_text()
    for target in re.findall(r"`make ([a-z]+)`", text): assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(((?!http)[^)#\s]+)", text): assert (ROOT/page).parent.joinpath(link).exists(), link


def test_sizes_are_in_powers_of_ten_everywhere():
    for path in NOTEBOOKS:
        sources = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        assert not re.search(r"\b[MG]iB|/ 2 ?\*\* ?[23]0", sources), f"{path.name}: MB and GB are millions and billions of bytes"


# Results

@pytest.mark.parametrize("path", TABLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_say_what_the_run_folders_say(path, tmp_path):
    table = pd.read_csv(path)
    table = table[[(path.parent/run).is_dir() for run in table.run]].reset_index(drop=True)
    table1([path.parent/run for run in table.run]).to_csv(tmp_path/"again.csv", index=False)
    again = pd.read_csv(tmp_path/"again.csv")
    shared = [c for c in table if c in again]
    assert len(table) and len(shared) > 8
    pd.testing.assert_frame_equal(table[shared], again[shared])


@pytest.mark.parametrize("folder", RUNS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_run_folders_are_read_and_those_with_weights_load(folder):
    config = read_config(folder)
    assert config.run_name == folder.name and (folder.parent.name == "ablations" or folder.name == default_name(config))
    if not (folder/"model.safetensors").exists(): return
    model, _ = load_run(folder)
    images, labels = torch.randint(0, 256, (1, *model.image_shape), dtype=torch.uint8), torch.zeros(1).long()
    with torch.no_grad(): params = model(images, model.observed(images, labels))
    n_parameters = json.loads((folder/"summary.json").read_text())["n_parameters"]
    assert params.isfinite().all() and sum(p.numel() for p in model.parameters()) == n_parameters


@pytest.mark.skipif(not (ROOT/".git").exists(), reason="only a clone knows which files are committed")
def test_a_checkout_fits_in_a_hand():
    files = run("git", "ls-files", "-z").stdout.split("\0")
    assert sum((ROOT/f).stat().st_size for f in files if f and (ROOT/f).is_file()) < 28 * 2**20


@pytest.mark.skipif(not (ROOT/".git").exists(), reason="only a clone knows which files are committed")
def test_no_file_names_the_folder_in_which_it_was_made():
    found = run("git", "grep", "-lIF", f"{ROOT}/")
    assert found.returncode == 1, found.stdout


# A fourth model, a fourth scheme

THIRD_MODEL = """
import sys, torch, torch.nn.functional as F
from torch import nn
from imgtx_nb.autoregressive import MODELS, AutoregressiveModel
from imgtx_nb.config import RunConfig
from imgtx_nb.parameters import setting
from imgtx_nb.results import draw_run, table1, write_results
from imgtx_nb.runs import load_run
from imgtx_nb.sampling import complete, sample
from imgtx_nb.training import Trainer, evaluate, fit
from imgtx_nb.data import load_images

class PixelBefore(AutoregressiveModel):
    "Each pixel from the one before it."
    width: int = setting(8, "hidden units", least=1)

    def __init__(self, image_shape, **settings):
        super().__init__(image_shape, **settings)
        width = self.settings.width
        self.mlp = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, self.n_params))

    def network(self, pixels):
        before = F.pad(pixels.flatten(2).transpose(1, 2)[:, :-1], (0, 0, 1, 0))
        return self.mlp(before).unflatten(1, pixels.shape[-2:])

MODELS["before"] = PixelBefore

data, results = sys.argv[1:]
config = lambda **more: RunConfig(model="before", width=5, scale="tiny", dataset=data, max_steps=9, eval_every=4, results_dir=results, **more)
straight, step = fit(config(run_name="straight")), Trainer.step
def stopping(self, n):
    if n == 6: raise KeyboardInterrupt
    return step(self, n)
Trainer.step = stopping
try: fit(config())
except KeyboardInterrupt: pass
Trainer.step = step
folder = fit(config())
assert (folder/"model.safetensors").read_bytes() == (straight/"model.safetensors").read_bytes()
model, again = load_run(folder)
images = load_images(data, "test")[0]
table = table1([folder])
assert abs(evaluate(model, images) - table.bits_per_dim[0]) < 1e-6
assert (complete(model, sample(model, 2, seed=0), 3, seed=1)[:, :, :3] == sample(model, 2, seed=0)[:, :, :3]).all()
draw_run(folder, n=2); write_results([folder], results)
print(folder.name, "|", table.model[0], "|", table.settings[0], "|", table.n_parameters[0])
"""


def test_a_fourth_model_is_a_class_and_an_entry(tmp_path, little_images):
    done = run(sys.executable, "-c", THIRD_MODEL, str(little_images), str(tmp_path), cwd=tmp_path)
    name, model, settings, n_parameters = (last_line(done.stdout or done.stderr) + " | | |").split(" | ")[:4]
    assert done.returncode == 0, done.stderr[-3000:]
    assert name.startswith("before-little.npz-") and model == "before" and settings == "width = 5"
    assert int(n_parameters) == 3 * 5 + 5 + 5 * 100 + 100


FOURTH_SCHEME = """
import sys, torch
from dataclasses import dataclass
from imgtx_nb.masks import SCHEMES, Scheme, non_local
from imgtx_nb.parameters import setting

@dataclass(frozen=True)
class column(Scheme):
    "The pixels straight above."
    n_above: int = setting(5, "rows up", least=1)

    def allows(self, query, key, width):
        return (key <= query) & ((query - key) % width == 0) & (query - key <= self.n_above * width)

SCHEMES["column"] = column

from imgtx_nb.attention import attend_with, dense_attention
from imgtx_nb.autoregressive import receptive_field
from imgtx_nb.config import RunConfig, build_model
from imgtx_nb.results import table1
from imgtx_nb.training import fit

data, results = sys.argv[1:]
config = RunConfig(attention="column", n_above=2, scale="tiny", n_layers=1, max_steps=3, dataset=data, results_dir=results)
torch.manual_seed(0)
model = build_model(config, (3, 9, 7)).eval()
for p in model.parameters(): p.data.add_(.1 * torch.randn_like(p))
images = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
seen = {divmod(t, 7) for t in receptive_field(model, images, (5, 3)).flatten().nonzero().flatten().tolist()}
assert seen == {(5, 2), (4, 2), (3, 2)}, seen # positions straight above; each holds the pixel before it
with torch.no_grad():
    decoder, expected = model.decoder(2), model(images).flatten(1, 2)
    for t in range(62): assert torch.allclose(decoder.step(images.flatten(2)[:, :, t - 1] if t else None), expected[:, t], atol=1e-4)
    assert torch.allclose(attend_with(model, dense_attention)(images).flatten(1, 2), expected, atol=1e-4)
table = table1([fit(config)])
print(config.run_name, "|", table.label[0])
"""


def test_a_fourth_scheme_is_a_class_and_an_entry(tmp_path, little_images):
    done = run(sys.executable, "-c", FOURTH_SCHEME, str(little_images), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    name, label = last_line(done.stdout).split(" | ")
    assert name.startswith("column_2-little.npz-") and label.startswith("column Transformer, n_above = 2")


# The experiments

@pytest.mark.parametrize("notebook, parameter, value, sentence", [
    ("train", "kernal_size", "6", "kernal_size is not a parameter: did you mean kernel_size?"),
    ("train", "kernel_size", "0", "kernel_size is 0: it must be a whole number, at least 1."),
    ("train", "attention", "local_3d", "attention is 'local_3d': it must be one of local_2d, local_1d, non_local."),
    ("train", "dataset", "nowhere.npz", "there is nothing at that path."),
    ("ablations", "dataset", "nowhere.npz", "there is nothing at that path."),
    ("budget", "lengths", "2", "lengths is 2: give a list of numbers above 0"),
    ("budget", "lines", "2", "lines is 2: give a list of dictionaries"),
    ("study", "scael", "tiny", "scael is not a parameter: did you mean scale?"),
    ("study", "scale", "huge", "scale is 'huge': it must be one of paper, gpu, laptop, tiny."),
    ("study", "each", "muon", "each is 'muon': give a dictionary of dictionaries"),
])
def test_refusals_leave_nothing_behind(tmp_path, notebook, parameter, value, sentence):
    cells = [c for c in json.loads((ROOT/"nbs"/f"{notebook}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    given = {"results_dir": str(tmp_path/"results"), parameter: yaml.safe_load(value)}
    injected = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items())
    scope = {"In": ["", "".join(cells[0]["source"]), injected, "the cells below"]}
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        for source in [*scope["In"][1:3], *("".join(c["source"]) for c in cells[1:])]: exec(source, scope)
    assert not (tmp_path/"results").exists()


def test_a_refusal_is_the_last_line_of_papermill(tmp_path):
    done = papermill("train", tmp_path/"out.ipynb", "-p", "kernal_size", "6", "-p", "results_dir", str(tmp_path/"results"))
    sentence = "kernal_size is not a parameter: did you mean kernel_size?"
    assert done.returncode != 0 and sentence in last_line(done.stderr) and not (tmp_path/"results").exists()


@pytest.fixture(scope="module")
def little_images(tmp_path_factory):
    "An .npz of a few very small pictures."
    path, draw = tmp_path_factory.mktemp("data")/"little.npz", np.random.default_rng(0).integers
    images = {f"{split}_images": draw(0, 256, (n, 16, 20, 3), dtype=np.uint8) for split, n in (("train", 40), ("test", 7))}
    np.savez(path, **images, **{key.replace("images", "labels"): np.zeros(len(x), int) for key, x in images.items()})
    return path


def test_the_study_runs(tmp_path, little_images):
    "With a few steps of two small models on small pictures."
    small = dict(scale="tiny", dataset=little_images, max_steps=3, results_dir=tmp_path/"results")
    given = [str(word) for item in small.items() for word in ("-p", *item)]
    done = papermill("study", tmp_path/"out.ipynb", "-y", "rows: [{model: pixelcnnpp}, {kernel_size: 6}]", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [p.parent for p in (tmp_path/"results").glob("*/summary.json")]
    files = {"config.json", "metrics.csv", "summary.json", "model.safetensors", "samples.png", "completions.png", "train.ipynb", "context_use.json"}
    assert len(runs) == 2 and all(files <= {p.name for p in folder.iterdir()} for folder in runs)
    for name in ("table1.csv", "context_use.csv"): assert len((tmp_path/"results"/name).read_text().splitlines()) == 3
    assert len([*(tmp_path/"results").glob("*.png")]) == 5


@pytest.mark.parametrize("name", ["train", "study", "budget", "ablations"])
def test_an_experiment_runs_twice_in_one_kernel(tmp_path, little_images, name):
    "Cell by cell, and again after a parameter was edited; only the last run's parameters count."
    few = dict(study=dict(rows=[{"kernel_size": 2}]), budget=dict(lines=[{"kernel_size": 2}], lengths=[1]), ablations={}, train={})[name]
    steps = {} if name == "budget" else {"max_steps": 3}
    given = [dict(scale="tiny", dataset=str(little_images), seed=seed, results_dir=str(tmp_path/f"seed {seed}")) | few | steps for seed in (0, 1)]
    if name != "train":
        for config in [config for parameters in given for config in planned(name, **parameters)]: pretend_done(config)
    notebook = nbformat.read(ROOT/"nbs"/f"{name}.ipynb", 4)
    parameters, *rest = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    edited = ["\n".join([parameters, *(f"{k} = {v!r}" for k, v in some.items())]) for some in given]
    cells = [edited[0], *rest, edited[1], *rest, edited[1] + "\nkernal_size = 6", rest[1]]
    both = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells], metadata=notebook.metadata)
    client = NotebookClient(both, timeout=600, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    errors = [(n, output.evalue) for n, cell in enumerate(both.cells) for output in cell.get("outputs", []) if output.output_type == "error"]
    assert [n for n, _ in errors] == [len(cells) - 1] and "kernal_size is not a parameter" in errors[0][1], errors
    for seed in (0, 1): assert {read_config(p.parent).seed for p in (tmp_path/f"seed {seed}").rglob("config.json")} >= {seed}


FEW = {"benchmark": ["-y", "rows: [{attention: local_1d}, {model: neighbourhood}]", "-p", "side", "16", "-r", "samples", "1", "-r", "coded", "2",
                     "-r", "sweep", "8", "-r", "blocks", "16", "-p", "repeats", "1", "-p", "settle", "0", "-p", "batch_size", "2"],
       "conditional": ["-p", "max_steps", "2", "-p", "n", "20", "-p", "per_class", "8", "-p", "passes", "1"]}


@pytest.mark.parametrize("name", FEW)
def test_an_experiment_runs_to_its_end(tmp_path, little_images, name):
    data = ["-p", "dataset", str(little_images)] if name == "conditional" else []
    done = papermill(name, tmp_path/"out.ipynb", "-p", "scale", "tiny", "-p", "results_dir", str(tmp_path/"results"), *data, *FEW[name])
    assert done.returncode == 0, last_line(done.stderr)
    wanted = {"benchmark": ["training.csv", "sampling.csv", "coding.csv", "neighbours.csv", "growth.csv", "benchmark.png"], "conditional": ["table1.md", "worth.md", "classifier.md"]}[name]
    assert {*wanted} <= {path.name for path in (tmp_path/"results").iterdir()}
    if name == "conditional": assert len([*(tmp_path/"results").glob("classes-*.webp")]) == len([*(tmp_path/"results").glob("large-*.webp")]) == 1


def test_every_experiment_with_rows_plans_its_own():
    for name in ("study", "budget", "ablations", "benchmark", "conditional"): assert planned(name)


def test_rows_of_the_study_take_further_parameters():
    configs = planned("study", each={"transformer": {"optimizer": "muon", "n_layers": 3}, "pixelcnnpp": {"n_filters": 8}})
    assert [(c.model, c.optimizer, c.n_layers, c.n_filters) for c in configs] == [("pixelcnnpp", "adam", None, 8)] + 4 * [("transformer", "muon", 3, None)]
    with pytest.raises(ValueError, match="optimiser is not a parameter: did you mean optimizer"): planned("study", each={"transformer": {"optimiser": "muon"}})


def test_the_budget_at_length_1_is_the_study():
    study, configs = planned("study", scale="laptop"), planned("budget", scale="laptop", lengths=[1, .25])
    assert [c.max_steps for c in configs] == [1000, 4000, 2000, 8000] and len({c.run_name for c in configs}) == 4
    assert configs[1] in study and configs[3] in study


def test_a_line_of_the_budget_may_have_another_size_and_lengths_of_its_own():
    wide = {"kernel_size": 6, "d_model": 208, "lengths": [2, 1]}
    first, second, third = planned("budget", scale="laptop", lengths=[1], lines=[{"kernel_size": 6}, wide])
    assert (second.max_steps, third.max_steps) == (first.max_steps, 2 * first.max_steps) and differing(first, second) == ["d_model"]


def test_the_path_leads_from_the_published_recipe_to_todays():
    rows = planned("ablations")
    assert len({config.run_name for config in rows}) == len(rows)
    learning = "dropout", "optimizer", "schedule", "learning_rate"
    for model, changes, names in (("transformer", [4, 1, 1, 1, 1], ("attention", "kernel_size", "positions", "norm", "activation")),
                                  ("pixelcnnpp", [3, 2, 1, 1], ("weight_norm", "weight_decay"))):
        path = [config for config in rows if config.model == model and config.seed == 0]
        assert [len(differing(config, before)) for before, config in zip(path, path[1:])] == changes
        for last, recipe in ((path[0], "published"), (path[-1], "today")):
            whole = RunConfig(model=model, recipe=recipe, scale="laptop" if (model, recipe) == ("pixelcnnpp", "today") else "paper")
            for name in (*names, *learning): assert getattr(last, name) == getattr(whole, name), (model, recipe, name)


@pytest.mark.parametrize("name, folder", [("study", "cifar10"), ("budget", "subset"), ("ablations", "ablations")])
def test_the_parameters_beside_a_table_plan_its_runs(name, folder):
    given = yaml.safe_load((ROOT/"results"/folder/f"{name}.yaml").read_text())
    runs = {run for table in (ROOT/"results"/folder).glob("*.csv") if table.stem != "search" for run in pd.read_csv(table).run}
    planned_runs, there = {config.run_name for config in planned(name, **given)}, {p.name for p in RUNS if p.parent.name == folder}
    assert runs <= planned_runs == there # twins of another seed stand in the row of the first
