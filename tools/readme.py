"Write README.md, or another file, from nbs/index.ipynb, whose cells tagged `remove-input` show their output alone."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent

def readme(notebook):
    "The markdown of a notebook and its pictures, {name: bytes}."
    exporter = MarkdownExporter(config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"remove-input"}}}))
    source = nbformat.read(notebook, nbformat.NO_CONVERT)
    alts = iter([output.metadata["image/png"]["alt"] for cell in source.cells for output in cell.get("outputs", []) if "image/png" in output.get("metadata", {})])
    text, resources = exporter.from_notebook_node(source, resources={"output_files_dir": "README_files", "unique_key": "README"})
    text = re.sub(r"\s*!\[png\](\(.*\))\s*", lambda picture: f"\n\n![{next(alts)}]{picture[1]}\n\n", text)
    text = re.sub(r"\]\((\w+\.ipynb)", r"](nbs/\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    text, pictures = readme(ROOT/"nbs"/"index.ipynb")
    for name, data in {"README.md": text.encode(), **pictures}.items():
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/name).write_bytes(data)
