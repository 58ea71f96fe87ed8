"""Local Sphinx extension of the book: MathJax from the installed package, a chapter's rooms, names of the package."""

import json
import shutil
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

# 2 MB of the package's 24: the TeX-to-HTML component, its fonts, and the TeX extensions that load on demand.
MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


def copy_mathjax(app: Sphinx) -> None:
    """Copy what pages load from sphinx-mathjax-offline, whose own extension would copy all of it."""
    packaged = [f for f in files("sphinx-mathjax-offline") or () if f.name == "tex-chtml.js"]
    source = Path(str(packaged[0].locate())).parent
    for name in MATHJAX:
        for file in [source / name] if (source / name).is_file() else sorted((source / name).rglob("*.*")):
            target = Path(app.outdir, "_static", "mathjax", file.relative_to(source))
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def show_rooms(app: Sphinx, doctree: nodes.document) -> None:
    """Under a chapter's title, link the rooms of the package that its front matter declares."""
    declared = app.env.metadata[app.env.docname].get("edmnotes", "{}")  # MyST stores what is not text as JSON
    rooms = json.loads(declared).get("rooms")
    title = next(iter(doctree.findall(nodes.title)), None)
    if not rooms or title is None:
        return
    line = nodes.paragraph("", "The code of this chapter: ", classes=["rooms"])
    for number, room in enumerate(rooms):
        if number:
            line += nodes.Text(", ")
        name = f"edmnotes.{room}"
        link = addnodes.pending_xref(
            "", refdomain="py", reftype="mod", reftarget=name, refexplicit=True, refdoc=app.env.docname, refwarn=True
        )
        link += nodes.literal("", name, classes=["xref", "py", "py-mod"])
        line += link
    title.parent.insert(title.parent.index(title) + 1, line)


def find_elsewhere(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> object:
    """Resolve a name of the package that is documented under another module than the one that it was sought in.

    A room shows what its modules define: ``edmnotes.samplers.ode.euler`` is ``edmnotes.samplers.euler``. A docstring
    names what its module imports: ``ReadError`` is the only one there is.
    """
    domain, target = env.get_domain("py"), node.get("reftarget", "")
    if node.get("refdomain") != "py" or ("." in target and not target.startswith("edmnotes.")):
        return None
    room, name = target.split(".")[:2], target.split(".")[-1]
    near = [n for n in domain.objects if n.split(".")[-1] == name and (n.split(".")[:2] == room or "." not in target)]
    if len(near) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], near[0], node, content)


def skip_symbols(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out SymPy's functions, which are classes and so would be documented: f(t) is a formula, not a class."""
    return True if isinstance(obj, type) and obj.__module__ is None else None


def plain_factories(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Write a dataclass's ``<factory>`` as ``...``: the signature is Python again, and its types become links."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> dict[str, object]:
    """Connect them."""
    # Without this Sphinx loads MathJax only on pages with an equation of their own: one in raw HTML would stay TeX.
    app.set_html_assets_policy("always")
    app.connect("builder-inited", copy_mathjax)
    app.connect("doctree-read", show_rooms)
    app.connect("autodoc-skip-member", skip_symbols)
    app.connect("autodoc-process-signature", plain_factories)
    app.connect("missing-reference", find_elsewhere)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
