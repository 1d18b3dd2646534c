"""scikit-learn's digits: 1,797 real handwritten digits of 43 writers, 8 x 8 pixels with values 0 ... 16.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test part; the writers are not identified.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from pipeline.config import Data
from pipeline.datasets.rows import Row


def rows(_: Data) -> Iterator[Row]:
    """1,797 rows. Values 0 ... 16 become 0 ... 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    for i, (image, target) in enumerate(zip(pixels, digits.target, strict=True)):
        name = f"digits-{i:04d}"
        yield Row(name, name, str(target), partial(Image.fromarray, image))
