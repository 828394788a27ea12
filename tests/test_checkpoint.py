"""Checkpoints: all or nothing, and everything that training goes on from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from autodistil_search import checkpoint
from autodistil_search.checkpoint import Saver, load_checkpoint, save_checkpoint, write_atomically
from autodistil_search.errors import InputError
from autodistil_search.model import AutoDistilModel

SETTINGS = {"lr": 1e-3, "seed": 0}


def _optimizer(model: AutoDistilModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def _step(model: AutoDistilModel, optimizer: torch.optim.AdamW, ids: torch.Tensor) -> None:
    model.last_projections(ids, subnet=model.space.smallest)[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda file: file.write_text("old"))

    def fail(file: Path) -> None:
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    write_atomically(path, lambda file: file.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_moments_and_step_come_back_exactly(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple], tmp_path: Path
) -> None:
    ids, model = toy_batch()[0], debug_superlm()
    optimizer = _optimizer(model)
    for _ in range(3):
        _step(model, optimizer, ids)
    save_checkpoint(tmp_path, model, optimizer, SETTINGS, step=3)

    other = debug_superlm(seed=1)
    restored = _optimizer(other)
    assert load_checkpoint(tmp_path, other, restored, SETTINGS) == 3
    assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert_close(restored.state_dict()["state"], optimizer.state_dict()["state"], atol=0, rtol=0)
    unused = [name for name, p in model.named_parameters() if not optimizer.state.get(p)]
    assert "layers.1.query.weight" in unused  # the smallest subnet skips the middle layer

    for each, its_optimizer in ((model, optimizer), (other, restored)):
        _step(each, its_optimizer, ids)
    assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)


def test_without_a_checkpoint_nothing_is_loaded(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    model, untouched = debug_superlm(), debug_superlm()
    assert load_checkpoint(tmp_path, model, _optimizer(model), SETTINGS) == 0
    assert_close(model.state_dict(), untouched.state_dict(), atol=0, rtol=0)


def test_other_settings_are_refused_and_named(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    model = debug_superlm()
    save_checkpoint(tmp_path, model, _optimizer(model), SETTINGS, step=1)
    for now, message in (
        (SETTINGS | {"seed": 7}, r"settings: seed was 0 and is now 7\."),
        (SETTINGS | {"more": 1}, r"settings: more was None and is now 1\."),
        ({"seed": 0}, r"settings: lr was 0\.001 and is now None\."),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path, model, _optimizer(model), now)


def test_saving_takes_at_most_its_share_of_the_time(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = [0.0], []

    def slow_save(*arguments: object) -> None:
        saved.append(arguments[-1])
        clock[0] += 1.0

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "save_checkpoint", slow_save)
    model = debug_superlm()
    saver = Saver(tmp_path, model, _optimizer(model), SETTINGS)
    for step in range(1, 101):
        clock[0] += 0.5
        saver.step_done(step)
    assert saved == [1, 41, 81]  # 20 seconds of steps for each second of saving
