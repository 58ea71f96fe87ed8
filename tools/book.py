#!/usr/bin/env python
"""Build the book into _build/html with warnings as errors; a build that did not end well is never built upon.

Sphinx rebuilds the pages whose sources changed. Two things it does not see: a warning of a page that it read in an
earlier, failed build, and changes of what surrounds the pages (the list of pages, the configuration, the extensions,
the style). Either one makes this start from nothing.

    tools/book.py [FOLDER]      the repository, or a copy of it
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SURROUNDINGS = ("_config.yml", "_toc.yml", "constraints.txt", "book/_ext/*", "book/assets/*")


def surroundings(root: Path) -> str:
    """A hash of everything that shapes every page, and of the list of pages."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(p for pattern in SURROUNDINGS for p in root.glob(pattern) if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    names = sorted(p.relative_to(root).as_posix() for p in (root / "book").rglob("*.*") if "__pycache__" not in p.parts)
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def build(root: Path) -> int:
    """Build, alone: a second call waits for the first, and then finds nothing to do. The exit status."""
    out = root / "_build"
    out.mkdir(exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        good, now = out / ".good", surroundings(root)
        if not good.exists() or good.read_text() != now:
            for name in ("html", ".doctrees", "jupyter_execute"):
                shutil.rmtree(out / name, ignore_errors=True)
        good.unlink(missing_ok=True)
        tool = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
        command = [*tool, "build", str(root), "-W", "-n", "--keep-going", "--quiet"]
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status == 0 and not (out / "html" / "index.html").exists():
            raise RuntimeError(f"{' '.join(command)} succeeded, but there is no {out / 'html' / 'index.html'}")
        if status == 0:
            good.write_text(now)
    return status


def main(argv: list[str]) -> int:
    """The command line."""
    root = Path(argv[0]).resolve() if argv else ROOT
    status = build(root)
    if status == 0:
        print(f"The book: {root / '_build' / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
