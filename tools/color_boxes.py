"""Make the Color Boxes data set, and look at it."""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

from uotod_mmdet.datasets.color_boxes import CLASSES, SIZES, SPLITS, make_color_boxes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='data/color_boxes', help='folder for all sizes and seeds (%(default)s)')
    parser.add_argument('--size', default='small', choices=SIZES, help='number of images (%(default)s)')
    parser.add_argument('--seed', default=0, type=int, help='seed of the data (%(default)s)')
    parser.add_argument('--preview', metavar='PNG', help='write a picture of six validation images with their boxes')
    return parser.parse_args()


def draw_preview(folder: Path, rows: int = 2, columns: int = 3) -> np.ndarray:
    """The first validation images with their boxes, side by side, as one BGR image."""
    content = json.loads((folder / 'val.json').read_text())
    tiles = []
    for info in content['images'][: rows * columns]:
        image = cv2.imread(str(folder / 'val' / info['file_name']))
        for annotation in content['annotations']:
            if annotation['image_id'] == info['id']:
                x, y, w, h = (round(v) for v in annotation['bbox'])
                name = CLASSES[annotation['category_id'] - 1]
                cv2.rectangle(image, (x, y), (x + w, y + h), (0, 0, 0), 1)
                cv2.putText(image, name, (x + 2, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(cv2.copyMakeBorder(image, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def main() -> None:
    args = parse_args()
    try:
        folder = make_color_boxes(args.root, args.size, args.seed)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for split in SPLITS:
        content = json.loads((folder / f'{split}.json').read_text())
        print(f'{folder / split}: {len(content["images"])} images, {len(content["annotations"])} rectangles')
    if args.preview:
        if not cv2.imwrite(args.preview, draw_preview(folder)):
            sys.exit(f'--preview {args.preview} cannot be written.')
        print(args.preview)


if __name__ == '__main__':
    main()
