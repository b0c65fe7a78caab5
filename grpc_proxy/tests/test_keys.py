"""API keys: whose a key is, what the file may say, how it changes under a running proxy, and the commands for it."""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from grpc_proxy.key_commands import COMMANDS
from grpc_proxy.keys import (
    Entries,
    KeyEntry,
    KeyRing,
    KeysConfig,
    change_keys,
    key_file,
    make_ring,
    new_key,
    presented,
    read_keys,
)
from grpc_proxy.ledger import Limits
from lambdalm import logs
from lambdalm.commands import Service, service_cli
from lambdalm.errors import Code, LlmError

from .conftest import SOON, WAIT

Command = Callable[..., Result]


class Config(msgspec.Struct, frozen=True):
    """As much of the proxy's config as the commands use."""

    keys: KeysConfig = KeysConfig()


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def command(tmp_path: Path, file: Path) -> Command:
    config = tmp_path / "config.yaml"
    config.write_text(f"keys: {{file: {file}}}")
    service = Service("grpc-proxy", "", Config, config, lambda config: None, lambda config: "", [], COMMANDS)
    return lambda *words: CliRunner().invoke(service_cli(service), list(words))


def add(file: Path, name: str, *models: str, **limits: int) -> str:
    key, entry = new_key(name, models, Limits(**limits))
    change_keys(file, lambda entries: {**entries, entry.id: entry})
    return key


def only(file: Path) -> KeyEntry:
    (entry,) = read_keys(file).values()
    return entry


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def refusal(file: Path) -> LlmError:
    with pytest.raises(LlmError) as raised:
        KeyRing(file)
    assert raised.value.code is Code.FAILED_PRECONDITION
    return raised.value


def test_a_key_is_found_and_nothing_like_it_is(file: Path) -> None:
    key, other = add(file, "ada", tokens_per_day=5), add(file, "bob")
    ring = KeyRing(file)
    found = ring.find(key)
    assert found is not None
    assert (found.name, found.limits) == ("ada", Limits(tokens_per_day=5))
    swapped = "-".join([*other.split("-")[:2], key.split("-")[2]])
    wrong = [
        key[:-1],
        key + "0",
        key.upper(),
        f" {key}",
        swapped,
        "x" + key[1:],
        found.id,
        found.sha256,
        "lm--",
        "",
        "\ud800",
    ]
    assert [ring.find(text) for text in wrong] == [None] * len(wrong)


def test_the_file_has_no_secret_and_is_its_owners_alone(file: Path) -> None:
    key = add(file, "ada")
    assert re.fullmatch(r"lm-[0-9a-z]{8}-[0-9a-z]{40}", key)
    assert key.split("-")[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in file.parent.iterdir()} == {"keys.yaml", "keys.yaml.lock"}


def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    add(key_file(str(link)), "ada")
    assert link.is_symlink()
    assert only(file).name == "ada"


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"authorization": "Bearer lm-1"}, "lm-1"),
        ({"authorization": "bearer  lm-1 "}, "lm-1"),
        ({"x-api-key": "lm-2"}, "lm-2"),
        ({"authorization": "Bearer lm-1", "x-api-key": "lm-2"}, "lm-1"),
        ({"authorization": "Basic bG06MQ==", "x-api-key": "lm-2"}, "lm-2"),
        ({"authorization": "Basic bG06MQ=="}, None),
        ({"authorization": "Bearer "}, None),
        ({"x-api-key": " "}, None),
        ({}, None),
    ],
)
def test_a_key_comes_as_a_bearer_or_by_its_own_name(metadata: dict[str, str], key: str | None) -> None:
    assert presented(metadata) == key


def test_a_key_is_for_the_models_that_it_names(file: Path) -> None:
    add(file, "ada", "tiny", "large")
    entry = only(file)
    assert [entry.allows(model) for model in ("tiny", "large", "other")] == [True, True, False]
    assert msgspec.structs.replace(entry, models=None).allows("other")


def test_without_a_file_nobody_is_asked() -> None:
    assert make_ring(KeysConfig()) is None


