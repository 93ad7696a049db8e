"""Compare detectors over seeds and data sets: ``run`` trains what is missing, ``report`` writes it up.

A study file (studies/*.py, see docs/studies.md) names arms, data sets, seeds and metrics. Each run ends as one line of
studies/results/<study>.jsonl. A stopped or killed ``run`` goes on where it was, and loses at most the runs in progress.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from study_file import ROOT, StudyError, check_names, load_study
from study_own_data import write_study
from study_pool import run_study
from study_report import write_report

WORK_DIR = ROOT / 'work_dirs' / 'study'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    run = commands.add_parser('run', help='train what is missing of a study')
    run.add_argument('study', type=Path, nargs='?', help='study file, such as studies/nms.py')
    run.add_argument(
        '--data',
        metavar='FOLDER',
        help='instead of a study: which strategy suits this COCO, Pascal VOC or YOLO folder?',
    )
    run.add_argument('--epochs', type=int, help='with --data: epochs of each run; default: by the number of images')
    run.add_argument('--seeds', type=int, nargs='+', help='with --data: seeds; default: 0 and 1, or 0 with folds')
    run.add_argument('--only', nargs='+', metavar='ARM', help='arms to run; default: all')
    run.add_argument('--jobs', type=int, help='runs at once; default: cores / threads, at most 8, or 1 with a GPU')
    run.add_argument('--threads', type=int, default=1, help='threads of each run (%(default)s)')
    run.add_argument('--retry-failed', action='store_true', help='do failed runs again')
    run.add_argument('--fresh', action='store_true', help='do runs of other versions of the code again')
    run.add_argument(
        '--work-dir', type=Path, default=WORK_DIR, help='folder for logs and checkpoints; default: work_dirs/study'
    )

    report = commands.add_parser('report', help='write evidence.md and its plots from the results')
    report.add_argument('studies', type=Path, nargs='*', help='study files; default: all of studies/')
    report.add_argument(
        '--out', type=Path, help='folder of evidence.md; default: docs for all studies, else work_dirs/study/report'
    )
    args = parser.parse_args()
    if args.command == 'run':
        if (args.study is None) == (args.data is None):
            run.error('give a study file or --data FOLDER')
        if args.data is None and (args.epochs or args.seeds):
            run.error('--epochs and --seeds go with --data; a study file has its own')
        for name in ('jobs', 'threads', 'epochs'):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                run.error(f'--{name} must be at least 1, got {getattr(args, name)}')
        if args.jobs is None:
            args.jobs = 1 if torch.cuda.is_available() else min(8, max(1, cores() // args.threads))
    return args


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run(args: argparse.Namespace) -> None:
    if args.data is not None:
        args.study = write_study(args.data, args.work_dir.absolute(), args.epochs, args.seeds)
    study = load_study(args.study)
    if args.only:
        check_names(args.only, study.arms, 'an arm', f'{study.path.name}, --only')
    run_study(study, args)
    if args.data is not None:
        page = write_report([study], args.study.parent / 'report')
        print(f'\n{page.read_text()}\nThis report: {page}')


def report(args: argparse.Namespace) -> None:
    paths = args.studies or sorted((ROOT / 'studies').glob('*.py'))
    # The page of some studies must not replace that of all.
    out = args.out or (WORK_DIR / 'report' if args.studies else ROOT / 'docs')
    print(write_report([load_study(path) for path in paths], out))


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: no run stays behind
    try:
        dict(run=run, report=report)[args.command](args)
    except StudyError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('Stopped; the same command goes on.')


if __name__ == '__main__':
    main()
