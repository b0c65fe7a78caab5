"""The RESTful proxy: HTTP with clients, gRPC with the proxy behind it."""
