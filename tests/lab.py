"""A real JupyterLab in a headless browser.

python tests/lab.py NOTEBOOK OUT.png [--run]    pictures of a notebook in it, top to bottom; --run runs all cells first, but saves nothing
"""
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.wait import WebDriverWait
from small_runs import BIN, ENV

WIDTH, HEIGHT = 1440, 900
BROWSER = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False}, # all cells are in the page, and no more
            "docmanager-extension/plugin": {"autosave": False},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}


class Lab:
    "A server of JupyterLab and a browser, from `with` on. `folder` is the server's root, `own` is for what both of them write."
    def __init__(self, folder, own):
        self.folder, self.own, self.held = Path(folder), Path(own), ExitStack()

    def __enter__(self):
        with self.held:
            self._serve()
            self._browse()
            self.held = self.held.pop_all()
        return self

    def __exit__(self, *error): self.held.close()

    def _serve(self):
        for name, values in SETTINGS.items():
            path = self.own/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        env = {name: value for name, value in ENV.items() if name not in ("MPLBACKEND", "TQDM_DISABLE")} # as a person's
        env |= {name: str(self.own/name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
        server = subprocess.Popen([BIN/"jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1",
                                   f"--ServerApp.root_dir={self.folder}", "--IdentityProvider.token=secret",
                                   f"--LabApp.user_settings_dir={self.own/'settings'}",
                                   f"--LabApp.workspaces_dir={self.own/'workspaces'}", "--LabApp.extension_manager=readonly",
                                   f"--FileCheckpoints.checkpoint_dir={self.own/'checkpoints'}"],
                                  env=env, stdout=self.held.enter_context(open(self.own/"server.log", "w")), stderr=subprocess.STDOUT)
        self.held.callback(stop, server)
        WebDriverWait(server, 60, .1).until(self._address, "the server did not start")

    def _address(self, server):
        "Has the server taken a free port and noted it?"
        assert server.poll() is None, (self.own/"server.log").read_text()
        with suppress(ValueError): # a file that is not yet whole
            for path in (self.own/"JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"): self.url = json.loads(path.read_text())["url"]
        return hasattr(self, "url")

    def _browse(self):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in [*BROWSER, f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={self.own/'browser'}"]: options.add_argument(argument)
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.held.callback(self.browser.quit)
        self.js = self.browser.execute_script
        self.browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True}) # as the window that a person types in
        self.resize(HEIGHT)

    def resize(self, height):
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=WIDTH, height=height, deviceScaleFactor=1, mobile=False))

    def wait(self, condition, seconds=60):
        "Until it is true, whether it asks the page or not; its value."
        try: return WebDriverWait(self.browser, seconds, .1).until(lambda _: condition())
        except TimeoutException: raise AssertionError(f"It did not happen in {seconds} s. The page says:\n{self.text()[-3000:]}") from None

    def settled(self, value, seconds=60):
        "Until it has been the same, and not nothing, for ten looks; its value."
        seen = []
        def same():
            seen.append(value())
            return seen[-10:] == seen[-1:] * 10 and seen[-1]
        return self.wait(same, seconds)

    def open(self, notebook):
        "Show a notebook, its path being relative to the root, and wait for its kernel."
        self.browser.get(f"{self.url}lab/tree/{notebook}?token=secret&reset")
        self.wait(lambda: self.js("""const shown = window.jupyterapp?.shell.currentWidget
            return shown?.context?.isReady && shown.sessionContext.session?.kernel?.status == 'idle'"""))

    def execute(self, command):
        self.js("""window.pending = (window.pending ?? 0) + 1
            window.jupyterapp.commands.execute(arguments[0]).finally(() => window.pending--)""", command)

    def run(self, seconds=None):
        "Run all cells, and wait for their end if there is a deadline."
        self.execute("notebook:run-all-cells")
        if seconds: self.wait(self.ended, seconds)

    def ended(self):
        "Have all commands come to their end?"
        return self.js("return !window.pending")

    def find(self, selector): return self.browser.find_elements("css selector", f".jp-Notebook {selector}")

    def text(self): return self.js("return document.querySelector('.jp-Notebook')?.innerText ?? document.body.innerText")

    def pictures(self):
        "The sources of all pictures that cells have drawn."
        return self.js("return [...document.querySelectorAll('.jp-Notebook .jp-OutputArea img')].map(img => img.src)")

    def photograph(self, out, page=1200):
        "The whole notebook from top to bottom, in several files if it is longer than a page."
        self.resize(page)
        view, out = "const view = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer')", Path(out)
        whole, shown = self.settled(lambda: self.js(f"{view}; return [view.scrollHeight, view.clientHeight]"))
        for n, top in enumerate(range(0, whole, shown), 1):
            path = out.with_stem(f"{out.stem}-{n}") if whole > shown else out
            self.js(f"{view}; view.scrollTop = {top}")
            assert self.browser.save_screenshot(path)
            print(path)


def stop(process):
    process.terminate()
    try: process.wait(20)
    except subprocess.TimeoutExpired: process.kill()


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4 or sys.argv[3:] not in ([], ["--run"]): sys.exit(__doc__)
    notebook, out, *run = sys.argv[1:]
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as own, Lab(root, own) as lab:
        lab.open(Path(notebook).resolve().relative_to(root))
        if run: lab.run(3600)
        lab.photograph(out)
