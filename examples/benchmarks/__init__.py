"""Our path against the plain path, on the same weights, in the same process: see `docs/benchmarks.md`.

python -m examples.benchmarks.run --tokenizer path/to/clip-tokenizer --class-names names.json
python -m examples.benchmarks.render
"""
