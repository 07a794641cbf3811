"""Locate the template, and describe the origin that a project records.

The template is the checkout that holds this file, or `_template/` of an installed wheel.
"""

import importlib.metadata
from pathlib import Path

from scaffold import __version__
from scaffold.errors import ScaffoldError
from scaffold.repository import GitFailed, git

# Name on PyPI; "scaffold" is another project there, whose metadata must not be taken for ours.
DISTRIBUTION = "scaffold-distributed-sql"
PACKED = Path(__file__).parent / "_template"
CHECKOUT = Path(__file__).parents[2]


def template_root() -> Path:
    """Return the folder that holds copier.yml, template/ and hooks/."""
    for root in (PACKED, CHECKOUT):
        if (root / "copier.yml").is_file():
            return root
    raise ScaffoldError("The template of this installation is missing. Reinstall scaffold.")


def origin(root: Path) -> dict[str, str]:
    """Return the lines of the answers file from which `copier update` finds this template again.

    They replace those of Copier, which takes the template for a plain folder (see render.py). A wheel gives
    the public repository and the tag of the release, a checkout its folder and last commit, all else nothing.
    """
    if root == PACKED:
        url = _source_url()
        # A development version has no tag, so an update could not render it again.
        released = not any(mark in __version__ for mark in ("dev", "+"))
        return {"_src_path": url, "_commit": f"v{__version__}"} if url and released else {}
    commit = _git(root, "describe", "--tags", "--always") if is_repository(root) else None
    return {"_src_path": str(root), "_commit": commit} if commit else {}


def is_repository(root: Path) -> bool:
    """Tell whether `root` is the top of a git work tree."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == root.resolve()


def has_uncommitted_changes(root: Path) -> bool:
    """Tell whether the template differs from the last commit of its checkout."""
    return bool(is_repository(root) and _git(root, "status", "--porcelain", "--", "copier.yml", "template"))


def _source_url() -> str | None:
    try:
        urls = importlib.metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    labelled = dict(entry.split(", ", 1) for entry in urls if ", " in entry)
    return labelled.get("Source")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None without git, repository or commit, or if git distrusts the owner."""
    try:
        return git(folder, *arguments)
    except (OSError, GitFailed):
        return None
