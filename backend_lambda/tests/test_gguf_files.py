"""Models of the Hugging Face hub, from a fake one: by the real command, as the library reads its environment once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend_lambda.gguf_files import BUILTIN_FILE, HubFile, download, hub_file, locate
from lambdalm.errors import Code, LlmError
from lambdalm.testing.chain import free_ports
from lambdalm.testing.fake_http import Asked
from lambdalm.testing.fake_hub import COMMIT, FakeHub, first_byte

from .conftest import WAIT, running_backend

REPO = "acme/Tiny-1.5B"
FILE = "tiny.Q8_0.gguf"
PIECE = 10 * 2**20  # bytes that huggingface_hub writes at a time
URL = f"hf://{REPO}/{FILE}"
OTHER_WAYS = "MODEL_PATH can also be the path of a GGUF file, or `builtin`"

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / REPO
    folder.mkdir(parents=True)
    shutil.copy(BUILTIN_FILE, folder / FILE)
    return tmp_path / "models"


@pytest.fixture
def hub(root: Path) -> Iterator[FakeHub]:
    with FakeHub(root) as running:
        yield running


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs backend-lambda with a cache of the test's own."""

    def run(hub: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backend_lambda", *arguments],
            env=_environ(tmp_path, hub) | environ,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )

    return run


def _environ(tmp_path: Path, hub: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return bare | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub}


def gets(hub: FakeHub) -> list[Asked]:
    """The requests that have got a file's bytes."""
    return [asked for asked in hub.asked if asked.method == "GET" and asked.path.endswith(".gguf")]


def failure(ran: subprocess.CompletedProcess[str]) -> str:
    assert (ran.returncode, ran.stdout) == (1, "")
    *_, last = ran.stderr.splitlines()
    assert OTHER_WAYS in last
    assert last.endswith(f"{OTHER_WAYS} (FAILED_PRECONDITION)"), "it was cut"
    assert "Traceback" not in ran.stderr
    return last


def test_a_file_is_downloaded_once_and_its_place_is_printed(hub: FakeHub, command: Command) -> None:
    first, second = command(hub.url, "download", URL), command(hub.url, "download", URL)
    assert Path(first.stdout.rstrip()).read_bytes() == BUILTIN_FILE.read_bytes()
    assert second.stdout == first.stdout
    assert len(gets(hub)) == 1


def test_without_a_terminal_the_progress_is_lines(hub: FakeHub, command: Command) -> None:
    lines = command(hub.url, "download", URL).stderr.splitlines()
    assert [("downloading" in line, FILE in line, "of 1.8" in line) for line in lines] == [(True, True, True)] * 2


def test_a_revision_is_asked_for_by_its_name(hub: FakeHub, command: Command) -> None:
    assert command(hub.url, "download", f"{URL}@{COMMIT}").returncode == 0
    assert f"/resolve/{COMMIT}/" in gets(hub)[0].path


def test_a_download_that_breaks_off_goes_on_where_it_was(root: Path, command: Command) -> None:
    pieces = [bytes([number]) * PIECE for number in range(3)]
    (root / REPO / "large.gguf").write_bytes(b"".join(pieces))
    with FakeHub(root, cut_after=2 * PIECE - 1) as hub:
        ran = command(hub.url, "download", f"hf://{REPO}/large.gguf")
    assert [first_byte(asked) for asked in gets(hub)] == [0, PIECE]
    assert Path(ran.stdout.rstrip()).read_bytes() == b"".join(pieces)


def test_a_model_that_is_split_is_downloaded_whole_and_begins_with_its_first_file(
    root: Path, hub: FakeHub, command: Command
) -> None:
    for number in (1, 2):
        (root / REPO / f"big-0000{number}-of-00002.gguf").write_bytes(b"GGUF%d" % number)
    first = Path(command(hub.url, "download", f"hf://{REPO}/big-00001-of-00002.gguf").stdout.rstrip())
    assert first.name == "big-00001-of-00002.gguf"
    assert [file.read_bytes() for file in sorted(first.parent.iterdir())] == [b"GGUF1", b"GGUF2"]


