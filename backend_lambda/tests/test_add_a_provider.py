"""docs/add-a-provider.md is true: what it shows is all that it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import backend_lambda

PAGE = Path(__file__).parents[2] / "docs" / "add-a-provider.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(package: Path, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(package.parent), "PROVIDER": "shout"}
    command = [sys.executable, "-m", "backend_lambda", *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def test_a_provider_is_one_file_and_one_word_in_the_table(tmp_path: Path) -> None:
    package = tmp_path / "backend_lambda"
    models = shutil.ignore_patterns("*.gguf", "__pycache__")
    shutil.copytree(Path(backend_lambda.__file__).parent, package, ignore=models)
    (package / "providers" / "shout.py").write_text(blocks("python")[0])
    table = package / "providers" / "table.py"
    lines = blocks("diff")[0].splitlines()
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert (old[0], new[0]) == ("-", "+")
        text = table.read_text()
        assert text.count(old[1:] + "\n") == 1
        table.write_text(text.replace(old[1:], new[1:]))
    assert "HELLO!!" in run(package, "test")
    assert 'provider.shout.mark: "!"' in run(package, "config", "--show")
