"""evenkeel in Hugging Face's Trainer: callbacks for anybody's, and a Trainer that runs any mix of methods."""

from evenkeel.integrations.transformers._checks import check_mix, check_sharded
from evenkeel.integrations.transformers._component_clip import ComponentClip
from evenkeel.integrations.transformers._method_trainer import MethodTrainer
from evenkeel.integrations.transformers._recorder import Recorder

__all__ = ["ComponentClip", "MethodTrainer", "Recorder", "check_mix", "check_sharded"]
