from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from lambdalm.config import ConfigError, Loaded, expand, load, show


class Provider(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str = "llamacpp"
    api_key: str | None = None
    slots: Annotated[int, Meta(ge=1, le=64)] = 4


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    port: Annotated[int, Meta(ge=0, le=65535)] = 80
    verbose: bool = False
    seconds: float | None = None
    hosts: tuple[str, ...] = ()
    provider: Provider = Provider()


class Read:
    """Loads what a test writes."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, text: str, flags: dict[str, Any] | None = None, **environ: str) -> Loaded[Config]:
        self.file.write_text(text, encoding="utf-8")
        return load(Config, self.file, flags or {}, environ)

    def error(self, text: str, flags: dict[str, Any] | None = None, **environ: str) -> str:
        """Why it cannot be loaded: one line that starts with the file."""
        with pytest.raises(ConfigError) as caught:
            self(text, flags, **environ)
        message = str(caught.value)
        assert message.startswith(f"{self.file}: ")
        assert len(message.splitlines()) == 1
        return message.removeprefix(f"{self.file}: ")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path / "config.yaml")


def expanded(text: str, **environ: str) -> str:
    return expand(text, environ, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("$A {A} $", "$A {A} $"),
        ("${A}", "a"),
        ("<${A}-${B}>", "<a-b>"),
        ("${A:-x}", "a"),
        ("${NO:-x}", "x"),
        ("${NO:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${NO:-${A}}", "a"),
        ("${NO:-${NO_TWO:-${B}}}", "b"),
        ("${NO:-${NO_TWO:-deep}}!", "deep!"),
        ("${NO:-http://${A}:${PORT:-80}/}", "http://a:80/"),
        ("${NO:-a:-b}", "a:-b"),
        ("${A:-${MISSING}}", "a"),
    ],
)
def test_variables_are_expanded_with_nested_defaults(text: str, value: str) -> None:
    assert expanded(text, A="a", B="b", EMPTY="") == value


def test_a_value_from_the_environment_is_not_expanded_again() -> None:
    assert expanded("${A}", A="${B}", B="b") == "${B}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${NO}", "NO is not set"),
        ("${EMPTY}", "EMPTY is not set"),
        ("${NO:-${NO_TWO}}", "NO_TWO is not set"),
        ("a ${A", "`${A` lacks its closing brace"),
        ("${A:-${B}", "lacks its closing brace"),
        ("${}", "does not name"),
        ("${1}", "does not name"),
        ("${A-x}", "does not name"),
        ("${A B}", "does not name"),
    ],
)
def test_what_cannot_be_expanded_is_an_error(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("$", r"\$").replace("{", r"\{")):
        expanded(text, A="a", EMPTY="")


def test_the_variables_that_counted_are_told() -> None:
    used: list[str] = []
    expand("${A} ${NO:-${B}} ${C:-${D}}", {"A": "a", "B": "b", "C": "c", "D": "d"}, used)
    assert used == ["A", "B", "C"]


@given(st.text())
def test_any_text_expands_or_is_a_value_error(text: str) -> None:
    try:
        expand(text, {}, [])
    except ValueError as error:
        why = str(error)
    else:
        why = "${"
    assert "${" in why or "not set" in why


def test_a_file_becomes_a_config(read: Read) -> None:
    text = "name: λ\nport: 8080\nverbose: true\nseconds: 0.5\nhosts: [a, b]\nprovider: {kind: x, slots: 2}\n"
    assert read(text).value == Config("λ", 8080, True, 0.5, ("a", "b"), Provider("x", None, 2))


def test_values_of_the_environment_are_converted_to_the_keys_type(read: Read) -> None:
    text = "name: ${NAME}\nport: ${PORT}\nverbose: ${VERBOSE}\nseconds: ${SECONDS}\nhosts: [x, '${HOST}']\n"
    loaded = read(text, NAME="007", PORT="8080", VERBOSE="true", SECONDS="1.5", HOST="h")
    assert loaded.value == Config("007", 8080, True, 1.5, ("x", "h"))


def test_an_optional_value_without_its_variable_is_null(read: Read) -> None:
    assert read("name: x\nseconds: ${SECONDS:-}\nprovider: {api_key: '${API_KEY:-}'}").value == Config("x")


@given(value=st.text(min_size=1))
def test_a_value_of_the_environment_cannot_change_the_files_structure(
    value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "structure.yaml"
    file.write_text("name: ${NAME}\nport: 1\nprovider:\n  kind: '${NAME}'\n")
    assert load(Config, file, {}, {"NAME": value}).value == Config(value, 1, provider=Provider(value))


@pytest.mark.parametrize("value", ["x\nport: 2", "{a: b}", "[1]", "x # y", "*alias", "!!int 3", "'", '"', "- x"])
def test_yaml_in_the_environment_is_text(read: Read, value: str) -> None:
    assert read("name: ${NAME}\nport: 1", NAME=value).value == Config(value, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Object missing required field `name`"),
        ("port: 1", "Object missing required field `name`"),
        ("name: x\nprot: 1", "Object contains unknown field `prot`"),
        ("name: x\nprovider: {slot: 1}", "provider: Object contains unknown field `slot`"),
        ("name: x\nport: yes", "port: Expected `int`, got `bool`"),
        ("name: x\nport: x", "port: Expected `int`, got `str`"),
        ("name: x\nport: 65536", "port: Expected `int` <= 65535"),
        ("name: x\nport: 2026-01-01", "port: Expected `int`"),
        ("name: 7", "name: Expected `str`, got `int`"),
        ("name: x\nprovider: {slots: 0}", "provider.slots: Expected `int` >= 1"),
        ("name: x\nprovider: 7", "provider: Expected `object`"),
        ("name: x\nhosts: [a, 7]", "hosts[1]: Expected `str`"),
        ("name: x\nhosts: a", "hosts: Expected `array`"),
        ("name: ${NO}", "name: the environment variable NO is not set"),
        ("name: x\nhosts: [a, '${NO}']", "hosts[1]: the environment variable NO is not set"),
        ("name: x\nprovider: {kind: '${A'}", "provider.kind: `${A` lacks its closing brace"),
        ("- name", "must hold keys and values"),
        ("7", "must hold keys and values"),
        ("name: [", "is not YAML"),
        ("name: x\n\tport: 1", "is not YAML"),
        ("name: !!python/object:os.system x", "is not YAML"),
        ("name: *nobody", "is not YAML"),
        ("name: \x00", "is not YAML"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_says_where_and_why(read: Read, text: str, why: str) -> None:
    assert read.error(text).startswith(why)


def test_an_error_in_a_value_of_the_environment_names_the_variable(read: Read) -> None:
    assert read.error("name: x\nport: ${PORT:-80}", PORT="no") == (
        "port: Expected `int`, got `str` (from environment PORT)"
    )


def test_an_error_in_a_flag_names_the_flag(read: Read) -> None:
    assert read.error("name: x", {"provider.slots": 99}) == "provider.slots: Expected `int` <= 64 (from flag --slots)"


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        load(Config, tmp_path / "gone.yaml", {})


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(Config, tmp_path, {})


def test_bytes_that_are_not_utf_8_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(Config, file, {})


def test_a_flag_beats_the_environment_beats_the_file(read: Read) -> None:
    text = "name: ${NAME:-from-file}"
    assert read(text).value.name == "from-file"
    assert read(text, NAME="from-environment").value.name == "from-environment"
    assert read(text, {"name": "from-flag"}, NAME="from-environment").value.name == "from-flag"


def test_a_flag_may_set_a_key_that_the_file_lacks(read: Read) -> None:
    assert read("name: x", {"provider.kind": "scripted", "port": 0}).value == Config(
        "x", 0, provider=Provider("scripted")
    )


def test_a_flag_leaves_the_keys_beside_it(read: Read) -> None:
    assert read("name: x\nprovider: {slots: 2}", {"provider.kind": "y"}).value.provider == Provider("y", None, 2)


def test_a_flag_may_set_a_key_of_a_part_that_the_file_leaves_empty(read: Read) -> None:
    assert read("name: x\nprovider:\n", {"provider.kind": "y"}).value.provider == Provider("y")


def test_a_flag_in_a_part_that_is_none_is_an_error(read: Read) -> None:
    assert read.error("name: x\nprovider: llamacpp\n", {"provider.kind": "y"}).startswith("provider")


def test_sources_say_where_values_came_from(read: Read) -> None:
    text = "name: ${NAME}\nport: ${PORT:-80}\nhosts: [a, '${B}']\nprovider: {kind: '${K:-${L}}'}"
    loaded = read(text, {"provider.slots": 2}, NAME="x", B="b", L="l")
    assert loaded.sources == {
        "name": "environment NAME",
        "hosts[1]": "environment B",
        "provider.kind": "environment L",
        "provider.slots": "flag --slots",
    }


def test_show_has_a_line_for_each_key_with_its_source(read: Read) -> None:
    text = "name: ${NAME}\nhosts: [a, '${B}']\nprovider: {kind: x}"
    shown = show(read(text, {"port": 8080}, NAME="λ", B="b"))
    assert [[part.strip() for part in line.split("# ")] for line in shown.splitlines()] == [
        ['name: "λ"', "environment NAME"],
        ["port: 8080", "flag --port"],
        ["verbose: false", "file"],
        ["seconds: null", "file"],
        ['hosts[0]: "a"', "file"],
        ['hosts[1]: "b"', "environment B"],
        ['provider.kind: "x"', "file"],
        ["provider.api_key: null", "file"],
        ["provider.slots: 4", "file"],
    ]


def test_show_masks_secrets(read: Read) -> None:
    shown = show(read("name: x\nprovider: {api_key: '${API_KEY}'}", API_KEY="sk-very-secret"))
    assert "sk-very-secret" not in shown
    assert "provider.api_key: ********" in shown
    assert "# environment API_KEY" in shown


class Client(Struct, frozen=True):
    name: str
    key: str


class Clients(Struct, frozen=True):
    clients: tuple[Client, ...] = ()


def test_show_masks_secrets_in_lists_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("clients: [{name: alice, key: s3cret}]")
    shown = show(load(Clients, file, {}))
    assert "alice" in shown
    assert "s3cret" not in shown
