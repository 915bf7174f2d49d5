"""What a run leaves behind and what a person sees of it."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from PIL import Image

from hvdkit.checkpoint import find_model
from hvdkit.data import load_tokenizer
from hvdkit.models import count_parameters, load_model
from hvdkit.runtime import World
from hvdkit.train import evaluate, generate
from hvdkit.train.job import Job
from tests.jobs import ROOT, clean_environ, run_ranks, succeed
from tests.train.runs import as_words, configure, losses, write_text, write_text_together


@pytest.mark.launch
def test_what_a_person_sees(tmp_path: Path) -> None:
    """Under a launcher: whole lines, from rank 0 only, and the files of the run."""
    data, out = write_text(tmp_path / "text", words=3000), tmp_path / "run"
    config = configure(data, out, precision="float32", scaling="weak", sample_tokens=20, log_every=5, tensorboard=True)
    result = succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(config), launcher="horovodrun-gloo"))
    lines = [line.split("<stdout>:", 1)[1] for line in result.stdout.splitlines() if "<stdout>:" in line]
    assert lines[0] == "hvdkit train: gpt-toy, 34,272 parameters, float32"
    assert "2 ranks on 1 host, Horovod over gloo, cpu, 1 thread per rank" in lines
    assert "26 sequences of 16 = 416 tokens a step, 20 steps, peak learning rate 0.002" in lines
    assert sum(line.startswith("--scaling weak: ") for line in lines) == 1
    steps = [line for line in lines if line.startswith("step ") and "/20" in line]
    assert [line.split("/")[0].split()[1] for line in steps] == ["5", "10", "15", "20"]
    assert all("tokens/s" in line and "left" in line for line in steps)
    assert sum("validation loss" in line and line.startswith("step") for line in lines) == 3
    assert any("exposed communication" in line and "sent per step and rank" in line for line in lines)
    assert any("peak memory" in line for line in lines)
    assert any(line.startswith("    def ") for line in lines), "the sample of generated text"
    assert "\r" not in result.stdout
    assert Image.open(out / "loss.png").size[0] > 400
    assert sorted(losses(out, "validation_loss")) == [0, 10, 20]
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000010", "step-00000020"]
    assert _tensorboard_losses(out) == pytest.approx(list(losses(out).values()), rel=1e-6)


def _tensorboard_losses(out: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars("loss")]


@pytest.mark.launch
def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    data = write_text(tmp_path / "text")
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = as_words(configure(data, tmp_path / "run", steps=6))
    process = subprocess.Popen([sys.executable, "-m", "hvdkit.train", *words], stdout=terminal, stderr=terminal,
                               stdin=subprocess.DEVNULL, env=clean_environ(), cwd=ROOT)  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # Linux's end of a terminal
            break
        if not block:
            break
        shown += block
    os.close(controller)
    assert process.wait(timeout=60) == 0, shown.decode(errors="replace")
    text = shown.decode(errors="replace")
    assert "6/6" in text and "100%" in text and "tokens/s" in text and "\r" in text


def test_bytes_sent_and_precision(world: World, shared_path: Path) -> None:
    """Bytes per step by the formula of a ring all-reduce; half of them with fp16 compression."""
    data = write_text_together(world, shared_path / "text")
    for compression, width in (("none", 4), ("fp16", 2)):
        config = configure(data, shared_path / compression, precision="float32", compression=compression, steps=4)
        job = Job(world, config)
        job.run()
        share = 2 * (world.size - 1) / world.size
        assert job.loop.timing.steps == 3
        sent = job.loop.timing.bytes_sent / job.loop.timing.steps
        assert sent == pytest.approx(share * width * count_parameters(job.model))
        assert 0 <= job.loop.timing.exposed_seconds <= job.loop.timing.seconds
    if world.is_root:
        exact, rounded = losses(shared_path / "none"), losses(shared_path / "fp16")
        assert all(abs(exact[step] - rounded[step]) < 2e-3 for step in exact)


def test_bf16_computes_under_autocast(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    for precision in ("float32", "bf16"):
        job = Job(world, configure(data, shared_path / precision, precision=precision))
        job.run()
        assert next(job.model.parameters()).dtype == torch.float32
    if world.is_root:
        exact, rounded = losses(shared_path / "float32"), losses(shared_path / "bf16")
        gaps = [abs(exact[step] - rounded[step]) for step in exact]
        assert 0 < max(gaps) < 0.05


def test_evaluate_and_generate_read_the_run(
    world: World, shared_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_text_together(world, shared_path / "text"), shared_path / "run"
    job = Job(world, configure(data, out, tokenizer="bpe", vocab_size=280))
    job.run()
    capsys.readouterr()
    assert evaluate.main([str(out), "--json"]) == 0
    printed = capsys.readouterr().out
    if world.is_root:
        found = json.loads(printed)
        assert found["loss_nats_per_byte"] == pytest.approx(job.validation_loss, abs=1e-9)
        assert found["targets"] == len(job.corpus.validation) - 1
    else:
        assert printed == ""
    words = [str(out), "--prompt", "ring ", "tree ", "rank ", "--tokens", "8", "--temperature", "0"]
    assert generate.main(words) == 0
    printed = capsys.readouterr().out
    if world.is_root:
        texts = printed.removesuffix("\n").split("\n---\n")
        assert len(texts) == 3
        model, tokenizer = load_model(find_model(out)), load_tokenizer(find_model(out))
        for text, prompt in zip(texts, ("ring ", "tree ", "rank "), strict=True):
            ids = tokenizer.encode(prompt)
            for _ in range(8):  # the likeliest token, eight times
                ids.append(int(model(torch.tensor([ids[-16:]]))[0, -1].argmax()))
            assert text == tokenizer.decode(ids)
