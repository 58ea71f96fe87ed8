"""Sphinx extension: a mark beside every equation that a machine has checked, linked with its derivation both ways.

A mark is given only if the LaTeX of this very page ties to its step; if it does not, the build warns, and fails under
``-W``.
"""

import hashlib
import shutil
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from edmnotes import derivations
from edmnotes.derivations.core import registry
from edmnotes.derivations.page import Equation, PageError, check

MARKS = {"read": "✓", "generated": "✓", "by eye": "(✓)"}  # a definition gets none

LOGGER = logging.getLogger(__name__)


def hold_equations(app: Sphinx, doctree: nodes.document) -> None:
    """Hold the equations of a page against the registry and note on each how it was checked."""
    for block in doctree.findall(nodes.math_block):
        if not block.get("label"):
            continue  # an output of a cell; what the author displays has a label, or the tests fail
        page = Path(app.env.doc2path(app.env.docname))
        try:
            block["checked"] = check(Equation(page, block.line or 0, block["label"], block.astext()), registry()).how
        except PageError as error:
            LOGGER.warning(str(error), location=block, type="equations")


def show_marks(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a link to the derivation beside each checked equation, in HTML."""
    if app.builder.format != "html":
        return
    documented = app.env.get_domain("py").objects
    for block in list(doctree.findall(nodes.math_block)):
        if block.get("checked") not in MARKS:
            continue
        function = registry().entries[block["label"]].function
        if function not in documented:
            LOGGER.warning("%s has no place on the API page", function, location=block, type="equations")
            continue
        place = documented[function]
        address = f"{app.builder.get_relative_uri(docname, place.docname)}#{place.node_id}"
        block.replace_self(
            [_html('<div class="equation-checked">'), block.deepcopy(), _html(_link(block, function, address))]
        )


def _link(block: nodes.math_block, function: str, address: str) -> str:
    how = f"checked by machine: {function}"
    if reason := registry().not_parsed.get(block["label"]):
        how = f"checked by machine, compared with this page by eye ({reason}): {function}"
    about = escape(f"Equation {block['label']}, {how}")
    attributes = f'href="{escape(address)}" title="{escape(how)}" aria-label="{about}"'
    return f'<a class="equation-check" {attributes}>{MARKS[block["checked"]]}</a></div>'


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def name_equations(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Under a derivation's documentation, link the equations that it proves."""
    if getattr(obj, "__is_derivation__", False) and (labels := registry().proved_by(name)):
        lines += ["", f"Proves {', '.join(f':eq:`{label}`' for label in labels)}.", ""]


def copy_style(app: Sphinx) -> None:
    """Copy the style sheet that stands beside this file."""
    target = Path(app.outdir, "_static")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_suffix(".css"), target / "equations.css")


def setup(app: Sphinx) -> dict[str, object]:
    """Connect them; pages are read again when a derivation changes, since a mark depends on it."""
    sources = sorted(Path(derivations.__path__[0]).glob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    app.add_config_value("equations_digest", digest, "env")
    app.add_css_file("equations.css")
    app.connect("builder-inited", copy_style)
    app.connect("doctree-read", hold_equations)
    app.connect("doctree-resolved", show_marks)
    app.connect("autodoc-process-docstring", name_equations)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
