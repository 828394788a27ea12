"""One step of training, up to its gradients."""

from collections.abc import Sequence

from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.distillation.layer_losses import LastHidden
from autodistil_search.distillation.options import Execution, TrainOptions
from autodistil_search.distillation.sampling import Drawn
from autodistil_search.distillation.teacher_batches import Batch
from autodistil_search.distillation.training_step import ModelInTraining
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher


def gradients_of_step(
    model: AutoDistilModel,
    teacher: Teacher,
    ids: Tensor,
    drawn: Sequence[Drawn],
    options: TrainOptions,
    device: Device,
    last_hidden: LastHidden | None = None,
) -> list[float]:
    """Give the parameters the gradients of one step; returns its losses."""
    training = ModelInTraining(model, options, Execution(), device, last_hidden)
    training.watch.nothing = 1.0  # known: it is measured in the first step only
    training.begin(drawn)
    training.learn(Batch(ids, 1.0, True, teacher.cast(device), options))
    return training.reduce(()).tolist()
