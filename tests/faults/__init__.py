"""Faults put into real jobs on purpose: `make chaos`, `make soak`, and a few of them in `make test`.

plan.py        which faults, drawn by a seed
points.py      where in a run a fault can strike
deeds.py       what is done there
victim.py      `hvdkit train` with a fault in it, started instead of it
case.py        one job with its fault, from its start to what is left of it
verdict.py     whether that was as it should be
campaign.py    `make chaos`
soak.py        `make soak`
"""
