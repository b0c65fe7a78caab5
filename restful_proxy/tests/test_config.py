"""config.yaml is the reference: it has every key, its defaults are those of the code, and nonsense stops the start."""

from __future__ import annotations

from lambdalm.testing.config_contract import ConfigContract
from restful_proxy.__main__ import main
from restful_proxy.config import Config


class TestConfig(ConfigContract):
    command = main
    kind = Config
    bare = {"listen": {"host": "127.0.0.1", "port": 8080}, "grpc": {"target": "127.0.0.1:50051"}}
    environment = [
        ("LLM_HOST", "::1", "listen.host", "::1"),
        ("LLM_PORT", "1234", "listen.port", 1234),
        ("LLM_ALLOW_PUBLIC", "true", "listen.allow_public", True),
        ("NUM_WORKERS", "3", "workers", 3),
        ("LLM_MAX_CONNECTIONS", "7", "limits.max_in_flight", 7),
        ("DRAIN_PAUSE", "2.5", "limits.drain_pause", 2.5),
        ("LLM_ALLOWED_HOSTS", "llm.example,.example.org", "limits.allowed_hosts", "llm.example,.example.org"),
        ("GRPC_HOST", "proxy.example", "grpc.target", "proxy.example:50051"),
        ("GRPC_PORT", "1235", "grpc.target", "127.0.0.1:1235"),
        ("GRPC_USE_TLS", "true", "grpc.tls.enabled", True),
        ("GRPC_CA_PATH", "/tls/ca.pem", "grpc.tls.ca_path", "/tls/ca.pem"),
        ("GRPC_CLIENT_CERT_PATH", "/tls/edge.pem", "grpc.tls.cert_path", "/tls/edge.pem"),
        ("GRPC_CLIENT_KEY_PATH", "/tls/edge.key", "grpc.tls.key_path", "/tls/edge.key"),
        ("GRPC_SERVER_NAME", "proxy.example", "grpc.tls.server_name", "proxy.example"),
        ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
        ("LOG_FORMAT", "json", "log.format", "json"),
    ]
    company = {
        "GRPC_CA_PATH": {"GRPC_USE_TLS": "true"},
        "GRPC_CLIENT_CERT_PATH": {"GRPC_USE_TLS": "true", "GRPC_CLIENT_KEY_PATH": "/k"},
        "GRPC_CLIENT_KEY_PATH": {"GRPC_USE_TLS": "true", "GRPC_CLIENT_CERT_PATH": "/c"},
    }
    nonsense = [
        ("  keepalive_seconds:", "  colour: red\n  keepalive_seconds:", "grpc"),
        ("header_bytes: 16384", "header_bytes: many", "limits.header_bytes"),
        ("body_seconds: 30", "body_seconds: 0", "limits.body_seconds"),
        ("max_connections: 4096", "max_connections: 0", "limits.max_connections"),
        ("keepalive_seconds: 10", "keepalive_seconds: 9.9", "grpc.keepalive_seconds"),
        (":${GRPC_PORT:-50051}", "", "grpc.target"),
        ("workers: ${NUM_WORKERS:-1}", "workers: 257", "workers"),
        ("${LLM_MAX_CONNECTIONS:-64}", "10001", "limits.max_in_flight"),
        ("${LLM_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${LLM_HOST:-127.0.0.1}", "0.0.0.0", "listen"),
        ("${LLM_HOST:-127.0.0.1}", "${NO_SUCH_NAME}", "listen.host"),
    ]
    nonsense_environment = [
        ("LLM_MAX_CONNECTIONS", "-1", "max_in_flight"),
        ("NUM_WORKERS", "0", "workers"),
        ("GRPC_PORT", "x", "grpc.target"),
        ("GRPC_USE_TLS", "perhaps", "grpc.tls.enabled"),
    ]
