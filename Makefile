# Each target sets up what it needs in .venv; TORCH picks the build of torch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
NETWORKS ?= torchvision==0.28.0 timm==1.0.31 segmentation-models-pytorch==0.6.0 monai==1.6.1
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py

.PHONY: demo test test-ray lint docs coverage pictures sanitize clean

demo: $(VENV)/built
	$(BIN)/hscc demo --out out/demo

test: $(VENV)/built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

# Ray is large, so its tests are apart: replicas and two nodes that die under load
test-ray: $(VENV)/built
	$(BIN)/pip install -q -c $(VENV)/torch -e ".[ray]" --no-build-isolation
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -W ignore $(wildcard tests/hscc/serving/web/test_ray*.py)

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))

docs: $(VENV)/built
	$(BIN)/sphinx-build -q -W --keep-going -b html docs out/docs

# docs/coverage.md: every network compressed, compiled and exported; an hour or two, no timing
coverage: $(VENV)/networks
	$(BIN)/python -m bench.coverage

EXAMPLE := --model examples/brain_mri/model.py:build
DATA := data/brain_mri

# README's pictures: a sweep of the example (goes on where it was stopped), the report of the picked one; needs chromium
pictures: $(VENV)/built
	test -d $(DATA) || $(BIN)/python examples/brain_mri/synthetic.py --out $(DATA) --train 0 --calibration 256
	$(BIN)/hscc sweep $(EXAMPLE) --weights examples/brain_mri/weights.safetensors --data $(DATA)/calibration \
	  --validation $(DATA)/test --out out/sweep --pick "least >= dense - 0.5" --to out/picked.safetensors
	$(BIN)/hscc report $(EXAMPLE) --dense examples/brain_mri/weights.safetensors --weights out/picked.safetensors \
	  --calibration $(DATA)/calibration --test $(DATA)/test --points out/sweep/points.json --out out/report.html
	$(BIN)/python docs/pictures.py out/report.html

sanitize: $(VENV)/built
	PYTHON=$(BIN)/python bash tests/sanitize.sh

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "setuptools>=77" wheel ninja "$(TORCH)"
	$(BIN)/pip install -q --no-deps "triton>=3.6,<3.7" "onnx2torch>=1.5.15"
	$(BIN)/pip freeze | grep '^torch==' >$@  # no package may bring another one

$(VENV)/networks: $(VENV)/built
	$(BIN)/pip install -q --no-deps $(NETWORKS)  # with their dependencies comes another torch
	touch $@

$(VENV)/built: $(VENV)/torch pyproject.toml $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -c $(VENV)/torch -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build out data *.egg-info hscc_kernels/*.so
