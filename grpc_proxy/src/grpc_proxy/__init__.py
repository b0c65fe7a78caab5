"""The gRPC proxy: the one place through which every request goes on its way to a model."""
