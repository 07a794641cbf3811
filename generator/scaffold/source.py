"""Where the template lies, and what a project records about where it came from.

The template is the checkout that this file belongs to, or `_template/` inside an installed wheel.
"""

import importlib.metadata
import os
import subprocess
from pathlib import Path

from scaffold import __version__
from scaffold.errors import ScaffoldError

PACKED = Path(__file__).parent / "_template"
CHECKOUT = Path(__file__).parents[2]


def template_root() -> Path:
    """Return the folder that holds copier.yml, template/ and hooks/."""
    for root in (PACKED, CHECKOUT):
        if (root / "copier.yml").is_file():
            return root
    raise ScaffoldError("This installation of scaffold has lost its template. Install it again.")


def origin(root: Path) -> dict[str, str]:
    """Return what `copier update` needs to find this template again, as far as it can be known.

    Copier is shown a plain folder (see render.py), so it cannot tell; this is laid over what it would record.
    A wheel names the public repository and the tag of its release; a checkout, itself and its last commit.
    """
    if root == PACKED:
        url = _source_url()
        # A development version has no tag, so there is nothing that an update could compare with.
        released = not any(mark in __version__ for mark in ("dev", "+"))
        return {"_src_path": url, "_commit": f"v{__version__}"} if url and released else {}
    commit = _git(root, "describe", "--tags", "--always") if is_repository(root) else None
    return {"_src_path": str(root), "_commit": commit} if commit else {}


def is_repository(root: Path) -> bool:
    """Tell whether `root` is the top of a git work tree, not merely inside somebody else's."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == root.resolve()


def has_uncommitted_changes(root: Path) -> bool:
    """Tell whether a render of this checkout differs from the commit that the project will name."""
    return bool(is_repository(root) and _git(root, "status", "--porcelain", "--", "copier.yml", "template"))


def _source_url() -> str | None:
    try:
        urls = importlib.metadata.metadata("scaffold").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    labelled = dict(entry.split(", ", 1) for entry in urls if ", " in entry)
    return labelled.get("Source")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None: no git, no repository, no commit, or no trust in who owns the folder."""
    # Inside a git hook these would point at the repository that is being committed to, whatever the folder.
    elsewhere = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
