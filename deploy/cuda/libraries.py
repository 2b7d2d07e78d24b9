#!/usr/bin/env python3
"""Builds stand-ins for the CUDA libraries that candle links, such as libcuda.a, in a folder.

The first call of each function opens the real library and forwards the call. A binary linked with
the stand-ins therefore starts on any machine, and needs the driver only to use a GPU. If a library
is missing, its functions return one of its error codes, and the reason is printed once.

usage: libraries.py FOLDER

Run it in the project's folder: the functions are those that the project's cudarc declares. Needs
x86-64 Linux.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple


class Library(NamedTuple):
    name: str  # linked as -lNAME
    prefix: str  # prefix of its functions
    file: str  # file name of the real library
    missing: int  # error code that its functions return if the library is missing


# Longer prefixes first: a function belongs to the first library whose prefix it has.
LIBRARIES = [
    Library("cublasLt", "cublasLt", "libcublasLt.so.13", 1),
    Library("cublas", "cublas", "libcublas.so.13", 1),
    Library("curand", "curand", "libcurand.so.10", 203),
    Library("nvrtc", "nvrtc", "libnvrtc.so.13", 7),
    Library("cuda", "cu", "libcuda.so.1", 100),
]
MODULES = ["driver", "cublas", "cublaslt", "curand", "nvrtc"]

FINDER = """
#include <dlfcn.h>
#include <stdio.h>
static const char *const names[] = {NAMES};
__attribute__((visibility("hidden"))) void *LIB_functions[COUNT];
static long missing(void) { return MISSING; }
__attribute__((visibility("hidden"), used)) void *LIB_find(long index) {
    static void *library;
    static int reported;
    if (!library) library = dlopen("FILE", RTLD_NOW | RTLD_LOCAL);
    void *function = library ? dlsym(library, names[index]) : 0;
    if (!function) {
        const char *reason = dlerror();
        if (!__atomic_exchange_n(&reported, 1, __ATOMIC_RELAXED)) fprintf(stderr, "%s\\n", reason);
        function = (void *)missing;
    }
    __atomic_store_n(&LIB_functions[index], function, __ATOMIC_RELEASE);
    return function;
}
"""

# Saves the caller's arguments (six integer and eight float registers), finds the function, restores
# the arguments, and jumps to the function. Arguments on the stack stay in place.
FIRST_CALL = """
.text
LIB_first_call:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %r8
    pushq %r9
    pushq %rax
    subq $136, %rsp
SAVE
    movq 192(%rsp), %rdi
    call LIB_find
    movq %rax, %r11
RESTORE
    addq $136, %rsp
    popq %rax
    popq %r9
    popq %r8
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    addq $8, %rsp
    jmp *%r11
.section .note.GNU-stack,"",@progbits
.text
"""

FUNCTION = """
.globl NAME
.type NAME, @function
NAME:
    movq LIB_functions+OFFSET(%rip), %r11
    testq %r11, %r11
    je 0f
    jmp *%r11
0:
    pushq $INDEX
    jmp LIB_first_call
.size NAME, .-NAME
"""


def filled(template: str, **values: object) -> str:
    for name, value in values.items():
        template = template.replace(name, str(value))
    return template


def declared() -> list[str]:
    """Returns the functions of these libraries that the project's cudarc declares."""
    command = ["cargo", "metadata", "--format-version=1", "--features=cuda"]
    metadata = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    packages = json.loads(metadata)["packages"]
    [manifest] = [package["manifest_path"] for package in packages if package["name"] == "cudarc"]
    sources = [pathlib.Path(manifest).parent / "src" / module / "sys/mod.rs" for module in MODULES]
    pattern = re.compile(r"\bfn ((?:cu[A-Z]|cublas|curand|nvrtc)\w*)")
    return sorted({name for source in sources for name in pattern.findall(source.read_text())})


def write(library: Library, functions: list[str], folder: pathlib.Path) -> None:
    names = ", ".join(f'"{name}"' for name in functions) or "0"
    finder = filled(
        FINDER,
        NAMES=names,
        COUNT=max(len(functions), 1),
        MISSING=library.missing,
        FILE=library.file,
        LIB=library.name,
    )
    moves = [f"    movups %xmm{i}, {16 * i}(%rsp)" for i in range(8)]
    back = [f"    movups {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    assembly = filled(
        FIRST_CALL, SAVE="\n".join(moves), RESTORE="\n".join(back), LIB=library.name
    )
    assembly += "".join(
        filled(FUNCTION, NAME=name, OFFSET=8 * i, INDEX=i, LIB=library.name)
        for i, name in enumerate(functions)
    )
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for name, text in (("finder.c", finder), ("functions.s", assembly)):
            source = pathlib.Path(scratch) / f"{library.name}_{name}"
            source.write_text(text)
            objects.append(source.with_suffix(".o"))
            subprocess.run(["cc", "-O2", "-fPIC", "-c", source, "-o", objects[-1]], check=True)
        archive = folder / f"lib{library.name}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", archive, *objects], check=True)


def main() -> None:
    [folder] = map(pathlib.Path, sys.argv[1:])
    left = declared()
    for library in LIBRARIES:
        functions = [name for name in left if name.startswith(library.prefix)]
        left = [name for name in left if name not in functions]
        write(library, functions, folder)
    if left:
        sys.exit(f"libraries.py: no library for {', '.join(left)}; add its prefix to LIBRARIES")


main()
