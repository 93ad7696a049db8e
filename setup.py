"""Packaging of uotod_mmdet."""

import os
import platform
import re
import shutil
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
README = ROOT / 'README.md'
VERSION = re.search(r"__version__ = '([^']+)'", (ROOT / 'uotod_mmdet' / 'version.py').read_text(encoding='utf-8'))[1]

SOURCES = sorted((ROOT / 'uotod_mmdet' / 'csrc').iterdir())
# The compiled part is loaded by ctypes and knows nothing of Python, so that one build serves all Pythons.
ABI3 = not sysconfig.get_config_var('Py_GIL_DISABLED')  # setuptools refuses abi3 there
# Compiled where there is a compiler; without it everything works, more slowly.
NATIVE = Extension(
    'uotod_mmdet._native',
    sources=[str(path.relative_to(ROOT)) for path in SOURCES if path.suffix == '.cpp'],
    depends=[str(path.relative_to(ROOT)) for path in SOURCES if path.suffix == '.h'],
    # uotod_mmdet/ops/native.py does not load what was built from other sources.
    define_macros=[('UOTOD_SOURCES', str(zlib.crc32(b''.join(path.read_bytes() for path in SOURCES))))],
    extra_compile_args=[
        '-std=c++17',
        '-O3',
        '-fno-math-errno',
        '-fno-trapping-math',
        '-Wno-psabi',
        *(['-mavx2', '-mfma'] if platform.machine() in ('x86_64', 'AMD64') else []),
        *(['-fopenmp'] if sys.platform == 'linux' else []),
    ],
    extra_link_args=['-fopenmp'] if sys.platform == 'linux' else [],
    optional=True,
    py_limited_api=ABI3,
)


class BuildWithConfigs(build_py):
    """Puts into the package what `mim` looks for: .mim with configs, tools and their index."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them
            return
        target = Path(self.build_lib) / 'uotod_mmdet' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        # Without the tools that need a checkout.
        skipped = shutil.ignore_patterns('__pycache__', 'benchmark*', 'check_*', 'setup_env*', 'study*')
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=skipped)
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='uotod_mmdet',
    version=VERSION,
    description='Optimal-transport matching and quality-aware losses for MMDetection 3.x',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Programming Language :: Python :: 3',
        'Operating System :: POSIX',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['uotod_mmdet', 'uotod_mmdet.*']),
    package_data={'uotod_mmdet': ['py.typed', 'csrc/*']},
    # UOTOD_PURE=1 asks for a wheel without the compiled part, which installs on any system.
    ext_modules=[] if os.environ.get('UOTOD_PURE') == '1' else [NATIVE],
    options={'bdist_wheel': {'py_limited_api': 'cp310' if ABI3 else False}},
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.10',
    # torch, mmengine, mmcv and mmdet are needed but not listed here. The maintained forks onedl-mmengine, onedl-mmcv
    # and onedl-mmdetection bring the same modules under other distribution names, so pip would install the originals
    # over them. `import uotod_mmdet` checks that they are there and says which command fixes what is missing.
    install_requires=['numpy', 'scipy', 'packaging', 'filelock', 'tqdm'],
    extras_require={
        # Without mmcv: pip cannot build one with ops by itself; the error of `import uotod_mmdet` says how to get one.
        # mmengine needs pkg_resources, which later setuptools lack, to inherit from `mmdet::`.
        'mmdet': ['mmengine>=0.10.4,<1', 'mmdet>=3.3,<3.4', 'setuptools<81'],
        # Triton's interpreter runs the kernel for GPUs on a CPU; torch for GPUs brings the version that it needs.
        'tests': [
            *('pytest', 'pytest-xdist', 'POT', 'hypothesis'),
            'triton; sys_platform == "linux" and platform_machine == "x86_64"',
        ],
        # Bounded: each version of a formatter formats a little differently.
        'lint': ['ruff>=0.17,<0.18', 'mypy>=2.4,<2.5', 'clang-format>=23,<24'],
        'plots': ['matplotlib', 'tensorboard'],
        # Bounded: what warns fails the build, and each version warns of something else. ruff wraps signatures.
        'docs': [
            *('mkdocs>=1.6,<2', 'mkdocs-material>=9.6,<10', 'mkdocstrings>=1.0,<2', 'mkdocstrings-python>=2.0,<3'),
            *('nbconvert>=7.16,<8', 'ruff>=0.17,<0.18'),
        ],
    },
)
