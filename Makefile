# Everything the project does, by name. `make help` lists the targets.
# Needs only Python 3.11 and make: the first target that needs packages installs them into $(VENV).

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m
DEMO   ?= demo
DATA   ?= data

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-fast soak fuzz demo clean

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(VENV)/installed  ## virtual environment with everything

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, found {v[0]}.{v[1]}: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@touch $@

lint: setup  ## style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test: setup  ## all tests
	$(RUN) pytest

test-fast: setup  ## tests without the slow ones
	$(RUN) pytest -m 'not slow'

soak: setup  ## kill training runs at random moments and compare how they end (FLAGS=--kills=20)
	$(VENV)/bin/python tests/soak.py $(FLAGS)

fuzz: setup  ## feed the readers with 5000 damaged files and count what becomes of them
	$(VENV)/bin/python tests/fuzz.py $(FLAGS)

demo: setup  ## from raw phantom scans to a table and a picture, in minutes
	$(RUN) data_prep.phantom --task=abdomen --out=$(DEMO)/raw --cases=ct:10,mr:10 --overwrite
	$(RUN) data_prep.prepare --source=abdomen --raw=$(DEMO)/raw --out=$(DEMO)/data
	$(RUN) experiments.train --setting=ours --preset=tiny --data_dir=$(DEMO)/data --run_dir=$(DEMO)/run
	$(RUN) experiments.evaluate --run_dir=$(DEMO)/run
	@echo "Above: a PHANTOM at preset tiny. It shows that everything works, not how well the method segments patients."
	$(RUN) experiments.predict --run_dir=$(DEMO)/run --modality=ct --input=$(DEMO)/raw/btcv/img/img0001.nii.gz \
		--output=$(DEMO)/prediction.nii.gz --overlay=$(DEMO)/prediction.png

# --- preparation: RAW=<folder as downloaded>, OUT=<prepared folder>; data_prep/README.md explains every source --------

OUT   ?= $(DATA)/$*
FLAGS ?=

prepare-csv: setup  ## prepare-csv CSV=own.csv TASK=abdomen OUT=… [FLAGS=--label_map=map.json]: your own scans
	$(RUN) data_prep.prepare --source=csv --csv=$(CSV) --task=$(TASK) --out=$(OUT) $(FLAGS)

verify-csv: setup
	$(RUN) data_prep.verify --source=csv --csv=$(CSV) --task=$(TASK) $(FLAGS)

prepare-phantom: setup  ## prepare-phantom OUT=… [FLAGS=…]: phantom scans, abdomen
	$(RUN) data_prep.phantom --task=abdomen --out=$(OUT)/raw --overwrite $(FLAGS)
	$(RUN) data_prep.prepare --source=abdomen --raw=$(OUT)/raw --out=$(OUT)

prepare-%: setup  ## prepare-{btcv,chaos,abdomen,mmwhs,released} RAW=… [OUT=…] [FLAGS=…]
	$(RUN) data_prep.prepare --source=$* --raw=$(RAW) --out=$(OUT) $(FLAGS)

verify-%: setup  ## verify-{btcv,chaos,abdomen,mmwhs,released} RAW=…: reports every problem, writes nothing
	$(RUN) data_prep.verify --source=$* --dir=$(RAW) $(FLAGS)

qc: setup  ## qc OUT=<prepared folder>: pictures and one HTML page
	$(RUN) data_prep.qc --data_dir=$(OUT)

benchmark-preparation: setup  ## seconds a case, by workers, and peak memory
	$(RUN) data_prep.benchmark

clean:  ## remove the virtual environment and the demo
	rm -rf $(VENV) $(DEMO) build *.egg-info
