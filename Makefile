# Everything happens in .venv and sets itself up: `make demo`, `make test`. `make help` names the rest.

# The torch build: TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'. Unset, what
# .venv has is kept; an empty .venv gets torch==2.13.0.
TORCH ?=
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c '$(SUPPORTED)' 2> /dev/null && echo $$python && break; done)
# Processes that tests run in, each with one thread, and arguments of pytest: ARGS='-k packing'
JOBS ?= auto
ARGS ?=

RUN = .venv/bin/python
DEMO = configs/detection/retinanet_navit-ti_20e_sample.py
OUT = work_dirs/demo

define SUMMARY
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
figures = json.loads(path.read_text())
ap, ap50 = (figures.get(f'coco/{name}', 0.0) for name in ('bbox_mAP', 'bbox_mAP_50'))  # no boxes: 0
print(f'  {path.stem:<10} AP {ap:.3f}  AP50 {ap50:.3f}')
endef
export SUMMARY

.PHONY: help demo test setup format lint types clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install all that is needed into .venv; what is there and works is kept
	@.venv/bin/python -c '' 2> /dev/null || { \
		test -n '$(PYTHON)' || { echo 'Python 3.10, 3.11 or 3.12 is needed: make setup PYTHON=...'; exit 1; }; \
		echo '[0/5] .venv (seconds)'; $(PYTHON) -m venv --clear .venv; }
	@TORCH='$(TORCH)' $(RUN) .ci/setup.py

demo: setup ## drawings, a short training, its evaluation, annotated pictures: 10 minutes at most
	$(RUN) tools/prepare_data.py sample --out data/sample
	# The weights before training: a single step of length 0 saves them.
	$(RUN) tools/train.py $(DEMO) --work-dir $(OUT)/untrained --cfg-options \
		train_cfg.max_epochs=1 train_dataloader.dataset.indices=8 optim_wrapper.optimizer.lr=0
	$(RUN) tools/test.py $(DEMO) $(OUT)/untrained/epoch_1.pth --out $(OUT)/untrained.json
	$(RUN) tools/train.py $(DEMO) --work-dir $(OUT)/trained
	$(RUN) tools/test.py $(DEMO) "$$(cat $(OUT)/trained/last_checkpoint)" --out $(OUT)/trained.json
	$(RUN) tools/predict.py $(DEMO) "$$(cat $(OUT)/trained/last_checkpoint)" data/sample/val \
		--out-dir $(OUT)/pictures
	@echo; echo 'On 40 drawings that were held out, COCO AP:'
	@for model in untrained trained; do $(RUN) -c "$$SUMMARY" $(OUT)/$$model.json; done
	@echo 'Annotated pictures: $(OUT)/pictures'

test: setup ## the whole test suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

format: setup ## put the code in order
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix

lint: setup ## say what is out of order
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m codespell_lib

types: setup ## check the types of the library
	$(RUN) -m mypy

clean: ## remove .venv, caches and what the demo made
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf data/sample work_dirs/demo
