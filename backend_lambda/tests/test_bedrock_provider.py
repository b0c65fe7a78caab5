"""What is Bedrock's own, by a real boto3 against the fake; what providers have in common is in the contract's test."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from backend_lambda.providers import bedrock, bedrock_converse, bedrock_titan
from backend_lambda.providers.bedrock import BedrockProvider, Config
from backend_lambda.providers.bedrock_client import Events
from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCall,
    Usage,
    checked,
    collect,
    join,
)
from lambdalm.models import ModelInfo
from lambdalm.testing.fake_bedrock import (
    EXCEPTIONS,
    REFUSALS,
    STOPS,
    FakeBedrock,
    event,
    exception,
    frame,
    sealed,
)
from lambdalm.testing.fake_engine import TOKEN_SECONDS, WORDS
from lambdalm.testing.fake_http import Asked, Exchange, Reply

from .conftest import WAIT, new_call

KEY_ID, SECRET, TOKEN, BEARER = "AKIDCANARY", "canary-secret-key", "canary-session-token", "canary-bearer"
SAID = "".join(WORDS)


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with credentials of its own, and nothing of whose machine it is."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_BEARER_TOKEN_BEDROCK", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def fake() -> Iterator[FakeBedrock]:
    with FakeBedrock() as fake:
        yield fake


def provider_of(fake: FakeBedrock, **config: Any) -> BedrockProvider:
    return bedrock.make(Config(endpoint_url=fake.url, **config), 4)


def ask(provider: BedrockProvider, model: str | None = "echo", **request: Any) -> Answer:
    return collect(provider.stream(ChatRequest(**{"prompt": "Hello, λ!", "model": model, **request}), new_call()))


def failure(provider: BedrockProvider, model: str | None = "echo", **request: Any) -> LlmError:
    with pytest.raises(LlmError) as failed:
        ask(provider, model, **request)
    return failed.value


def body_of(asked: Asked) -> Any:
    return json.loads(asked.body)


class TestWhatIsAsked:
    def test_defaults_go_as_converse_wants_them(self, fake: FakeBedrock) -> None:
        ask(provider_of(fake))
        asked = fake.asked[-1]
        assert (asked.method, asked.path) == ("POST", "/model/echo/converse-stream")
        assert body_of(asked) == {
            "messages": [{"role": "user", "content": [{"text": "Hello, λ!"}]}],
            "inferenceConfig": {"maxTokens": 2048, "temperature": 0.7},
        }

    def test_the_configured_model_is_asked_with_its_id_encoded(self, fake: FakeBedrock) -> None:
        arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-2-lite-v1:0"
        for config, model in ((Config(), "us.amazon.nova-2-lite-v1:0"), (Config(model=arn), arn)):
            provider = bedrock.make(msgspec.structs.replace(config, endpoint_url=fake.url), 4)
            assert failure(provider, model=None).code is Code.NOT_FOUND
            assert fake.asked[-1].path == f"/model/{quote(model, safe='')}/converse-stream"

    def test_every_parameter_of_a_request_beats_the_default(self, fake: FakeBedrock) -> None:
        provider = provider_of(fake, temperature=0.1, top_p=0.2, max_tokens=3)
        ask(provider)
        assert body_of(fake.asked[-1])["inferenceConfig"] == {"maxTokens": 3, "temperature": 0.1, "topP": 0.2}
        ask(provider, temperature=0.0, top_p=0.5, max_tokens=7, stop=("END", "λ"), presence_penalty=0.0)
        assert body_of(fake.asked[-1])["inferenceConfig"] == {
            "maxTokens": 7,
            "temperature": 0.0,
            "topP": 0.5,
            "stopSequences": ["END", "λ"],
        }

    def test_what_is_null_in_the_config_is_left_to_the_model(self, fake: FakeBedrock) -> None:
        ask(provider_of(fake, temperature=None, max_tokens=None))
        assert body_of(fake.asked[-1])["inferenceConfig"] == {}

    @pytest.mark.parametrize("lacking", [{"seed": 0}, {"presence_penalty": 0.5}, {"frequency_penalty": -1.0}])
    @pytest.mark.parametrize("api", ["converse", "titan"])
    def test_what_bedrock_lacks_is_refused_by_its_name(self, fake: FakeBedrock, api: str, lacking: Any) -> None:
        error = failure(provider_of(fake, api=api), **lacking)
        assert (error.code, error.origin) == (Code.INVALID_ARGUMENT, "bedrock")
        assert error.message.startswith(next(iter(lacking)))
        assert not fake.asked

    def test_roles_go_where_converse_has_them(self, fake: FakeBedrock) -> None:
        messages = (
            Message("system", "be brief"),
            Message("user", "one"),
            Message("user", "two"),
            Message("developer", "be kind"),
            Message("assistant", "three"),
            Message("user", "four"),
        )
        ask(provider_of(fake), prompt=None, messages=messages)
        body = body_of(fake.asked[-1])
        assert body["system"] == [{"text": "be brief"}, {"text": "be kind"}]
        assert body["messages"] == [
            {"role": "user", "content": [{"text": "one"}, {"text": "two"}]},
            {"role": "assistant", "content": [{"text": "three"}]},
            {"role": "user", "content": [{"text": "four"}]},
        ]

    @pytest.mark.parametrize(
        "messages",
        [
            (Message("assistant", "I start"), Message("user", "no")),
            (Message("system", "nobody asks"),),
            (Message("user", "call it"), Message("tool", "42")),
        ],
    )
    def test_a_conversation_that_converse_does_not_take_is_refused(self, fake: FakeBedrock, messages: Any) -> None:
        error = failure(provider_of(fake), prompt=None, messages=messages)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith("messages")

    def test_a_guardrail_goes_along(self, fake: FakeBedrock) -> None:
        guard = {"guardrail_id": "abc", "guardrail_version": "7"}
        ask(provider_of(fake, **guard))
        expected = {"guardrailIdentifier": "abc", "guardrailVersion": "7"}
        assert body_of(fake.asked[-1])["guardrailConfig"] == expected
        ask(provider_of(fake, **guard, guardrail_trace="enabled"))
        assert body_of(fake.asked[-1])["guardrailConfig"] == {**expected, "trace": "enabled"}
        ask(provider_of(fake, **guard, guardrail_trace="enabled_full", api="titan"))
        headers = fake.asked[-1].headers
        assert headers["x-amzn-bedrock-guardrailidentifier"] == "abc"
        assert headers["x-amzn-bedrock-guardrailversion"] == "7"
        assert headers["x-amzn-bedrock-trace"] == "ENABLED_FULL"

    def test_half_a_guardrail_is_no_config(self, fake: FakeBedrock) -> None:
        with pytest.raises(LlmError, match="guardrail_version") as failed:
            provider_of(fake, guardrail_id="abc")
        assert failed.value.code is Code.FAILED_PRECONDITION

    def test_titan_has_a_body_of_its_own(self, fake: FakeBedrock) -> None:
        answer = ask(provider_of(fake, api="titan"), top_p=0.5, stop=("User:",))
        assert answer.text == "Hello, λ!"
        assert fake.asked[-1].path == "/model/echo/invoke-with-response-stream"
        assert body_of(fake.asked[-1]) == {
            "inputText": "Hello, λ!",
            "textGenerationConfig": {
                "maxTokenCount": 2048,
                "temperature": 0.7,
                "topP": 0.5,
                "stopSequences": ["User:"],
            },
        }

    def test_titan_gets_a_conversation_as_a_script(self, fake: FakeBedrock) -> None:
        messages = (
            Message("system", "Be brief."),
            Message("user", "one"),
            Message("assistant", "two"),
            Message("user", "three"),
        )
        ask(provider_of(fake, api="titan"), prompt=None, messages=messages)
        assert body_of(fake.asked[-1])["inputText"] == "Be brief.\nUser: one\nBot: two\nUser: three\nBot:"


class TestSigning:
    @pytest.mark.parametrize("api", ["converse", "titan"])
    def test_the_signature_holds_for_what_was_sent(self, fake: FakeBedrock, api: str) -> None:
        ask(provider_of(fake, api=api, region="eu-west-1"), "end-turn")
        asked = fake.asked[-1]
        scheme, credential, names, signature = asked.headers["authorization"].replace(",", "").split()
        assert scheme == "AWS4-HMAC-SHA256"
        assert credential.split("/")[2:] == ["eu-west-1", "bedrock", "aws4_request"]
        signed = {name: asked.headers[name] for name in names.removeprefix("SignedHeaders=").split(";")}
        assert {"host", "x-amz-date", "x-amz-security-token"} <= set(signed)
        request = AWSRequest(asked.method, f"{fake.url}{asked.path}", signed, asked.body)
        request.context["timestamp"] = signed["x-amz-date"]
        signer = SigV4Auth(Credentials(KEY_ID, SECRET, TOKEN), "bedrock", "eu-west-1")
        text = signer.string_to_sign(request, signer.canonical_request(request))
        assert signature == f"Signature={signer.signature(text, request)}"

    def test_an_api_key_of_bedrock_goes_as_a_bearer(self, certificate: Path, aws: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            aws.delenv(name)
        aws.setenv("AWS_BEARER_TOKEN_BEDROCK", BEARER)
        aws.setenv("AWS_CA_BUNDLE", str(certificate))
        with SecureBedrock(certificate) as fake:
            provider = provider_of(fake)
            assert ask(provider).text == "Hello, λ!"
            assert fake.asked[-1].headers["authorization"] == f"Bearer {BEARER}"
            talkative = failure(provider, "talkative").message
            assert "********" in talkative
            assert BEARER not in talkative
            assert "AWS_BEARER_TOKEN_BEDROCK" in failure(provider, "bad-key").message

    def test_an_api_key_goes_nowhere_without_tls(self, fake: FakeBedrock, aws: pytest.MonkeyPatch) -> None:
        aws.setenv("AWS_BEARER_TOKEN_BEDROCK", BEARER)
        error = failure(provider_of(fake))
        assert error.code is Code.FAILED_PRECONDITION
        assert "endpoint_url" in error.message
        assert not fake.asked

    def test_no_error_repeats_what_was_signed_with(self, fake: FakeBedrock) -> None:
        provider = provider_of(fake)
        talkative = failure(provider, "talkative")
        assert "********" in talkative.message
        for error in (talkative, failure(provider, "bad-signature")):
            assert TOKEN not in repr(error)
            assert not any(asked.headers["authorization"][-64:] in repr(error) for asked in fake.asked)

    def test_no_log_holds_what_was_signed_with_or_said(
        self, fake: FakeBedrock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            ask(provider_of(fake), prompt="canary prompt")
        assert TOKEN not in caplog.text
        assert "canary" not in caplog.text

    def test_the_endpoint_may_come_from_the_environment(self, fake: FakeBedrock, aws: pytest.MonkeyPatch) -> None:
        aws.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", fake.url)
        assert ask(bedrock.make(Config(), 4)).text == "Hello, λ!"


class TestStarting:
    def test_without_credentials_it_says_what_to_set(self, aws: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            aws.delenv(name)
        error = cannot_start(Config())
        assert "AWS_ACCESS_KEY_ID" in error.message
        assert "AWS_BEARER_TOKEN_BEDROCK" in error.message

    def test_half_of_the_credentials_are_none(self, aws: pytest.MonkeyPatch) -> None:
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        assert "AWS_SECRET_ACCESS_KEY" in cannot_start(Config()).message

    def test_a_profile_that_there_is_not_is_named(self) -> None:
        assert "nobody" in cannot_start(Config(profile="nobody")).message

    def test_what_a_credential_process_says_is_not_repeated(self, aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "config"
        file.write_text(f"[profile sick]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 1'\n", encoding="utf-8")
        aws.setenv("AWS_CONFIG_FILE", str(file))
        error = cannot_start(Config(profile="sick"))
        assert "renew the credentials" in error.message
        assert SECRET not in error.message

    def test_a_role_that_cannot_be_taken_on_says_so(
        self, fake: FakeBedrock, aws: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            aws.delenv(name)
        token = tmp_path / "token"
        aws.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        aws.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
        no = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        with Rude(Reply(403, no, "text/xml")) as sts:
            aws.setenv("AWS_ENDPOINT_URL_STS", sts.url)
            provider = provider_of(fake)
            missing = failure(provider)
            token.write_text(SECRET, encoding="utf-8")
            denied = failure(provider)
        assert (missing.code, denied.code) == (Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION)
        assert f"{token}: No such file" in missing.message
        assert "AssumeRoleWithWebIdentity: AccessDenied" in denied.message
        assert not fake.asked

    def test_a_bundle_of_certificates_that_cannot_be_read_is_named(self, aws: pytest.MonkeyPatch) -> None:
        aws.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
        assert "/nowhere/ca.pem" in cannot_start(Config()).message

    def test_boto3_is_imported_only_where_it_is_used(self) -> None:
        program = "import sys, backend_lambda.providers.bedrock; sys.exit('botocore' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=WAIT)


def cannot_start(config: Config) -> LlmError:
    with pytest.raises(LlmError) as failed:
        bedrock.make(config, 4)
    assert (failed.value.code, failed.value.origin) == (Code.FAILED_PRECONDITION, "bedrock")
    return failed.value


class TestAnswers:
    REASONS = {
        "end_turn": FinishReason.STOP,
        "stop_sequence": FinishReason.STOP,
        "max_tokens": FinishReason.LENGTH,
        "model_context_window_exceeded": FinishReason.LENGTH,
        "tool_use": FinishReason.TOOL_CALLS,
        "guardrail_intervened": FinishReason.CONTENT_FILTER,
        "content_filtered": FinishReason.CONTENT_FILTER,
        "unheard_of": FinishReason.STOP,
    }

    def test_every_stop_reason_has_its_meaning(self, fake: FakeBedrock) -> None:
        provider = provider_of(fake)
        for model, reason in STOPS.items():
            if reason.startswith("malformed"):
                error = failure(provider, model)
                assert error.code is Code.INTERNAL
                assert reason in error.message
            else:
                assert ask(provider, model).finish_reason == self.REASONS[reason]

    def test_botocores_model_has_no_stop_reason_that_the_fake_has_not(self) -> None:
        known = boto_client().meta.service_model.shape_for("StopReason").enum
        assert set(known) == set(STOPS.values()) - {"unheard_of"}

    def test_a_tool_call_comes_with_its_arguments(self, fake: FakeBedrock) -> None:
        answer = ask(provider_of(fake), "tool-use")
        assert answer.text == SAID
        assert answer.tool_calls == (ToolCall("t1", "weather", '{"city": "Rome"}'),)

    @pytest.mark.parametrize("api", ["converse", "titan"])
    def test_the_engines_own_time_is_a_hop(self, fake: FakeBedrock, api: str) -> None:
        start = time.monotonic()
        timings = ask(provider_of(fake, api=api), "slow", max_tokens=1).timings
        assert timings.keys() == {"bedrock"}
        assert TOKEN_SECONDS * 1000 <= timings["bedrock"].total_ms <= (time.monotonic() - start) * 1000 + 1

    def test_titan_answers_as_converse_does(self, fake: FakeBedrock) -> None:
        for model in ("echo", "length", "filtered", "no-usage", "huge"):
            converse, titan = (ask(provider_of(fake, api=api), model) for api in ("converse", "titan"))
            assert msgspec.structs.replace(titan, timings={}) == msgspec.structs.replace(converse, timings={})

    @pytest.mark.parametrize("api", ["converse", "titan"])
    def test_faults_are_the_same_in_both_formats(self, fake: FakeBedrock, api: str) -> None:
        provider = provider_of(fake, api=api)
        expected = {
            "cut": Code.UNAVAILABLE,
            "ends-early": Code.UNAVAILABLE,
            "garbage": Code.INTERNAL,
            "error-in-stream": Code.INTERNAL,
            "throttle": Code.RESOURCE_EXHAUSTED,
        }
        assert {model: failure(provider, model).code for model in expected} == expected

    def test_tokens_of_the_cache_are_tokens_of_the_prompt(self) -> None:
        usage = {"inputTokens": 1, "outputTokens": 2, "cacheReadInputTokens": 10, "cacheWriteInputTokens": 100}
        events = converse([event("messageStop", {"stopReason": "end_turn"}), event("metadata", {"usage": usage})])
        assert Usage(111, 2) in list(events)

    def test_after_the_metadata_nothing_is_waited_for(self) -> None:
        class Lingering(FakeBedrock):
            def answer(self, exchange: Exchange) -> None:
                exchange.begin(self.stream_type)
                exchange.send(event("messageStop", {"stopReason": "end_turn"}) + event("metadata", {"metrics": {}}))
                exchange.pause(None)

        with Lingering() as fake:
            assert ask(provider_of(fake)).text == ""
            assert fake.hung_up.acquire(timeout=WAIT)

    def test_an_answer_is_complete_with_its_metadata_and_not_before(self) -> None:
        translation = bedrock_converse.Translation("r1", "m", "bedrock")
        list(translation.events([{"messageStop": {"stopReason": "end_turn"}}]))
        assert not translation.complete
        list(translation.events([{"metadata": {"metrics": {"latencyMs": 5}}}]))
        assert translation.complete

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("FINISH", FinishReason.STOP),
            ("FINISHED", FinishReason.STOP),
            ("STOP_CRITERIA_MET", FinishReason.STOP),
            ("LENGTH", FinishReason.LENGTH),
            ("CONTENT_FILTERED", FinishReason.CONTENT_FILTER),
            ("UNHEARD_OF", FinishReason.STOP),
        ],
    )
    def test_every_completion_reason_of_titan_has_its_meaning(self, reason: str, expected: FinishReason) -> None:
        translation = bedrock_titan.Translation("r1", "m", "bedrock")
        chunk = json.dumps({"outputText": "x", "completionReason": reason}).encode()
        list(translation.events([{"chunk": {"bytes": chunk}}]))
        assert list(translation.end()) == [Finished(expected)]

    def test_a_guardrail_that_steps_in_filters_titan(self) -> None:
        translation = bedrock_titan.Translation("r1", "m", "bedrock")
        chunk = {"outputText": "", "completionReason": "FINISH", "amazon-bedrock-guardrailAction": "INTERVENED"}
        list(translation.events([{"chunk": {"bytes": json.dumps(chunk).encode()}}]))
        assert list(translation.end()) == [Finished(FinishReason.CONTENT_FILTER)]

    def test_what_comes_in_one_chunk_goes_out_joined_and_before_its_failure(self) -> None:
        data = delta({"text": "a"}) + delta({"text": "b"}) + exception("throttlingException", "slow down")
        with Rude(Reply(200, data)) as fake:
            stream = provider_of(fake).stream(ChatRequest(prompt="x", model="m"), new_call())
            assert [next(stream), next(stream)] == [Started("r1", "m"), TextDelta("ab")]
            with pytest.raises(LlmError, match="slow down"):
                next(stream)

    def test_reasoning_that_is_signed_or_hidden_is_no_text(self) -> None:
        signed = [delta({"reasoningContent": {"signature": "c2ln"}}), delta({"reasoningContent": {"text": "hm"}})]
        hidden = [delta({"reasoningContent": {"redactedContent": "c2ln"}}), event("messageStop", {"stopReason": "x"})]
        assert [*converse(signed + hidden)][1:-1] == [ReasoningDelta("hm")]


class TestErrors:
    IN_STREAM = {
        "internal-server": Code.INTERNAL,
        "model-stream-error": Code.INTERNAL,
        "validation": Code.INVALID_ARGUMENT,
        "throttling-in-stream": Code.RESOURCE_EXHAUSTED,
        "service-unavailable": Code.UNAVAILABLE,
        "unheard-of-in-stream": Code.INTERNAL,
    }
    BEFORE = {
        "unknown": (Code.NOT_FOUND, "region"),
        "bad-request": (Code.INVALID_ARGUMENT, "Malformed input request"),
        "on-demand": (Code.INVALID_ARGUMENT, "inference profile that holds this model"),
        "end-of-life": (Code.NOT_FOUND, "us.amazon.nova-2-lite-v1:0, with `api: converse`"),
        "not-found": (Code.NOT_FOUND, "Could not resolve"),
        "access-denied": (Code.PERMISSION_DENIED, "enable access to the model"),
        "quota": (Code.RESOURCE_EXHAUSTED, "quota"),
        "throttle": (Code.RESOURCE_EXHAUSTED, "Too many requests"),
        "model-timeout": (Code.DEADLINE_EXCEEDED, "too long"),
        "model-error": (Code.INTERNAL, "failed"),
        "model-not-ready": (Code.UNAVAILABLE, "not ready"),
        "error-before": (Code.INTERNAL, "unexpected"),
        "unavailable": (Code.UNAVAILABLE, "unable"),
        "conflict": (Code.ABORTED, "going on"),
        "expired-token": (Code.UNAUTHENTICATED, "renew the credentials"),
        "unknown-client": (Code.UNAUTHENTICATED, "AWS_ACCESS_KEY_ID"),
        "bad-signature": (Code.UNAUTHENTICATED, "clock"),
        "unheard-of-error": (Code.INVALID_ARGUMENT, "SomethingNewException: This is new."),
    }

    def test_every_exception_in_a_stream_comes_after_what_was_said(self, fake: FakeBedrock) -> None:
        assert set(self.IN_STREAM) == set(EXCEPTIONS)
        for api in ("converse", "titan"):
            provider = provider_of(fake, api=api)
            for model, code in self.IN_STREAM.items():
                events: list[StreamEvent] = []
                with pytest.raises(LlmError) as failed:
                    events.extend(provider.stream(ChatRequest(prompt="x", model=model), new_call()))
                assert (model, failed.value.code) == (model, code)
                assert "".join(event.text for event in events if isinstance(event, TextDelta)) == SAID

    def test_every_error_before_a_stream_has_its_code_and_its_advice(self, fake: FakeBedrock) -> None:
        provider = provider_of(fake)
        for model, (code, words) in self.BEFORE.items():
            error = failure(provider, model)
            assert (model, error.code, error.origin) == (model, code, "bedrock")
            assert words in error.message

    def test_every_error_of_botocores_model_is_in_the_fake(self) -> None:
        shapes = boto_client().meta.service_model.error_shapes
        names = {error.name for error in REFUSALS.values()} | {
            name[0].upper() + name[1:] for name, _ in EXCEPTIONS.values()
        }
        assert {shape.name for shape in shapes} <= names

    @pytest.mark.parametrize("model", ["throttle", "error-before", "unavailable", "model-not-ready", "stall-headers"])
    def test_nothing_is_tried_twice(self, fake: FakeBedrock, model: str) -> None:
        failure(provider_of(fake, request_timeout=0.2), model)
        assert len(fake.asked) == 1

    def test_how_long_to_wait_is_what_bedrock_says(self) -> None:
        headers = (("x-amzn-errortype", "ThrottlingException"), ("Retry-After", "17"))
        with Rude(Reply(429, b'{"message":"slow"}', headers=headers)) as fake:
            assert failure(provider_of(fake)).retry_after == 17

    @pytest.mark.parametrize(
        ("status", "body", "code"),
        [
            (502, b"<html>Bad Gateway</html>", Code.UNAVAILABLE),
            (500, b"", Code.INTERNAL),
            (403, b'["not", "an", "object"]', Code.INTERNAL),
            (400, b"\xff\xfe", Code.INTERNAL),
            (400, b'{"message": {"deep": 1}}', Code.INVALID_ARGUMENT),
            (301, b"", Code.UNAVAILABLE),
            (200, b"<html>hello</html>", Code.INTERNAL),
            (200, b'{"output": {}}', Code.INTERNAL),
            (200, b"", Code.UNAVAILABLE),
        ],
    )
    def test_an_answer_that_is_not_bedrocks_is_an_error(self, status: int, body: bytes, code: Code) -> None:
        with Rude(Reply(status, body)) as fake:
            error = failure(provider_of(fake))
        assert (error.code, error.origin) == (code, "bedrock")


class Rude(FakeBedrock):
    """Says whatever a test wants."""

    def __init__(self, answer: Reply) -> None:
        super().__init__()
        self._answer = answer

    def answer(self, exchange: Exchange) -> None:
        exchange.reply(self._answer)


class TestModelsAndHealth:
    def test_there_is_the_configured_model(self, fake: FakeBedrock) -> None:
        assert provider_of(fake).models() == [ModelInfo("us.amazon.nova-2-lite-v1:0", "bedrock")]

    def test_it_is_well_when_the_endpoint_answers(self, fake: FakeBedrock) -> None:
        assert provider_of(fake).health().ok
        assert fake.asked[-1].method == "GET"
        assert "authorization" not in fake.asked[-1].headers

    def test_it_is_not_well_when_the_endpoint_is_gone_or_sick(self) -> None:
        with Rude(Reply(503, b"")) as fake:
            provider = provider_of(fake)
            assert not provider.health().ok
        health = provider.health()
        assert not health.ok
        assert "provider.bedrock.region" in health.detail
        assert provider.models()[0].id == "us.amazon.nova-2-lite-v1:0"


class SecureBedrock(FakeBedrock):
    """The fake over TLS."""

    def __init__(self, certificate: Path) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    made = subprocess.run(
        ["openssl", "req", "-x509", *key, "-keyout", "-", *name, "-days", "2"], check=True, capture_output=True
    )
    file.write_bytes(made.stdout)
    return file


class TestStopping:
    @pytest.mark.parametrize("model", ["stall-headers", "stall-first", "stall"])
    def test_cancelling_ends_the_exchange_also_over_tls(
        self, certificate: Path, aws: pytest.MonkeyPatch, model: str
    ) -> None:
        aws.setenv("AWS_CA_BUNDLE", str(certificate))
        with SecureBedrock(certificate) as fake:
            provider = provider_of(fake)
            assert ask(provider).text == "Hello, λ!"
            assert stopped(provider, fake, model).code is Code.CANCELLED

    def test_a_certificate_that_is_not_trusted_is_named(self, certificate: Path) -> None:
        with SecureBedrock(certificate) as fake:
            error = failure(provider_of(fake))
        assert error.code is Code.UNAVAILABLE
        assert "TLS" in error.message

    def test_cancelling_ends_a_handshake(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
            url = f"https://127.0.0.1:{server.getsockname()[1]}"
            provider, call = bedrock.make(Config(endpoint_url=url, connect_timeout=WAIT), 4), new_call()
            asking = threads.submit(lambda: collect(provider.stream(ChatRequest(prompt="x"), call)))
            connection, _ = server.accept()
            with connection:
                connection.settimeout(WAIT)
                assert connection.recv(1)  # its hello
                call.cancel("enough")
                with pytest.raises(LlmError) as failed:
                    asking.result(WAIT)
        assert failed.value.code is Code.CANCELLED

    def test_streams_side_by_side_get_their_own_answers(self, fake: FakeBedrock) -> None:
        provider = provider_of(fake)
        prompts = [f"number {number}" for number in range(64)]
        with ThreadPoolExecutor(8) as threads:
            assert [answer.text for answer in threads.map(lambda text: ask(provider, prompt=text), prompts)] == prompts

    def test_one_that_is_cancelled_leaves_the_others_alone(self, fake: FakeBedrock) -> None:
        provider, calls = provider_of(fake), [new_call(), new_call()]

        def read(call: Any) -> LlmError:
            with pytest.raises(LlmError) as failed:
                collect(provider.stream(ChatRequest(prompt="x", model="stall-headers"), call))
            return failed.value

        with ThreadPoolExecutor(2) as threads:
            first, second = (threads.submit(read, call) for call in calls)
            assert all(fake.stalling.acquire(timeout=WAIT) for _ in calls)
            calls[0].cancel("this one")
            assert first.result(WAIT).message == "this one"
            assert fake.hung_up.acquire(timeout=WAIT)
            assert not second.done()
            assert not fake.hung_up.acquire(blocking=False)
            calls[1].cancel("that one")
            assert second.result(WAIT).message == "that one"

    def test_a_call_that_was_cancelled_before_asks_nothing(self, fake: FakeBedrock) -> None:
        call = new_call()
        call.cancel("too late")
        with pytest.raises(LlmError, match="too late"):
            collect(provider_of(fake).stream(ChatRequest(prompt="x"), call))
        assert not fake.asked


def stopped(provider: BedrockProvider, fake: FakeBedrock, model: str) -> LlmError:
    """How such a request ends when it is cancelled while Bedrock stalls."""
    call = new_call()

    def read() -> LlmError:
        with pytest.raises(LlmError) as failed:
            collect(provider.stream(ChatRequest(prompt="x", model=model), call))
        return failed.value

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        assert fake.stalling.acquire(timeout=WAIT)
        call.cancel("enough")
        error = reading.result(WAIT)
    assert fake.hung_up.acquire(timeout=WAIT)
    return error


@functools.cache
def boto_client() -> Any:
    return boto3.client("bedrock-runtime", "us-east-1", aws_access_key_id="x", aws_secret_access_key="y")


def converse(chunks: Iterable[bytes]) -> Iterator[StreamEvent]:
    """These bytes as a stream of Converse, by botocore's parsers."""
    return read(bedrock_converse, chunks)


