"""Render the documentation site to `_docs`: with Quarto if it is installed, else with smalldocs.

nbdev prepares the notebooks in `_proc`. Here they get what a reader misses in them: outputs of experiments, source of
functions, alt text. What is rendered is finished the same way, whoever has rendered it: formulas, links, small pictures."""
import ast
import base64
import html
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import yaml
from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from PIL import Image

PORT = 8000
LARGE = 120_000 # bytes of a picture without loss

# Before rendering: the notebooks in the cache

def complete_index(cfg):
    "nbdev's index lacks modules with `auto` in their names: enter what they define, for links and sources."
    package = cfg.lib_path.name
    index = import_module(f"{package}._modidx").d["syms"]
    for module in [module for module, known in index.items() if not known]:
        stem = module.rpartition(".")[2]
        nodes = ast.parse((cfg.lib_path/f"{stem}.py").read_text(encoding="utf-8")).body
        names = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        index[module] = {f"{module}.{name}": (f"{stem}.html#{name.lower()}", f"{package}/{stem}.py") for name in names}

def markdown(source): return {"cell_type": "markdown", "metadata": {}, "source": source}

def code(source, outputs=()):
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "source": source, "outputs": [*outputs]}

def text(lines): return lines if isinstance(lines, str) else "".join(lines)

def executed(name, root): # -> the path of an experiment as it ran, or None
    "In a folder that is committed: names with a dash are those of one's own results."
    return next((path for path in sorted((root/"results").glob(f"*/{name}.ipynb")) if "-" not in path.parent.name), None)

def with_outputs(notebook, path, url):
    "An experiment as it ran, under the front matter of its source."
    ran = json.loads(path.read_text(encoding="utf-8"))["cells"]
    folder = path.parent.relative_to(path.parents[2]).as_posix()
    for cell in ran: cell["source"] = text(cell["source"])
    said = f"This notebook is shown as it ran, from [{folder}]({url}/tree/main/{folder}). Without outputs it is in `nbs/`."
    notebook["cells"] = [notebook["cells"][0], markdown(said), *(cell for cell in ran[1:] if cell["cell_type"] != "raw")]

def plain(words):
    "Markdown as a sentence to hear."
    words = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", words)
    return " ".join(re.sub(r"[*`$#>\\{}]", "", words).split()).rstrip(":")

def describe_pictures(cells):
    "What stands before a picture says what it shows: it becomes the alt text, unless the cell has one."
    said = ""
    for cell in cells:
        if cell["cell_type"] == "markdown": said = text(cell["source"])
        drawn = any(mime.startswith("image/") for output in cell.get("outputs", []) for mime in output.get("data", {}))
        if not drawn or "fig-alt" in text(cell["source"]): continue
        paragraphs = [p for p in map(plain, said.split("\n\n")) if p and not p.startswith(("-", "|", "<"))]
        alt = json.dumps((paragraphs or ["A picture"])[-1], ensure_ascii=False)
        cell["source"] = f"#| fig-alt: {alt}\n{text(cell['source'])}"

def definition(package, module, line): # -> the source that begins at a line of a module, and its syntax tree
    whole = (package/module).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(whole)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if line in (first, node.lineno): return "\n".join(whole.splitlines()[first - 1:node.end_lineno]), node
    return None, None

def show_sources(cells, package):
    "Every function is followed by its source, folded where its notebook does not show it."
    for n, cell in reversed([*enumerate(cells)]):
        [output, *_] = cell.get("outputs") or [{}]
        said = text(output.get("data", {}).get("text/markdown", ""))
        place = re.search(r"/(\w+\.py)#L(\d+)", said)
        if not place or not text(cell["source"]).rstrip().startswith("#|") or "show_doc" not in text(cell["source"]): continue
        unlinked = lambda fence: re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", fence[0])
        output["data"]["text/markdown"] = said = re.sub(r"```python.*?```", unlinked, said, flags=re.S)
        source, node = definition(package, place[1], int(place[2]))
        if source is None: continue
        if isinstance(node, ast.ClassDef): # without an __init__ of its own, nbdev knows no better than (*args, **kwargs)
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            said = re.sub(r"```python\n+def \w+\(\s*\*args, \*\*kwargs\s*\):\s*```", f"```python\nclass {node.name}({bases})\n```".replace("()", ""), said)
            said = re.sub(r"```python\n+def (.*?)(->None)?:\s*```", r"```python\nclass \1\n```", said, flags=re.S)
            output["data"]["text/markdown"] = said
        following = text(cells[n + 1]["source"]) if n + 1 < len(cells) else ""
        if "Exported source" not in following: cells.insert(n + 1, code(f'#| code-fold: true\n#| code-summary: "Source"\n{source}'))

