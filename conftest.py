"""For all tests.

pytest names a test module by its path, and `grpc_proxy/tests/test_x.py` would make an empty package `grpc_proxy` where
the real one belongs. Imported first, the real ones stay.
"""

import backend_lambda  # noqa: F401
import bedrest_client  # noqa: F401
import grpc_proxy  # noqa: F401
import restful_proxy  # noqa: F401
