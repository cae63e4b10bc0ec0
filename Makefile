# make is a convenience: every target is one or two plain commands.
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/installed

# On two cores, threads of several processes wait for one another more than they work.
TEST_THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

STUDY := results/photo_patches-tiny

.PHONY: help env study benchmark test docs lab readme clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

env: $(ENV)  ## Make .venv with the tested versions of everything

$(ENV): constraints.txt settings.ini setup.py
	@echo "Making .venv with the tested versions (a minute or two) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

study: env  ## Run the whole study at scale tiny on photo patches: table and figures in results/photo_patches-tiny/
	@echo "Five tiny models learn from patches of photographs, offline. What is done is not done again."
	@mkdir -p $(STUDY)
	@$(BIN)/papermill nbs/study.ipynb $(STUDY)/study.ipynb
	@echo; cat $(STUDY)/table1.md; echo; echo "Table, figures and a folder for each run are in $(STUDY)/; study.ipynb shows them all."

benchmark: env  ## Measure training and sampling against the plain way: tables and plots in results/benchmark/
	@echo "Measuring speed and memory of every model at full size (half an hour on two quiet cores) ..."
	@mkdir -p results/benchmark
	@$(BIN)/papermill nbs/benchmark.ipynb results/benchmark/benchmark.ipynb
	$(BIN)/nbdev_clean --fname results/benchmark

test: env  ## Run all tests: every notebook's, and the project's own
	@echo "Running the tests of every notebook in nbs/ ..."
	$(TEST_THREADS) $(BIN)/nbdev_test --n_workers 2 --do_print
	@echo "Running the project's own tests in tests/ ..."
	$(TEST_THREADS) $(BIN)/python -m pytest -v --numprocesses 2 --dist worksteal tests/test_runs.py tests/test_machines.py tests

docs: env  ## Render the site to _docs/, and say how to read it (with Quarto if there is one, else in pure Python)
	$(BIN)/python tools/docs.py

readme: env  ## Write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

lab: env  ## Open JupyterLab on the front page
	$(BIN)/jupyter lab nbs/index.ipynb

clean:  ## Remove what was built: the site and its cache (never results/ or data/)
	rm -rf _docs _proc build *.egg-info
