"Write README.md, or another file, from nbs/index.ipynb, whose cells tagged `remove-input` show their output alone."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent

def readme(notebook):
    "The markdown of a notebook, with links that hold from the project's root."
    exporter = MarkdownExporter(config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"remove-input"}}}))
    text, _ = exporter.from_notebook_node(nbformat.read(notebook, nbformat.NO_CONVERT))
    text = re.sub(r"\]\((\w+\.ipynb)", r"](nbs/\1", text).replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"README.md"
    out.write_text(readme(ROOT/"nbs"/"index.ipynb"), encoding="utf-8")
