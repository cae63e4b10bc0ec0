"What several files of tests use: small runs, runs that are only planned or pretended, and the commands of the README."
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from imgtx_nb.config import RunConfig
from imgtx_nb.runs import write_json

ROOT = Path(__file__).resolve().parent.parent

BIN = Path(sys.executable).parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"}


def run(*command, cwd=None, env=ENV):
    "What a program prints; it has to end well."
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def small(noise, folder, **more):
    return RunConfig(**dict(dataset=str(noise), scale="tiny", n_layers=1, d_model=16, d_ff=16, batch_size=4, results_dir=str(folder)) | more)


def source(config):
    "A script that trains a run."
    given = {name: value for name, value in asdict(config).items() if value is not None}
    return f"from imgtx_nb.config import RunConfig; from imgtx_nb.training import fit; fit(RunConfig(**{given!r}))"


def same_outcome(a, b):
    assert (a/"model.safetensors").read_bytes() == (b/"model.safetensors").read_bytes()
    curves = [pd.read_csv(folder/"metrics.csv").drop(columns="images_per_second") for folder in (a, b)]
    assert curves[0].equals(curves[1]) and curves[0].step.is_unique and curves[0].step.is_monotonic_increasing


def readme_commands():
    "The lines of the README that are typed into a shell."
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT/"README.md").read_text(), re.S)
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line[0] != "#"]


def planned(name, **parameters):
    "The runs that an experiment notebook plans, with some of its parameters given."
    cells = ["".join(c["source"]) for c in json.loads((ROOT/"nbs"/f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    scope = {}
    exec(cells[0], scope)
    scope |= parameters
    exec("\n".join(cells[1:cells.index(next(c for c in cells if "configs = " in c)) + 1]), scope)
    return scope["configs"]


def pretend_done(config):
    "A run folder with an outcome that no run produced."
    path = Path(config.results_dir)/config.run_name
    path.mkdir(parents=True)
    write_json(path/"config.json", asdict(config))
    write_json(path/"summary.json", dict(
        test_bits_per_dim=5., valid_bits_per_dim=5 + .01 * len(config.run_name), n_parameters=10, size_mb=1., images_per_second=1., steps=config.max_steps,
        hardware="-", commit="-", scale=config.scale, image_shape=[3, 16, 20], dataset=dict(name=config.dataset, train_images=9, valid_images=1, test_images=1)))
    pd.DataFrame(dict(step=[1, 2], train_bits_per_dim=[6., 5.], valid_bits_per_dim=[6., 5.])).to_csv(path/"metrics.csv", index=False)
    write_json(path/"context_use.json", dict(n_images=1, own=5., another_image=6., rows_shuffled=5.5))
    for name, rows in (("samples", 1), ("completions", 5)): Image.fromarray(np.zeros((rows * 16, 8 * 20, 3), np.uint8)).save(path/f"{name}.png")
