"""What `hvdkit plan` is asked, and how it says no."""

import pytest

from hvdkit.errors import ConfigError
from hvdkit.plan.options import PlanOptions, parse


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("25gbit", 25e9 / 8),
        ("1Gbit/s", 125e6),
        ("100 Mbit", 12.5e6),
        ("3GB", 3e9),
        ("1.5GiB", 1.5 * 2**30),
        ("10Gbps", 10e9),
        ("1000", 1000.0),
    ],
)
def test_speeds(text: str, bytes_per_s: float) -> None:
    assert PlanOptions(link=text).link_bytes_per_s == bytes_per_s


def test_sizes_and_operations() -> None:
    options = PlanOptions(memory="16GiB", flops="40T", inside="200GB")
    assert (options.memory_bytes, options.flops_per_s, options.inside_bytes_per_s) == (16 * 2**30, 40e12, 200e9)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "lots"], "--memory lots cannot be read; write it as 16GiB, 25gbit, 3GB or 40T"),
        (["--link", "0gbit"], "--link 0gbit cannot be read"),
        (["--link", "25gibit"], "--link 25gibit cannot be read"),
        (["--ranks", "-1"], "--ranks and --ranks-per-host must be 1 or more"),
        (["--ranks", "6", "--ranks-per-host", "4"], "--ranks 6 must be a multiple of --ranks-per-host 4"),
        (["--compression", "topk"], "--compression topk cannot be planned; none, fp16 and bf16 can"),
        (["--steps", "0"], "--steps 0 must be 1 or more"),
        (["--rank", "2"], "(`hvdkit plan --help` lists the options)"),
    ],
)
def test_one_clear_error(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert said in str(error.value)


def test_the_options_of_training_are_those_of_planning() -> None:
    options, config = parse(["--ranks", "4", "--model", "gpt2", "--context", "1024", "--precision", "bf16"])
    assert options.ranks == 4
    assert (config.model, config.context, config.precision) == ("gpt2", 1024, "bf16")
