"""What an image and a score mean to a network: how images are prepared, and the unit of scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from util.labels import scale_of


class Meaning(NamedTuple):
    """What an image and a score mean to a network; `_asdict()` is the `model` of config.json.

    Attributes:
        title: the database that the network is trained on, as users read it.
        label_range: (low, high) of that database's labels, or None if unknown.
        higher_is_better: False if the labels fall with quality, as a DMOS does.
        score_range: (low, high) that the network's 0..1 stands for, or None if it gives scores in
            the unit of the labels.
        resize: (height, width) that every image is resized to, or None.
        exif_rotation: whether images are turned by their EXIF orientation.
        srgb: whether images with a wide-gamut profile are converted to sRGB; None in a run of the
            first versions, which converted no image, those of --test_on included.
    """

    title: str | None = None
    label_range: Sequence[float] | None = None
    higher_is_better: bool = True
    score_range: Sequence[float] | None = None
    resize: Sequence[int] | None = None
    exif_rotation: bool = False
    srgb: bool | None = None

    @property
    def scale_line(self) -> str:
        """One line about the scale of the scores."""
        title = self.title or 'the training images'
        scale = scale_of(self.label_range, self.higher_is_better)
        return f'scores on the scale of the labels of {title}: {scale}'

    @property
    def srgb_of_all(self) -> bool | None:
        """False if no image of any database is converted to sRGB; None if each database decides."""
        return False if self.srgb is None else None

    @classmethod
    def of_record(cls, model: Mapping[str, Any]) -> 'Meaning':
        """Return the meaning in the `model` of a config.json, or in the facts of a checkpoint.

        Files of earlier versions lack some keys; the defaults are used for them.
        """
        known = {name: model[name] for name in cls._fields if name in model}
        return cls(**known)
