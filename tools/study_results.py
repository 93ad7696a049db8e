"""Results of studies: one JSON line a run, appended when it ends, and the code that made it."""

import ast
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tokenize
from pathlib import Path

from study_file import Run, Study, StudyError

import uotod_mmdet


def read_results(path: Path) -> tuple[list[dict], str]:
    """The lines of a results file, and what to tell the user of it.

    A last line without an end is what a killed process left: it is not a result. The file is not changed.

    Raises:
        StudyError: If another line is no JSON.
    """
    if not path.exists():
        return [], ''
    text = path.read_text()
    whole, _, rest = text.rpartition('\n')
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise StudyError(f'{path.name}, line {number} is no JSON ({error}): correct or remove it.') from error
    notice = f'{path.name} ended in half a line, which is dropped: that run is not done.' if rest else ''
    return lines, notice


def append_result(path: Path, line: dict) -> None:
    """Append a line, after cutting off half a line that a killed process left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_half_line(file)
        file.write(json.dumps(line, allow_nan=False).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())


def repair(path: Path) -> None:
    """Cut off half a line that a killed process left at the end of a results file."""
    if path.exists():
        with open(path, 'a+b') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_half_line(file)


def _cut_half_line(file: io.BufferedRandom) -> None:
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b'\n'):
        file.truncate(content.rfind(b'\n') + 1)
    file.seek(0, os.SEEK_END)


def sort_results(study: Study, lines: list[dict]) -> tuple[dict[Run, dict], list[dict]]:
    """The last result of each run of the study, and the lines that are of no run of it as it is now.

    Those are of other configs, arms, data sets or seeds than the study file has, or lack one of its curves.
    """
    runs = set(study.runs())
    present, others = {}, []
    for line in lines:
        run = Run(line['arm'], line['data'], line['seed'], line['fold'])
        if run in runs and line['config_hash'] == study.hashes[run.arm, run.data] and _is_whole(study, line):
            present[run] = line
        else:
            others.append(line)
    return present, others


def _is_whole(study: Study, line: dict) -> bool:
    """Whether a result has the study's curves, if it is one."""
    return line['status'] != 'done' or set(study.curves) <= line.get('curves', {}).keys()


def results_elsewhere(study: Study, runs: list[Run], data_hashes: dict[str, str]) -> list[dict]:
    """Lines of other studies beside this one that are of the same config, data, seed and fold as some of ``runs``.

    Each gets the names that this study has for the run, and ``taken_from``: the study that did the run.
    """
    found = {}
    for path in sorted(study.results.parent.glob('*.jsonl')):
        for line in read_results(path)[0] if path != study.results else []:
            if line['status'] == 'done' and set(study.metrics) <= line['final'].keys() and _is_whole(study, line):
                found[line['config_hash'], line.get('data_hash'), line['seed'], line['fold']] = line
    taken = []
    for run in runs:
        line = found.get((study.hashes[run.arm, run.data], data_hashes.get(run.data), run.seed, run.fold))
        if line is not None:
            names = dict(study=study.name, arm=run.arm, data=run.data)
            taken.append({**line, **names, 'taken_from': line.get('taken_from', line['study'])})
    return taken


def code_version() -> dict[str, str]:
    """Checksum of the package's sources, its version, and the commit where there is one."""
    digest = hashlib.sha256()
    package = Path(uotod_mmdet.__file__).parent
    for path in sorted([*package.rglob('*.py'), *package.rglob('csrc/*')]):
        if path.is_file():
            strip = _without_python_comments if path.suffix == '.py' else _without_cpp_comments
            digest.update(str(path.relative_to(package)).encode() + b'\0' + strip(path.read_text()).encode() + b'\0')
    git = subprocess.run(['git', 'rev-parse', '--short=10', 'HEAD'], cwd=package, capture_output=True, text=True)
    commit = dict(commit=git.stdout.strip()) if git.returncode == 0 else {}
    return dict(code=digest.hexdigest()[:12], version=uotod_mmdet.__version__, **commit)


def _without_python_comments(source: str) -> str:
    """The source without comments, docstrings and empty lines: the same text for every Python version."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        # A docstring, or one beside a variable, is an expression of one string.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[row] = ''
    return '\n'.join(line.rstrip() for line in lines if line.strip())


def _without_cpp_comments(source: str) -> str:
    source = re.sub(r'/\*.*?\*/', '', source, flags=re.DOTALL)
    lines = (re.sub(r'//.*', '', line).rstrip() for line in source.splitlines())
    return '\n'.join(line for line in lines if line)
