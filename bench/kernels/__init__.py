"""The fused kernel on single layers, against dense and unfused low-rank convolutions."""
