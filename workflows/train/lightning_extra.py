"""Lightning, from the extra `train`; imported here alone, after the cure of the torchvision that it imports."""

from cubeloom.errors import ConfigError
from cubeloom.models.torchvision_cure import make_torchvision_importable

make_torchvision_importable()

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import TensorBoardLogger
except ModuleNotFoundError as error:
    raise ConfigError(
        f"training a network needs the extra: pip install 'cubeloom[train]' ({error.name} is missing)"
    ) from None

__all__ = ["Callback", "LightningModule", "TensorBoardLogger", "Trainer"]
