"""Checkpoints: all or nothing, checksummed, and everything that training goes on from."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from autodistil_search.base.errors import InputError
from autodistil_search.base.files import write_atomically
from autodistil_search.distillation import checkpoints
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.superlm.model import AutoDistilModel

SETTINGS = {"lr": 1e-3, "seed": 0}


def _checkpoints(folder: Path, model: AutoDistilModel, settings: object = SETTINGS, keep: int = 2) -> Checkpoints:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return Checkpoints(folder, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), settings, keep)


def _step(training: Checkpoints, ids: torch.Tensor) -> None:
    model = training.model
    model.last_projections(ids, subnet=model.space.smallest)[0].square().mean().backward()
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda file: file.write_text("old"))

    def fail(file: Path) -> None:
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="state cannot be written: disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write_text("new"))
    assert path.read_text() == "new"


def test_weights_moments_step_and_position_come_back_exactly(
    debug_superlm: Callable[..., AutoDistilModel], toy_batch: Callable[..., tuple], tmp_path: Path
) -> None:
    ids = toy_batch()[0]
    training = _checkpoints(tmp_path, debug_superlm())
    for _ in range(3):
        _step(training, ids)
    training.save(3, [{"blocks": 7}, {"blocks": 8}])

    other = _checkpoints(tmp_path, debug_superlm(seed=1))
    assert other.restore() == (3, [{"blocks": 7}, {"blocks": 8}])
    for _ in range(2):
        assert_close(other.model.state_dict(), training.model.state_dict(), atol=0, rtol=0)
        assert_close(other.optimizer.state_dict()["state"], training.optimizer.state_dict()["state"], atol=0, rtol=0)
        _step(training, ids)
        _step(other, ids)
    unused = [name for name, p in training.model.named_parameters() if not training.optimizer.state.get(p)]
    assert "layers.1.query.weight" in unused  # the smallest subnet skips the middle layer


def test_the_scale_of_float16_comes_back(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    training = _checkpoints(tmp_path, debug_superlm())
    training.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    training.save(1, [{}])
    other = _checkpoints(tmp_path, debug_superlm())
    other.scaler = torch.amp.GradScaler("cpu")
    other.restore()
    assert other.scaler.state_dict()["scale"] == 4096.0


def test_without_a_checkpoint_nothing_is_loaded(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    training, untouched = _checkpoints(tmp_path, debug_superlm()), debug_superlm()
    assert training.restore() == (0, [])
    assert_close(training.model.state_dict(), untouched.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path, keep: int) -> None:
    training = _checkpoints(tmp_path, debug_superlm(), keep=keep)
    for step in range(1, 6):
        training.save(step, [{}])
    kept = [f"checkpoint-{step:08d}.{suffix}" for step in range(6 - keep, 6) for suffix in ("json", "safetensors")]
    assert _names(tmp_path) == kept


@pytest.mark.parametrize(
    "damage", [_truncate, _alter, Path.unlink, lambda path: path.with_suffix(".json").write_text("{")]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_the_one_before_is_used(
    debug_superlm: Callable[..., AutoDistilModel],
    toy_batch: Callable[..., tuple],
    tmp_path: Path,
    damage: Callable[[Path], object],
) -> None:
    training = _checkpoints(tmp_path, debug_superlm())
    training.save(1, [{}])
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    _step(training, toy_batch()[0])
    training.save(2, [{}])
    damage(tmp_path / "checkpoint-00000002.safetensors")

    other = _checkpoints(tmp_path, debug_superlm(seed=1))
    with pytest.warns(UserWarning, match=r"checkpoint-00000002\.safetensors is damaged and is skipped"):
        assert other.restore() == (1, [{}])
    assert_close(other.model.state_dict(), before, atol=0, rtol=0)
    assert _names(tmp_path) == ["checkpoint-00000001.json", "checkpoint-00000001.safetensors"]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_silently_started_anew(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path
) -> None:
    training = _checkpoints(tmp_path, debug_superlm())
    for step in (1, 2):
        training.save(step, [{}])
        _alter(tmp_path / f"checkpoint-0000000{step}.safetensors")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(InputError, match=r"all 2 checkpoints in .* damaged"),
    ):
        training.restore()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be read: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 6 GB"), "allocate memory"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    debug_superlm: Callable[..., AutoDistilModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    training = _checkpoints(tmp_path, debug_superlm())
    training.save(1, [{}])
    before = _names(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "safe_open" if isinstance(error, RuntimeError) else "file_sha256", fail)
    with pytest.raises((InputError, OSError, RuntimeError), match=told) as refusal:
        training.restore()
    assert "damaged" not in str(refusal.value)
    assert "delete" not in str(refusal.value)
    assert _names(tmp_path) == before


def test_weights_that_are_not_finite_are_never_saved(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path
) -> None:
    model = debug_superlm()
    training = _checkpoints(tmp_path, model)
    training.save(1, [{}])
    before = _names(tmp_path)
    with torch.no_grad():
        model.layers[0].query.weight[0, 0] = torch.nan
    told = r"weights of layers\.0\.query\.weight are not finite after step 2, at learning rate 0\.001 with seed 0"
    with pytest.raises(FloatingPointError, match=told):
        training.save(2, [{}])
    with pytest.raises(FloatingPointError, match=told):
        checkpoints.finish(tmp_path, model, 2, SETTINGS)
    assert _names(tmp_path) == before


def test_what_a_killed_save_left_is_no_checkpoint(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path
) -> None:
    training = _checkpoints(tmp_path, debug_superlm())
    training.save(1, [{}])
    training.save(2, [{}])
    (tmp_path / "checkpoint-00000002.json").unlink()  # killed between the two files
    assert training.restore() == (1, [{}])
    assert "checkpoint-00000002.safetensors" not in _names(tmp_path)


def test_other_settings_are_refused_and_named(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    model = debug_superlm()
    _checkpoints(tmp_path, model).save(1, [{}])
    for now, message in (
        (SETTINGS | {"seed": 7}, r"settings: seed was 0 and is now 7\."),
        (SETTINGS | {"more": 1}, r"settings: more was None and is now 1\."),
        ({"seed": 0}, r"settings: lr was 0\.001 and is now None\."),
    ):
        with pytest.raises(InputError, match=message):
            _checkpoints(tmp_path, model, now).restore()


def test_saving_is_due_when_it_takes_at_most_its_share_of_the_time(
    debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = [0.0], []

    def slow_write(path: Path, write: object) -> None:
        clock[0] += 0.5
        path.touch()

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "write_atomically", slow_write)
    training = _checkpoints(tmp_path, debug_superlm())
    for step in range(1, 101):
        clock[0] += 0.5
        if training.due:
            training.save(step, [{}])
            saved.append(step)
    assert saved == [1, 41, 81]  # 20 seconds of steps for each second of saving


_ON_A_FULL_DISK = """
import sys, torch
from pathlib import Path
from autodistil_search.distillation.checkpoints import Checkpoints
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
folder = Path(sys.argv[1])
model = AutoDistilModel(AutoDistilConfig(vocab_size=3000, hidden_size=64, num_hidden_layers=1, num_attention_heads=4))
optimizer = torch.optim.AdamW(model.parameters())
training = Checkpoints(folder, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), {}, keep=2)
training.save(1, [{}])
(folder / "others").write_bytes(b"0" * int(sys.argv[2]))
try:
    training.save(2, [{}])
except OSError as error:
    print(error)
print(training.restore(), sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_is_told_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # A real file system of 4 MB in a mount namespace of its own, gone with the process.
    script = f"mount -t tmpfs -o size=4m full {disk} && exec {sys.executable} -c '{_ON_A_FULL_DISK}' {disk} 2500000"
    done = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("needs the right to mount a file system")
    told, left = done.stdout.splitlines()
    assert told.startswith("the checkpoint of step 2 cannot be written: ")
    assert "No space left on device" in told
    assert told.endswith("; the last one is kept")
    assert left == "(1, [{}]) ['checkpoint-00000001.json', 'checkpoint-00000001.safetensors', 'others']"


def test_a_checkpoint_says_what_it_is(debug_superlm: Callable[..., AutoDistilModel], tmp_path: Path) -> None:
    _checkpoints(tmp_path, debug_superlm()).save(4, [{}])
    state = json.loads((tmp_path / "checkpoint-00000004.json").read_text())
    assert state["step"] == 4
    assert state["settings"] == SETTINGS
    assert len(state["sha256"]) == 64
