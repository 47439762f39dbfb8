"""The data doctor: looks at every image and mask of a folder once, and says what is wrong.

Three steps, one file each: ``collect`` lists the files without stopping at what is missing,
``reading`` turns each pair into a few numbers, and the ``check_*`` files judge the numbers.
"""

from notan.checking.diagnosis import Diagnosis, Finding, Severity, SplitStatistics
from notan.checking.examine import examine

__all__ = ["Diagnosis", "Finding", "Severity", "SplitStatistics", "examine"]
