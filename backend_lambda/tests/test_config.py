"""config.yaml is the reference: it has every key, its defaults are those of the code, and nonsense stops the start."""

from __future__ import annotations

from backend_lambda.__main__ import main
from backend_lambda.config import Config
from lambdalm.testing.config_contract import ConfigContract


class TestConfig(ConfigContract):
    command = main
    kind = Config
    bare = {"listen": {"host": "127.0.0.1", "port": 8500}}
    environment = [
        ("BACKEND_HOST", "::1", "listen.host", "::1"),
        ("BACKEND_PORT", "1234", "listen.port", 1234),
        ("BACKEND_ALLOW_PUBLIC", "true", "listen.allow_public", True),
        ("BACKEND_MAX_IN_FLIGHT", "7", "limits.max_in_flight", 7),
        ("BACKEND_FRAMES_PER_SECOND", "7", "stream.frames_per_second", 7),
        ("DRAIN_PAUSE", "2.5", "limits.drain_pause", 2.5),
        ("PROVIDER", "scripted", "provider.kind", "scripted"),
        ("PARALLEL_SLOTS", "9", "provider.slots", 9),
        ("QUEUE_SIZE", "0", "provider.queue", 0),
        ("MODEL_PATH", "/models/x.gguf", "provider.llamacpp.model_path", "/models/x.gguf"),
        ("DEFAULT_CONTEXT_WINDOW", "512", "provider.llamacpp.context_tokens", 512),
        ("NUM_THREADS", "3", "provider.llamacpp.threads", 3),
        ("DEFAULT_TEMPERATURE", "0.7", "provider.llamacpp.temperature", 0.7),
        ("DEFAULT_MAX_TOKENS", "99", "provider.llamacpp.max_tokens", 99),
        ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
        ("LOG_FORMAT", "json", "log.format", "json"),
    ]
    nonsense = [
        ("  kind:", "  colour: red\n  kind:", "provider"),
        ("  header_bytes: 16384", "  header_bytes: many", "limits.header_bytes"),
        ("  body_seconds: 30", "  body_seconds: 0", "limits.body_seconds"),
        ("${PROVIDER:-llamacpp}", "ollamacpp", "provider.kind"),
        ("${PARALLEL_SLOTS:-4}", "0", "provider.slots"),
        ("${DEFAULT_CONTEXT_WINDOW:-4096}", "63", "provider.llamacpp.context_tokens"),
        ("${DEFAULT_TEMPERATURE:-0}", "2.1", "provider.llamacpp.temperature"),
        ("${BACKEND_HOST:-127.0.0.1}", "0.0.0.0", "listen"),
        ("${BACKEND_HOST:-127.0.0.1}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [("NUM_THREADS", "-1", "threads"), ("QUEUE_SIZE", "x", "queue")]
