"""Records and files: nothing is lost, whoever writes, whatever is killed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time

import pytest
import torch

from logsnr.benchmarks.harness import records
from logsnr.benchmarks.harness.files import claim, load_tensor, locked, save_tensors
from logsnr.benchmarks.harness.protocol import differences, identity
from logsnr.benchmarks.harness.records import append, load, record_file
from logsnr.solvers.whole_files import write_whole


def record(nfe: int, **measured):
    """A record of one protocol for each number."""
    protocol = {"solver": "ddim", "options": {"a": 1}, "seed": 0, "model": "m", "problem": {"b": 2}}
    return protocol | {"nfe": nfe} | measured


def write(path, first, count=400):
    for nfe in range(first, first + count):
        append(path, record(nfe, pad="x" * (nfe % 5000)))


@pytest.mark.parametrize("shared", [True, False])
def test_two_processes_lose_nothing(tmp_path, shared):
    writers = [
        multiprocessing.get_context("fork").Process(
            target=write, args=(record_file(tmp_path, 0 if shared else rank), 400 * rank)
        )
        for rank in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(entry["nfe"] for entry in load(tmp_path).values()) == list(range(800))
    assert len(records.record_files(tmp_path)) == (1 if shared else 2)


def test_the_last_of_several_writers_is_that_which_was_written_last(tmp_path):
    append(record_file(tmp_path, 1), record(5, written=1.0, status="failed"))
    append(record_file(tmp_path, 0), record(5, written=2.0, status="ok"))
    assert [entry["status"] for entry in load(tmp_path).values()] == ["ok"]


def write_on(path, first, ready):
    nfe = first
    while True:
        append(path, record(nfe, pad="x" * 300_000))
        ready.set()
        nfe += 1


def test_a_writer_that_is_killed_costs_no_line_of_the_other(tmp_path):
    """Lines of many pages, so that the kill finds one being written."""
    path = record_file(tmp_path)
    fork = multiprocessing.get_context("fork")
    for k in range(8):
        ready = fork.Event()
        process = fork.Process(target=write_on, args=(path, 1000 * (k + 1), ready))
        process.start()
        assert ready.wait(60)
        time.sleep(0.005 * k)
        process.kill()
        process.join()
        append(path, record(-1 - k))
    found = load(path)
    assert {entry["nfe"] for entry in found.values()} >= set(range(-8, 0))
    assert len(found) == len(path.read_bytes().splitlines())


@pytest.mark.parametrize("length", [1, 20, -1])
def test_a_line_cut_by_a_kill_is_no_record_and_is_cut_off(tmp_path, length):
    path = tmp_path / "records.jsonl"
    append(path, record(5))
    with path.open("a") as file:
        file.write(json.dumps(record(8, pad="x" * 200_000))[:length])
    assert list(load(path).values()) == [record(5)]
    append(path, record(10))
    assert list(load(path).values()) == [record(5), record(10)]


def test_reading_and_appending_are_linear(tmp_path, monkeypatch):
    """Counted, not timed: an append reads one byte, a load parses each line once."""
    path = tmp_path / "records.jsonl"
    text = json.dumps(record(7))
    path.write_text("".join(text.replace('"nfe": 7', f'"nfe": {k}') + "\n" for k in range(10_000)))
    read = 0
    pread = os.pread

    def counted(file, length, offset):
        nonlocal read
        read += length
        return pread(file, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    append(path, record(-1))
    assert read == 1
    parsed = 0
    loads = json.loads

    def noted(line):
        nonlocal parsed
        parsed += 1
        return loads(line)

    monkeypatch.setattr(json, "loads", noted)
    assert len(load(path)) == parsed == 10_001


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    append(path, record(5))
    before = path.read_bytes()
    os_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: os_write(file, data[:30]))
    with pytest.raises(OSError, match="No space left") as caught:
        append(path, record(8))
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_damaged_lines_are_told_or_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = ["{", "7", '{"nfe": 3}', "\x00\x00", json.dumps(record(5)).replace("}", "", 1)]
    path.write_text("\n".join([json.dumps(record(1)), *lines, json.dumps(record(2))]) + "\n")
    with pytest.raises(ValueError, match=r"records.jsonl, line 2 is not a record"):
        load(path)
    told: list[str] = []
    assert [entry["nfe"] for entry in load(path, damage=told.append).values()] == [1, 2]
    assert len(told) == 5 and "line 6 is not a record" in told[-1]


def test_protocols_are_compared_part_by_part():
    other = record(5) | {"problem": {"b": 3, "dtype": "float16"}}
    assert identity(record(5)) == identity(record(5, rmse=0.1)) != identity(other)
    assert differences(record(5), other) == [
        "problem.b: 2 | 3",
        'problem.dtype: absent | "float16"',
    ]


# Files


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "x.safetensors"
    save_tensors(path, {"x": torch.ones(3)}, {"n": 1})

    def broken(part):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, broken)
    assert load_tensor(path).tolist() == [1, 1, 1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"garbage" * 9])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors is damaged"):
        load_tensor(path)


def test_a_folder_belongs_to_one_run(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ValueError, match="another run is writing there"), locked(tmp_path):
            raise AssertionError("two runs in one folder")
    with locked(tmp_path):
        pass


def test_another_suite_is_refused_with_what_changed(tmp_path):
    claim(tmp_path, {"nfe": [5, 8], "seeds": [0]})
    claim(tmp_path, {"nfe": (5, 8), "seeds": [0]})
    before = (tmp_path / "suite.json").read_bytes()
    with pytest.raises(ValueError, match=r"nfe: \[5, 8\] \| \[5\].*seeds"):
        claim(tmp_path, {"nfe": [5], "seeds": [1]})
    assert (tmp_path / "suite.json").read_bytes() == before
