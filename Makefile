PYTHON ?= python3
BIN := .venv/bin
export SELFSIGHT_DATA ?= ../shared/data

BENCHMARKS := views files losses step knn embedding growth world_speed attention convolution mae_visible

.PHONY: demo test fast trust mutants lint bench bench-long docs clean

# torch and torchvision come first and together: alone, a later resolver might pair builds that do not match
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/selfsight demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

fast: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow and not trust"

# kills, broken files, many processes: what is promised, how often it was tried, how often it held
trust: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "trust or not trust" tests/trust

# each promise's section broken once on purpose, in a copy: the test that guards it must fail
mutants: .venv/ready
	$(BIN)/python tests/support/mutants.py

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# the peers lie beside .venv, whose packages .venv-bench sees: nothing that selfsight runs on comes from them
.venv-bench/ready: benchmarks/requirements.txt .venv/ready
	test -x .venv-bench/bin/python || $(BIN)/python -m venv .venv-bench
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	    > "$$(.venv-bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt -r benchmarks/requirements.txt
	touch $@

bench: .venv-bench/ready
	failed=; for name in $(BENCHMARKS); do .venv-bench/bin/python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	    .venv-bench/bin/python benchmarks/table.py; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# what takes longer: time to an accuracy, a folder of a million files, how hard the world is
bench-long: .venv-bench/ready
	for name in folder_start memory_workers world_hardness; do .venv-bench/bin/python benchmarks/$$name.py; done
	for who in ours lightly compare; do .venv-bench/bin/python benchmarks/time_to_accuracy.py $$who; done

docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-bench build dist site src/*.egg-info
