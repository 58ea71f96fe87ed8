"""Every page in Chromium, light, dark and on a phone: nothing from another host, no error, all formulas typeset.

Needs Chromium on the machine (Debian: apt-get install chromium). Without it these tests skip, or fail where
EDMNOTES_REQUIRE_BROWSER is set, as .ci/run sets it.
"""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
# No name resolves but the server's: a request to another host fails even where the machine has a network.
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
MODES = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}

# What is wrong with a page, seen from inside it.
LOOK = """() => {
  const wrong = [];
  const text = (e) => (e ? e.textContent.replace(/\\s+/g, ' ').trim() : '');
  for (const e of document.querySelectorAll('.math'))
    if (!e.querySelector('mjx-container')) wrong.push('not typeset: ' + text(e));
  for (const e of document.querySelectorAll('mjx-merror, [data-mjx-error]'))
    wrong.push('bad formula: ' + (e.getAttribute('data-mjx-error') || e.title || text(e)));
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    const code = e.closest('pre, code, script, style, textarea, mjx-assistive-mml');
    if (!code && /\\\\\\(|\\\\\\[|\\\\begin\\{/.test(n.data))
      wrong.push('raw TeX: ' + n.data.trim());
  }
  for (const e of document.querySelectorAll('.cell_output img')) {
    const figure = e.closest('figure');
    const caption = text(figure && figure.querySelector('figcaption .caption-text'));
    if (!caption) wrong.push('a figure without caption: ' + e.src);
    if (!e.alt.trim()) wrong.push('a figure without alt text: ' + e.src);
    else if (e.alt.trim() === caption) wrong.push('alt text is the caption: ' + caption);
  }
  for (const e of document.images) {
    if (!e.complete || !e.naturalWidth) wrong.push('an image that does not load: ' + e.src);
    if (!e.hasAttribute('alt')) wrong.push('an image without alt: ' + e.src);
  }
  const root = document.documentElement, over = root.scrollWidth - root.clientWidth;
  if (over > 1) wrong.push('wider than the screen by ' + over + ' px');
  return wrong;
}"""


def find_chromium() -> str:
    """The system's Chromium; without one the tests skip, or fail where CI requires them."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found:
        return found
    reason = "no Chromium: the rendered book is not tested. Install it (Debian: apt-get install chromium)"
    if os.environ.get("EDMNOTES_REQUIRE_BROWSER"):
        pytest.fail(reason)
    return pytest.skip(reason)


@dataclass
class Site:
    """The built book on a local server, and pages that exist only there."""

    root: Path
    planted: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def pages(self) -> list[str]:
        """Every page of the book, the index of names and the search page too."""
        return sorted(
            p.relative_to(self.root).as_posix() for p in self.root.rglob("*.html") if "_static" not in p.parts
        )

    def plant(self, page: str, old: str, new: str) -> str:
        """Serve a copy of a page with one change; its name."""
        text = (self.root / page).read_text(encoding="utf8")
        assert old in text
        name = str(Path(page).with_name(f"planted-{len(self.planted)}.html"))
        self.planted[f"/{name}"] = text.replace(old, new, 1).encode()
        return name


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site's files, quietly."""

    def __init__(self, *args: object, site: Site) -> None:
        self.site = site
        super().__init__(*args, directory=str(site.root))

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # asked for where a page names no icon: index.html, which only redirects
            self.send_response(204)
            return self.end_headers()
        if (body := self.site.planted.get(self.path)) is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        return self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(browser, built) -> Iterator[Site]:
    site = Site(built)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.address = f"http://127.0.0.1:{server.server_port}/"
    yield site
    server.shutdown()


def open_page(context: BrowserContext, site: Site, name: str) -> tuple[Page, list[str]]:
    """Open a page and wait until its formulas are typeset; the page, and what went wrong on the way."""
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
    page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    local = (site.address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"another host: {r.url}"))
    page.goto(site.address + name, wait_until="load")
    page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
    page.evaluate("MathJax.startup.promise")
    return page, wrong


def judge(context: BrowserContext, site: Site, name: str) -> list[str]:
    """All that is wrong with a page."""
    page, wrong = open_page(context, site, name)
    wrong += page.evaluate(LOOK)
    page.close()
    return wrong


@pytest.mark.parametrize("mode", MODES)
def test_every_page(browser, site, mode):
    context = browser.new_context(**MODES[mode])
    wrong = {name: found for name in site.pages() if (found := judge(context, site, name))}
    context.close()
    assert len(site.pages()) > 5
    assert wrong == {}


@pytest.mark.parametrize(("mode", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 18, 18)")])
def test_pages_follow_the_system_s_light_or_dark(browser, site, mode, background):
    """The style sheet's inversion of figures counts on these two backgrounds."""
    context = browser.new_context(**MODES[mode])
    page, wrong = open_page(context, site, "book/forward.html")
    assert wrong == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    image = page.locator(".cell_output img").first
    assert ("invert" in image.evaluate("e => getComputedStyle(e).filter")) == (mode == "dark")
    context.close()


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_a_word_of_the_book(browser, site, scheme):
    """From a server, and from the folder itself: an offline reader has no server."""
    context = browser.new_context()
    page = context.new_page()
    base = site.address if scheme == "http" else f"{site.root.as_uri()}/"
    page.goto(f"{base}search.html?q=variance", wait_until="load")
    page.wait_for_selector("#search-results ul.search li a")
    assert page.locator("#search-results ul.search li a[href*='forward']").count() > 0
    page.goto(f"{base}search.html?q=xylophone", wait_until="load")
    page.wait_for_selector("#search-results p.search-summary")
    assert page.locator("#search-results ul.search li").count() == 0
    context.close()


def test_the_book_reads_from_the_folder_without_a_server(browser, site):
    context = browser.new_context()
    from_disk = Site(site.root, address=f"{site.root.as_uri()}/")
    assert judge(context, from_disk, "book/forward.html") == []
    context.close()


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ('<script src="https://cdn.example.org/x.js"></script>', "another host: https://cdn.example.org/x.js"),
        (r'<span class="math">\(\frac{1}{\)</span>', "not typeset"),
        (r'<span class="math">\(\nosuchmacro\)</span>', "bad formula"),
        ('<span class="math">x</span>', "not typeset: x"),
        (r"<p class='tex2jax_ignore mathjax_ignore'>\(x\)</p>", "raw TeX"),
        ("<script>console.error('planted')</script>", "console: planted"),
        ("<script>throw new Error('planted')</script>", "error: planted"),
        ('<img src="none.png" alt="none">', "an image that does not load"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "an image without alt"),
        ('<div class="cell_output"><img src="x.png" alt=""></div>', "a figure without caption"),
        ('<div style="width: 3000px">wide</div>', "wider than the screen"),
    ],
)
def test_what_is_planted_is_found(browser, site, planted, complaint):
    """In a copy of one page, which alone is without fault."""
    context = browser.new_context(**MODES["light"])
    name = site.plant("book/references.html", "</article>", planted + "</article>")
    found = judge(context, site, name)
    context.close()
    assert [c for c in found if c.startswith(complaint)], found


def test_a_missing_browser_fails_where_it_is_required(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("EDMNOTES_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="Install it"):
        find_chromium()
    monkeypatch.delenv("EDMNOTES_REQUIRE_BROWSER")
    with pytest.raises(pytest.skip.Exception, match="Install it"):
        find_chromium()
