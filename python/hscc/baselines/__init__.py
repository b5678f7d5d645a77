"""The usual low-rank convolutions as peers of ours."""
