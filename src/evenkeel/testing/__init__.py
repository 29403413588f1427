"""Contract suites that your own plug-ins can run; they need a test runner, pytest for one, only where they are run."""

from evenkeel.testing._engines import EngineContract
from evenkeel.testing._methods import MethodContract
from evenkeel.testing._thresholds import ThresholdContract

__all__ = ["EngineContract", "MethodContract", "ThresholdContract"]
