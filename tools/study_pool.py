"""Run a study: several processes at once, a progress bar, and each result kept as soon as it is there."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from study_data import write_files
from study_file import ROOT, Run, Study, StudyError
from study_results import append_result, code_version, read_results, repair, results_elsewhere, sort_results
from tqdm import tqdm

import uotod_mmdet

POLL_SECONDS = 0.2


class Job:
    """A run in a process of its own, with its folder."""

    def __init__(self, study: Study, run: Run, folder: Path, threads: int) -> None:
        self.run, self.folder = run, folder / run.folder
        self.threads = study.arms[run.arm].get('threads') or threads
        self.begin = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        fold = [] if run.fold is None else ['--fold', str(run.fold)]
        command = [sys.executable, str(ROOT / 'tools/study_run.py'), str(study.path), run.arm, run.data, str(run.seed)]
        command += [*fold, '--work-dir', str(self.folder), '--threads', str(self.threads)]
        command += ['--parent', str(os.getpid())]
        package = Path(uotod_mmdet.__file__).parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get('PYTHONPATH')]))
        with open(self.folder / 'log.txt', 'w') as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=dict(os.environ, OMP_NUM_THREADS=str(self.threads), PYTHONPATH=path),
                start_new_session=True,  # Ctrl-C reaches study.py alone, which ends the run with its data loaders
            )

    def progress(self) -> float:
        """The part of the training that is done."""
        try:
            return float((self.folder / 'progress').read_text())
        except (FileNotFoundError, ValueError):
            return 0.0

    def result(self) -> dict:
        """What the ended run wrote, or how it ended if it wrote nothing."""
        file = self.folder / 'result.json'
        if file.exists():
            return json.loads(file.read_text())
        code = self.process.returncode
        how = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with status {code}'
        hint = ', maybe for want of memory' if code == -signal.SIGKILL else ''
        return dict(status='failed', reason=f'the process {how}{hint}')

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def only_one(study: Study, folder: Path) -> Iterator[None]:
    """Hold the study, so that no second process does the same runs; the end of the process frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f'{study.name} is being run by another process; wait for it, or stop it.') from None
        yield


def to_do(study: Study, present: dict[Run, dict], code: str, args: argparse.Namespace) -> list[Run]:
    """The runs that are missing, in the study's order."""

    def is_done(run: Run) -> bool:
        line = present.get(run)
        if line is None or (args.fresh and line['code'] != code):
            return False
        return line['status'] == 'done' or not args.retry_failed

    return [run for run in study.runs() if not is_done(run) and run.arm in (args.only or study.arms)]


def run_study(study: Study, args: argparse.Namespace) -> None:
    """Do the runs that are missing.

    Raises:
        StudyError: If another process does this study, or its results or data cannot be read.
    """
    folder = args.work_dir.absolute() / study.name
    with only_one(study, folder):
        lines, notice = read_results(study.results)
        if notice:
            print(notice)
            repair(study.results)
        present, others = sort_results(study, lines)
        code = code_version()
        hashes = _prepare_data(study, to_do(study, present, code['code'], args), folder)
        changed = [
            run for run, line in present.items() if line.get('data_hash') != hashes.get(run.data, line.get('data_hash'))
        ]
        if changed:
            print(f'{len(changed)} results are of other images or boxes than the data folders hold now: run anew.')
        present = {run: line for run, line in present.items() if run not in changed}
        runs = to_do(study, present, code['code'], args)
        for line in [] if args.fresh else results_elsewhere(study, runs, hashes):
            append_result(study.results, line)
            run = Run(line['arm'], line['data'], line['seed'], line['fold'])
            present[run] = line
            runs.remove(run)
            print(f'{run}: AP {line["final"]["AP"]:.3f}, done by the study {line["taken_from"]}')
        if others:
            print(f'{len(others)} results are of other configs than the study has now, and are left out.')
        older = sum(line['code'] != code['code'] for line in present.values())
        if older and not args.fresh:
            print(f'{older} results are of other versions of the code; --fresh does these runs again.')
        failed = sum(line['status'] == 'failed' for line in present.values())
        if failed and not args.retry_failed:
            print(f'{failed} runs failed; --retry-failed does these again.')
        if not runs:
            print(f'{study.name}: nothing left to do.')
            return
        _run_all(study, runs, code, hashes, folder, args)


def _prepare_data(study: Study, runs: list[Run], folder: Path) -> dict[str, str]:
    """Write the annotation files of the data folders; their checksums. A folder that no run needs may be missing."""
    needed, hashes = {run.data for run in runs}, {}
    for name, data in study.data.items():
        if 'folder' in data and (name in needed or Path(os.path.expandvars(data['folder'])).is_dir()):
            words, hashes[name] = write_files(data, folder / 'data' / name)
            print(words, flush=True)
    return hashes


def _run_all(
    study: Study, runs: list[Run], code: dict, hashes: dict[str, str], folder: Path, args: argparse.Namespace
) -> None:
    waiting, going, done = list(runs), [], 0
    layout = '{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total} runs, {elapsed}, left {remaining}'
    # Over a file a line now and then; smoothing=0: the mean speed of all runs tells the time left best.
    interval = 0.5 if sys.stderr.isatty() else 60
    with tqdm(total=len(runs), desc=study.name, bar_format=layout, smoothing=0, mininterval=interval) as bar:
        try:
            while waiting or going:
                while waiting and len(going) < args.jobs:
                    going.append(Job(study, waiting.pop(0), folder, args.threads))
                time.sleep(POLL_SECONDS)
                for job in [job for job in going if job.process.poll() is not None]:
                    going.remove(job)
                    done += 1
                    line = _keep(study, job, hashes.get(job.run.data), code)
                    tqdm.write(_tell(job, line, done, len(runs)), file=sys.stdout)
                    sys.stdout.flush()
                bar.update(done + sum(job.progress() for job in going) - bar.n)
        finally:
            for job in going:
                job.kill()


def _keep(study: Study, job: Job, data_hash: str | None, code: dict) -> dict:
    """Append the result of an ended run; its own config and code are those it read, if it came so far."""
    run = job.run
    read = dict(config_hash=study.hashes[run.arm, run.data], data_hash=data_hash, **code)
    line = dict(
        study=study.name,
        arm=run.arm,
        data=run.data,
        seed=run.seed,
        fold=run.fold,
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        threads=job.threads,
        **{**read, **job.result()},
    )
    append_result(study.results, line)
    return line


def _tell(job: Job, line: dict, done: int, total: int) -> str:
    took = f'{time.monotonic() - job.begin:.0f} s, {done} of {total}'
    if line['status'] == 'failed':
        return f'{job.run}: FAILED, {line["reason"]} ({took}; log: {job.folder / "log.txt"})'
    return f'{job.run}: AP {line["final"]["AP"]:.3f} ({took})'
