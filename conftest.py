"""For all tests.

pytest names a test module by its path, and `grpc_proxy/tests/test_x.py` would make an empty package `grpc_proxy` where
the real one belongs. Imported first, the real ones stay.

Hypothesis works without its deadline: a busy machine is no failure. `--hypothesis-profile=many` tries 10,000 examples.
Servers that tests start write no interaction log, but where a test asks for one, keep sessions in a folder that goes,
and tell their health on free ports.
"""

import atexit
import os
import tempfile

from hypothesis import settings

import backend_lambda  # noqa: F401
import bedrest_client  # noqa: F401
import grpc_proxy  # noqa: F401
import restful_proxy  # noqa: F401

settings.register_profile("without a clock", deadline=None)
settings.register_profile("many", deadline=None, max_examples=10_000)
settings.load_profile("without a clock")

os.environ.setdefault("INTERACTION_LOG_CONTENT", "off")
os.environ.setdefault("HEALTH_HTTP_PORT", "0")
os.environ.setdefault("HEALTH_HTTPS_PORT", "0")

if "STORE_SQLITE_PATH" not in os.environ:
    _kept = tempfile.TemporaryDirectory(prefix="lambdalm-tests-", ignore_cleanup_errors=True)
    atexit.register(_kept.cleanup)
    os.environ["STORE_SQLITE_PATH"] = f"{_kept.name}/grpc_proxy.sqlite"
