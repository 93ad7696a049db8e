"""tools/run_pictures.py: what becomes of detections, and the plans over training; whole runs are in test_tools.py."""

import sys

import numpy as np
import pytest
from PIL import Image
from test_tools import TOOLS

sys.path.insert(0, str(TOOLS))
from run_pictures import draw_curves, join_plans, judge  # noqa: E402

OBJECTS = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], dtype=np.float32)


@pytest.mark.parametrize(
    ('boxes', 'labels', 'kinds', 'found'),
    [
        ([], [], [], [False] * 3),
        ([[0, 0, 10, 10], [20, 0, 30, 10], [42, 0, 52, 10]], [0, 1, 2], ['hit'] * 3, [True] * 3),
        # a second detection of an object is false, whatever its overlap; so is an IoU below 0.5
        ([[0, 0, 9, 10], [0, 0, 10, 10], [24, 0, 34, 10]], [0, 0, 1], ['hit', 'false', 'false'], [True, False, False]),
        # the detection of the right class takes the object, though another has the better score
        ([[0, 0, 10, 10], [0, 0, 9, 10]], [2, 0], ['false', 'hit'], [True, False, False]),
        ([[20, 0, 30, 10], [60, 0, 70, 10]], [2, 0], ['wrong', 'false'], [False, True, False]),
    ],
)
def test_detections_are_judged_as_in_average_precision(boxes, labels, kinds, found):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    judged = judge(boxes, np.array(labels, dtype=int), OBJECTS, np.array([0, 1, 2]))
    assert (judged.detections, judged.found) == (kinds, found)


def test_without_objects_all_detections_are_false():
    judged = judge(OBJECTS, np.zeros(3, dtype=int), np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int))
    assert (judged.detections, judged.found) == (['false'] * 3, [])


def picture(work_dir, run, name, step, shade):
    folder = work_dir / run / 'vis_data' / 'vis_image'
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (200, 100), (shade,) * 3).save(folder / f'{name}_{step}.png')


def shades(path):
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(image.convert('RGB').getpixel((20, 20))[0])
        return frames, image.size


@pytest.mark.parametrize('form', ['webp', 'gif', 'png'])
def test_plans_over_training_follow_the_steps_of_the_last_fresh_start(tmp_path, form):
    for step in (0, 1, 9):
        picture(tmp_path, '20240101_000000', 'plan_a_b', step, 10)
    for step, shade in ((0, 40), (2, 80), (10, 120)):
        picture(tmp_path, '20240102_000000', 'plan_a_b', step, shade)
    picture(tmp_path, '20240103_000000', 'plan_a_b', 10, 160)  # resumed
    picture(tmp_path, '20240103_000000', 'plan_a_b', 12, 200)
    picture(tmp_path, '20240103_000000', 'other', 1, 0)
    (written,) = join_plans(tmp_path, form, 100)
    assert written == tmp_path / f'plan_a_b.{form}'
    if form == 'png':
        with Image.open(written) as strip:
            assert strip.size == (200, 100)
            found = [strip.getpixel((x, y))[0] for y in (20, 70) for x in (20, 120)]
    else:
        found, size = shades(written)
        assert size == (100, 50)
    assert found == pytest.approx([40, 80, 160, 200], abs=3)


def test_a_run_without_pictures_of_plans_says_how_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match='holds no pictures of plans: train with custom_hooks=.*PlanVisualizationHook'):
        join_plans(tmp_path, 'webp', 100)


@pytest.mark.parametrize('statistics', [False, True])
def test_curves_have_a_panel_of_the_plan_only_where_it_was_logged(tmp_path, statistics):
    logged = dict(matched_mass=3.0, plan_entropy=0.2, unmatched_gts=0.1) if statistics else {}
    train = {epoch / 4: dict(loss=1 / (1 + epoch), **logged) for epoch in range(12)}
    draw_curves('epoch', train, {1.0: dict(mAP=0.02), 2.0: {}}, ['mAP'], tmp_path / 'curves.png')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == ((1716 if statistics else 1144), 440)
