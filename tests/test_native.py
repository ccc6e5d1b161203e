"""The C++ library: that it builds or says why not, that no memory is misread, threads, forks and other processors."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import hatch_build
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import vqkit
from tests.absent import absent
from tests.command import ENVIRONMENT
from tests.native import driver
from tests.native.cases import Case, cases
from tests.native.paths import library_paths, take, threads
from tests.zoo import vectors
from vqkit.functional import chunked, native, nearest_codes
from vqkit.functional.quantize import quantize

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1")
CROSS = ("aarch64-linux-gnu-g++", "qemu-aarch64")


@pytest.fixture(scope="module")
def every() -> list[Case]:
    return list(cases())


@pytest.fixture(scope="module")
def written(every: list[Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("cases") / "cases"
    return path, driver.write(path, every)


# --- right, and the same for any number of threads ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["avx2", "portable", "chunked"])
def test_every_case(path: str, every: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    take(path, monkeypatch)
    for case in every:
        z, codebook = torch.from_numpy(case.z), torch.from_numpy(case.codebook)
        for count in (1, 2, 3) if path != "chunked" else (1,):
            with threads(count):
                if case.expected is None:
                    with pytest.raises(ValueError, match=r"holds NaN or infinity in"):
                        nearest_codes(z, codebook)
                else:
                    wrong = int((nearest_codes(z, codebook).numpy() != case.expected).sum())
                    assert wrong == 0, f"{wrong} of {len(z)} wrong on {count} threads: {case.name}"


def test_sizes_at_which_work_is_shared_out() -> None:
    """Vectors over threads, or, where they are few, codes; any split of the batch; PyTorch's answers are the same."""
    for n, codes in ((3000, 200), (500, 1000), (40, 5000)):
        z, codebook = 1.0 + 1e-4 * vectors(n, 12), 1.0 + 1e-4 * vectors(codes // 2, 12, seed=1).repeat(2, 1)
        expected = chunked.nearest(z, codebook)
        for path in library_paths():
            for count in (1, 2, 3):
                with threads(count):
                    assert torch.equal(native.nearest(z, codebook, path), expected), (path, count)
                    for size in (1, 17, n // 2):
                        some = z[: 9 * size]
                        found = torch.cat([native.nearest(part, codebook, path) for part in some.split(size)])
                        assert torch.equal(found, expected[: len(some)]), (path, count, size)


def test_two_threads_find_codes_that_are_equally_near() -> None:
    """The lowest index wins, whichever thread found it: of 192 codes 30, 100 and 190 lie about the vectors."""
    codebook = 10 + vectors(192, 5)
    codebook[[30, 100, 190]] = torch.eye(5)[[0, 1, 0]] * torch.tensor([[1.0], [1.0], [-1.0]])
    z = torch.zeros(3, 5)
    z[2, 0] = -1e-3
    for path in library_paths():
        for count in (1, 2, 3):
            with threads(count):
                assert native.nearest(z, codebook, path).tolist() == [30, 30, 190]


# --- what a caller may hand over ----------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the mode is of x86")
def test_a_process_that_flushes_subnormal_numbers(every: list[Case]) -> None:
    tiny = [case for case in every if case.name.startswith(("float32 about 1e-", "float64 about 1e-"))]
    for flush in (True, False):  # first, as whoever was asked for no subnormals must still have none afterwards
        assert torch.set_flush_denormal(flush)
        try:
            for case in tiny:
                for path in library_paths():
                    for count in (1, 3):
                        with threads(count):
                            found = native.nearest(torch.from_numpy(case.z), torch.from_numpy(case.codebook), path)
                        assert found.numpy().tolist() == case.expected.tolist(), (case.name, path, flush)
            assert bool(torch.tensor(1e-40) * 1 == 0) == flush, "the search changed how its caller computes"
        finally:
            torch.set_flush_denormal(False)


def test_a_codebook_elsewhere_is_an_error_and_no_crash() -> None:
    """Meta stands for any device: memory of another is not to be read."""
    with pytest.raises((RuntimeError, ValueError), match=r"device"):
        nearest_codes(torch.zeros(2, 3), torch.zeros(4, 3, device="meta"))


def test_a_sign_that_pytorch_has_not_written_yet() -> None:
    z = torch.imag(torch.tensor([[1 + 2j]]).conj())
    assert z.is_neg() and z.is_contiguous()
    assert nearest_codes(z, torch.tensor([[2.0], [-2.0]])).tolist() == [1]
    assert nearest_codes(torch.full((1, 1), -2.0), z.expand(3, 1)).tolist() == [0]


def test_transforms_and_graphs_hold_the_search() -> None:
    """Eager calls skip PyTorch's dispatcher; whoever records or transforms must not find the short cut."""
    codes = vectors(9, 3)
    z, other = vectors(5, 3, seed=1), vectors(50, 3, seed=2)
    expected = nearest_codes(other, codes)
    gradient = torch.func.grad(lambda z: (z * nearest_codes(z, codes)[:, None]).sum())(other)
    assert torch.equal(gradient, expected[:, None].expand(-1, 3).float())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jit.trace is old, and that it cannot see what depends on data
        traced = torch.jit.trace(lambda z: nearest_codes(z, codes), z)
    assert torch.equal(traced(other), expected)

    class Encode(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return nearest_codes(z, codes)

    program = torch.export.export(Encode(), (z,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert [node.target for node in program.graph.nodes if "nearest" in str(node.target)] == [
        torch.ops.vqkit.nearest_codes.default
    ]
    assert torch.equal(program.module()(other), expected)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(nearest_codes, fullgraph=True, dynamic=True, backend=backend)
    for n in (5, 50, 17):
        assert torch.equal(compiled(other[:n], codes), expected[:n])
    assert len(graphs) == 1, "compiled once for each batch size"
    assert "torch.ops.vqkit.nearest_codes" in graphs[0].code


# --- processes ----------------------------------------------------------------------------------------------------

START = """
import os, torch
from vqkit.functional import native, nearest_codes
running = lambda: len(os.listdir("/proc/self/task"))
generator = torch.Generator().manual_seed(0)
z, codes = (torch.randn(n, 32, generator=generator) for n in (4096, 300))

"""
AFTER_A_SEARCH = """
torch.set_num_threads(1)
nearest_codes(z[:1], codes)
before = running()
expected = nearest_codes(z, codes)
assert running() == before, "one thread was allowed"
torch.set_num_threads(3)
assert torch.equal(nearest_codes(z, codes), expected)
assert running() == before + 2, f"three threads were allowed, {running() - before} were started"

class Codes(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return nearest_codes(z, codes)
loader = torch.utils.data.DataLoader(Codes(), batch_size=None, num_workers=2, multiprocessing_context="fork")
assert all(torch.equal(indices, expected) for indices in loader)

child = os.fork()
if child == 0:
    right = torch.get_num_threads() == 3 and torch.equal(nearest_codes(z, codes), expected)
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if torch.equal(nearest_codes(z[:300], codes), expected[:300]) else 1)
    os._exit(0 if right and os.waitpid(grandchild, 0)[1] == 0 else 1)
assert os.waitpid(child, 0)[1] == 0, "a forked child finds other codes"
assert torch.equal(nearest_codes(z, codes), expected)
print("same")
"""
BEFORE_ANY_SEARCH = """
torch.set_num_threads(2)
(z @ z.T).exp()
assert running() > 1, "PyTorch has threads of its own"
child = os.fork()
if child == 0:
    os._exit(0 if len(nearest_codes(z, codes)) == len(z) else 1)
assert os.waitpid(child, 0)[1] == 0
print("same")
"""
FLUSHED = """
from vqkit import reference
z, codes = 1e-40 * z[:40, :3], 1e-40 * codes[:, :3]
expected = reference.nearest(z.double().numpy(), codes.double().numpy()).tolist()
torch.set_flush_denormal(True)
torch.set_num_threads(2)
(torch.ones(2000, 2000) + 1).exp()  # starts threads, which flush as their parent does
assert nearest_codes(z, codes).tolist() == expected
print("same")
"""
PROGRAMS = {"after a search": AFTER_A_SEARCH, "before any search": BEFORE_ANY_SEARCH, "flushed": FLUSHED}


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
        start_new_session=True,
    ) as running:
        try:
            out, err = running.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # the children that hang, too
            out, err = running.communicate()
            err += "it hangs"
    return subprocess.CompletedProcess(command, running.returncode, out, err)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc, and forks")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_threads_are_as_many_as_pytorch_was_told_and_forked_processes_search(program: str) -> None:
    """After threads were used, in a DataLoader's worker, in a bare child and in its child: none may hang.

    Nor may it matter in which mode of the processor those threads were started.
    """
    library_paths()
    done = _python(START + program, OMP_NUM_THREADS="2")
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr


MEMORY = """
import resource, torch
from vqkit.functional import native
generator = torch.Generator().manual_seed(0)
z, codes = (torch.randn(n, 8, generator=generator) for n in (4096, 65536))
codes[-4096:] = codes[:4096]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for threads in (1, 2):
    torch.set_num_threads(threads)
    for some in (z, z[:100], codes[:4096]):
        native.nearest(some[:1], codes[:1], native.instructions())
        before = peak()
        native.nearest(some, codes, native.instructions())
        extra = (peak() - before) / 2**20
        assert extra < 16, f"{extra:.0f} MiB"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux has it")
def test_memory_is_a_few_bytes_for_each_vector_and_code() -> None:
    """Law 20 of what no profiler of PyTorch sees. All distances would be 1 GiB, a byte for each pair 256 MiB."""
    library_paths()
    done = _python(MEMORY)
    assert done.returncode == 0, done.stderr


def test_a_package_without_the_library_says_so_once_and_searches(tmp_path: Path) -> None:
    here = Path(vqkit.__file__).parent
    shutil.copytree(here, tmp_path / "vqkit", ignore=shutil.ignore_patterns("libvqkit*", "__pycache__"))
    program = (
        "import torch, vqkit; from vqkit.functional import nearest_codes; print(vqkit.__file__)\n"
        "codes = torch.arange(8.0).view(4, 2)\n"
        "for _ in range(3): print(nearest_codes(codes.flip(0) + 0.1, codes).tolist())\n"
        "z_q, indices, losses = vqkit.VectorQuantizer(dim=2, codebook_size=4)(codes.requires_grad_())\n"
        "losses.total.backward()"
    )
    done = _python(program, PYTHONPATH=str(tmp_path))
    assert done.stdout == f"{tmp_path / 'vqkit' / '__init__.py'}\n" + 3 * "[3, 2, 1, 0]\n", done.stderr
    assert done.stderr.startswith("vqkit searches with PyTorch, ") and done.stderr.count("\n") == 1


def test_the_library_says_once_what_it_was_built_for(caplog: pytest.LogCaptureFixture) -> None:
    best = library_paths()[0]
    native.instructions.cache_clear()
    with caplog.at_level(logging.INFO, "vqkit"):
        for _ in range(2):
            nearest_codes(vectors(2, 3), vectors(2, 3))
    assert [record.message for record in caplog.records if best in record.message] == [
        f"vqkit searches with its C++ library, built for {best}."
    ]


def test_the_library_is_of_these_sources() -> None:
    """Otherwise the tests would be of other ones: `python hatch_build.py` builds it."""
    library = ctypes.CDLL(str(hatch_build.LIBRARY))
    library.vqkit_sources.restype = ctypes.c_char_p
    assert library.vqkit_sources().decode() == hatch_build.digest()


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64])
def test_what_a_step_does_with_every_vector(dim: int) -> None:
    """In one pass what NumPy says in float64; 2,500 vectors are three blocks, 40 of the codes for two threads."""
    if not library_paths():
        absent("the C++ library is not built")
    z, codes = vectors(2500, dim), vectors(40, dim, seed=1)
    indices = torch.randint(40, (2500,), generator=torch.Generator().manual_seed(2))
    residual = z.double().numpy() - codes.double().numpy()[indices]
    sums, counts = np.zeros((40, dim)), np.bincount(indices, minlength=40)
    np.add.at(sums, indices.numpy(), residual)
    for count in (1, 2):
        with threads(count):
            z_q, found, squares = native.look_up(z, codes, indices)
            counted, summed = torch.zeros(40), torch.zeros(40, dim)
            native.add_by_code(found, indices, counted, summed)
        assert torch.equal(z_q, codes[indices]) and torch.equal(found, z - codes[indices])
        np.testing.assert_allclose(squares, np.square(residual).sum(), rtol=1e-6)
        np.testing.assert_array_equal(counted.numpy(), counts)
        np.testing.assert_allclose(summed.numpy(), sums, atol=1e-4)
    for outside in (-1, 40):
        with pytest.raises(IndexError, match=r"outside 0\.\.39"):
            native.look_up(z[:1], codes, torch.tensor([outside]))


# --- where memory must not be read --------------------------------------------------------------------------------


def test_a_default_device_changes_nothing() -> None:
    z, codes = vectors(20, 3), vectors(7, 3, seed=1)
    expected = nearest_codes(z, codes)
    with torch.device("meta"):
        assert torch.equal(nearest_codes(z, codes), expected)
        z_q, indices, _ = vqkit.VectorQuantizer(3, 7, start=vqkit.Given(codes.numpy())).to_empty(device="cpu")(z)
    assert z_q.device.type == indices.device.type == "cpu"


def test_who_records_operations_sees_the_search() -> None:
    z, codes = vectors(20, 3), vectors(7, 3, seed=1)
    graph = make_fx(lambda z: nearest_codes(z, codes))(vectors(20, 3, seed=2))
    assert torch.equal(graph(z), nearest_codes(z, codes))


def test_indices_of_any_layout_name_the_same_codes() -> None:
    z, codes, some = vectors(6, 3), vectors(9, 3, seed=1), torch.tensor([8, 0, 3, 3, 1, 7])
    for indices in (some, torch.stack([some, some + 100], 1)[:, 0], some.int()):
        assert torch.equal(quantize(z, codes, indices, vqkit.StraightThrough(), 0.25)[0], codes[some])


def test_pytorch_counts_codes_beyond_what_float32_can() -> None:
    codes = torch.zeros(2**24 + 8, 1)
    codes[-3] = 1
    assert chunked.nearest(torch.ones(1, 1), codes).tolist() == [2**24 + 5]


# --- builds -------------------------------------------------------------------------------------------------------


def test_without_a_compiler_the_install_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hatchling hands a hook its application, of which this one uses a method that shows warnings."""
    for compiler, said in (("/nonexistent/c++", "/nonexistent/c++: No such file"), ("false", "false -")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(hatch_build.NotBuilt, match=re.escape(said)):
            hatch_build.build(tmp_path / "libvqkit.so")
        assert not list(tmp_path.iterdir())
        warnings: list[str] = []

        class App:
            display_warning = staticmethod(warnings.append)

        hook = hatch_build.Hook.__new__(hatch_build.Hook)
        monkeypatch.setattr(hatch_build.Hook, "app", App(), raising=False)
        monkeypatch.setattr(hatch_build, "LIBRARY", tmp_path / "of-other-sources.so")
        hatch_build.LIBRARY.touch()
        data: dict[str, object] = {"artifacts": []}
        hook.initialize("standard", data)
        assert not hatch_build.LIBRARY.exists()
        assert data == {"artifacts": []}
        assert len(warnings) == 1 and said in warnings[0]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(hatch_build.NotBuilt, match=r"none of c\+\+, g\+\+ and clang\+\+"):
        hatch_build.build(tmp_path / "libvqkit.so")


def test_no_memory_is_misread_and_nothing_is_undefined(written: tuple[Path, list[str]], tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer over all cases, each in memory of exactly its size."""
    path, names = written
    executable = driver.compiled(tmp_path, SANITIZERS)
    for instructions in library_paths():
        assert not (said := driver.faults([str(executable), str(path), instructions], names)), said


def test_on_arm(written: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The portable path as NEON, on an emulated processor."""
    if missing := [tool for tool in CROSS if not shutil.which(tool)]:
        pytest.skip(f"no {' and no '.join(missing)}")
    path, names = written
    executable = driver.compiled(tmp_path, (), CROSS[0])
    command = [CROSS[1], "-L", "/usr/aarch64-linux-gnu", str(executable), str(path), "portable"]
    assert not (said := driver.faults(command, names)), said
