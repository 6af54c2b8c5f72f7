# Everything the project does, by name. `make help` lists the targets.
# Needs only Python 3.11 or newer and make: the first target that needs packages installs them into $(VENV).

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m
DEMO   ?= demo
DATA   ?= data

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-fast test-wheel test-pythons lock notebook docs soak fuzz two-workers check-two-workers demo benchmark claims recorded reproduce report reproduce-phantom clean

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

docs: $(VENV)/docs-installed  ## the site, into site/index.html; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

$(VENV)/docs-installed: setup.py | setup
	$(VENV)/bin/pip install --quiet --editable '.[docs]'
	@touch $@

test: setup  ## all tests
	$(RUN) pytest

test-fast: setup  ## tests without the slow ones
	$(RUN) pytest -m 'not slow'

test-wheel: setup  ## README's commands, in order, with the built wheel in an environment of its own
	rm -rf $(VENV)/wheel build
	$(VENV)/bin/pip wheel --quiet --no-deps --wheel-dir=$(VENV)/wheel/dist .
	$(PYTHON) -m venv $(VENV)/wheel/venv
	$(VENV)/wheel/venv/bin/pip install --quiet $(VENV)/wheel/dist/*.whl
	PATH=$(abspath $(VENV))/wheel/venv/bin:$$PATH $(VENV)/wheel/venv/bin/python tests/readme.py $(VENV)/wheel/readme

PYTHONS ?= $(foreach version,11 12 13,$(shell command -v python3.$(version)))

test-pythons:  ## the tests with every supported Python found [PYTHONS="python3.12 …" FLAGS="-m 'not slow'"]
	for python in $(PYTHONS); do $(MAKE) PYTHON=$$python VENV=$(VENV)/$$(basename $$python) setup && \
		$(VENV)/$$(basename $$python)/bin/python -m pytest $(FLAGS) || exit 1; done

lock: setup  ## requirements.lock: every version of this environment, for the same tables again
	{ printf '# Written by `make lock` with %s on %s: pip install -r requirements.lock && pip install --no-deps .\n' \
		"$$($(VENV)/bin/python --version)" "$$(uname -sm)"; $(VENV)/bin/pip freeze --exclude-editable; } > requirements.lock

notebook: setup  ## runs docs/notebook.ipynb and stops at its first error; the file stays as it is
	PATH=$(abspath $(VENV))/bin:$$PATH $(VENV)/bin/jupyter execute --timeout=600 docs/notebook.ipynb

soak: setup  ## kill training runs at random moments and compare how they end (FLAGS=--kills=20)
	$(VENV)/bin/python tests/soak.py $(FLAGS)

fuzz: setup  ## feed the readers with 5000 damaged files and 2000 odd headers, and count what becomes of them
	$(VENV)/bin/python tests/fuzz.py $(FLAGS)

two-workers: setup  ## one training in two processes, as on two machines [FLAGS="--data_dir=… --run_dir=…"]
	PATH=$(abspath $(VENV))/bin:$$PATH experiments/cluster/two_workers.sh $(FLAGS)

check-two-workers: setup  ## two processes against one: the same losses, weights and statistics in every setting
	$(VENV)/bin/python tests/two_workers.py $(FLAGS)

demo: setup  ## from raw phantom scans to a table and a picture, in minutes
	$(RUN) data_prep.phantom --task=abdomen --out='$(DEMO)/raw' --cases=ct:10,mr:10 --overwrite
	$(RUN) data_prep.prepare --source=abdomen --raw='$(DEMO)/raw' --out='$(DEMO)/data'
	$(RUN) experiments.train --setting=ours --preset=tiny --data_dir='$(DEMO)/data' --run_dir='$(DEMO)/run'
	$(RUN) experiments.evaluate --run_dir='$(DEMO)/run'
	@echo "Above: a PHANTOM at preset tiny. It shows that everything works, not how well the method segments patients."
	$(RUN) experiments.predict --run_dir='$(DEMO)/run' --modality=ct --input='$(DEMO)/raw/btcv/img/img0001.nii.gz' \
		--output='$(DEMO)/prediction.nii.gz' --overlay='$(DEMO)/prediction.png'

# --- preparation: RAW=<folder as downloaded>, OUT=<prepared folder>; docs/data.md explains every source --------------

OUT   ?= $(DATA)/$*
FLAGS ?=

prepare-csv: OUT = $(DATA)/own
prepare-phantom: OUT = $(DATA)/phantom

prepare-csv: setup  ## prepare-csv CSV=own.csv TASK=abdomen OUT=… [FLAGS=--label_map=map.json]: your own scans
	$(RUN) data_prep.prepare --source=csv --csv='$(CSV)' --task='$(TASK)' --out='$(OUT)' $(FLAGS)

verify-csv: setup  ## verify-csv CSV=own.csv TASK=abdomen: reports every problem of your own scans, writes nothing
	$(RUN) data_prep.verify --source=csv --csv='$(CSV)' --task='$(TASK)' $(FLAGS)

prepare-phantom: setup  ## prepare-phantom OUT=… [FLAGS=…]: phantom scans, abdomen
	$(RUN) data_prep.phantom --task=abdomen --out='$(OUT)/raw' --overwrite $(FLAGS)
	$(RUN) data_prep.prepare --source=abdomen --raw='$(OUT)/raw' --out='$(OUT)'

prepare-%: setup  ## prepare-{btcv,chaos,abdomen,mmwhs,released} RAW=… [OUT=…] [FLAGS=…]
	$(RUN) data_prep.prepare --source=$* --raw='$(RAW)' --out='$(OUT)' $(FLAGS)

verify-%: setup  ## verify-{btcv,chaos,abdomen,mmwhs,released} RAW=…: reports every problem, writes nothing
	$(RUN) data_prep.verify --source=$* --raw='$(RAW)' $(FLAGS)

qc: setup  ## qc OUT=<prepared folder>: pictures and one HTML page
	$(RUN) data_prep.qc --data_dir='$(OUT)'

benchmark: $(VENV)/benchmark-installed  ## everything timed beside PyTorch, MedPy … [FLAGS="--quick --parts=step,startup"]
	$(RUN) experiments.benchmark $(FLAGS)

$(VENV)/benchmark-installed: setup.py | setup
	$(VENV)/bin/pip install --quiet --editable '.[benchmark]'
	@touch $@

# --- the paper's tables and figures: what is missing is run, what is there is reused ----------------------------------

PRESET         ?= paper
RUNS           ?= runs/$(PRESET)
RESULTS        ?= results/$(PRESET)
CARDIAC        ?= $(DATA)/cardiac
ABDOMEN        ?= $(DATA)/abdomen
ANTICORRELATED ?= $(DATA)/anticorrelated
LOW_RESOLUTION ?= $(DATA)/low_resolution
SEEDS          ?= 0
FOLDS          ?= 0
JOBS           ?= 1
OUTLIER        ?=

TABLES_AND_FIGURES := table1,table2,table3,table4,table5,table6,fig4,fig5,fig6,fig7,fig8,fig9
CLAIMS             := claim_anticorrelated,claim_low_resolution,claim_alignment

REPRODUCE = $(RUN) experiments.reproduce --preset=$(PRESET) --runs_dir='$(RUNS)' --out_dir='$(RESULTS)' \
	--cardiac_data='$(CARDIAC)' --abdomen_data='$(ABDOMEN)' \
	--anticorrelated_data='$(ANTICORRELATED)' --low_resolution_data='$(LOW_RESOLUTION)' \
	--seeds=$(SEEDS) --folds=$(FOLDS) --jobs=$(JOBS) $(if $(OUTLIER),--outlier=$(OUTLIER))

table%: setup  ## table1 … table6 [PRESET= SEEDS= FOLDS= OUTLIER= FLAGS=--dry_run]: run what it needs, print it
	$(REPRODUCE) --targets=$@ $(FLAGS)

fig%: setup  ## fig4 … fig9 [the same]
	$(REPRODUCE) --targets=$@ $(FLAGS)

recorded: setup  ## Tables II and IV of docs/results, from the recorded runs; needs no data
	$(RUN) experiments.tables --runs_dir=docs/results/table2 --folds=0,1,2 --table=2 --compare
	$(RUN) experiments.tables --runs_dir=docs/results/table2 --folds=0,1,2 --table=4
	$(RUN) experiments.tables --runs_dir=docs/results/table2_paper --folds=0,1,2 --table=2 --compare
	$(RUN) experiments.tables --runs_dir=docs/results/table2_paper --folds=0,1,2 --table=4
	$(RUN) experiments.tables --runs_dir=docs/results/table2_full_long --folds=0 --table=2 --compare
	$(RUN) experiments.tables --runs_dir=docs/results/table2_full_long --folds=0 --table=4
	$(RUN) experiments.tables --runs_dir=docs/results/table2_full_long --folds=0 --table=2 --compare --tag=plain

claims: setup  ## the discussion's claims: anti-correlated and low-resolution MR, alignment of q
	$(REPRODUCE) --targets=$(CLAIMS) $(FLAGS)

reproduce: setup  ## every table and figure
	$(REPRODUCE) --targets=$(TABLES_AND_FIGURES) $(FLAGS)

report: setup  ## one HTML page with all of them [PRESET= RUNS= RESULTS=]
	$(RUN) experiments.report --runs_dir='$(RUNS)' --out='$(RESULTS)/report.html' $(FLAGS)

# On phantoms everything fits into 90 minutes on two cores: 45 runs of so many steps, two at a time because starting and
# tracing keep one core busy.
PHANTOM       ?= phantom
PHANTOM_JOBS  ?= 2
PHANTOM_STEPS ?= 150
PHANTOM_EVERY ?= 25

PHANTOM_FLAGS_cardiac        := --task=cardiac
PHANTOM_FLAGS_abdomen        := --outlier_ct
PHANTOM_FLAGS_anticorrelated := --anticorrelated_mr
PHANTOM_FLAGS_low_resolution := --low_resolution_mr=6
PHANTOM_SOURCE_cardiac       := mmwhs
PHANTOM_DATA := $(foreach name,cardiac abdomen anticorrelated low_resolution,$(PHANTOM)/data/$(name))
FIND_OUTLIER := sed -n 's/.*"outlier_ct": "\(.*\)".*/ct_\1/p'

