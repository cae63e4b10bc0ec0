"Render the documentation site to `_docs`: with Quarto if it is installed, else with smalldocs."
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import nbdev_docs, refresh_quarto_yml
from nbdev.serve import proc_nbs

if __name__ == "__main__":
    site = get_config().doc_path
    if shutil.which("quarto"): nbdev_docs.__wrapped__()
    else:
        refresh_quarto_yml()
        cache = proc_nbs(n_workers=2, force=True)
        subprocess.run([Path(sys.executable).parent/"smalldocs", "render", cache], check=True)
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(cache/site.name, site)
    print(f"The site is in {site}: open {site/'index.html'}")
