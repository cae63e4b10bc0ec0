"What a notebook cannot test from within: runs that are killed, and runs on several processes."
import os
import sys

import numpy as np
import pandas as pd
import pytest
from small_runs import BIN, ENV, run, same_outcome, small, source

from imgtx_nb.runs import load_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, and launched by Unix's torchrun")


# A parent that imports everything once and runs no thread, and forks a child for every attempt.
KILL_AND_RESUME = """
import os, random, signal, sys, time, warnings
import torch, imgtx_nb.training
torch.set_num_threads(1)
random.seed(0)
warnings.simplefilter("ignore")
kills = 0
while True:
    child = os.fork()
    if not child: exec({train!r}); os._exit(0)
    patience = random.uniform(.05, .4) if kills < {kills} else 600
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]: print("kills", kills); sys.exit()
        time.sleep(.002)
    os.kill(child, signal.SIGKILL); os.waitpid(child, 0); kills += 1
"""


@pytest.mark.parametrize("kills", [int(os.environ.get("KILLS", 20))])
def test_killed_at_any_instant_a_run_ends_the_same(tmp_path, noise, kills):
    long = dict(max_steps=120 * kills, eval_every=5, dropout=.2, horizontal_flips=True)
    run(sys.executable, "-c", source(small(noise, tmp_path, run_name="straight", **long)))
    said = run(sys.executable, "-c", KILL_AND_RESUME.format(train=source(small(noise, tmp_path, run_name="killed", **long)), kills=kills))
    assert int(said.split()[-1]) == kills
    same_outcome(tmp_path/"straight", tmp_path/"killed")


def test_a_run_is_the_same_with_another_number_of_threads(tmp_path, noise):
    "In single precision. With two threads, their number is chosen by measurements as the run goes."
    long = dict(max_steps=20, eval_every=10, dropout=.2, d_model=64, n_layers=2, batch_size=32, precision="float32")
    for n in (1, 2):
        code = source(small(noise, tmp_path, run_name=str(n), **long)) + "; import torch; from imgtx_nb.processor import _Threads; print(_Threads.found, torch.get_num_threads())"
        found = run(sys.executable, "-c", code, env=ENV | {"OMP_NUM_THREADS": str(n), "MKL_NUM_THREADS": str(n)}).split()[-2:]
        assert found == ["None", "1"] if n == 1 else found[0] in "12" and found[1] == "2"
    one, two = (load_run(tmp_path/name)[0].state_dict() for name in "12")
    for name in one: assert (one[name] - two[name]).abs().max() < 1e-4, name


LAUNCHERS = {"torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2"],
             "accelerate": ["accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]}


def test_two_processes_compute_what_one_does(tmp_path, noise):
    train = lambda name: source(small(noise, tmp_path, run_name=name, max_steps=6, eval_every=3, dropout=0))
    metrics = lambda name: pd.read_csv(tmp_path/name/"metrics.csv").drop(columns="images_per_second")
    bits = lambda name: pd.read_json(tmp_path/name/"summary.json", typ="series").test_bits_per_dim
    run(sys.executable, "-c", train("one"))
    for name, launch in LAUNCHERS.items():
        (tmp_path/"script.py").write_text(train(name))
        run(BIN/launch[0], *launch[1:], str(tmp_path/"script.py"))
        one, two = metrics("one"), metrics(name)
        assert one.step.equals(two.step) and np.allclose(one.train_bits_per_dim, two.train_bits_per_dim, atol=1e-5)
        assert np.allclose(one.valid_bits_per_dim, two.valid_bits_per_dim, atol=1e-4, equal_nan=True)
        assert abs(bits("one") - bits(name)) < 1e-4