def read(form: Any, chunks: Iterable[bytes]) -> Iterator[StreamEvent]:
    reader, translation = Events(boto_client(), form.OPERATION), form.Translation("r1", "m", "bedrock")
    for chunk in chunks:
        yield from join(translation.events(reader.feed(chunk)))
    yield from translation.end()


def delta(said: dict[str, Any], block: int = 0) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": block, "delta": said})


def titan_chunk(data: bytes) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(data).decode()})


def tool(block: int) -> bytes:
    start = {"toolUse": {"toolUseId": "t", "name": "n"}}
    return event("contentBlockStart", {"contentBlockIndex": block, "start": start})


# What an upstream may say: whole answers; and frames that are right but for what is in them.
words = st.one_of(
    st.text(max_size=20).map(lambda text: delta({"text": text})),
    st.text(max_size=20).map(lambda text: delta({"reasoningContent": {"text": text}})),
    st.integers(0, 3).map(tool),
    st.integers(0, 3).map(lambda block: delta({"toolUse": {"input": "{}"}}, block)),
    st.just(event("somethingNew", {"x": 1})),
)
stops = st.sampled_from(list(STOPS.values())).map(lambda reason: event("messageStop", {"stopReason": reason}))
answers = st.tuples(st.just(event("messageStart", {"role": "assistant"})), st.lists(words, max_size=6), stops).map(
    lambda parts: parts[0] + b"".join(parts[1]) + parts[2] + event("metadata", {"metrics": {"latencyMs": 1}})
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
event_names = st.sampled_from(
    ["contentBlockStart", "contentBlockDelta", "messageStop", "metadata", "chunk", "validationException", "x"]
)
members = st.sampled_from(
    ["delta", "start", "toolUse", "text", "reasoningContent", "stopReason", "usage", "latencyMs", "bytes", "outputText"]
)
objects = st.recursive(json_values, lambda inner: st.dictionaries(members, inner, max_size=3), max_leaves=6)
payloads = st.binary(max_size=40) | objects.map(lambda value: json.dumps(value).encode())
strange_frames = st.one_of(
    st.builds(
        lambda kind, name, what, payload: frame({":message-type": kind, name: what}, payload),
        st.sampled_from(["event", "exception", "error", "?"]),
        st.sampled_from([":event-type", ":exception-type", ":error-code"]),
        event_names,
        payloads,
    ),
    st.builds(sealed, st.binary(max_size=30), payloads),
    payloads.map(titan_chunk),
)


cuts = st.lists(st.integers(0, 10**6), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def outcome(form: Any, chunks: list[bytes]) -> tuple[list[StreamEvent], str | None]:
    """The events, as few as they can be, and the failure after them."""
    events: list[StreamEvent] = []
    try:
        for each in checked(read(form, chunks)):
            events.append(each)
    except LlmError as error:
        return list(join(events)), repr(error)
    return list(join(events)), None


class TestAnyBytes:
    @pytest.mark.parametrize(
        "data",
        [
            delta({"text": "two of", "toolUse": {"input": "one"}}),
            delta({"text": 7}),
            event("contentBlockDelta", {"contentBlockIndex": 0}),
            event("contentBlockDelta", []),
            event("messageStop", {}),
            event("metadata", {"usage": {"inputTokens": "many"}}),
            event("contentBlockStart", {"start": {"toolUse": {}}}),
            event("chunk", {"bytes": "no base64!"}),
            titan_chunk(b"[]"),
            titan_chunk(b'{"outputText": 7}'),
            titan_chunk(b"\xff"),
            event("chunk", {}),
            event("chunk", {"bytes": 7}),
            sealed(b"\x01a\x63", b"{}"),
            sealed(b"\x01", b"{}"),
        ],
    )
    def test_a_whole_frame_that_makes_no_sense_is_an_internal_error(self, data: bytes) -> None:
        form = bedrock_titan if b"chunk" in data else bedrock_converse
        with pytest.raises(LlmError, match="makes no sense") as failed:
            list(read(form, [data]))
        assert failed.value.code is Code.INTERNAL

    @given(
        answers | st.lists(strange_frames | words | stops, max_size=5).map(b"".join), st.lists(st.integers(0, 10**6))
    )
    def test_how_a_stream_is_cut_does_not_matter(self, data: bytes, places: list[int]) -> None:
        for form in (bedrock_converse, bedrock_titan):
            assert outcome(form, cut(data, places)) == outcome(form, [data])

    @given(answers)
    def test_a_stream_without_its_last_bytes_is_no_answer(self, data: bytes) -> None:
        end = data.index(b"messageStop")
        _, error = outcome(bedrock_converse, [data[:end]])
        assert error is not None
        assert "broke off" in error

    @given(
        st.one_of(
            st.binary(max_size=200),
            st.lists(strange_frames, max_size=4).map(b"".join),
            st.builds(
                lambda data, at, byte: data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :],
                answers,
                st.integers(0, 10**6),
                st.integers(0, 255),
            ),
            st.builds(lambda data, more: data + more, answers, st.binary(max_size=40)),
        ),
        cuts,
    )
    def test_whatever_comes_gives_events_or_an_llm_error(self, data: bytes, places: list[int]) -> None:
        for form in (bedrock_converse, bedrock_titan):
            outcome(form, cut(data, places))