def bring_files(cells, folder, root, cache):
    "Markdown that names files of results/ finds copies of them beside the pages."
    def brought(match):
        path = (folder/match[2]).resolve()
        if re.match(r"\w+:|#", match[2]) or not path.is_file() or root/"results" not in path.parents: return match[0]
        there = path.relative_to(root)
        (cache/there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cache/there)
        return f"{match[1]}{there.as_posix()}{match[3]}"
    for cell in cells:
        parts = [(output["data"], "text/markdown") for output in cell.get("outputs", []) if "text/markdown" in output.get("data", {})]
        if cell["cell_type"] == "markdown": parts.append((cell, "source"))
        for holder, key in parts: holder[key] = re.sub(r"(\]\(|src=\")([^)\"\s]+)([)\"])", brought, text(holder[key]))

def prepare(cache, cfg):
    "Make the cached notebooks ready for rendering; where each page comes from, {page: path of the notebook}."
    root, origins = cfg.config_path, {}
    for path in sorted(cache.glob("*.ipynb")):
        notebook, ran = json.loads(path.read_text(encoding="utf-8")), executed(path.stem, root)
        if ran: with_outputs(notebook, ran, cfg.git_url)
        describe_pictures(notebook["cells"])
        show_sources(notebook["cells"], cfg.lib_path)
        bring_files(notebook["cells"], ran.parent if ran else cfg.nbs_path, root, cache)
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
        origins[f"{unnumbered(path.stem)}.html"] = (ran or cfg.nbs_path/path.name).relative_to(root)
    return origins

def unnumbered(stem): return re.sub(r"^\d+_(?=.)", "", stem)

def for_smalldocs(cache):
    "Name pages as Quarto would, without numbers, and leave out what smalldocs would only warn of."
    for path in [*cache.glob("*.ipynb"), cache/"sidebar.yml"]:
        whole = path.read_text(encoding="utf-8")
        whole = re.sub(r"(\]\(|- )\d+_(\w+\.ipynb)", r"\1\2", whole)
        path.write_text(re.sub(r"output-file: [\w.]+\\n", "", whole), encoding="utf-8")
        path.rename(path.with_name(unnumbered(path.name)))
    settings = yaml.safe_load((cache/"_quarto.yml").read_text())
    page = settings["format"]["html"]
    settings = {key: value for key, value in settings.items() if key != "execute"} | {"format": {"html": {
        key: value for key, value in page.items() if key not in ("grid", "keep-md", "html-math-method", "respect-user-color-scheme")}}}
    (cache/"_quarto.yml").write_text(yaml.safe_dump(settings))

# After rendering: the pages

