"The first hour of a new user: the commands of the README, typed into a terminal of 80 columns."
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import ENV, ROOT, planned, pretend_done, readme_commands

pexpect = pytest.importorskip("pexpect", reason="a terminal is imitated on Unix")
if not hasattr(pexpect, "spawn") or not all(Path(sys.prefix, name).exists() for name in ("installed", "bin/activate")):
    pytest.skip("the environment was not made by `make env`", allow_module_level=True)

BAR = r"\d+/\d+, [\d.]+ bits/dim, [\d.]+ images/s, [\d.]+ (s|min|h|days) left"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "The project in another folder, with the environment of these tests, and with a study that is done."
    there = tmp_path_factory.mktemp("home")/"imgtx-nb"
    shutil.copytree(ROOT, there, ignore=shutil.ignore_patterns(".*", "*.egg-info", "_*s", "data", "*-tiny*", "*.pt", "subset", "ablations"))
    (there/".venv").symlink_to(sys.prefix)
    for name in ("constraints.txt", "settings.ini", "setup.py"): os.utime(there/name, (0, 0)) # nothing new to install
    for config in planned("study", results_dir=str(there/"results"/"photo_patches-tiny")): pretend_done(config)
    for path in made_in(there/"results"/"cifar10"): path.unlink()
    return there


def made_in(folder):
    "What the study makes of its run folders."
    return [path for path in folder.iterdir() if path.suffix in (".csv", ".md", ".png", ".ipynb")]


class Terminal:
    "A shell in a terminal of 80 columns, without a network."
    def __init__(self, folder):
        env = {name: value for name, value in ENV.items() if name not in ("TQDM_DISABLE", "VIRTUAL_ENV", "MPLBACKEND", "IN_TEST")}
        env |= {"PS1": "ready> ", "https_proxy": "http://127.0.0.1:9", "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(folder)}
        self.shell = pexpect.spawn("/bin/bash", ["--norc", "--noprofile"], cwd=str(folder), env=env, dimensions=(24, 80), encoding="utf-8", timeout=120)
        self.shell.setecho(False)
        self.until("ready> ")

    def until(self, pattern):
        "Wait for words; what stood on the screen before them, and they themselves."
        self.shell.expect(pattern)
        return self.shell.before + self.shell.after

    def type(self, command):
        "What a command leaves on the screen, and its exit status."
        self.shell.sendline(command)
        shown = self.until("ready> ")
        self.shell.sendline("echo status $?")
        return shown, int(re.search(r"status (\d+)", self.until("ready> "))[1])

    def interrupt(self):
        "Ctrl-C; what the command leaves on the screen."
        self.shell.sendintr()
        return self.until("ready> ")


def test_the_commands_of_the_readme(clone):
    "All but `make test`, which this is a part of. Training is interrupted and goes on; CIFAR-10 cannot be had."
    terminal, commands = Terminal(clone), readme_commands()
    assert {"make study", "make test", "make env", ". .venv/bin/activate"} < {*commands}
    for command in commands:
        if command == "make test": continue
        if "-p scale tiny" in command:
            terminal.shell.sendline(command)
            terminal.until(BAR)
            stopped = terminal.interrupt()
            [step] = re.findall(r"Stopped after step (\d+) and saved", stopped.replace("\r\n", ""))
            assert "Aborted" not in stopped and "Traceback" not in stopped
            terminal.shell.sendline(command)
            terminal.until(rf"Going on after {step} of 300 steps in \S+/results/")
            terminal.until(BAR)
            terminal.interrupt()
            continue
        shown, status = terminal.type(command)
        if "train" in command: assert status == 1 and "could not be downloaded" in shown.splitlines()[-2] and "Traceback" not in shown, shown
        else: assert status == 0, shown
        if command == "make study": assert "| PixelCNN++ |" in shown and len(shown.splitlines()) < 60, shown
    assert (clone/"completed.png").exists()
    made, committed = (made_in(root/"results"/"cifar10") for root in (clone, ROOT))
    assert {path.name for path in made} == {path.name for path in committed}
    for path in made:
        if path.suffix in (".csv", ".md"): assert path.read_text() == (ROOT/"results"/"cifar10"/path.name).read_text()
