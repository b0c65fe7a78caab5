"""`GET /models`: the models that can be asked for, as the gRPC proxy names them."""

from __future__ import annotations

import flask
import msgspec

from lambdalm.web.app import HttpHop
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import caller
from restful_proxy.upstream import GrpcProxy


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model; `context_window` counts the tokens of prompt and answer together, where that is known."""

    id: str
    provider: str
    context_window: int | None = None


class Models(msgspec.Struct, frozen=True):
    """The body of `GET /models`."""

    models: list[Model]


def add_models(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve it on this hop."""

    @hop.app.get("/models")
    def models() -> flask.Response:
        with hop.call() as call:
            found: pb.ListModelsResponse = proxy.ask("ListModels", pb.ListModelsRequest(), call, caller.current())
            return hop.answer(Models([_model(each) for each in found.models]), call.clock)


def _model(model: pb.Model) -> Model:
    window = model.context_window if model.HasField("context_window") else None
    return Model(model.id, model.provider, window)
