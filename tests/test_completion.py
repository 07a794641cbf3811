"""The shell completes commands, backends, key strategies, questions and answers."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import BACKEND, QUESTIONNAIRE, ROOT

PROFILES = QUESTIONNAIRE.profiles()
# A backend with one key strategy, so that the choices depend on the backend.
OTHER = next(name for name, profile in PROFILES.items() if len(profile["key_strategies"]) == 1)
KEYS = list(PROFILES[BACKEND]["key_strategies"])


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Put the command line on PATH, as an installation does."""
    program = tmp_path / "bin/scaffold"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m scaffold "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "generator"), "HOME": str(tmp_path)}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # bash takes `=` for a word of its own.
        (["u"], ["update"]),
        (["new", "shop", "--backend", ""], list(PROFILES)),
        (["new", "shop", "--keys", ""], KEYS),
        (["new", "shop", "--backend", OTHER, "--keys", ""], list(PROFILES[OTHER]["key_strategies"])),
        (["new", "shop", "-d", "lic"], ["licence="]),
        (["new", "shop", "-d", "keys", "="], KEYS),
        (["new", "shop", "-d", "keys", "=", KEYS[0][:2]], KEYS[:1]),
        (["new", "shop", "-d", "backend", "=", OTHER, "-d", "ke"], ["keys="]),
        (["update", "-d", "licence", "=", "Apa"], ["Apache-2.0"]),
        (["new", "shop", "-d", "profile"], []),
        (["new", "shop", "-d", "nothing", "="], []),
        (["demo", BACKEND[:2]], [BACKEND]),
    ],
    ids=" ".join,
)
def test_bash_completes(environ: dict[str, str], words: list[str], expected: list[str]) -> None:
    script = (
        'eval "$(scaffold --show-completion bash)"\n'
        f"COMP_WORDS=(scaffold {shlex.join(words)}); COMP_CWORD={len(words)}\n"
        '_scaffold_completion scaffold; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_other_shells_show_the_explanations_too(environ: dict[str, str]) -> None:
    words = {"_TYPER_COMPLETE_ARGS": "scaffold new shop -d backend=", "_SCAFFOLD_COMPLETE": "complete_zsh"}
    done = subprocess.run(["scaffold"], env=environ | words, capture_output=True, text=True, check=True)
    assert f'"backend={BACKEND}"' in done.stdout
    assert PROFILES[BACKEND]["summary"].split(",")[0] in done.stdout
