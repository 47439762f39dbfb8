"""The data doctor: reads every file of a data folder once, and says what is wrong.

``reading`` lists the files and turns each pair into a few numbers, ``files`` and ``masks`` judge
the numbers, ``examine`` runs both. ``label_errors`` ranks masks by networks that never saw them.
"""

from notan.checking.diagnosis import Diagnosis, Finding, Severity, SplitStatistics
from notan.checking.examine import examine

__all__ = ["Diagnosis", "Finding", "Severity", "SplitStatistics", "examine"]
