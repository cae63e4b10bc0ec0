"The site as a reader meets it: built, served on the loopback interface, and opened in a browser that reaches no other host."
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml
from filelock import FileLock

for package in ("nbdev", "smalldocs", "latex2mathml"): pytest.importorskip(package, reason=f"{package} is not installed")

ROOT = Path(__file__).resolve().parent.parent
BROWSER = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
WIDE, NARROW = 1280, 390
WEIGHT = 1.5e6 # bytes of a page with all that it loads


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    "A copy of the project with its site, which all processes of these tests share; what the build printed."
    there = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: there = there.parent
    there = there/"site"
    with FileLock(f"{there}.lock"):
        if not (there/"said").exists():
            shutil.copytree(ROOT, there, ignore=shutil.ignore_patterns(".*", "*.egg-info", "_*s", "_proc", "build", "data", "tests", "*.pt", "*-tiny*"))
            env = os.environ | {"MPLBACKEND": "agg"}
            done = subprocess.run([sys.executable, "tools/docs.py"], cwd=there, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            (there/"said").write_text(done.stdout + done.stderr)
    return there


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="session")
def host(built):
    "The address of the served site."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=built/"_docs"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Page(HTMLParser):
    "The links and the places of a page."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        links = [attributes[key] for key in ("href", "src", "poster") if attributes.get(key)]
        self.links += [link for link in links if tag != "link" or "stylesheet" in attributes.get("rel", "") or "icon" in attributes.get("rel", "")]


def names():
    "The pages, as the sidebar orders them."
    def pages(entries):
        for entry in entries: yield from pages(entry["contents"]) if isinstance(entry, dict) else [re.sub(r"^\d+_", "", entry).replace("ipynb", "html")]
    return [*pages(yaml.safe_load((ROOT/"nbs"/"sidebar.yml").read_text())["website"]["sidebar"]["contents"])]


# What was built

def test_the_build_warns_of_nothing_and_says_how_to_read_the_site(built):
    said = (built/"said").read_text()
    assert "warning" not in said.lower() and "error" not in said.lower(), said
    assert re.search(r"-m http\.server \d+ .*--directory \S+_docs\n\nand open http://127\.0\.0\.1:\d+\n", said), said


def test_every_link_within_the_site_leads_somewhere(built):
    "From the front page on; all pages are found so."
    site, pages, waiting, dead = built/"_docs", {}, ["index.html"], []
    def page(name): return pages[name] if name in pages else pages.setdefault(name, Page(site/name))
    while waiting:
        name = waiting.pop()
        for link in page(name).links:
            url = urlparse(link)
            if url.scheme or url.netloc: continue
            path, place = urldefrag(urljoin(f"/{name}", link))
            target = unquote(path).lstrip("/") or "index.html"
            if not (site/target).is_file(): dead.append((name, link))
            elif target.endswith(".html"):
                if target not in pages: waiting.append(target)
                if place and unquote(place) not in page(target).ids: dead.append((name, link))
    assert not dead, dead
    assert {*pages} == {path.relative_to(site).as_posix() for path in site.rglob("*.html")}


def test_links_to_the_outside_are_made_from_the_settings(built):
    "No link to this site's own host, and every file that is linked in the repository is in it."
    site, linked = built/"_docs", set()
    for path in site.glob("*.html"):
        links = Page(path).links
        assert not [link for link in links if link.startswith("https://imgtx-nb.github.io")], path.name
        linked |= {*filter(None, links)}
        if path.name == "index.html": badges = [link for link in links if "mybinder" in link or "colab" in link]
    assert len(badges) == 2 and all("imgtx-nb/imgtx-nb" in link and "index.ipynb" in link for link in badges)
    places = [re.sub(r"#.*", "", link) for link in linked if re.match(r"https://github\.com/imgtx-nb/imgtx-nb/(blob|tree)/main/", link)]
    assert len(places) > 30 and all((built/unquote(place.split("/main/", 1)[1])).exists() for place in places)
    notebooks = [unquote(link.split("/main/", 1)[1]) for link in linked if "colab.research" in link]
    assert len(notebooks) > 30 and all((built/path).is_file() for path in notebooks)


def test_pages_of_experiments_show_their_outputs(built):
    for path in built.glob("results/[a-z]*/*.ipynb"):
        outputs = sum(len(cell.get("outputs", [])) for cell in json.loads(path.read_text())["cells"])
        page = (built/"_docs"/f"{path.stem}.html").read_text()
        assert page.count('class="cell-output ') >= outputs > 0, path


