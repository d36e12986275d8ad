"""The sine-cosine table against its definition, one number at a time."""

import math

import pytest

from selfsight.parts.positions import sincos_2d


def test_the_table_is_its_definition() -> None:
    width, rows, columns = 16, 3, 5
    table = sincos_2d(width, rows, columns)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            expected: list[float] = []
            for coordinate in (column, row):  # the column comes first
                angles = [coordinate * 10000 ** (-k / quarter) for k in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * columns + column].tolist() == pytest.approx(expected, abs=1e-7)


def test_a_width_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 18"):
        sincos_2d(18, 2, 2)
