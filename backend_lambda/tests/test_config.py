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
        ("BACKEND_TOKEN", "t", "listen.token", "t"),
        ("BACKEND_TOKEN_FILE", "/t", "listen.token_file", "/t"),
        ("BACKEND_ALLOW_PUBLIC", "true", "listen.allow_public", True),
        ("BACKEND_MAX_IN_FLIGHT", "7", "limits.max_in_flight", 7),
        ("BACKEND_ALLOWED_HOSTS", "a.example", "limits.allowed_hosts", "a.example"),
        ("BACKEND_FRAMES_PER_SECOND", "7", "stream.frames_per_second", 7),
        ("DRAIN_PAUSE", "2.5", "limits.drain_pause", 2.5),
        ("PROVIDER", "scripted", "provider.kind", "scripted"),
        ("BACKEND_WORKERS", "3", "workers", 3),
        ("PARALLEL_SLOTS", "9", "provider.slots", 9),
        ("QUEUE_SIZE", "0", "provider.queue", 0),
        ("MODEL_PATH", "/models/x.gguf", "provider.llamacpp.model_path", "/models/x.gguf"),
        ("DEFAULT_CONTEXT_WINDOW", "512", "provider.llamacpp.context_tokens", 512),
        ("COMPUTE_DEVICE", "cpu", "provider.llamacpp.compute_device", "cpu"),
        ("GPU_DEVICE_ID", "1", "provider.llamacpp.gpu_device_id", 1),
        ("OMP_NUM_THREADS", "3", "provider.llamacpp.threads", 3),
        ("NUM_THREADS", "3", "provider.llamacpp.threads", 3),
        ("DEFAULT_TEMPERATURE", "0.7", "provider.llamacpp.temperature", 0.7),
        ("DEFAULT_MAX_TOKENS", "99", "provider.llamacpp.max_tokens", 99),
        ("INTERACTION_LOG_CONTENT", "off", "interactions.content", "off"),
        ("INTERACTION_LOG_FILE", "-", "interactions.path", "-"),
        ("OLLAMA_URL", "http://o:1", "provider.ollama.base_url", "http://o:1"),
        ("OLLAMA_BASE_URL", "http://o:1", "provider.ollama.base_url", "http://o:1"),
        ("OLLAMA_KEEP_ALIVE", "1h", "provider.ollama.keep_alive", "1h"),
        ("DEFAULT_PRESENCE_PENALTY", "0.5", "provider.ollama.presence_penalty", 0.5),
        ("DEFAULT_FREQUENCY_PENALTY", "-1", "provider.ollama.frequency_penalty", -1.0),
        ("OPENAI_BASE_URL", "http://v:1/v1", "provider.openai.base_url", "http://v:1/v1"),
        ("OPENAI_API_KEY", "sk-1", "provider.openai.api_key", "sk-1"),
        ("OPENAI_API_KEY_FILE", "/key", "provider.openai.api_key_file", "/key"),
        ("BEDROCK_API", "titan", "provider.bedrock.api", "titan"),
        ("BEDROCK_MODEL", "m", "provider.bedrock.model", "m"),
        ("AWS_REGION", "eu-west-1", "provider.bedrock.region", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-2", "provider.bedrock.region", "eu-west-2"),
        ("BEDROCK_ENDPOINT_URL", "http://b:1", "provider.bedrock.endpoint_url", "http://b:1"),
        ("BEDROCK_PROFILE", "p", "provider.bedrock.profile", "p"),
        ("BEDROCK_TEMPERATURE", "0.1", "provider.bedrock.temperature", 0.1),
        ("BEDROCK_TOP_P", "0.5", "provider.bedrock.top_p", 0.5),
        ("BEDROCK_MAX_TOKENS", "9", "provider.bedrock.max_tokens", 9),
        ("BEDROCK_GUARDRAIL_ID", "g", "provider.bedrock.guardrail_id", "g"),
        ("BEDROCK_GUARDRAIL_VERSION", "7", "provider.bedrock.guardrail_version", "7"),
        ("BEDROCK_GUARDRAIL_TRACE", "enabled", "provider.bedrock.guardrail_trace", "enabled"),
        ("DEFAULT_CONTEXT_WINDOW", "512", "provider.ollama.context_window", 512),
        ("DEFAULT_TEMPERATURE", "0.7", "provider.ollama.temperature", 0.7),
        ("DEFAULT_TEMPERATURE", "0.7", "provider.openai.temperature", 0.7),
        ("DEFAULT_MAX_TOKENS", "99", "provider.ollama.max_tokens", 99),
        ("DEFAULT_MAX_TOKENS", "99", "provider.openai.max_tokens", 99),
        ("DEFAULT_MAX_TOKENS", "99", "provider.bedrock.max_tokens", 99),
        ("DEFAULT_TOP_P", "0.5", "provider.ollama.top_p", 0.5),
        ("DEFAULT_TOP_P", "0.5", "provider.openai.top_p", 0.5),
        ("MODEL_NAME", "m", "provider.ollama.model", "m"),
        ("MODEL_NAME", "m", "provider.openai.model", "m"),
        ("MODEL_NAME", "m", "provider.bedrock.model", "m"),
        ("LLM_MODEL", "m", "provider.ollama.model", "m"),
        ("LLM_MODEL", "m", "provider.openai.model", "m"),
        ("LLM_MODEL", "m", "provider.bedrock.model", "m"),
        ("REQUEST_TIMEOUT", "9", "provider.ollama.request_timeout", 9.0),
        ("REQUEST_TIMEOUT", "9", "provider.openai.request_timeout", 9.0),
        ("REQUEST_TIMEOUT", "9", "provider.bedrock.request_timeout", 9.0),
        ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
        ("LOG_FORMAT", "json", "log.format", "json"),
    ]
    nonsense = [
        ("  kind:", "  colour: red\n  kind:", "provider"),
        ("  header_bytes: 16384", "  header_bytes: many", "limits.header_bytes"),
        ("  body_seconds: 30", "  body_seconds: 0", "limits.body_seconds"),
        ("${PROVIDER:-llamacpp}", "ollamacpp", "provider.kind"),
        ("workers: ${BACKEND_WORKERS:-1}", "workers: 257", "workers"),
        ("${PARALLEL_SLOTS:-4}", "0", "provider.slots"),
        ("gpu_layers: -1", "gpu_layers: -2", "provider.llamacpp.gpu_layers"),
        ("${DEFAULT_CONTEXT_WINDOW:-4096}", "63", "provider.llamacpp.context_tokens"),
        ("${DEFAULT_TEMPERATURE:-0}", "2.1", "provider.llamacpp.temperature"),
        ("${INTERACTION_LOG_CONTENT:-full}", "off", "interactions.content"),
        ("  backups: 5", "  backups: 0", "interactions.backups"),
        ("${BACKEND_HOST:-127.0.0.1}", "0.0.0.0", "listen"),
        ("${BACKEND_HOST:-127.0.0.1}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [
        ("INTERACTION_LOG_CONTENT", "some", "content"),
        ("NUM_THREADS", "-1", "threads"),
        ("COMPUTE_DEVICE", "tpu", "compute_device"),
        ("GPU_DEVICE_ID", "-1", "gpu_device_id"),
        ("QUEUE_SIZE", "x", "queue"),
    ]
