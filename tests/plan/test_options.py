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
        ("10Gbps", 10e9 / 8),
        ("25Gb/s", 25e9 / 8),
        ("1e3GB/s", 1e12),
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
        (["--memory", "lots"], "--memory lots cannot be read; write it as 16GiB or 80GB"),
        (["--memory", "16gbit"], "--memory 16gbit cannot be read"),
        (["--link", "25"], "--link 25 cannot be read; write it as 25gbit (bits) or 3GB (bytes)"),
        (["--flops", "40gbit"], "--flops 40gbit cannot be read; write it as 40T"),
        (["--link", "0gbit"], "--link 0gbit cannot be read"),
        (["--link", "25gbat"], "--link 25gbat cannot be read"),
        (["--ranks", "-1"], "--ranks -1 must be between 1 and 1048576"),
        (["--ranks", "99999999999"], "--ranks 99999999999 must be between 1 and 1048576"),
        (["--ranks", "6", "--ranks-per-host", "4"], "--ranks 6 must be a multiple of --ranks-per-host 4"),
        (["--compression", "topk"], "--compression topk cannot be planned: what it costs"),
        (["--strategy", "tree"], "--strategy tree cannot be planned: the plan tells every strategy's time"),
        (["--init-from", "runs/1"], "--init-from runs/1 cannot be planned: name the model itself by --model"),
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
