"""How benchmarks measure and report: time, peak memory, and tables of sides that take turns."""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

Calls = dict[str, Callable[[], object]]


def seconds(call: Callable[[], object], device: str) -> float:
    """How long one call takes."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def keep_memory() -> None:
    """Keep freed memory in the process: glibc would give it back during a later call, of any side."""
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_threshold, 1 << 25)


def peak_memory(call: Callable[[], object], device: str) -> float:
    """MB that one call needs at its highest beyond what is there before."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(name: str) -> int:
        (line,) = (line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)  # or what was freed before hides what is needed now
    Path('/proc/self/clear_refs').write_text('5')  # resets the highest resident size
    before = status('VmRSS')
    call()
    return (status('VmHWM') - before) / 2**10


def compare(title: str, calls: Calls, args: argparse.Namespace) -> None:
    """Measure the calls, taking turns, and print and keep a table; ratios are to the first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(args.repeats), desc=title, leave=False, disable=None):
        for name, call in calls.items():
            call(), call()
            times[name].append(1e3 * seconds(call, args.device))
    rows = {name: dict(median_ms=statistics.median(times[name])) for name in calls}
    base = next(iter(rows.values()))
    lines = [
        f'### {title}',
        '',
        '| | median ms | quartiles | times faster | peak MB | times less |',
        '|' + ' --- |' * 6,
    ]
    for name, call in calls.items():
        row, quarters = rows[name], statistics.quantiles(times[name], n=4)
        row.update(low_ms=quarters[0], high_ms=quarters[2], peak_mb=peak_memory(call, args.device))
        row.update(
            times_faster=base['median_ms'] / row['median_ms'], times_less=base['peak_mb'] / max(row['peak_mb'], 0.1)
        )
        lines.append(
            '| {} | {median_ms:.1f} | {low_ms:.1f} - {high_ms:.1f} | {times_faster:.2f} | {peak_mb:.1f} '
            '| {times_less:.1f} |'.format(name, **row)
        )
    keep(title, rows, lines, args)


def keep(title: str, numbers: object, lines: list[str], args: argparse.Namespace) -> None:
    print('\n'.join(lines) + '\n', flush=True)
    args.lines.extend([*lines, ''])
    args.numbers[title] = numbers
