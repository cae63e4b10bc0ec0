"Notebooks as a person meets them: in a real JupyterLab, in a browser without a window."
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

pytest.importorskip("selenium", reason="selenium is not installed")
for program in ("chromium", "chromedriver"):
    if not shutil.which(program): pytest.skip(f"{program} is not installed", allow_module_level=True)

from lab import Lab # after what it needs
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).resolve().parent.parent
STOPPED = r"Stopped after step (\d+) and saved: run the same cell or command again to go on from there\."


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A server whose root is a copy of the notebooks and of the committed runs."
    folder, own = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT/"nbs", folder/"nbs", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(ROOT/"results"/"cifar10", folder/"results"/"cifar10")
    shutil.copy(ROOT/"settings.ini", folder)
    with Lab(folder, own) as lab: yield lab


def give(path, **parameters):
    "Write parameters into a notebook, under those that it has."
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    nbformat.write(notebook, path)


def boxes(lab):
    "What stands on red: errors, and what was written to stderr, if only a space."
    return [box.text for kind in ("stderr", "error") for box in lab.find(f'[data-mime-type="application/vnd.jupyter.{kind}"]')]


def test_a_run_is_interrupted_and_goes_on(lab, noise, tmp_path):
    run, steps = tmp_path/"run", 800
    give(lab.folder/"nbs"/"train.ipynb", dataset=str(noise), scale="tiny", n_layers=1, d_model=16, d_ff=16, batch_size=4, dropout=.2,
         max_steps=steps, eval_every=steps, results_dir=str(tmp_path), run_name="run")
    lab.open("nbs/train.ipynb")
    lab.run()
    lab.wait(lambda: (run/"metrics.csv").exists() or lab.ended())
    assert (run/"metrics.csv").exists(), lab.text()
    lab.execute("notebook:interrupt-kernel")
    step = int(lab.wait(lambda: re.search(STOPPED, lab.text()))[1])
    red, begun = boxes(lab), pd.read_csv(run/"metrics.csv")
    assert [p.name for p in run.glob("checkpoint-*.pt")] == [f"checkpoint-{step:07}.pt"] and 0 < step < steps

    lab.run(80)
    whole, shown = pd.read_csv(run/"metrics.csv"), lab.text()
    assert whole[:len(begun)].equals(begun) # speeds too, so these steps were not taken again
    assert whole.step.is_unique and whole.step.max() == steps and not re.search(STOPPED, shown)
    bits, tables = json.loads((run/"summary.json").read_text())["test_bits_per_dim"], " ".join(table.text for table in lab.find("table"))
    assert any(f"{bits:.{places}f}" in tables for places in (2, 3, 4, 6))
    lab.wait(lambda: len(lab.pictures()) >= 2) # the learning curve, and samples
    assert f"Going on after {step} of {steps} steps" in shown
    assert all(re.fullmatch(STOPPED, text.strip()) for text in red), red # the sentence alone, without a traceback
    assert boxes(lab) == []


@pytest.mark.skipif(not (ROOT/"nbs"/"play.ipynb").exists(), reason="there is no play.ipynb")
def test_a_slider_changes_the_picture(lab):
    lab.open("nbs/play.ipynb")
    lab.run(80)
    before, [handle, *_] = lab.settled(lab.pictures), lab.find(".widget-slider .noUi-handle")
    value = handle.get_attribute("aria-valuenow")
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT): # from its end, a slider moves one way only
        if handle.get_attribute("aria-valuenow") == value: handle.send_keys(key)
    lab.wait(lambda: len(now := lab.pictures()) == len(before) and now != before, 80)
    assert boxes(lab) == []


def test_a_picture_stays_a_picture_until_its_cell_has_run(lab):
    lab.open("nbs/05_masks.ipynb")
    lab.wait(lambda: len(lab.find(".touchable img")) == 1) # a notebook that is only opened runs no scripts
    assert not lab.find(".touchable canvas")
    lab.run(80)
    [canvas], said = lab.wait(lambda: lab.find(".touchable canvas")), lambda: lab.find(".touchable [aria-live]")[0].text
    before = said()
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert before != said() and "row 8, column 7" in said() and boxes(lab) == []
