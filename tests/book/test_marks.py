"""The check mark beside an equation: where it stands, what it says, where it leads, and when it is refused."""

import io
import re
import sys
from pathlib import Path

import pytest
from sphinx.application import Sphinx

from edmnotes.derivations import core

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))
import equations

MODULE = '''
from sympy import Derivative, symbols
from edmnotes.derivations.core import Derivation, Step, derivation

x, y = symbols("x y", positive=True)
DEFINITIONS = {"chosen": "to have one"}
NOT_PARSED = {"seen": "bars are not read"}

@derivation
def powers() -> Derivation:
    """Two powers."""
    return Derivation("Powers", [
        Step("square", Derivative(x**2, x), 2 * x, "the power rule", name=y),
        Step("seen", Derivative(x**3, x), 3 * x**2, "the power rule"),
    ])
'''

PAGE = r"""
# A page

$$
y = 2 x
$$ (square)

$$
x \ge 0
$$ (chosen)

$$
\left|3 x^2\right| = 3 x^2
$$ (seen)

See {eq}`square`.
"""

API = "# API\n\n```{eval-rst}\n.. automodule:: marked_chapter\n   :members: powers\n```\n"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a tiny book of one page and its API page; return the HTML of both and the warnings."""
    (tmp_path / "marked_chapter.py").write_text(MODULE, encoding="utf8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "marked_chapter", raising=False)
    import marked_chapter

    monkeypatch.setattr(equations, "registry", lambda: core.collect([marked_chapter]))

    def run(page: str = PAGE, api: str = API) -> tuple[str, str, str]:
        source = tmp_path / "source"
        (source / "api").mkdir(parents=True)
        index = "# Index\n\n```{toctree}\npage\napi/chapter\n```\n"
        for name, text in {"index": index, "page": page, "api/chapter": api}.items():
            (source / f"{name}.md").write_text(text, encoding="utf8")
        config = {
            "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "equations"],
            "myst_enable_extensions": ["dollarmath"],
            "html_theme": "basic",
            "nitpicky": True,
            "nitpick_ignore_regex": [("py:.*", "edmnotes.*|Derivation")],
        }
        warnings = io.StringIO()
        out = tmp_path / "out"
        app = Sphinx(source, None, out, tmp_path / "trees", "html", config, status=None, warning=warnings)
        app.build()
        html = [(out / name).read_text(encoding="utf8") for name in ("page.html", "api/chapter.html")]
        return html[0], html[1], warnings.getvalue()

    return run


def test_a_checked_equation_links_to_its_derivation_and_back(build):
    page, api, warnings = build()
    assert warnings == ""
    (link,) = re.findall(r'<a class="equation-check"[^>]*>✓</a>', page)
    assert 'href="api/chapter.html#marked_chapter.powers"' in link
    assert 'title="checked by machine: marked_chapter.powers"' in link
    assert 'aria-label="Equation square, checked by machine: marked_chapter.powers"' in link
    assert 'id="marked_chapter.powers"' in api
    assert re.search(r'Proves <a[^>]* href="\.\./page\.html#equation-square">', api)
    assert re.search(
        r'<div class="equation-checked"><div class="math[^>]*id="equation-square">', page.replace("\n", "")
    )


def test_a_definition_gets_no_mark_and_an_equation_compared_by_eye_another(build):
    page, _, _ = build()
    assert page.count('class="equation-check"') == 2
    (by_eye,) = re.findall(r'<a class="equation-check"[^>]*>\(✓\)</a>', page)
    assert "compared with this page by eye (bars are not read)" in by_eye
    assert 'class="equation-checked"' not in page.split('id="equation-chosen"')[0][-80:]


def test_the_style_is_there(build, tmp_path):
    page, _, _ = build()
    assert "_static/equations.css" in page
    assert "equation-check" in (tmp_path / "out" / "_static" / "equations.css").read_text(encoding="utf8")


def test_an_equation_that_is_not_its_step_gets_no_mark_and_a_warning(build):
    page, _, warnings = build(PAGE.replace("y = 2 x", "y = -2 x"))
    assert "(square), proved by marked_chapter.powers: the page's member 2 of 2 is not the step's" in warnings
    assert len(re.findall(r'<a class="equation-check"', page)) == 1


def test_a_label_without_a_step_warns(build):
    _, _, warnings = build(PAGE + "\n$$\nx = 1\n$$ (nobody)\n")
    assert "no step has this label" in warnings


def test_a_derivation_missing_from_the_api_page_warns(build):
    _, _, warnings = build(api="# API\n")
    assert "marked_chapter.powers has no place on the API page" in warnings
