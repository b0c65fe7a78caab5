"""config.yaml is the reference: it has every key, its defaults are those of the code, and nonsense stops the start."""

from __future__ import annotations

from grpc_proxy.__main__ import main
from grpc_proxy.config import Config
from lambdalm.testing.config_contract import ConfigContract


class TestConfig(ConfigContract):
    command = main
    kind = Config
    bare = {"listen": {"host": "127.0.0.1", "port": 50051}, "upstream": {"url": "http://127.0.0.1:8500/query"}}
    environment = [
        ("GRPC_LISTEN_HOST", "::1", "listen.host", "::1"),
        ("HOST", "localhost", "listen.host", "localhost"),
        ("GRPC_PORT", "1234", "listen.port", 1234),
        ("PORT", "1235", "listen.port", 1235),
        ("GRPC_ALLOW_PUBLIC", "true", "listen.allow_public", True),
        ("BACKEND_URL", "https://x:1/query", "upstream.url", "https://x:1/query"),
        ("BACKEND_PORT", "1236", "upstream.url", "http://127.0.0.1:1236/query"),
        ("BACKEND_DIALECT", "query", "upstream.dialect", "query"),
        ("BACKEND_MODEL", "tiny", "upstream.model", "tiny"),
        ("BACKEND_CHECK_SECONDS", "30", "upstream.check_seconds", 30),
        ("BACKEND_AUTH", "none", "upstream.auth.kind", "none"),
        ("BACKEND_TOKEN", "abc", "upstream.auth.token", "abc"),
        ("BACKEND_TOKEN_FILE", "/run/token", "upstream.auth.token_file", "/run/token"),
        ("AWS_REGION", "eu-west-1", "upstream.auth.region", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-2", "upstream.auth.region", "eu-west-2"),
        ("BACKEND_AWS_SERVICE", "lambda", "upstream.auth.service", "lambda"),
        ("WORKER_THREADS", "7", "limits.max_in_flight", 7),
        ("GRPC_FRAMES_PER_SECOND", "7", "stream.frames_per_second", 7),
        ("GRPC_KEEPALIVE_TIME_MS", "1", "keepalive.time_ms", 1),
        ("GRPC_KEEPALIVE_TIMEOUT_MS", "2", "keepalive.timeout_ms", 2),
        ("GRPC_KEEPALIVE_PERMIT_WITHOUT_CALLS", "false", "keepalive.permit_without_calls", False),
        ("HTTP2_MIN_PING_INTERVAL_MS", "3", "keepalive.min_ping_interval_ms", 3),
        ("HTTP2_MAX_PINGS_WITHOUT_DATA", "4", "keepalive.max_pings_without_data", 4),
        ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
        ("LOG_FORMAT", "json", "log.format", "json"),
    ]
    nonsense = [
        ("  connect_seconds:", "  colour: red\n  connect_seconds:", "upstream"),
        ("connect_seconds: 5", "connect_seconds: soon", "upstream.connect_seconds"),
        ("heartbeat_seconds: 15", "heartbeat_seconds: 0", "stream.heartbeat_seconds"),
        ("${GRPC_FRAMES_PER_SECOND:-8000}", "0", "stream.frames_per_second"),
        ("/query}", "}", "upstream: url: http://127.0.0.1:8500 must end in /query"),
        ("http://127.0.0.1:${BACKEND_PORT:-8500}/query", "http://user:pass@x/query", "upstream.url"),
        ("${BACKEND_DIALECT:-query}", "ollama", "upstream.dialect"),
        ("${BACKEND_AUTH:-}", "basic", "upstream.auth.kind"),
        ("${BACKEND_AUTH:-}", "bearer", "upstream.auth: kind bearer needs token_file or token"),
        ("${BACKEND_AUTH:-}", "x-api-key", "upstream.auth: kind x-api-key needs token_file or token"),
        ("${BACKEND_AUTH:-}", "aws_sigv4", "upstream.auth: kind aws_sigv4 needs region"),
        ("${WORKER_THREADS:-4096}", "0", "limits.max_in_flight"),
        ("${GRPC_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "0.0.0.0", "listen"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [
        ("WORKER_THREADS", "-1", "limits.max_in_flight"),
        ("BACKEND_URL", "ftp://x", "upstream.url"),
        ("BACKEND_DIALECT", "openapi", "upstream.dialect"),
        ("BACKEND_AUTH", "basic", "upstream.auth.kind"),
    ]

    def test_a_url_that_no_request_could_go_to_stops_the_start(self) -> None:
        for url in ("http://x:99999/v1", "http://:80/v1", "http:///v1", "http://[::1/v1"):
            self.is_refused(self.run("config", BACKEND_URL=url, BACKEND_DIALECT="openai"), "upstream: ")

    def test_what_is_shown_has_no_token_in_it(self) -> None:
        ran = self.run("config", "--show", BACKEND_AUTH="bearer", BACKEND_TOKEN="canary-token")
        assert "upstream.auth.token: ********" in ran.output
        assert "canary" not in ran.output

    def test_the_url_of_the_dialect_query_ends_in_it(self) -> None:
        for url in ("http://x/query/", "http://x/query/more", "http://query", "http://x/v1"):
            self.is_refused(self.run("config", BACKEND_URL=url), f"upstream: url: {url} must end in /query")

    def test_the_url_of_the_dialect_openai_is_the_base(self) -> None:
        given = {"BACKEND_DIALECT": "openai", "BACKEND_URL": "http://vllm:8000/v1"}
        assert self.run("config", **given).exit_code == 0
        given["BACKEND_URL"] += "/chat/completions"
        self.is_refused(
            self.run("config", **given), "upstream: url: http://vllm:8000/v1/chat/completions must be the base"
        )

    def test_a_token_file_that_is_not_there_stops_the_start(self) -> None:
        ran = self.serve(self.file, BACKEND_AUTH="bearer", BACKEND_TOKEN_FILE="/no/such/file")
        assert ran.exit_code == 1
        assert "upstream.auth.token_file: /no/such/file cannot be read" in ran.output.splitlines()[-1]
