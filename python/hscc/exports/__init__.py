"""Compressed models for other runtimes: ONNX, AOTInductor packages, exported programs."""
