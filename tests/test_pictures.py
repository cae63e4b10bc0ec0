"What a user's own picture comes to: completed, or enlarged, by a model of any kind."
import subprocess

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea

from imgtx_nb.config import RunConfig
from imgtx_nb.runs import read_json
from imgtx_nb.training import fit
from small_runs import BIN, ENV, ROOT, run

SMALL = dict(scale="tiny", n_layers=1, d_model=16, n_heads=2, d_ff=16, max_steps=2, batch_size=2)


def completing(tmp_path, *parameters):
    "The command that completes a photograph, with parameters."
    given = [("image", tmp_path/"cat.jpg"), ("n", 2), ("save", tmp_path/"out.png"), *parameters]
    words = [text for name, value in given for text in ("-p", name, str(value))]
    return [BIN/"papermill", ROOT/"nbs"/"complete.ipynb", tmp_path/"out.ipynb", *words, "--no-progress-bar"]


def panels(path, n, side):
    "The images of a row, in their own pixels."
    sheet = np.asarray(Image.open(path))
    factor = sheet.shape[0] // (side + 4)
    small = sheet[::factor, ::factor]
    return [small[2:2 + side, 2 + i * (side + 2):2 + i * (side + 2) + side] for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A photograph, and runs on 8 x 8 images of two classes."
    path = tmp_path_factory.mktemp("pictures")
    Image.fromarray(chelsea()).save(path/"cat.jpg")
    rng = np.random.default_rng(0)
    for i in range(24):
        file = path/"animals"/("cat", "dog")[i % 2]/f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    for kind in ({"condition": "label", "n_classes": 2}, {"condition": "low_res"}):
        fit(RunConfig(**SMALL, **kind, kernel_size=2, dataset=str(path/"animals"), results_dir=str(path),
                      run_name=kind["condition"]))
    return path


def test_a_photograph_is_completed_for_a_class(folder):
    assert read_json(folder/"label"/"summary.json")["dataset"]["classes"] == ["cat", "dog"]
    run(*completing(folder, ("run", folder/"label"), ("label", "dog"), ("keep", "frame")), cwd=ROOT)
    given, *drawn = panels(folder/"out.png", 3, 8)
    known = ~np.pad(np.ones((4, 4), bool), 2)
    assert (given[~known] == 255).all() and all((x[known] == given[known]).all() for x in drawn)
    assert (drawn[0] != drawn[1]).any()


def test_a_photograph_is_enlarged(folder):
    run(*completing(folder, ("run", folder/"low_res")), cwd=ROOT)
    blocks, smooth, *drawn, truth = panels(folder/"out.png", 5, 8)
    means = truth.reshape(2, 4, 2, 4, 3).mean((1, 3))
    assert np.abs(blocks[::4, ::4] - means).max() <= .51 and (blocks.reshape(2, 4, 2, 4, 3) == blocks[::4, None, ::4, None]).all()
    assert len(drawn) == 2


@pytest.mark.parametrize("wrong, why", [
    ({"run": "label", "label": "horse"}, "it must be one of cat, dog"),
    ({"run": "label", "label": 1, "keep": "nose"}, "white pixels are kept")])
def test_what_makes_no_sense_is_refused(folder, wrong, why):
    given = [(name, folder/value if name == "run" else value) for name, value in wrong.items()]
    done = subprocess.run(completing(folder, *given), capture_output=True, text=True, env=ENV, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and why in last and last.endswith("."), done.stderr[-2000:]