SPACING = [ # what latex2mathml writes, and what browsers set as TeX does
    (r"<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"),
    (r"<mo>(&#x0221E;)</mo>", r"<mi>\1</mi>"),
    (r"(<mrow>|<mi>&#x0230[8A];</mi>|<mo[^>]*>(?:\[|&#x00028;|&#x0003D;|&#x0002C;)</mo>)<mo>(&#x02212;|&#x0002B;|&#x0003C;)</mo>", r'\1<mo lspace="0" rspace="0">\2</mo>'),
    (r"(<mi>(?:log|ln|sin|cos)</mi>|<msub><mi>log</mi><mn>2</mn></msub>)(?=<m(?!o))", r'\1<mspace width="0.17em" />'),
    (r'"negativethinmathspace"', '"-0.17em"'),
    # the prime of a single letter stands beside it: as a superscript it would be a speck
    (r"<msubsup>(<mi>[^<]*</mi>)(<mi>[^<]*</mi>)<m[io]>(&#x02032;)</m[io]></msubsup>", r'<msub><mrow>\1<mo lspace="0" rspace="0">\3</mo></mrow>\2</msub>'),
    (r"<msup>(<mi>[^<]*</mi>)<m[io]>(&#x02032;)</m[io]></msup>", r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>')]

def mathml(tex, display):
    formula = convert(tex, display=display)
    for written, better in SPACING: formula = re.sub(written, better, formula)
    return formula

def with_formulas(page):
    "Every formula as MathML, and no script that would render it in the browser."
    def formula(match):
        display = "block" if match[1] == "display" else "inline"
        whole = f'<span class="math {match[1]}">{mathml(html.unescape(match[2]), display)}</span>'
        return f'<span class="unbroken">{whole}{match[3]}</span>' if match[3] else whole # no line begins with a full stop
    page = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>([.,:;)]*)', formula, page, flags=re.S)
    return re.sub(r'<link[^>]*katex[^>]*>|<script[^>]*(?:katex|MathJax|mathjax|polyfill)[^>]*></script>', "", page)

def smaller(match):
    "A picture of a page without loss in fewer bytes, if WebP takes fewer."
    Image.open(BytesIO(base64.b64decode(match[1]))).save(file := BytesIO(), "webp", lossless=True, quality=60, method=3)
    packed = base64.b64encode(file.getvalue()).decode()
    return f"data:image/webp;base64,{packed}" if len(packed) < len(match[1]) else match[0]

def smaller_file(site, match):
    "The same for a picture that lies beside the pages; with a loss that nobody sees, if it is large."
    path = site/match[1]
    if not path.is_file(): return match[0]
    picture, packed = Image.open(path), path.with_suffix(".webp")
    if path != packed: picture.save(packed, "webp", lossless=True, quality=60, method=3)
    moves = getattr(picture, "is_animated", False)
    if packed.stat().st_size > LARGE and not moves: picture.convert("RGB").save(packed, "webp", quality=90)
    return f'src="{Path(match[1]).with_suffix(".webp").as_posix()}"'

def worded(match):
    "A cell of a table: one of many words may be wrapped."
    words = html.unescape(re.sub(r"<[^>]+>", "", match[3])).strip()
    long = len(words) > 28 and re.search(r"[\s-]", words) and "class=" not in match[2]
    return f'<t{match[1]} class="words"{match[2]}>{match[3]}</t{match[1]}>' if long else match[0]

def links_of(origin, cfg):
    "A line of links to a page's notebook; Binder and Colab only if the project is on GitHub."
    path, branch = quote(origin.as_posix()), cfg.branch
    links = [("Notebook", f"{cfg.git_url}/blob/{branch}/{path}", "the notebook of this page in the repository"),
             ("Download", f"notebooks/{quote(origin.name)}", "the notebook of this page as a file")]
    if cfg.git_url.startswith("https://github.com/"):
        install = f"first run: %pip install git+{cfg.git_url}"
        links += [("Binder", f"https://mybinder.org/v2/gh/{cfg.user}/{cfg.repo}/{branch}?labpath={quote(origin.as_posix(), safe='')}", "run it in Binder"),
                  ("Colab", f"https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{branch}/{path}", f"run it in Colab; {install}")]
    links.append(("Repository", cfg.git_url, "the project's repository"))
    return '<nav class="page-links" aria-label="This page\'s notebook">' + "".join(
        f'<a href="{url}" title="{html.escape(title)}"{" download" * (name == "Download")}>{name}</a>' for name, url, title in links) + "</nav>"

def relink(page, name, anchors, host):
    "Links to this site's own pages without its host; a function without a heading of its own is on its module's page."
    def link(match):
        target, anchor = match[1] or name, match[2]
        if anchor and target in anchors and anchor not in anchors[target]: anchor = None
        return f'href="{match[1]}{"#" + anchor if anchor else ""}"' if match[1] or anchor else 'href="#"'
    page = re.sub(rf'(<a [^>]*href="){re.escape(host)}/(?=[\w.]+\.html)', r"\1", page)
    return re.sub(r'href="([\w.]+\.html|)(?:#([\w.-]+))"', link, page)

def finish(site, cfg, origins):
    "Make the rendered pages whole without a network."
    pages = {path.relative_to(site).as_posix(): with_formulas(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    anchors = {name: {*re.findall(r'\bid="([^"]+)"', page)} for name, page in pages.items()}
    host = f"{cfg.doc_host}{cfg.doc_baseurl}"
    (site/"notebooks").mkdir(exist_ok=True)
    for name, page in pages.items():
        page = relink(page, name, anchors, host)
        page = re.sub(r"data:image/png;base64,([\w+/=]+)", smaller, page)
        page = re.sub(r'src="(results/[^"]+\.(?:png|webp))"', partial(smaller_file, site), page)
        page = re.sub(r"<t([dh])\b([^>]*)>(.*?)</t[dh]>", worded, page, flags=re.S)
        page = re.sub(r'(/([^/"]+)\.webp"[^>]*></p>\s*)<figcaption>\2</figcaption>', r"\1", page) # a file's name tells nothing
        if name in origins:
            shutil.copy(cfg.config_path/origins[name], site/"notebooks")
            page = re.sub(r'(<header id="title-block-header".*?</header>)', lambda m: m[1] + links_of(origins[name], cfg), page, count=1, flags=re.S)
        (site/name).write_text(page, encoding="utf-8")
    lighten(site, "".join(pages.values()))

def lighten(site, pages):
    "Style sheets ask no other host for fonts; of the icons only those are left that pages show."
    scripts = "".join(path.read_text(encoding="utf-8") for path in site.glob("site_libs/*.js"))
    used, styles = {*re.findall(r"\bbi-([\w-]+)", pages + scripts)}, []
    for path in site.rglob("*.css"):
        style = re.sub(r"@import url\((['\"]?)https?:.*?\1\);?", "", path.read_text(encoding="utf-8"))
        if path.name == "bootstrap-icons.min.css":
            style = re.sub(r'\.bi-([\w-]+)::before\{[^}]*\}', lambda m: m[0] if m[1] in used else "", style)
            style = re.sub(r'url\("[^"]*\.woff2[^"]*"\) format\("woff2"\),', "", style)
        path.write_text(style, encoding="utf-8")
        styles.append(style)
    for path in site.glob("site_libs/bootstrap-icons/fonts/*.woff"):
        font = Subsetter()
        font.populate(unicodes=[int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", "".join(styles))])
        with TTFont(path) as icons:
            font.subset(icons)
            icons.save(path)
        path.with_suffix(".woff2").unlink(missing_ok=True)

def main():
    cfg = get_config()
    site = cfg.doc_path
    refresh_quarto_yml()
    complete_index(cfg)
    cache = proc_nbs(n_workers=0, force=True) # in this process, for the index
    origins = prepare(cache, cfg)
    if shutil.which("quarto"): subprocess.run(["quarto", "render", "--no-cache"], cwd=cache, check=True)
    else:
        for_smalldocs(cache)
        subprocess.run([Path(sys.executable).parent/"smalldocs", "render", cache], check=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(cache/site.name, site)
    if (cache/"results").exists(): # pictures are in the site by now, other files may not be
        shutil.copytree(cache/"results", site/"results", ignore=shutil.ignore_patterns("*.md"), dirs_exist_ok=True)
    finish(site, cfg, origins)
    print(f"The site is in {site}. To read it:\n\n    {sys.executable} -m http.server {PORT} --bind 127.0.0.1 --directory {site}\n\n"
          f"and open http://127.0.0.1:{PORT}")

if __name__ == "__main__": main()
