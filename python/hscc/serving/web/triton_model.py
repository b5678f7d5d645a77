"""Answers in NVIDIA Triton's python backend, which needs hscc; ``hscc serve --triton-repository`` copies it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from hscc.serving.models import Served
from hscc.serving.signature import named


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model beside this file onto the instance's device."""
        config = json.loads(args["model_config"])
        texts = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        source = f"{folder / 'network.py'}:{texts['function']}" if "function" in texts else None
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        self.model = Served.load(folder / texts["file"], source, name=config["name"])
        self.run = self.model.on(self.device)

    def execute(self, requests: list) -> list:
        """A response a request; all in one batch, but where that fails one by one."""
        xs = [self._input(request) for request in requests]
        try:
            return self._answer(xs)
        except Exception:
            return [self._alone(x) for x in xs]

    def _input(self, request) -> torch.Tensor:
        (spec,) = self.model.inputs
        return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, spec.name).to_dlpack()).to(self.device)

    def _answer(self, xs: list[torch.Tensor]) -> list:
        with torch.inference_mode():
            outputs = named(self.run(torch.cat(xs).contiguous(memory_format=self.model.layout)))
        rows = {name: one.cpu().split([len(x) for x in xs]) for name, one in outputs.items()}
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, parts[i].numpy()) for name, parts in rows.items()])
            for i in range(len(xs))
        ]

    def _alone(self, x: torch.Tensor):
        try:
            return self._answer([x])[0]
        except Exception as error:
            pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError("the model failed on this request"))
