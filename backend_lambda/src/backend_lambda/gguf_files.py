"""Where a model's file is: `builtin`, a path, or a file of the Hugging Face hub, which is downloaded once.

    hf://owner/repo/file.gguf               as it is now
    hf://owner/repo/file.gguf@revision      a branch, tag or commit

The download, its cache and its settings (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) are huggingface_hub's, which
is imported only for such a model. Each time it asks the hub whether the file is still the same; where the hub cannot be
reached, the file in the cache is good enough.
"""

from __future__ import annotations

import io
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from lambdalm import logs
from lambdalm.errors import Code, LlmError

BUILTIN = "lambdalm-demo"
BUILTIN_FILE = Path(__file__).parent / "models" / f"{BUILTIN}.gguf"

_SCHEME = "hf://"
_HUB_FILE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+\.gguf)(@(?P<revision>.+))?")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_LOG_SECONDS = 5.0
_MIB = 2**20
_MOST_SAID = 120  # characters of the library's own words, so that there is room for ours
_OTHER_WAYS = "MODEL_PATH can also be the path of a GGUF file, or `builtin`"


class HubFile(NamedTuple):
    """A file on the hub; `revision` None is the newest."""

    repo: str
    file: str
    revision: str | None = None

    def parts(self) -> list[str]:
        """All files of the model: one that is split is downloaded whole, and the engine is given the first."""
        part = _PART.search(self.file)
        if part is None:
            return [self.file]
        stem, count = self.file[: part.start()], part[2]
        return [f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def hub_file(reference: str) -> HubFile | None:
    """What an `hf://` reference names, None for anything else; raises `LlmError(FAILED_PRECONDITION)` for a bad one."""
    if not reference.startswith(_SCHEME):
        return None
    match = _HUB_FILE.fullmatch(reference)
    if match is None:
        raise _failure(f"{reference} does not name a model: write hf://owner/repo/file.gguf, with @revision if need be")
    return HubFile(match["repo"], match["file"], match["revision"])


def locate(model_path: str) -> Path:
    """The file to load, downloaded if need be; the log says how that goes. Raises LlmError."""
    if model_path == "builtin":
        return BUILTIN_FILE
    wanted = hub_file(model_path)
    return Path(model_path).expanduser() if wanted is None else download(wanted, bar=False)


def download(wanted: HubFile, bar: bool) -> Path:
    """The file's place in the cache, downloaded if need be; how that goes is told by a bar on stderr or by the log."""
    try:
        from huggingface_hub.utils import logging as hub_logging
    except ImportError:
        raise _failure(f"{_SCHEME} needs the package huggingface_hub: pip install huggingface_hub") from None
    hub_logging.get_logger().handlers.clear()  # what it says is in our log, too
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells every request
    try:
        places = [_download(wanted, file, bar) for file in wanted.parts()]
    except Exception as error:  # noqa: BLE001  # the library's edge: its errors and its HTTP client's have no common base
        raise _failure(_why(error, wanted)) from None
    return Path(places[0])


def _download(wanted: HubFile, file: str, bar: bool) -> str:
    """Ask whether the file is there, once: to download what is not there, the library tries for half a minute."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    revision = wanted.revision
    try:
        get_hf_file_metadata(hf_hub_url(wanted.repo, file, revision=revision))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
        raise
    except Exception:
        cached = try_to_load_from_cache(wanted.repo, file, revision=revision)
        if not isinstance(cached, str):
            raise
        logs.get(__name__).warning("the hub cannot be reached: taking the file that was downloaded before", file=file)
        return cached
    return hf_hub_download(wanted.repo, file, revision=revision, tqdm_class=None if bar else _log_bar(file))


def _why(error: Exception, wanted: HubFile) -> str:
    """What went wrong and what can be done about it."""
    from huggingface_hub import errors

    repo, file, revision = wanted
    hub = re.sub(r"//[^/]*@", "//", os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} on {hub} is open only to those who have accepted its terms: do so there, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {repo}, or none that HF_TOKEN may see"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} on {hub} has no revision {revision}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} on {hub} has no file {file} (revision {revision or 'main'})"
    said = str(error).strip().partition("\n")[0][:_MOST_SAID] or type(error).__name__
    return f"{repo}/{file} cannot be had from {hub} ({said}), nor is it in the cache"


def _failure(why: str) -> LlmError:
    return LlmError(Code.FAILED_PRECONDITION, f"{why.rstrip('.')}. {_OTHER_WAYS}", origin="llamacpp")


def _log_bar(file: str) -> type[Any]:
    """huggingface_hub's progress bar, as lines in the log: the first, one every few seconds, and the last."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    log = logs.get(__name__)

    class LogBar(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # for groups of bars that can be switched off
            kwargs |= {"disable": False, "mininterval": _LOG_SECONDS, "file": io.StringIO()}
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            of = f" of {self.total / _MIB:.1f}" if self.total else ""
            log.info("downloading", file=file, mib=f"{self.n / _MIB:.1f}{of}")
            return True

    return LogBar
