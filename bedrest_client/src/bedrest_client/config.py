"""The client's config: what config.yaml may hold, and within which bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lambdalm.chat import ChatRequest, Count, Name

DEFAULT_FILE = Path(__file__).parent / "config.yaml"

Host = Annotated[str, Meta(pattern=r"^[^\s/@?#]+$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Prompt = Annotated[str, Meta(pattern=r"\S")]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the RESTful proxy is, and how it is asked. `timeout` in seconds, `max_tokens` of one answer."""

    host: Host
    port: Port
    max_tokens: Count
    timeout: Seconds
    prompts: Annotated[tuple[Prompt, ...], Meta(min_length=1)]
    model: Name | None = None

    @property
    def address(self) -> str:
        """`host:port`, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(self, prompt: str) -> ChatRequest:
        """A prompt as it is asked with these settings."""
        return ChatRequest(prompt=prompt, model=self.model, max_tokens=self.max_tokens)
