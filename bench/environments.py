"""Python environments beside this one, each made once, in `.bench`: an old commit's, and those of foreign programs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from bench import report

ROOT = Path(__file__).resolve().parent.parent
_CACHE = ROOT / ".bench"


def of_commit(commit: str) -> Path:
    """The interpreter that runs the hops as they were at `commit`: in a git worktree with an environment of its own.

    Raises CalledProcessError for a commit that this repository does not have, and when the set-up fails.
    """
    commit_id = _git("rev-parse", "--verify", f"{commit}^{{commit}}")
    worktree = _CACHE / commit_id[:12]
    if not worktree.exists():
        report.progress(f"making a worktree of {commit_id[:12]} in {worktree}")
        _git("worktree", "add", "--force", "--detach", str(worktree), commit_id)
    # make knows what is done already. The environment is of the interpreter that runs this: both sides have the same.
    make = ["make", "--silent", ".venv/run.done", f"PYTHON={sys.executable}"]
    subprocess.run(make, cwd=worktree, check=True, env=_own())
    return worktree / ".venv" / "bin" / "python"


def of_requirements(name: str) -> Path:
    """The folder of the programs that `requirements/NAME.txt` installs.

    Raises CalledProcessError when that fails: it needs a package index.
    """
    requirements = ROOT / "requirements" / f"{name}.txt"
    folder = _CACHE / f"{name}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    done = folder / "done"
    if not done.exists():
        report.progress(f"installing {requirements} in {folder} (once; a minute or two)")
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, "--require-hashes", "-r", requirements], check=True, env=_own())
        done.touch()
    return folder / "bin"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _own() -> dict[str, str]:
    """The environment without what would lead to this one's sources, or make to its parent's options."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS", "MFLAGS")}
