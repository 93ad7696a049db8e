"""Names at boxes of a picture, none over another."""

from collections.abc import Sequence

from matplotlib.axes import Axes

CHARACTER, LINE = 0.62, 1.35
"""Width of a character and height of a line, in units of the font's size."""


class Tags:
    """Writes names at corners of boxes, and leaves out those for which there is no free corner.

    Args:
        axes: Of an image.
        pixels_per_inch: Pixels of the image to an inch of the figure.
        width: Width of the image, pixels.
        height: Its height.
    """

    def __init__(self, axes: Axes, pixels_per_inch: float, width: float, height: float) -> None:
        self.axes = axes
        self.per_point = pixels_per_inch / 72
        self.width, self.height = width, height
        self.taken: list[tuple[float, float, float, float]] = []

    def put(self, box: Sequence[float], text: str, color: Sequence[float], size: float, bold: bool = False) -> bool:
        """Write a name at a corner of a box (x1, y1, x2, y2), pixels; False: there was no place."""
        x1, y1, x2, y2 = map(float, box)
        wide, high = (len(text) * CHARACTER + 0.4) * size * self.per_point, LINE * size * self.per_point
        outer = [(x1, y1 - high), (x2 - wide, y1 - high), (x1, y2), (x2 - wide, y2)]
        inner = [(x1, y1), (x2 - wide, y1), (x1, y2 - high), (x2 - wide, y2 - high)]
        for x, y in (place for corner in zip(outer, inner) for place in corner):
            place = x, y, x + wide, y + high
            inside = x >= 0 and y >= 0 and place[2] <= self.width and place[3] <= self.height
            if inside and not any(_overlap(place, other) for other in self.taken):
                break
        else:
            return False
        self.taken.append(place)
        self.axes.text(
            x + wide / 2,
            y + high / 2,
            text,
            color=text_color(color),
            fontsize=size,
            fontweight='bold' if bold else 'normal',
            ha='center',
            va='center',
            bbox=dict(facecolor=color, edgecolor='none', pad=0.6),
        )
        return True


def text_color(background: Sequence[float]) -> str:
    """Colour of a text that is read on a background (R, G, B), each in [0, 1]."""
    return 'white' if 0.3 * background[0] + 0.6 * background[1] + 0.1 * background[2] < 0.5 else 'black'


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
