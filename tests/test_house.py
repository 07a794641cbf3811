"""The house: few forks, short projects, documented names, and a backend that is nothing but its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import QUESTIONNAIRE, ROOT, VARIANTS, Scaffold, files
from house import Project, asking, figures
from scaffold.errors import TemplateFault
from scaffold.questions import Questionnaire
from scaffold.render import render

BACKENDS = QUESTIONNAIRE.choices("backend", {})
ANSWERS = ".copier-answers.yml"


def variant(backend: str) -> str:
    """Return the name of the variant with asyncio and the defaults of a backend for all else."""
    wanted = QUESTIONNAIRE.resolve({"project_name": "shop", "backend": backend, "asyncio": True})
    return next(name for name, one in VARIANTS.items() if QUESTIONNAIRE.resolve(one.answers) == wanted)


# Figures


def test_every_figure_keeps_its_limit(rendered: Callable[[str], Path]) -> None:
    found = figures({backend: rendered(variant(backend)) for backend in BACKENDS})
    print(*found, sep="\n")
    missed = [str(figure) for figure in found if not figure.holds]
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_public_name_is_documented(backend: str, rendered: Callable[[str], Path]) -> None:
    assert Project(rendered(variant(backend))).undocumented == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_public_package_exports_every_type_that_its_signatures_name(
    backend: str, rendered: Callable[[str], Path]
) -> None:
    missing = Project(rendered(variant(backend))).unexported
    assert not missing, "\n".join(missing)


# The detectors fire


def project(folder: Path, **modules: str) -> Project:
    """Write a project of a few modules and read it."""
    for name, text in modules.items():
        path = folder / "src/shop" / (name.replace("_in_", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Project(folder)


def test_a_type_that_is_not_exported_is_found(tmp_path: Path) -> None:
    found = project(
        tmp_path,
        db_in___init__="from .a import Database\nfrom .b import Pool\n__all__ = ['Database', 'Pool']\n",
        db_in_a=(
            "from .b import Base, Limits, Pool\nfrom ..settings import Settings\n"
            "class Database(Base):\n"
            "    def open(self, pool: Pool, limits: 'Limits | None') -> Settings: ...\n"
            "    def _close(self, how: Hidden) -> None: ...\n"
        ),
        db_in_b=(
            "class Pool: ...\nclass Limits: ...\nclass Hidden: ...\nclass Mode: ...\n"
            "class Base:\n    def set(self, mode: Mode) -> None: ...\n"
        ),
        settings="class Settings: ...\n",
    )
    assert found.unexported == [
        "shop.db.Database uses shop.db.b.Limits",
        "shop.db.Database uses shop.db.b.Mode",
    ]


def test_a_public_name_without_a_docstring_is_found(tmp_path: Path) -> None:
    found = project(
        tmp_path, bank="class Bank:\n    def pay(self): ...\n    def _pay(self): ...\ndef open(): 'Open.'\n"
    )
    assert found.undocumented == ["shop.bank.Bank", "shop.bank.Bank.pay"]


def test_a_generated_file_does_not_count_as_lines_to_read(tmp_path: Path) -> None:
    assert project(tmp_path, a="x = 1\ny = 2\n", b="# Generated from a.py.\nx = 1\n").lines == 2


def test_a_tag_that_asks_a_key_is_found_in_texts_and_in_names(tmp_path: Path) -> None:
    (tmp_path / "{% if profile.kind %}a{% endif %}.py").write_text("# kind\n{{ profile.kind }}\n")
    assert asking("kind", tmp_path) == 2


# A backend is a folder and a name


def template(folder: Path, backends: list[str], *, packs: list[str]) -> Path:
    """Copy the template with these choices of `backend`, the first one the default, and these packs."""
    shutil.copytree(ROOT / "template", folder / "template", ignore=shutil.ignore_patterns("backends"))
    for pack in packs:
        shutil.copytree(ROOT / "template/backends" / pack, folder / "template/backends" / pack)
    questions = (ROOT / "copier.yml").read_text()
    listed, default = " ".join(BACKENDS), f"  default: {BACKENDS[0]}\n"
    assert (questions.count(listed), questions.count(default)) == (1, 1)
    chosen = questions.replace(listed, " ".join(backends)).replace(default, f"  default: {backends[0]}\n")
    (folder / "copier.yml").write_text(chosen)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_project_is_the_same_when_every_other_backend_is_deleted(
    backend: str, rendered: Callable[[str], Path], tmp_path: Path
) -> None:
    alone = template(tmp_path / "alone", [backend], packs=[backend])
    assert list(Questionnaire(alone).profiles()) == [backend]
    render(alone, tmp_path / "shop", VARIANTS[variant(backend)].answers)
    ours, theirs = files(tmp_path / "shop"), files(rendered(variant(backend)))
    recorded, expected = (yaml.safe_load(project.pop(ANSWERS)) for project in (ours, theirs))
    assert ours == theirs
    # The copy is another source, and it has no commit.
    for answers in (recorded, expected):
        answers.pop("_src_path")
        answers.pop("_commit", None)
    assert recorded == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_others_stay_when_a_backend_is_deleted(backend: str, tmp_path: Path) -> None:
    others = [other for other in BACKENDS if other != backend]
    questionnaire = Questionnaire(template(tmp_path, others, packs=others))
    profiles = QUESTIONNAIRE.profiles()
    assert questionnaire.profiles() == {other: profiles[other] for other in others}


def test_a_name_without_a_folder_is_a_fault_of_the_template(tmp_path: Path) -> None:
    root = template(tmp_path, [*BACKENDS, "oracle"], packs=BACKENDS)
    with pytest.raises(
        TemplateFault, match=r"includes template/backends/oracle/profile\.yml, which does not exist"
    ):
        Questionnaire(root).profiles()


def test_scaffold_names_the_folder_that_is_missing(scaffold: Scaffold, checkout: Path) -> None:
    shutil.rmtree(checkout / "template/backends" / BACKENDS[-1])
    result = scaffold("new", "shop", "--backend", BACKENDS[-1], root=checkout)
    assert result.returncode == 1
    assert f"template/backends/{BACKENDS[-1]}/profile.yml" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(scaffold.place.iterdir()) == []
