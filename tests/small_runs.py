"Small runs on small pictures, as scripts, and when two of them have the same outcome."
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from imgtx_nb.config import RunConfig

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
