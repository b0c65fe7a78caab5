"""Amazon Bedrock, through boto3: any of its models by Converse, and Titan Text by its own format.

Credentials are found as every AWS tool finds them (environment, profile, role), or are Bedrock's API key in
AWS_BEARER_TOKEN_BEDROCK. How an exchange is stopped: `bedrock_client`. What errors mean: `bedrock_errors`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from backend_lambda.providers import bedrock_converse, bedrock_titan
from backend_lambda.providers.base import ProviderHealth
from backend_lambda.providers.bedrock_converse import Guardrail
from backend_lambda.providers.engine_http import HttpUrl, Seconds
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, invalid
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent, join
from lambdalm.models import ModelInfo

if TYPE_CHECKING:
    from backend_lambda.providers.bedrock_client import BedrockClient

NAME = "bedrock"

_FORMATS = {"converse": bedrock_converse, "titan": bedrock_titan}
_LACKING = ("presence_penalty", "frequency_penalty", "seed")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bedrock in one region; what is None is left to boto3, to Bedrock or to the model."""

    api: Literal["converse", "titan"] = "converse"
    model: Annotated[str, Meta(min_length=1, max_length=2048)] = "us.amazon.nova-2-lite-v1:0"
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,63}$")] = "us-east-1"
    endpoint_url: HttpUrl | None = None
    profile: str | None = None
    connect_timeout: Seconds = 5
    request_timeout: Seconds = 120
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = 0.7
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = 2048
    guardrail_id: str | None = None
    guardrail_version: str | None = None
    guardrail_trace: Literal["enabled", "disabled", "enabled_full"] | None = None


def make(config: Config, slots: int) -> BedrockProvider:
    """Each generation has a connection of its own, so that `slots` has nothing to size here."""
    from backend_lambda.providers.bedrock_client import BedrockClient

    client = BedrockClient(
        NAME,
        region=config.region,
        profile=config.profile,
        endpoint_url=config.endpoint_url,
        connect_seconds=config.connect_timeout,
        silence_seconds=config.request_timeout,
    )
    return BedrockProvider(config, client)


class BedrockProvider:
    """One region's models, through one of Bedrock's two formats."""

    name = NAME

    def __init__(self, config: Config, client: BedrockClient) -> None:
        self._config = config
        self._client = client
        self._format = _FORMATS[config.api]
        self._guardrail = _guardrail(config)

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        try:
            request = self._settled(request)
            translation = self._format.Translation(call.id, request.model or "", NAME)
            parameters = self._format.parameters(request, self._guardrail)
            with self._client.ask(self._format.OPERATION, parameters, call) as batches:
                for batch in batches:
                    yield from join(translation.events(batch))
                    if translation.complete:
                        break
            yield from translation.end()
        except LlmError as error:
            raise error.at(NAME) from None

    def health(self) -> ProviderHealth:
        """Whether the endpoint answers; whether it would take the credentials, only a request can tell."""
        try:
            self._client.check()
        except LlmError as error:
            return ProviderHealth(ok=False, detail=f"{error.message}; see provider.bedrock.region and .endpoint_url")
        return ProviderHealth(ok=True)

    def models(self) -> Sequence[ModelInfo]:
        """The configured one. A request may name any other; to list them is another service and permission of AWS."""
        return [ModelInfo(self._config.model, NAME)]

    def close(self) -> None:
        pass

    def _settled(self, request: ChatRequest) -> ChatRequest:
        """The request with the config's values where it has none; raises LlmError for what Bedrock does not have."""
        for name in _LACKING:
            value = getattr(request, name)
            if value is not None and not (value == 0 and name != "seed"):
                raise invalid(name, "Bedrock has no such parameter")
        defaults = {
            name: getattr(self._config, name)
            for name in ("model", "max_tokens", "temperature", "top_p")
            if getattr(request, name) is None
        }
        return msgspec.structs.replace(request, **defaults)


def _guardrail(config: Config) -> Guardrail | None:
    if config.guardrail_id is None and config.guardrail_version is None:
        return None
    if config.guardrail_id is None or config.guardrail_version is None:
        why = "provider.bedrock.guardrail_id and guardrail_version go together: set both"
        raise LlmError(Code.FAILED_PRECONDITION, why, origin=NAME)
    return Guardrail(config.guardrail_id, config.guardrail_version, config.guardrail_trace)
