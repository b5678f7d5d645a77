"""Builds ``hscc_kernels._C`` where torch and a C++ compiler are at hand; installs the pure-Python part elsewhere."""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import subprocess
import sys

from setuptools import setup


def find_torch() -> bool:
    """Whether torch can be imported; inside pip's isolated build, the torch of the environment outside counts."""
    try:
        import torch
    except ImportError:
        outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
        find = "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))"
        found = subprocess.run([sys.executable, "-c", find], env=outside, capture_output=True, text=True)
        if found.returncode != 0:
            return False
        sys.path.append(found.stdout.strip().splitlines()[-1])  # last: the build's own setuptools wins
        try:
            import torch  # noqa: F401
        except ImportError:
            return False
    return True


def why_not() -> str | None:
    """Why the extension cannot be built here, or None."""
    if os.environ.get("HSCC_BUILD_CPP") == "0":
        return "HSCC_BUILD_CPP=0"
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not find_torch():
        return "torch is not installed"
    return None


def extension() -> dict:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    flags = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += shlex.split(os.environ.get("HSCC_CXXFLAGS", ""))
    sources = sorted(glob.glob("csrc/*.cpp") + glob.glob("csrc/cpu/*.cpp"))
    headers = sorted(glob.glob("csrc/**/*.h", recursive=True))
    module = CppExtension(
        "hscc_kernels._C",
        sources,
        depends=headers,
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args=flags,
        extra_link_args=shlex.split(os.environ.get("HSCC_LDFLAGS", "")),
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


reason = why_not()
if reason is not None:
    print(f"hscc: {reason}: installing without the C++ kernels; the others still work", file=sys.stderr)
setup(**({} if reason else extension()))
