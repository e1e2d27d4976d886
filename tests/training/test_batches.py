# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples that processes draw in pieces are those that one thread draws."""

import contextlib
import multiprocessing
import os
import pickle
import signal
from itertools import islice

import pytest
import torch

from backend.models.text import Vocabulary
from backend.training import batches


@pytest.fixture
def stream(tiny, assets):
    from backend.training.trainer import sample_stream

    return sample_stream(tiny(), assets, "train")


@pytest.mark.slow
@pytest.mark.parametrize(("room", "piece"), [("enough", 2), ("none", 5)], ids=["enough, in pieces", "none, in one"])
def test_processes_draw_what_a_thread_draws(stream, tmp_path, monkeypatch, room, piece):
    monkeypatch.setattr(batches, "PIECE", piece)
    monkeypatch.setattr(batches, "SHARED", tmp_path if room == "none" else tmp_path / "nowhere")
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda path: usage)
    words, told, shared = Vocabulary(("lever",)), [], set()
    joined = batches._joined

    def spied(pieces):
        shared.update(array.is_shared() for array in pieces[0][1].values())
        return joined(pieces)

    monkeypatch.setattr(batches, "_joined", spied)

    def end_all() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)  # for the whole group, say

    class Loader(batches.DataLoader):
        def __iter__(self):
            begun = super().__iter__()
            end_all()  # before they have imported anything
            return begun

    monkeypatch.setattr(batches, "DataLoader", Loader)
    taken = {}
    for workers in (0, 2):
        numbers = batches.micro_batches(3, 5)
        with contextlib.closing(batches.draw(stream, numbers, words, workers, "cpu", told.append)) as drawn:
            taken[workers] = list(islice(drawn, 1))
            end_all()
            taken[workers] += islice(drawn, 2)
    assert len(told) == (room == "none")
    assert shared == {room == "enough"}  # what there is no room for came through pipes
    for one, other in zip(taken[0], taken[2], strict=True):
        assert (one.number, one.captions) == (other.number, other.captions)
        assert one.moving.shape == (5, 24, 4, 16, 16)
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name)), name


def test_a_stream_is_sent_as_what_it_is_made_of(stream):
    sent = pickle.dumps(stream)
    assert len(sent) < 1000
    assert (pickle.loads(sent).sample(3).moving == stream.sample(3).moving).all()


def test_pieces_are_the_batches(stream):
    numbers = iter([range(3, 13), range(13, 23)])
    assert [list(piece) for piece in batches._pieces(numbers)] == [
        list(range(3, 11)),
        [11, 12],
        list(range(13, 21)),
        [21, 22],
    ]