async def test_a_revoked_key_is_refused_while_the_proxy_runs(file: Path, command: Command) -> None:
    key = add(file, "ada")
    ring = KeyRing(file, SOON)
    async with ring.followed(), asyncio.timeout(WAIT):
        assert command("key-revoke", only(file).id).exit_code == 0
        while ring.find(key) is not None:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)


async def test_callers_are_known_while_the_file_is_read(file: Path) -> None:
    key = add(file, "ada")
    ring = KeyRing(file, SOON)
    async with ring.followed(), asyncio.timeout(WAIT):
        text = becomes_pipe(file)
        writes = await asyncio.to_thread(file.open, "w")  # once it is being read
        await asyncio.to_thread(file.unlink)
        assert known(ring, key).name == "ada"
        writes.write(text.replace("name: ada", "name: eve"))
        writes.close()
        while known(ring, key).name != "eve":  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)


def becomes_pipe(file: Path) -> str:
    """What was in the file, which is a pipe now: to open it waits for the other side."""
    text = file.read_text()
    file.unlink()
    os.mkfifo(file)
    return text


def known(ring: KeyRing, key: str) -> KeyEntry:
    found = ring.find(key)
    assert found is not None
    return found


def test_an_edit_by_hand_counts(file: Path) -> None:
    key = add(file, "ada", tokens_per_day=5)
    ring = KeyRing(file)
    edit(file, "tokens_per_day: 5", "tokens_per_day: 50")
    ring.look()
    assert known(ring, key).limits == Limits(tokens_per_day=50)


