.PHONY: help test lint types docs benchmarks

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

test:  ## all tests (HFTL_CRASH_ROUNDS=2000 for the long crash tests, HFTL_LONG=1 for every page of the docs and every architecture)
	python -m pytest -n 2

lint:  ## style, formatting and the direction of imports
	ruff check . && ruff format --check . && lint-imports

types:  ## mypy --strict
	mypy

docs:  ## the site, into site/ (open site/index.html)
	python docs/generate.py && NO_MKDOCS_2_WARNING=1 mkdocs build

benchmarks:  ## the commands that print ratios against the alternatives
	@ls benchmarks/*.py
