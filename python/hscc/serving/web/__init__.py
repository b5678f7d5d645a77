"""The server: the Open Inference Protocol, version 2, by REST and gRPC, over :class:`hscc.serving.engine.Engine`."""
