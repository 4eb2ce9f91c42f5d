"""Metric weights by tissue class, learnt from images with anatomical labels.

After Ferrante, Dokania, Marini, Paragios, "Deformable registration through learning of context-specific metric
aggregation", MLMI 2017, and "Weakly supervised learning of metric aggregations for deformable image registration", IEEE
JBHI 2019.
"""

from atlasnet.registration.learning.draw import draw_pairs, label_classes
from atlasnet.registration.learning.learn import LearnSettings, learn_metrics
from atlasnet.registration.learning.programme import SVMSettings

__all__ = ["LearnSettings", "SVMSettings", "draw_pairs", "label_classes", "learn_metrics"]
