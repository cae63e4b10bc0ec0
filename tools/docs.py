"Render the documentation site to `_docs`: with Quarto if it is installed, else with smalldocs; the pictures of results/ go along."
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import nbdev_docs, refresh_quarto_yml
from nbdev.serve import proc_nbs

def bring_pictures(site, results):
    "Copy the pictures of the committed results into the site, where its pages look for them."
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for path in set(re.findall(r"\.\./(results/[^\"')]+\.png)", text)):
            (site/path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(results.parent/path, site/path)
        page.write_text(text.replace("../results/", "results/"), encoding="utf-8")

if __name__ == "__main__":
    site = get_config().doc_path
    if shutil.which("quarto"): nbdev_docs.__wrapped__()
    else:
        refresh_quarto_yml()
        cache = proc_nbs(n_workers=2, force=True)
        subprocess.run([Path(sys.executable).parent/"smalldocs", "render", cache], check=True)
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(cache/site.name, site)
    bring_pictures(site, get_config().config_path/"results")
    print(f"The site is in {site}: open {site/'index.html'}")
