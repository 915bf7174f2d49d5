"""One question per file; `make bench-NAME` runs `bench_NAME.py`. Peers are measured in the same run."""
