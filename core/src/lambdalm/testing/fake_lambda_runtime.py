"""AWS Lambda's runtime API on this machine, so that a function runs here as it does there.

    python -m lambdalm.testing.fake_lambda_runtime --port 9001
    AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001 python -m awslambdaric backend_lambda.handler.lambda_handler
    curl -d '{"prompt": "hi"}' 127.0.0.1:9001/2015-03-31/functions/function/invocations

The second is the real runtime interface client, which asks for the next invocation, runs the handler and posts what it
returned. The path to invoke is that of AWS's own emulator. Like Lambda, it runs one invocation at a time and takes no
result above 6 MB; unlike Lambda, it does not end the process of one that is late, but waits for it.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import threading
import time
import uuid
from typing import Any, NamedTuple

from lambdalm.testing.fake_http import Exchange, FakeServer, Reply

_API = "/2018-06-01/runtime"
_INVOKE = "/2015-03-31/functions/function/invocations"
_MAX_RESULT = 6 * 1024 * 1024 + 100  # bytes; Lambda's own errors name 6291556
_WAIT = 60.0  # seconds for a result


class Result(NamedTuple):
    """What came of an invocation: `kind` is "response" or "error", `payload` JSON."""

    kind: str
    payload: bytes

    def json(self) -> Any:
        return json.loads(self.payload)


class _Invocation(NamedTuple):
    id: str
    event: bytes
    seconds: float
    result: queue.Queue[Result]


class FakeLambdaRuntime(FakeServer):
    """The runtime API on a port of 127.0.0.1; 0 takes a free one. Use it as a context manager."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.init_errors: queue.Queue[bytes] = queue.Queue()
        """What a function said that could not be loaded."""
        self._next: queue.Queue[_Invocation | None] = queue.Queue()
        self._running: dict[str, _Invocation] = {}
        self._one_at_a_time = threading.Lock()

    @property
    def address(self) -> str:
        """The value of AWS_LAMBDA_RUNTIME_API."""
        return self.url.removeprefix("http://")

    def __exit__(self, *failure: object) -> None:
        self._next.put(None)
        super().__exit__(*failure)

    def answer(self, exchange: Exchange) -> None:
        method, path, headers, body = exchange.asked
        if (method, path) == ("GET", f"{_API}/invocation/next"):
            self._offer(exchange)
        elif path == _INVOKE:
            exchange.reply(Reply(200, self.invoke_bytes(body, float(headers.get("x-seconds", "30"))).payload))
        elif path == f"{_API}/init/error":
            self.init_errors.put(body)
            exchange.reply(Reply(202, b"{}"))
        else:
            invocation, _, kind = path.removeprefix(f"{_API}/invocation/").partition("/")
            known = method == "POST" and kind in ("response", "error")
            exchange.reply(Reply(self.give(invocation, Result(kind, body)) if known else 404, b"{}"))

    def _offer(self, exchange: Exchange) -> None:
        invocation = self.take()
        if invocation is None:
            exchange.cut()  # whoever asked has ended, or will
        headers = (
            ("Lambda-Runtime-Aws-Request-Id", invocation.id),
            ("Lambda-Runtime-Deadline-Ms", str(round((time.time() + invocation.seconds) * 1000))),
            ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:function"),
        )
        exchange.reply(Reply(200, invocation.event, headers=headers))

    def invoke(self, event: Any, seconds: float = 30) -> Result:
        """Run the function on an event, with so much time; raises queue.Empty when nothing comes in a minute."""
        return self.invoke_bytes(json.dumps(event).encode(), seconds)

    def invoke_bytes(self, event: bytes, seconds: float) -> Result:
        with self._one_at_a_time:
            invocation = _Invocation(str(uuid.uuid4()), event, seconds, queue.Queue())
            self._next.put(invocation)
            return invocation.result.get(timeout=_WAIT)

    def take(self) -> _Invocation | None:
        """The next invocation, when there is one; None when the runtime ends."""
        invocation = self._next.get()
        if invocation is None:
            self._next.put(None)
        else:
            self._running[invocation.id] = invocation
        return invocation

    def give(self, id: str, result: Result) -> int:
        """A result has come; the HTTP status that says what Lambda thinks of it."""
        invocation = self._running.pop(id, None)
        if invocation is None:
            return 400
        if len(result.payload) > _MAX_RESULT:
            invocation.result.put(Result("error", b'{"errorType": "Function.ResponseSizeTooLarge"}'))
            return 413
        invocation.result.put(result)
        return 202


def main() -> None:
    """The program: serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=FakeLambdaRuntime.__doc__)
    parser.add_argument("--port", type=int, default=9001, help="default %(default)s; 0 takes a free one")
    with FakeLambdaRuntime(parser.parse_args().port) as runtime, contextlib.suppress(KeyboardInterrupt):
        print(f"a fake Lambda runtime API listens on {runtime.address}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
