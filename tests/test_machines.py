"Machines that this one is not: Windows, a Mac, an installed wheel, a scheduler, several processes. Each is imitated where it differs."
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from small_runs import BIN, ENV, run, same_outcome, small, source
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imgtx_nb.autoregressive import AutoregressiveModel
from imgtx_nb.runs import write_json
from imgtx_nb.training import evaluate

fcntl = pytest.importorskip("fcntl", reason="other systems are imitated on Unix")
ROOT = Path(__file__).resolve().parent.parent


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(.02)


# Apple silicon has no double precision on its GPU

class NoDoubles(TorchDispatchMode):
    "A device that refuses double precision."
    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        result = call(*args, **kwargs or {})
        for x in tree_leaves(result): assert not (isinstance(x, torch.Tensor) and x.device.type != "cpu" and x.dtype == torch.float64), "no doubles here"
        return result


class Flat(AutoregressiveModel):
    "One distribution for all pixels."
    def __init__(self, image_shape):
        super().__init__(image_shape)
        self.params = torch.nn.Parameter(torch.zeros(self.n_params))

    def network(self, pixels): return self.params.expand(*pixels[:, 0].shape, self.n_params)


def test_scores_need_no_doubles_on_the_device():
    "PyTorch pretends to have a GPU, whose tensors have no values. Scoring gets as far as the value of the sum, on the CPU."
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True), NoDoubles():
        try:
            with torch.device("cuda"): model = Flat((3, 4, 6))
        except RuntimeError as e: pytest.skip(f"this PyTorch cannot pretend to have a GPU: {e}")
        with pytest.raises(AssertionError, match="no doubles"): torch.zeros(1, device="cuda").double()
        with pytest.raises(DataDependentOutputException): evaluate(model, images)


# Windows forces only those files to the disk that are open for writing, and has another encoding

def test_files_are_forced_to_the_disk_as_windows_wants_it(tmp_path, monkeypatch):
    forced, plain = [], os.fsync
    def fsync(fd):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY: raise OSError(errno.EBADF, "Bad file descriptor")
        forced.append(plain(fd))
    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path/"a.json", {"a": 1})
    assert forced and json.loads((tmp_path/"a.json").read_text()) == {"a": 1}


EVERYTHING = """
import warnings
warnings.filterwarnings("error", category=EncodingWarning, module="imgtx_nb")
import matplotlib; matplotlib.use("agg")
{fit}
from pathlib import Path
from imgtx_nb.results import draw_run, write_results
folder = Path({results!r})/"run"
draw_run(folder, n=2); write_results([folder], {results!r})
"""


def test_no_text_is_written_in_the_systems_encoding(tmp_path, noise):
    code = EVERYTHING.format(fit=source(small(noise, tmp_path, run_name="run", max_steps=2)), results=str(tmp_path))
    run(sys.executable, "-X", "warn_default_encoding", "-c", code, cwd=tmp_path)
    assert (tmp_path/"table1.md").exists()


# A wheel lies somewhere else than the notebooks, and a user stands in a project of his own

def test_an_installed_package_works_from_the_users_folder(tmp_path, noise):
    site, own = tmp_path/"site", tmp_path/"own"
    shutil.copytree(ROOT/"imgtx_nb", site/"imgtx_nb")
    own.mkdir()
    (own/"settings.ini").write_text("[DEFAULT]\nlib_name = another\n")
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = imgtx-nb-not\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", own]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "somebody else's"]): subprocess.run([*git, *command], check=True)
    code = source(small(noise, "results", run_name="run", max_steps=2)) + "; import imgtx_nb; print(imgtx_nb.__file__)"
    where = run(sys.executable, "-c", code, cwd=own, env=ENV | {"PYTHONPATH": str(site)})
    assert where.startswith(str(site))
    assert json.loads((own/"results"/"run"/"summary.json").read_text())["commit"] == "unknown"


# A scheduler, and a terminal, end a job with a signal

LONG = dict(max_steps=4000, eval_every=4000, dropout=.2)


def started(path):
    "Has the run written its first line of metrics?"
    return (path/"metrics.csv").exists()


def test_a_schedulers_signal_saves_and_says_how_to_go_on(tmp_path, noise):
    job = subprocess.Popen([sys.executable, "-c", source(small(noise, tmp_path, run_name="run", **LONG))], env=ENV, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: started(tmp_path/"run"))
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=30)
    assert job.returncode != 0 and "Stopped after step" in said and "run the same cell or command again to go on from there." in said
    assert [*(tmp_path/"run").glob("checkpoint-*.pt")] and not (tmp_path/"run"/"summary.json").exists()