.PRECIOUS: $(PHANTOM)/raw/%/phantom.json
$(PHANTOM)/raw/%/phantom.json: | setup
	$(RUN) data_prep.phantom --out=$(@D) --cases=ct:10,mr:10 $(PHANTOM_FLAGS_$*)

$(PHANTOM)/data/%/dataset.json: $(PHANTOM)/raw/%/phantom.json
	$(RUN) data_prep.prepare --source=$(or $(PHANTOM_SOURCE_$*),abdomen) --raw=$(<D) --out=$(@D) \
		--hold_out_cases=$$($(FIND_OUTLIER) $<)

reproduce-phantom: $(PHANTOM_DATA:%=%/dataset.json)  ## all of it on phantoms, preset tiny, from nothing
	$(MAKE) reproduce PRESET=tiny RUNS=$(PHANTOM)/runs RESULTS=$(PHANTOM)/results DATA=$(PHANTOM)/data \
		JOBS=$(PHANTOM_JOBS) \
		OUTLIER=$$($(FIND_OUTLIER) $(PHANTOM)/raw/abdomen/phantom.json) TABLES_AND_FIGURES=$(TABLES_AND_FIGURES),$(CLAIMS) \
		FLAGS="--steps=$(PHANTOM_STEPS) --validate_every=$(PHANTOM_EVERY)"
	$(MAKE) report RUNS=$(PHANTOM)/runs RESULTS=$(PHANTOM)/results FLAGS=

clean:  ## remove the virtual environment and the demo
	rm -rf $(VENV) '$(DEMO)' build *.egg-info
