"""SymPy derivations, one module a chapter: ``book/forward.md`` is proved by :mod:`edmnotes.derivations.forward`.

:mod:`edmnotes.derivations.core` says what a step is and how it is verified, :mod:`edmnotes.derivations.page` ties a
step to the LaTeX that stands on the page. Nothing in this room imports torch; it needs the extra ``book``.
"""