@pytest.mark.parametrize("damage", ["edited", "deleted"])
def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_is_complained_of_once(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = add(file, "ada", tokens_per_day=5)
    ring = KeyRing(file)
    good = file.read_text()
    if damage == "edited":
        edit(file, "tokens_per_day: 5", "tokens_per_day: five")
    else:
        file.unlink()
    for _ in range(3):
        ring.look()
        assert ring.find(key) is not None
    (record,) = caplog.records
    assert ("line 3, the key 'ada'" if damage == "edited" else "cannot be read: No such file") in record.getMessage()
    file.write_text(good.replace("name: ada", "name: eve!"))
    ring.look()
    assert known(ring, key).name == "eve!"


def test_a_file_that_is_not_there_at_the_start_stops_it(file: Path) -> None:
    why = f"keys.file: {file}: cannot be read: No such file or directory; `grpc-proxy key-create NAME` makes it"
    assert refusal(file).message == why


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("limits:", "limit:", "line 3, the key 'ada': Object contains unknown field `limit`"),
        ("tokens_per_day: 5", "tokens_per_day: 0", "Expected `int` >= 1 - at `$.limits.tokens_per_day`"),
        ("tokens_per_day", "tokens_per_week", "unknown field `tokens_per_week` - at `$.limits`"),
        ("name: ada", "name: 'a\tb'", "line 3, the key 'a\\tb': Expected `str` matching regex"),
        ("sha256: ", "sha256: X", "Expected `str` matching regex"),
        ("created: 2", "created: 2026-13-01 # 2", "line 3: month must be in 1..12"),
        ("  name", "  - name", "is not YAML"),
        ("  name", "  \x01name", "is not YAML: unacceptable character #x0001"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(file: Path, old: str, new: str, why: str) -> None:
    add(file, "ada", tokens_per_day=5)
    edit(file, old, new)
    assert why in refusal(file).message


def test_a_file_of_something_else_is_refused(file: Path) -> None:
    file.write_text("keys: []")
    assert refusal(file).message.endswith("line 1: must be a list of keys, each with `- id: …`")


def test_an_id_that_is_there_twice_is_refused(file: Path) -> None:
    add(file, "ada")
    entry = file.read_text()[file.read_text().index("- id") :]
    file.write_text(entry + entry)
    assert "is there twice" in refusal(file).message


def test_commands_at_once_lose_nothing_and_readers_never_see_half_a_file(file: Path) -> None:
    add(file, "first")

    def reads(_: int) -> int:
        return min(len(read_keys(file)) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        reading = pool.map(reads, range(2))
        keys = list(pool.map(lambda number: add(file, f"n{number}"), range(40)))
        assert min(reading) >= 1
    ring = KeyRing(file)
    assert all(ring.find(key) for key in keys)
    assert len(read_keys(file)) == 41


def test_a_change_that_fails_leaves_the_file_as_it_was(file: Path) -> None:
    add(file, "ada")
    before = file.read_bytes()

    def spoil(entries: Entries) -> Entries:
        return {entry.id: msgspec.structs.replace(entry, name="x" * 65) for entry in entries.values()}

    with pytest.raises(LlmError, match="line 3"):
        change_keys(file, spoil)
    assert file.read_bytes() == before


def test_a_disk_that_is_full_leaves_the_file_as_it_was_and_no_other_beside_it(file: Path) -> None:
    add(file, "ada")
    before, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            add(file, "bob")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir()} == {"keys.yaml", "keys.yaml.lock"}


def test_key_create_prints_the_key_alone_and_key_revoke_ends_it(file: Path, command: Command) -> None:
    made = command("key-create", "ada", "--requests-per-minute", "60", "--model", "a", "--model", "b")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert key not in made.stderr
    found = KeyRing(file).find(key)
    assert found is not None
    assert (found.models, found.limits) == (("a", "b"), Limits(requests_per_minute=60))
    assert "is revoked" in command("key-revoke", found.id).stdout
    assert KeyRing(file).find(key) is None


def test_a_key_that_is_revoked_twice_keeps_its_date(file: Path, command: Command) -> None:
    add(file, "ada")
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    entry = msgspec.structs.replace(only(file), revoked=then)
    change_keys(file, lambda entries: {entry.id: entry})
    assert command("key-revoke", entry.id).exit_code == 0
    assert only(file).revoked == then


def test_keys_are_listed_without_their_secrets(file: Path, command: Command) -> None:
    key = command(
        "key-create", "ada λ", "--tokens-per-day", "1000", "--max-in-flight", "2", "--model", "a"
    ).stdout.strip()
    command("key-create", "bob")
    head, first, second = command("keys").stdout.splitlines()
    entry = next(iter(read_keys(file).values()))
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    assert head.split() == ["id", "name", "created", "revoked", "limits"]
    assert first.startswith(f"{entry.id}  ada λ  {today}")
    assert first.endswith("tokens_per_day 1000, max_in_flight 2, models a")
    assert second.endswith("none")
    assert key.split("-")[2] not in first
    assert entry.sha256 not in first


def test_a_name_is_free_again_when_its_key_is_revoked(file: Path, command: Command) -> None:
    command("key-create", "ada")
    again = command("key-create", "ada")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "there is a key named ada already" in again.stderr
    command("key-revoke", only(file).id)
    assert command("key-create", "ada").exit_code == 0
    assert len(read_keys(file)) == 2


def test_commands_say_what_is_wrong(command: Command, tmp_path: Path) -> None:
    assert "no key with the id 00000000" in command("key-revoke", "00000000").stderr
    assert "cannot be read" in command("keys").stderr
    assert command("key-create", "ada", "--tokens-per-day", "0").exit_code == 2
    assert "Expected `str` matching regex" in command("key-create", "a\nb").stderr
    (tmp_path / "config.yaml").write_text("keys: {}")
    for words in (["key-create", "ada"], ["keys"], ["key-revoke", "00000000"]):
        failed = command(*words)
        assert failed.exit_code == 1
        assert "set keys.file in the config, or API_KEYS_FILE" in failed.stderr


def test_the_file_can_be_read_by_people(file: Path) -> None:
    add(file, "ada λ", "tiny", tokens_per_day=5)
    entry = only(file)
    shown: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert shown == [
        {
            "id": entry.id,
            "name": "ada λ",
            "sha256": entry.sha256,
            "created": entry.created,
            "models": ["tiny"],
            "limits": {"tokens_per_day": 5},
        }
    ]
    assert "name: ada λ\n" in file.read_text(encoding="utf-8")
