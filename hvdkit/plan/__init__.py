"""Planning: what a training run will need in memory, in time and on the wire, and how to start it.

    python -m hvdkit.plan --model gpt2 --context 1024 --ranks 64 --ranks-per-host 8 --memory 16GiB --link 25gbit

Memory is counted on tensors without values, which run the real operations (`footprint`, `memory`). Time is that of
the operations at a speed measured on this machine with all ranks of a host at work (`measure`), and of collectives by
the cost model (`network`, `timing`).
"""
