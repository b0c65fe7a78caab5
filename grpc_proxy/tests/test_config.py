"""config.yaml is the reference: it has every key, its defaults are those of the code, and nonsense stops the start."""

from __future__ import annotations

from grpc_proxy.__main__ import main
from grpc_proxy.config import Config
from lambdalm.testing.config_contract import ConfigContract


class TestConfig(ConfigContract):
    command = main
    kind = Config
    bare = {
        "listen": {"host": "127.0.0.1", "port": 50051},
        "upstreams": {"main": {"url": "http://127.0.0.1:8500/query"}},
    }
    environment = [
        ("GRPC_LISTEN_HOST", "::1", "listen.host", "::1"),
        ("HOST", "localhost", "listen.host", "localhost"),
        ("GRPC_PORT", "1234", "listen.port", 1234),
        ("PORT", "1235", "listen.port", 1235),
        ("GRPC_ALLOW_PUBLIC", "true", "listen.allow_public", True),
        ("BACKEND_URL", "https://x:1/query", "upstreams.main.url", "https://x:1/query"),
        ("BACKEND_PORT", "1236", "upstreams.main.url", "http://127.0.0.1:1236/query"),
        ("BACKEND_DIALECT", "query", "upstreams.main.dialect", "query"),
        ("BACKEND_MODEL", "tiny", "upstreams.main.model", "tiny"),
        ("BACKEND_CHECK_SECONDS", "30", "upstreams.main.check_seconds", 30),
        ("BACKEND_AUTH", "none", "upstreams.main.auth.kind", "none"),
        ("BACKEND_TOKEN", "abc", "upstreams.main.auth.token", "abc"),
        ("BACKEND_TOKEN_FILE", "/run/token", "upstreams.main.auth.token_file", "/run/token"),
        ("AWS_REGION", "eu-west-1", "upstreams.main.auth.region", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-2", "upstreams.main.auth.region", "eu-west-2"),
        ("BACKEND_AWS_SERVICE", "lambda", "upstreams.main.auth.service", "lambda"),
        ("GRPC_WORKERS", "2", "workers", 2),
        ("UPSTREAM_MAX_IN_FLIGHT", "7", "upstreams.main.max_in_flight", 7),
        ("UPSTREAM_QUEUE", "0", "upstreams.main.queue", 0),
        ("AWS_REGION", "eu-west-1", "store.dynamodb.region", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-2", "store.dynamodb.region", "eu-west-2"),
        ("STICKY_SESSION_ENABLED", "false", "sticky.enabled", False),
        ("STICKY_SESSION_COOKIE", "sid", "sticky.cookie", "sid"),
        ("SESSION_SECONDS", "60", "sessions.seconds", 60),
        ("SESSIONS_WHEN_STORE_FAILS", "forget", "sessions.when_store_fails", "forget"),
        ("STORE", "memory", "store.kind", "memory"),
        ("STORE_SQLITE_PATH", "/var/x", "store.sqlite.path", "/var/x"),
        ("REDIS_URL", "rediss://x:1/2", "store.redis.url", "rediss://x:1/2"),
        ("REDIS_USERNAME", "me", "store.redis.username", "me"),
        ("REDIS_PASSWORD", "abc", "store.redis.password", "abc"),
        ("REDIS_PASSWORD_FILE", "/run/redis", "store.redis.password_file", "/run/redis"),
        ("REDIS_CA_FILE", "/ca.pem", "store.redis.ca_file", "/ca.pem"),
        ("DYNAMODB_TABLE", "mine", "store.dynamodb.table", "mine"),
        ("DYNAMODB_REGION", "us-east-1", "store.dynamodb.region", "us-east-1"),
        ("DYNAMODB_ENDPOINT", "http://x:1", "store.dynamodb.endpoint", "http://x:1"),
        ("API_KEYS_FILE", "/keys.yaml", "keys.file", "/keys.yaml"),
        ("QUOTAS_WHEN_STORE_FAILS", "allow", "quotas.when_store_fails", "allow"),
        ("DRAIN_PAUSE", "2", "limits.drain_pause", 2),
        ("GRPC_GRACE", "3", "limits.grace", 3),
        ("GRPC_MAX_CONNECTIONS", "5", "connections.max", 5),
        ("GRPC_MAX_CONNECTION_AGE", "6", "connections.max_age_seconds", 6),
        ("GRPC_ENABLE_HTTP2", "1", "keepalive.enable_http2", True),
        ("USE_TLS", "true", "tls.enabled", True),
        ("TLS_CERT_PATH", "/cert.pem", "tls.cert_path", "/cert.pem"),
        ("TLS_KEY_PATH", "/key.pem", "tls.key_path", "/key.pem"),
        ("TLS_CLIENT_CA_PATH", "/ca.pem", "tls.client_ca_path", "/ca.pem"),
        ("HEALTH_ENABLED", "false", "bridge.enabled", False),
        ("HEALTH_HOST", "::1", "bridge.http.host", "::1"),
        ("HEALTH_HOST", "::1", "bridge.https.host", "::1"),
        ("HEALTH_HTTP_PORT", "1", "bridge.http.port", 1),
        ("HEALTH_HTTPS_PORT", "2", "bridge.https.port", 2),
        ("HEALTH_ALLOW_PUBLIC", "true", "bridge.http.allow_public", True),
        ("HEALTH_ALLOW_PUBLIC", "true", "bridge.https.allow_public", True),
        ("LOG_PROMPT_CHARS", "0", "log.prompt_chars", 0),
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
    company = {
        "USE_TLS": {"TLS_CERT_PATH": "/cert.pem", "TLS_KEY_PATH": "/key.pem"},
        "TLS_CERT_PATH": {"TLS_KEY_PATH": "/key.pem"},
        "TLS_KEY_PATH": {"TLS_CERT_PATH": "/cert.pem"},
        "TLS_CLIENT_CA_PATH": {"USE_TLS": "true", "TLS_CERT_PATH": "/cert.pem", "TLS_KEY_PATH": "/key.pem"},
    }
    nonsense = [
        ("    connect_seconds:", "    colour: red\n    connect_seconds:", "upstreams.main"),
        ("connect_seconds: 5", "connect_seconds: soon", "upstreams.main.connect_seconds"),
        ("heartbeat_seconds: 15", "heartbeat_seconds: 0", "stream.heartbeat_seconds"),
        ("${GRPC_FRAMES_PER_SECOND:-12000}", "0", "stream.frames_per_second"),
        ("/query}", "}", "upstreams.main: url: http://127.0.0.1:8500 must end in /query"),
        ("http://127.0.0.1:${BACKEND_PORT:-8500}/query", "http://user:pass@x/query", "upstreams.main.url"),
        ("${BACKEND_DIALECT:-query}", "ollama", "upstreams.main.dialect"),
        ("${BACKEND_AUTH:-}", "basic", "upstreams.main.auth.kind"),
        ("${BACKEND_AUTH:-}", "bearer", "upstreams.main.auth: kind bearer needs token_file or token"),
        ("${BACKEND_AUTH:-}", "x-api-key", "upstreams.main.auth: kind x-api-key needs token_file or token"),
        ("${BACKEND_AUTH:-}", "aws_sigv4", "upstreams.main.auth: kind aws_sigv4 needs region"),
        ("${WORKER_THREADS:-4096}", "0", "limits.max_in_flight"),
        ("${GRPC_MAX_CONNECTION_AGE:-300}", "0.5", "connections.max_age_seconds"),
        ("${GRPC_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "0.0.0.0", "listen"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [
        ("WORKER_THREADS", "-1", "limits.max_in_flight"),
        ("GRPC_ENABLE_HTTP2", "0", "keepalive"),
        ("STORE", "mysql", "store.kind"),
        ("STICKY_SESSION_COOKIE", "a b", "sticky.cookie"),
        ("BACKEND_URL", "ftp://x", "upstreams.main.url"),
        ("BACKEND_DIALECT", "openapi", "upstreams.main.dialect"),
        ("BACKEND_AUTH", "basic", "upstreams.main.auth.kind"),
    ]

    def test_a_url_that_no_request_could_go_to_stops_the_start(self) -> None:
        for url in ("http://x:99999/v1", "http://:80/v1", "http:///v1", "http://[::1/v1"):
            self.is_refused(self.run("config", BACKEND_URL=url, BACKEND_DIALECT="openai"), "upstreams.main: ")

    def test_what_is_shown_has_no_token_in_it(self) -> None:
        ran = self.run("config", "--show", BACKEND_AUTH="bearer", BACKEND_TOKEN="canary-token")
        assert "upstreams.main.auth.token: ********" in ran.output
        assert "canary" not in ran.output

    def test_the_url_of_the_dialect_query_ends_in_it(self) -> None:
        for url in ("http://x/query/", "http://x/query/more", "http://query", "http://x/v1"):
            self.is_refused(self.run("config", BACKEND_URL=url), f"upstreams.main: url: {url} must end in /query")

    def test_the_url_of_the_dialect_openai_is_the_base(self) -> None:
        given = {"BACKEND_DIALECT": "openai", "BACKEND_URL": "http://vllm:8000/v1"}
        assert self.run("config", **given).exit_code == 0
        given["BACKEND_URL"] += "/chat/completions"
        self.is_refused(
            self.run("config", **given), "upstreams.main: url: http://vllm:8000/v1/chat/completions must be the base"
        )

    def test_a_token_file_that_is_not_there_stops_the_start(self) -> None:
        ran = self.serve(self.file, BACKEND_AUTH="bearer", BACKEND_TOKEN_FILE="/no/such/file")
        assert ran.exit_code == 1
        assert "auth.token_file: /no/such/file cannot be read" in ran.output.splitlines()[-1]
