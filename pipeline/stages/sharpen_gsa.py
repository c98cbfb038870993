"""Component substitution with a guide of many bands, adaptive to the scene and matched to its sensor's MTF.

Gram-Schmidt adaptive (Aiazzi, Baronti and Selva 2007, IEEE TGRS 45(10)) replaces an intensity, found by regression, by
the sharp band, and gives each band of the scene its share by its covariance with the intensity. With several sharp
bands at once this is hypersharpening (Selva et al. 2015, IEEE JSTARS 8(6)): all shares in one multivariate regression
of the scene's bands on the guide's as the scene's sensor sees them. What is added is the guide less that, interpolated.
"""

import numpy as np

from .base import Stats
from .sharpen_guide import Detail, Moments, Seen


def settle(moments: Moments) -> Stats:
    """Each band's share in the guide's bands `(B, m)`, and the guide's mean and spread."""
    mixing = np.linalg.solve(moments.guide, moments.cross.T).T
    return {"mixing": mixing, "mean": moments.guide_mean, "spread": moments.guide_spread}


def detail(seen: Seen, stats: Stats) -> Detail:
    """What the guide shows beyond the scene's sensor, in units of its spread."""
    spread = stats["spread"].astype(np.float32)[:, None, None]
    return Detail(seen.detail(seen.fine, seen.coarse) / spread, stats["mixing"])
