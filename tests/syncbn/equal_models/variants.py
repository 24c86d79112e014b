"""Programs that must train one model: functions of the rank that return all trained variables."""

from tests.syncbn.equal_models import fitted, loops, saved
from tests.syncbn.equal_models.styles import VARIANTS, Variant

__all__ = ["VARIANTS", "Variant", "fitted", "loops", "saved"]
