"""One call, from its request to what has come of it so far: what session, quota, metrics and log need to know."""

from __future__ import annotations

from collections.abc import Callable

from grpc_proxy import conversation
from grpc_proxy.callers import Caller
from grpc_proxy.conversation import Ending, State
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCallDelta,
    Usage,
)

_MOST_TEXT = 16 * 1024 * 1024  # characters of an answer that are kept; no session holds more


class Exchange:
    """`cookies` are to be set once something has come of it; `told` is what the model was told before the question,
    `asked` that and the question, in tokens as estimated; `upstream` and `model` are who answers. `makes_session` is
    False for calls that have no room for its id."""

    def __init__(self, request: ChatRequest, caller: Caller, call: Call, makes_session: bool = True) -> None:
        self.request = request
        self.caller = caller
        self.call = call
        self.makes_session = makes_session
        self.session_id: str | None = None
        self.cookies: list[str] = []
        self.upstream: str | None = None
        self.model = ""
        self.usage: Tokens | None = None
        self.told = 0
        self.asked = 0
        self.when_ready: Callable[[], None] = _nothing
        """What is called when its session and its cookies, if there are to be any before its end, are known."""
        self.was_left = False
        """Whether it ended because its caller left or its time was up."""
        self.keeps_text = False
        """Whether somebody needs the answer's text afterwards: a session or a quota."""
        self.last_delta: float | None = None
        """When the last delta came, in seconds on the monotonic clock."""
        self._size = 0
        self._begun = False
        self._text: list[str] = []
        self._beside: list[str] = []  # what the model has said that is not the answer's text
        self._reason: FinishReason | None = None

    @property
    def prompt(self) -> str:
        return self.request.prompt or ""

    def saw(self, batch: list[StreamEvent]) -> None:
        """More of the answer has come."""
        for event in batch:
            match event:
                case TextDelta(text):
                    self._keep(self._text, text)
                case ReasoningDelta(text) | ToolCallDelta(arguments=text):
                    self._keep(self._beside, text)
                case Started(_, model):
                    self.model, self._begun = model, True
                case Usage():
                    self.usage = event.tokens()
                case Finished(reason, usage):
                    self._reason, self.usage = reason, usage or self.usage

    def answered(self, answer: Answer) -> None:
        """The whole answer has come; at once, unless `saw` has had it in pieces."""
        if self._begun:
            return
        self._begun = True
        self.model, self._reason, self.usage = answer.model, answer.finish_reason, answer.usage
        self._keep(self._text, answer.text)
        for beside in (answer.reasoning, *(tool.arguments for tool in answer.tool_calls)):
            if beside:
                self._keep(self._beside, beside)

    @property
    def overlong(self) -> bool:
        """Whether the answer is too long to be kept whole."""
        return self._size > _MOST_TEXT

    def _keep(self, texts: list[str], text: str) -> None:
        self._size += len(text)
        if self.keeps_text and not self.overlong:
            texts.append(text)

    def ending(self, state: State) -> Ending:
        """How its turn ends."""
        text = "" if self.overlong else "".join(self._text)
        return Ending(state, text, self.model, self._reason, self.usage, self.told, self.upstream)

    def spent(self) -> int:
        """Tokens that it has cost: as counted; where they were not, an estimate of what was told and said."""
        if not self._begun:
            return self.asked if self.was_left else 0  # what was asked has been read, if not answered
        usage = self.usage or Tokens()
        asked, said = usage.prompt_tokens, usage.completion_tokens
        if said is None:
            said = conversation.estimate("".join(self._text + self._beside))
        return (self.asked if asked is None else asked) + said


def _nothing() -> None:
    pass