def test_no_signature_is_a_riddle(built):
    words = lambda page: re.sub(r"<[^>]+>", "", page)
    for path in (built/"_docs").glob("*.html"):
        assert not re.search(r"def \w+\(\s*\*args, \*\*kwargs\s*\):\s*$|^def [A-Z]\w+\(", words(path.read_text()), re.M), path.name


def test_the_page_of_every_module_links_to_its_source(built):
    for path in (built/"imgtx_nb").glob("[!_]*.py"):
        assert ">source</a>" in (built/"_docs"/f"{path.stem}.html").read_text(), path.stem


def test_next_leads_through_all_pages(built):
    name, seen = names()[0], []
    while name:
        seen.append(name)
        page = (built/"_docs"/name).read_text()
        following = re.search(r'nav-page-next.*?href="([^"]+)"', page)
        assert ("pagination-link" in page) and bool(following) == (len(seen) < len(names()))
        name = following and following[1]
    assert seen == names()


# In a browser

@pytest.fixture(scope="module")
def browser(host):
    "A browser at the site, which it cannot leave."
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program): pytest.skip(f"{program} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in BROWSER: options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True}) # pages are weighed
    browser.host = host
    yield browser
    browser.quit()


def size(browser, width, height=900):
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def colours(browser, scheme):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


def visit(browser, name, width=WIDE, scheme="light"):
    size(browser, width)
    colours(browser, scheme)
    browser.get(f"{browser.host}{name}")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait(browser, script, *arguments):
    "Until a script gives something; what it gives."
    from selenium.webdriver.support.wait import WebDriverWait
    return WebDriverWait(browser, 20, .05).until(lambda b: b.execute_script(script, *arguments))


# Contrast, as WCAG defines it, of the text of elements against what is behind them
CONTRAST = """
const rgb = c => c.match(/[\\d.]+/g).map(Number), linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b)
const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i])
const behind = e => { if (!e) return [255, 255, 255]; const c = rgb(getComputedStyle(e).backgroundColor); return c[3] === 0 ? behind(e.parentElement) : over(c, (c[3] ?? 1) < 1 ? behind(e.parentElement) : c) }
const contrast = e => { const under = behind(e), l = [light(over(rgb(getComputedStyle(e).color), under)), light(under)]; return (Math.max(...l) + .05) / (Math.min(...l) + .05) }
"""

WHOLE = """
const told = performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
const images = [...document.querySelectorAll('main img')]
const text = [...document.querySelectorAll('main p, main li, main td, main h2, main h3')].filter(e => !e.closest('.cell') && !e.querySelector('code'))
return {weight: told.reduce((sum, e) => sum + e.decodedBodySize, 0),
        strange: told.map(e => e.name).filter(n => !n.startsWith(location.origin) && !n.startsWith('data:')),
        missing: images.filter(i => !i.complete || !i.naturalWidth).length,
        silent: images.filter(i => !(i.alt || '').trim()).length,
        raw: text.map(e => e.textContent).filter(t => /\\\\[(\\[a-z]|\\$\\$/.test(t)),
        formulas: [...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().width < 2 && m.checkVisibility()).length,
        links: document.querySelectorAll('.page-links a').length,
        sources: document.querySelectorAll('main a[href*="/imgtx_nb/"]').length}
"""

NARROWED = """
const broken = []
for (const cell of document.querySelectorAll('main td, main th')) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT)
    for (let node; node = walker.nextNode();) for (const word of node.data.matchAll(/[\\p{L}\\d_.]+/gu)) {
        const range = document.createRange()
        range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length)
        if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) broken.push(word[0])
    }
}
return {wide: document.documentElement.scrollWidth - innerWidth, broken}
"""


@pytest.mark.parametrize("name", names())
def test_a_page_is_whole_without_a_network(browser, name):
    visit(browser, name)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = wait(browser, "return document.readyState == 'complete' && (() => {" + WHOLE + "})()")
    assert found["strange"] == found["raw"] == [] and found["missing"] == found["silent"] == found["formulas"] == 0, found
    assert found["weight"] < WEIGHT and found["links"] >= 3, found
    assert browser.execute_script("return document.querySelector('main').clientWidth") > 780
    for scheme in ("light", "dark"):
        colours(browser, scheme)
        wait(browser, f"return document.documentElement.classList.contains('quarto-dark') == {json.dumps(scheme == 'dark')}")
        text = "[...document.querySelectorAll('main p, main td, main .page-links a, #quarto-sidebar a')].filter(e => e.checkVisibility())"
        assert browser.execute_script(CONTRAST + f"return Math.min(...{text}.map(contrast))") > 3.9
    size(browser, NARROW)
    narrowed = browser.execute_script(NARROWED)
    assert narrowed == {"wide": 0, "broken": []}


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_search_finds_and_can_be_read(browser, width, scheme):
    visit(browser, "index.html", width, scheme)
    if width == NARROW: browser.find_element("css selector", ".navbar-toggler").click()
    box = wait(browser, "return [...document.querySelectorAll('.smalldocs-search input')].find(i => i.checkVisibility())")
    from selenium.webdriver.support import expected_conditions
    from selenium.webdriver.support.wait import WebDriverWait
    WebDriverWait(browser, 20).until(expected_conditions.element_to_be_clickable(box)).send_keys("local_2d")
    wait(browser, "return document.querySelectorAll('.search-result').length")
    worst = browser.execute_script(CONTRAST + "return Math.min(...[...document.querySelectorAll('.search-result, .search-result div')].map(contrast))")
    assert worst >= 4.5
    hits = [hit.get_attribute("href") for hit in browser.find_elements("css selector", ".search-result")]
    assert any("/masks.html" in hit for hit in hits)
    assert browser.execute_script("const box = document.querySelector('.smalldocs-search-results').getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth")


def test_the_sidebar_of_a_phone_leads_to_every_page(browser):
    visit(browser, "masks.html", NARROW)
    browser.find_element("css selector", ".quarto-secondary-nav button").click()
    wait(browser, "return document.querySelector('#quarto-sidebar').getBoundingClientRect().left == 0")
    hidden = browser.execute_script("""return [...document.querySelectorAll('#quarto-sidebar a.sidebar-link')].filter(link => {
        link.scrollIntoView({block: 'nearest', behavior: 'instant'})
        const box = link.getBoundingClientRect()
        return !link.contains(document.elementFromPoint(box.left + 3, box.top + box.height / 2))}).map(link => link.innerText)""")
    assert hidden == []


# What can be touched

SET = """
const [root, name, value] = arguments, input = root.querySelector(name)
input.value = value
input.dispatchEvent(new Event('input', {bubbles: true})); input.dispatchEvent(new Event('change', {bubbles: true}))
"""


def widget(browser, page, width, holds):
    "The widget of a page that holds an element, in view."
    visit(browser, page, width)
    root = wait(browser, "return [...document.querySelectorAll('.touchable')].find(e => e.querySelector(arguments[0]))", holds)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", root)
    return root


def said(root): return root.find_element("css selector", "[aria-live]").text


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_query_of_a_mask_moves(browser, width):
    "What is painted is what the predicates say, wherever the query goes."
    from imgtx_nb.masks import local_1d, local_2d, non_local
    from selenium.webdriver import ActionChains, Keys
    root = widget(browser, "masks.html", width, "canvas")
    canvas = root.find_element("css selector", "canvas")
    def painted(): # bool [16, 16]
        return browser.execute_script("""const c = arguments[0], paint = c.getContext('2d')
            return [...Array(256).keys()].map(k => paint.getImageData(k % 16 * 24 + 12, (k >> 4) * 24 + 12, 1, 1).data[0] != 0xe8)""", canvas)
    def agree(scheme, row, column):
        sees = scheme.mask(16, 16)[16 * row + column]
        assert painted() == sees.tolist() and f"row {row}, column {column} sees {sees.sum()} of 256" in said(root)
    for kind, size, scheme in (("2D local", 3, local_2d(4)), ("1D local", 1, local_1d(16)), ("non-local", 0, non_local())):
        browser.execute_script(SET, root, "select", kind)
        browser.execute_script(SET, root, "input", size)
        agree(scheme, *map(int, re.search(r"row (\d+), column (\d+)", said(root)).groups()))
    browser.execute_script(SET, root, "select", "2D local")
    browser.execute_script(SET, root, "input", 1)
    box = canvas.size["width"] / 16
    ActionChains(browser).move_to_element_with_offset(canvas, 4.5 * box, -2.5 * box).click().perform()
    agree(local_2d(2), 5, 12)
    canvas.send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    agree(local_2d(2), 7, 11)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_mixture_is_pulled(browser, width):
    "What a value costs is what the likelihood says, wherever the sliders are."
    import torch
    from imgtx_nb.logistic_mixture import log_bin_mass
    from selenium.webdriver import ActionChains
    root = widget(browser, "logistic_mixture.html", width, "[aria-label='mean 1']")
    inputs = {i.get_attribute("aria-label"): i for i in root.find_elements("css selector", "input")}
    def agree():
        now = {name: float(i.get_property("value")) for name, i in inputs.items()}
        weights, means, scales = (torch.tensor([now[f"{name} {k}"] for k in (1, 2, 3)], dtype=torch.float64) for name in ("weight", "mean", "scale"))
        logs = log_bin_mass(torch.arange(256)[:, None], means / 127.5 - 1, (scales / 127.5).log())
        pmf = (weights / weights.sum() * logs.exp()).sum(1)
        bits, expected = -pmf[int(now["value"])].log2().item(), -torch.special.xlogy(pmf, pmf).sum().item() / torch.tensor(2.).log().item()
        assert f"P({int(now['value'])})" in said(root)
        numbers = [float(n) for n in re.findall(r"costs ([\d.]+) bits", said(root))]
        assert numbers == pytest.approx([bits, expected], abs=1e-3)
    agree()
    for name, value in (("value", 255), ("mean 1", 250), ("scale 1", 2), ("weight 2", .9), ("value", 0), ("scale 3", 80), ("value", 77)):
        browser.execute_script(SET, root, f"[aria-label='{name}']", value)
        agree()
    canvas, before = root.find_element("css selector", "canvas"), inputs["mean 2"].get_property("value")
    middle = {name: float(i.get_property("value")) for name, i in inputs.items() if "mean" in name}
    place = (middle["mean 2"] / 256 - .5) * canvas.size["width"]
    ActionChains(browser).move_to_element_with_offset(canvas, place, 0).click_and_hold().move_by_offset(-30, 0).release().perform()
    assert float(inputs["mean 2"].get_property("value")) < float(before) - 5
    agree()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_picture_grows(browser, width):
    "It is drawn up to the pixel that the slider says, and the costs add up."
    root = widget(browser, "sampling.html", width, "[aria-label='pixels drawn']")
    canvas, end = root.find_element("css selector", "canvas"), 512
    def painted(): # how many pixels are drawn
        return browser.execute_script("""const data = arguments[0].getContext('2d').getImageData(0, 0, 256, 256).data
            return [...Array(1024).keys()].filter(t => data[4 * (256 * ((t >> 5) * 8 + 4) + t % 32 * 8 + 4) + 3]).length""", canvas)
    costs = []
    for drawn in (0, 1, 2, 3, 77):
        browser.execute_script(SET, root, "input", drawn)
        assert painted() == end + drawn and f"Row {(end + drawn) // 32}, column {drawn % 32}:" in said(root)
        costs.append(float(re.search(r"which costs ([\d.]+) bits", said(root))[1]))
        if drawn: assert f"The {drawn} pixels so far cost" in said(root)
        if drawn == 3: assert float(re.search(r"so far cost ([\d.]+) bits/dim", said(root))[1]) == pytest.approx(sum(costs[:3]) / 9, abs=.006)
    browser.execute_script(SET, root, "input", end - 3)
    root.find_element("css selector", "button").click()
    wait(browser, "return arguments[0].innerText.includes('The picture is done.')", root)
    assert painted() == 2 * end


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_runs_are_taken_out_and_tell_their_settings(browser, width):
    import pandas as pd
    from selenium.webdriver import ActionChains
    table = pd.read_csv(ROOT/"results"/"cifar10"/"table1.csv")
    root = widget(browser, "results.html", width, "[data-run]")
    rows = root.find_elements("css selector", "[data-run]")
    lines = lambda: [line.get_attribute("data-line") for line in root.find_elements("css selector", "[data-line]")]
    assert [f"{bits:.3f}" for bits in table.bits_per_dim] == [row.find_elements("css selector", "td")[2].text for row in rows]
    assert len(lines()) == len(rows)
    rows[1].find_element("css selector", "input").click()
    assert len(lines()) == len(rows) - 1 and "1" not in lines()
    rows[1].find_element("css selector", "input").click()
    assert len(lines()) == len(rows)
    ActionChains(browser).move_to_element(rows[4]).perform()
    assert f"run_name = {table.run[4]}" in said(root)
    opacity = "return [...arguments[0].querySelectorAll('[data-line]')].map(line => line.style.opacity)"
    assert browser.execute_script(opacity, root) == ["1" if n == 4 else "0.25" for n in range(len(rows))]


def test_completions_grow_on_the_front_page(built, browser):
    from PIL import Image
    visit(browser, "index.html")
    path = built/"_docs"/"results"/"cifar10"/"completions.webp"
    with Image.open(path) as film: assert film.n_frames > 60 and path.stat().st_size < 1e6
    assert browser.execute_script("return [...document.querySelectorAll('main img')].filter(i => i.src.endsWith('/completions.webp')).length") == 1