def test_a_server_with_a_model_of_the_hub_downloads_it_and_says_so_in_its_log(hub: FakeHub, tmp_path: Path) -> None:
    environ = _environ(tmp_path, hub.url) | {"PROVIDER": "llamacpp", "MODEL_PATH": URL}
    with running_backend(**environ) as chain, urllib.request.urlopen(f"{chain.backend_url}/health") as answer:
        assert b'"model":"tiny.Q8_0"' in answer.read()
        assert [line for line in chain.hops["backend"].tail if "downloading" in line and FILE in line]


def test_the_flag_model_takes_one_too(hub: FakeHub, command: Command) -> None:
    ran = command(hub.url, "test", "--model", URL)
    assert ran.returncode == 0, ran.stderr
    assert "tiny.Q8_0" in ran.stdout
    assert "device='CPU" in ran.stderr, "the log says where it runs"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"hf://acme/none/{FILE}", "has no repository acme/none"),
        (f"hf://{REPO}/none.gguf", f"{REPO} on http://127.0.0.1:[0-9]+ has no file none.gguf"),
        (f"{URL}@v9", "has no revision v9"),
    ],
)
def test_what_the_hub_does_not_have_is_named_with_the_other_ways(
    hub: FakeHub, command: Command, url: str, said: str
) -> None:
    assert re.search(said, failure(command(hub.url, "test", MODEL_PATH=url)))


def test_without_the_hub_the_file_that_was_downloaded_is_good_enough(root: Path, command: Command) -> None:
    with FakeHub(root) as hub:
        before = command(hub.url, "download", URL)
    after = command(hub.url, "download", URL)
    assert after.stdout == before.stdout
    assert "cannot be reached: taking the file that was downloaded before" in after.stderr


def test_without_the_hub_and_the_file_the_start_fails_at_once_and_names_the_other_ways(command: Command) -> None:
    nowhere = f"http://127.0.0.1:{free_ports().backend}"
    said = failure(command(nowhere, "test", MODEL_PATH=URL))
    assert f"{REPO}/{FILE} cannot be had from {nowhere} ([Errno 111] Connection refused)" in said


def test_the_setting_offline_asks_nobody(hub: FakeHub, command: Command) -> None:
    assert "offline mode" in failure(command(hub.url, "test", MODEL_PATH=URL, HF_HUB_OFFLINE="1"))
    assert hub.asked == []


def test_a_repository_with_terms_wants_a_token_which_is_never_shown(root: Path, command: Command) -> None:
    with FakeHub(root, token="hf_right") as hub:
        assert "set HF_TOKEN" in failure(command(hub.url, "download", URL))
        refused = command(hub.url, "download", URL, HF_TOKEN="hf_wrong")
        assert "hf_wrong" not in failure(refused) + refused.stderr
        assert command(hub.url, "download", URL, HF_TOKEN="hf_right").returncode == 0


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("hf://a/b/c.gguf", HubFile("a/b", "c.gguf")),
        ("hf://a/b/sub/c.gguf", HubFile("a/b", "sub/c.gguf")),
        ("hf://a/b/c.gguf@refs/pr/1", HubFile("a/b", "c.gguf", "refs/pr/1")),
        ("builtin", None),
        ("hf/a/b/c.gguf", None),
    ],
)
def test_a_reference_names_owner_repository_file_and_revision(reference: str, named: HubFile | None) -> None:
    assert hub_file(reference) == named


@pytest.mark.parametrize(
    "reference", ["hf://", "hf://a/c.gguf", "hf://a/b/c.bin", "hf://a/b/c.gguf@", "hf://a b/c/d.gguf"]
)
def test_a_reference_that_names_nothing_is_a_failed_precondition(reference: str) -> None:
    with pytest.raises(LlmError, match=r"write hf://owner/repo/file\.gguf") as raised:
        locate(reference)
    assert raised.value.code is Code.FAILED_PRECONDITION


def test_a_path_is_a_path_and_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lambda")
    assert locate("~/x.gguf") == Path("/home/lambda/x.gguf")
    assert locate("builtin") == BUILTIN_FILE


def test_huggingface_hub_is_imported_only_for_its_models() -> None:
    look = "import sys, backend_lambda.__main__; sys.exit('huggingface_hub' in sys.modules or 'tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], timeout=WAIT).returncode == 0


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub", "huggingface_hub.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LlmError, match="pip install huggingface_hub") as raised:
        download(HubFile(REPO, FILE), bar=False)
    assert OTHER_WAYS in raised.value.message
