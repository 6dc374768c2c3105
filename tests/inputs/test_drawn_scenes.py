"""Drawn scenes are those that are drawn when they are read."""

from dataclasses import replace

import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.inputs.drawn_scenes import CHUNK, drawn_scenes
from vitprobe.inputs.scene_stream import scene_set
from vitprobe.inputs.scenes import MIXED


def test_drawn_scenes_read_as_scenes_do() -> None:
    config, num = replace(MIXED, size=(32, 32)), CHUNK + 3
    drawn, listed = (make(num, config=config, seed=1, first=5) for make in (drawn_scenes, scene_set))
    assert np.array_equal(drawn.labels, listed.labels) and drawn.classes == listed.classes
    for at in (0, CHUNK - 1, CHUNK, num - 1):
        one, other = drawn.items[at].read(), listed.items[at].read()
        assert drawn.items[at].name == listed.items[at].name and one.digest == other.digest
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert len({item.read().digest for item in drawn.items}) == num
    with pytest.raises(ArgumentError, match="0 scenes; give 1 or more"):
        drawn_scenes(0, config=config, seed=1, first=5)
