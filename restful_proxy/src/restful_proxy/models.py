"""`GET /models`: the models that can be asked for, as the gRPC proxy names them."""

from __future__ import annotations

import flask

from lambdalm.http.app import HttpHop
from lambdalm.models import ModelInfo, Models
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import caller
from restful_proxy.upstream import GrpcProxy


def add_models(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve it on this hop."""

    @hop.app.get("/models")
    async def models() -> flask.Response:
        with hop.call() as call:
            found: pb.ListModelsResponse = await proxy.ask("ListModels", pb.ListModelsRequest(), call, caller.current())
            return hop.answer(Models([_model(each) for each in found.models]), call.clock)


def _model(model: pb.Model) -> ModelInfo:
    window = model.context_window if model.HasField("context_window") else None
    return ModelInfo(model.id, model.provider, window)
