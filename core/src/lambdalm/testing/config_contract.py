"""What every service's config.yaml is held to: it is the reference, it is complete, and nonsense stops the start.

class TestConfig(ConfigContract):
    command, kind = main, Config
    bare = {"listen": {"host": "127.0.0.1", "port": 8080}}
    environment = [("LLM_PORT", "1234", "listen.port", 1234), …]
    nonsense = [("port: 8080", "port: eighty", "listen.port"), …]
    nonsense_environment = [("LLM_PORT", "x", "listen.port")]
"""

from __future__ import annotations

import re
import socket
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import click
import msgspec
import yaml
from click.testing import CliRunner, Result

from lambdalm.config import load


class ConfigContract:
    """Tests to inherit. `bare` has the keys without a default in the code; `environment` has (name, value, key, what
    the key becomes), a row for each key that the name sets; `company` the variables without which a name makes no
    sense; `nonsense` (a text in the file, what replaces it, the key that the refusal names)."""

    command: click.Group
    kind: type[msgspec.Struct]
    bare: dict[str, Any]
    environment: list[tuple[str, str, str, Any]]
    company: ClassVar[dict[str, dict[str, str]]] = {}
    nonsense: list[tuple[str, str, str]]
    nonsense_environment: list[tuple[str, str, str]]

    @property
    def file(self) -> Path:
        serve = self.command.commands["serve"]
        return next(Path(str(option.default)) for option in serve.params if option.name == "file")

    @property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    def run(self, *arguments: str, **environ: str) -> Result:
        """The command, with none of its variables set but these."""
        env: dict[str, str | None] = {name: None for name, *_ in self.environment}
        return CliRunner().invoke(self.command, arguments, env=env | environ)

    def serve(self, file: Path, **environ: str) -> Result:
        """On a port that is taken, in case that it does start."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return self.run("serve", "--config", str(file), "--port", str(taken.getsockname()[1]), **environ)

    def is_refused(self, ran: Result, *named: str) -> None:
        assert ran.exit_code == 2, ran.output
        lines = ran.output.splitlines()
        assert len(lines) == 1, lines
        for name in named:
            assert name in lines[0]

    def test_the_file_has_every_key_and_no_other(self) -> None:
        schema = msgspec.to_builtins(load(self.kind, self.file, {}, environ={}).value)
        assert _keys(yaml.safe_load(self.text)) == _keys(schema)

    def test_the_defaults_in_the_file_are_those_of_the_code(self) -> None:
        assert load(self.kind, self.file, {}, environ={}).value == msgspec.convert(self.bare, self.kind)

    def test_an_environment_variable_sets_its_key_and_config_says_so(self) -> None:
        for name, given, key, value in self.environment:
            company = self.company.get(name, {})
            loaded = load(self.kind, self.file, {}, environ={name: given} | company)
            found = reduce(lambda tree, part: tree[part], key.split("."), msgspec.to_builtins(loaded.value))
            assert (name, key, found) == (name, key, value)
            keys = [row[2] for row in self.environment if row[0] == name]
            sources = {key: source for key, source in loaded.sources.items() if source.split()[-1] not in company}
            assert sources == dict.fromkeys(keys, f"environment {name}")

    def test_the_file_names_no_other_variables(self) -> None:
        named = set(re.findall(r"\$\{([A-Z0-9_]+)", str(yaml.safe_load(self.text))))
        assert named == {name for name, *_ in self.environment}

    def test_a_file_that_makes_no_sense_stops_the_start_with_a_line_that_names_file_and_key(
        self, tmp_path: Path
    ) -> None:
        common = [("log:", "colour: red\nlog:", "colour"), ("${LOG_LEVEL:-INFO}", "LOUD", "log.level")]
        for old, new, key in common + self.nonsense:
            assert old in self.text
            file = tmp_path / "config.yaml"
            file.write_text(self.text.replace(old, new, 1), encoding="utf-8")
            self.is_refused(self.serve(file), str(file), key)

    def test_nonsense_in_the_environment_stops_the_start_with_a_line_that_names_the_variable(self) -> None:
        for name, given, key in self.nonsense_environment:
            self.is_refused(self.serve(self.file, **{name: given}), key, name)

    def test_a_missing_file_stops_the_start(self) -> None:
        self.is_refused(self.serve(Path("no/such/file.yaml")), "no/such/file.yaml: cannot be read")

    def test_a_taken_port_stops_the_start_with_a_line_that_names_it(self) -> None:
        ran = self.serve(self.file)
        assert ran.exit_code == 1
        assert "cannot listen on 127.0.0.1:" in ran.output.splitlines()[-1]

    def test_config_shows_every_value_and_where_it_came_from(self) -> None:
        name, given, key, _ = next(row for row in self.environment if row[0] != "PORT" and row[2] != "listen.port")
        ran = self.run("config", "--show", "--port", "1", **{name: given})
        assert ran.exit_code == 0
        lines = {line.partition(":")[0]: line for line in ran.output.splitlines()}
        assert lines["listen.port"].split() == ["listen.port:", "1", "#", "flag", "--port"]
        assert lines[key].endswith(f"# environment {name}")
        assert lines["log.format"].split()[1:] == ['"console"', "#", "file"]
        assert len(lines) == len(re.findall(r"^ *\w+: +[^\s#]", self.text, re.MULTILINE))


def _keys(tree: Any) -> Any:
    return {name: _keys(value) for name, value in tree.items()} if isinstance(tree, dict) else None