@pytest.mark.parametrize("victim", ["papermill", "kernel"])
def test_papermill_leaves_no_kernel_behind(tmp_path, noise, victim):
    path, given = tmp_path/"run", dict(dataset=noise, scale="tiny", n_layers=1, d_model=16, d_ff=16, batch_size=4, results_dir=tmp_path, run_name="run", **LONG)
    parameters = [str(word) for item in given.items() for word in ("-p", *item)]
    job = subprocess.Popen([BIN/"papermill", ROOT/"nbs"/"train.ipynb", tmp_path/"out.ipynb", *parameters, "--no-progress-bar"],
                           env=ENV, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: started(path), 120)
    [kernel] = [int(pid) for pid in subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(job.pid if victim == "papermill" else kernel, signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0 and ("Stopped after step" in said or victim == "papermill")
    with FileLock(path/"lock", timeout=20): pass # free again, so no kernel is left that trains
    wait_for(lambda: not Path(f"/proc/{kernel}").exists() or "Z" in Path(f"/proc/{kernel}/stat").read_text().split()[2], 20)


# Several processes, on one machine or on two

RANKED = """
import os
from imgtx_nb.config import RunConfig
from imgtx_nb.training import Trainer, fit
rank, plain = int(os.environ["RANK"]), Trainer.step
{more}
for given in {runs}:
    try: fit(RunConfig(**given))
    except ValueError as e: print("refused:", e)
"""


def launch(path, runs, more=""):
    "Two processes, which train runs one after the other; `rank` tells them apart."
    (path/"script.py").write_text(RANKED.format(runs=runs, more=more))
    return subprocess.Popen([BIN/"torchrun", "--standalone", "--nproc_per_node", "2", path/"script.py"], env=ENV, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def given(config, **by_rank):
    "Source text of a run's parameters, of which some differ by process."
    whole = {name: value for name, value in asdict(config).items() if value is not None}
    return f"{whole!r} | {{name: values[rank] for name, values in {by_rank!r}.items()}}"


@pytest.mark.parametrize("reaches", ["all", "one"])
def test_ctrl_c_stops_both_processes_after_the_same_step(tmp_path, noise, reaches):
    job = launch(tmp_path, f"[{given(small(noise, tmp_path, run_name='run', **LONG))}]")
    wait_for(lambda: started(tmp_path/"run"), 60)
    if reaches == "all": os.killpg(job.pid, signal.SIGINT) # as a terminal does: the launcher and both processes get it
    else: os.kill(int(subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()[-1]), signal.SIGINT)
    _, said = job.communicate(timeout=60)
    stops = {*re.findall(r"Stopped after step (\d+)", said)}
    [saved] = {int(p.stem[-7:]) for p in (tmp_path/"run").glob("checkpoint-*.pt")}
    assert stops == {str(saved)} and "mismatch" not in said, said[-3000:]
    with FileLock(tmp_path/"run"/"lock", timeout=10): pass


def test_machines_that_share_no_folder_train_one_run(tmp_path, noise):
    "The second process has a results folder of its own. A run is interrupted and resumed; what one process refuses, both refuse."
    first, folders = tmp_path/"first", [str(tmp_path/"first"), str(tmp_path/"second")]
    config = lambda name: small(noise, first, run_name=name, max_steps=8, eval_every=4, dropout=.2)
    of = lambda name, **by_rank: given(config(name), results_dir=folders, **by_rank)
    with np.load(noise) as arrays: np.savez(tmp_path/"other.npz", **dict(arrays) | {"test_images": arrays["test_images"] + 1})
    write_json(Path(first, "orphan").mkdir(parents=True) or first/"orphan"/"summary.json", {})
    other = of("other", dataset=[str(noise), str(tmp_path/"other.npz")])
    crash = "def step(self, n):\n    if n == 6: raise RuntimeError('crash')\n    return plain(self, n)\n"
    said, failed = launch(tmp_path, f"[{of('orphan')}, {other}, {of('mixed', seed=[0, 1])}, {of('straight')}]").communicate(timeout=120)
    for sentence in ("has summary.json but no config.json", "processes read different images", "different parameters (seed)"):
        assert said.count(sentence) == 2, failed[-3000:]
    assert launch(tmp_path, f"[{of('resumed')}]", crash + "Trainer.step = step").wait(timeout=120) != 0
    assert launch(tmp_path, f"[{of('resumed')}]").wait(timeout=120) == 0
    same_outcome(first/"straight", first/"resumed")
    assert not (tmp_path/"second").exists() and not (first/"other").exists()


def test_where_processes_are_started_from_a_notebook_a_fresh_kernel_is_asked_for():
    cells = json.loads((ROOT/"nbs"/"16_training.ipynb").read_text())["cells"]
    [text] = [text for cell in cells if "notebook_launcher" in (text := "".join(cell["source"]))]
    assert "fresh kernel" in text
