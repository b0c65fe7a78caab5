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
        ("/query}", "}", "upstream.url"),
        ("${WORKER_THREADS:-4096}", "0", "limits.max_in_flight"),
        ("${GRPC_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "0.0.0.0", "listen"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [
        ("WORKER_THREADS", "-1", "limits.max_in_flight"),
        ("BACKEND_URL", "ftp://x", "upstream.url"),
    ]
