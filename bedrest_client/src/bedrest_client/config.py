"""The client's config: what config.yaml may hold, and within which bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lambdalm.chat import ChatRequest, Count, Memory, Name
from lambdalm.credentials import read_secret

DEFAULT_FILE = Path(__file__).parent / "config.yaml"

Host = Annotated[str, Meta(pattern=r"^[^\s/@?#]+$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Prompt = Annotated[str, Meta(pattern=r"\S")]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the RESTful proxy is, and how it is asked. `timeout` in seconds, `max_tokens` of one answer.

    `memory` says whether prompts are turns of one conversation; None leaves it to the mode. (In YAML `on` is a bool.)
    """

    host: Host
    port: Port
    max_tokens: Count
    timeout: Seconds
    prompts: Annotated[tuple[Prompt, ...], Meta(min_length=1)]
    model: Name | None = None
    memory: Memory | bool | None = None
    api_key: str | None = None
    api_key_file: str | None = None

    @property
    def address(self) -> str:
        """`host:port`, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def key(self) -> str | None:
        """The API key; raises `LlmError(FAILED_PRECONDITION)` where it cannot be had."""
        return read_secret("api_key", self.api_key, self.api_key_file)

    def remembers(self, usually: bool) -> bool:
        """Whether prompts are turns of one conversation, in a mode where they usually are, or are not."""
        return usually if self.memory is None else self.memory in (True, "on")

    def request(self, prompt: str, remember: bool) -> ChatRequest:
        """A prompt as it is asked with these settings."""
        memory: Memory | None = None if remember else "off"  # a server remembers what it is not told to forget
        return ChatRequest(prompt=prompt, model=self.model, max_tokens=self.max_tokens, memory=memory)
