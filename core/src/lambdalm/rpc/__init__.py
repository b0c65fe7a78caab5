"""The pipeline's language over gRPC: what the edge and the gRPC proxy share (the extra `rpc`)."""
